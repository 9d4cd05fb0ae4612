"""The local shelf: exclusive, synced, and inside its folder whatever lies there."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from omniq_conformance.nursery import start
from omniq_core import Capability, ErrorCode, Loss, OptionError, Severity, TaskRecord
from omniq_file import FileBackend
from omniq_file.shelves import local
from omniq_file.shelves.local import LocalShelf
from omniq_file.shelves.turn import Turn

Test = Callable[[LocalShelf], Awaitable[None]]


def on_shelf(path: Path, test: Test, **settings: Any) -> None:
    async def main() -> None:
        shelf = LocalShelf(str(path), **settings)
        await shelf.open(create=True)
        try:
            await test(shelf)
        finally:
            await shelf.close()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.fixture(params=["unnamed", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways of writing: with O_TMPFILE, and where the file system has no such thing."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return request.param  # type: ignore[no-any-return]


def test_a_file_is_created_once_read_in_part_listed_and_deleted(tmp_path: Path, way: str) -> None:
    async def test(shelf: LocalShelf) -> None:
        assert await shelf.read("a/b/1") is None
        assert await shelf.create("a/b/1", b"0123456789")
        assert not await shelf.create("a/b/1", b"other")
        assert await shelf.read("a/b/1") == b"0123456789"
        assert await shelf.read("a/b/1", start=3, length=4) == b"3456"
        assert await shelf.read("a/b/1", start=8, length=40) == b"89"
        assert await shelf.read("a/b/1", start=40) == b""
        assert await shelf.create("a/b/2", b"")
        assert await shelf.read("a/b/2") == b""
        for name in ("a/c", "a/b-c", "a/d/e/f", "ab"):
            await shelf.create(name, b"")
        every = ["a/b-c", "a/b/1", "a/b/2", "a/c", "a/d/e/f"]
        assert list(await shelf.list("a")) == every
        for index, after in enumerate(every):
            assert list(await shelf.list("a", after=after)) == every[index + 1 :]
        assert list(await shelf.list("a", limit=2)) == every[:2]
        assert list(await shelf.list("nothing")) == []
        await shelf.delete(["a/b/1", "a/b/2", "a/nothing", "nowhere/x", "a/d/e/f"])
        assert list(await shelf.list("a")) == ["a/b-c", "a/c"]
        assert await shelf.create("a/d/e/f", b"again")

    on_shelf(tmp_path / "s", test)
    assert not list((tmp_path / "s").rglob("tmp/*"))


def test_a_folder_that_was_tidied_away_is_made_again(tmp_path: Path, way: str) -> None:
    async def test(shelf: LocalShelf) -> None:
        other = LocalShelf(str(tmp_path / "s"))
        await other.open(create=False)
        await shelf.create("t/log/1/x", b"1")
        assert await other.read("t/log/1/x") == b"1"
        await shelf.delete(["t/log/1/x"])
        assert not (tmp_path / "s/t/log/1").exists()
        assert await other.read("t/log/1/x") is None
        await shelf.create("t/log/1/y", b"2")
        assert await other.read("t/log/1/y") == b"2"
        await shelf.delete(["t/log/1/y"])
        assert await other.create("t/log/1/z", b"3")
        assert await shelf.read("t/log/1/z") == b"3"
        await other.close()

    on_shelf(tmp_path / "s", test)


RACER = f"{Path(__file__).with_name('racer.py')}:main"


def test_of_four_processes_one_creates_each_name(tmp_path: Path) -> None:
    code = (
        "from omniq_file.shelves.local import LocalShelf\n"
        f"shelf = LocalShelf({str(tmp_path / 's')!r}, fsync=False)"
    )
    with ExitStack() as stack:
        racers = [stack.enter_context(start(RACER, code, str(index), 400)) for index in range(4)]
        for racer in racers:
            assert racer.stdout.readline() == b"ready\n"
        for racer in racers:
            racer.stdin.write(b"\n")
        won = [racer.stdout.read().decode().split() for racer in racers]
    assert sorted(int(number) for mine in won for number in mine) == list(range(400))
    for index, mine in enumerate(won):
        assert all((tmp_path / "s/race" / number).read_text() == str(index) for number in mine)


# --- the disk --------------------------------------------------------------------------------------------------------


class Disk:
    """Notes what is done, in order, with the names of descriptors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.steps: list[tuple[str, str]] = []
        fsync, link = os.fsync, os.link

        def noted_fsync(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            kind = "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
            self.steps.append((kind, os.path.relpath(path, root) if kind == "folder" else "?"))
            fsync(fd)

        def noted_link(source: Any, target: Any, **more: Any) -> None:
            self.steps.append(("link", str(target)))
            link(source, target, **more)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "link", noted_link)


def test_the_file_is_synced_before_it_has_a_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def test(shelf: LocalShelf) -> None:
        await shelf.create("tasks/log/0/1", b"x")
        disk = Disk(monkeypatch, tmp_path / "s")
        await shelf.create("tasks/log/0/2", b"x")
        assert disk.steps == [("file", "?"), ("link", "2"), ("folder", "tasks/log/0")]
        disk.steps.clear()
        # One that lost makes durable what it builds on.
        await shelf.create("tasks/log/0/2", b"x")
        assert disk.steps[-1] == ("folder", "tasks/log/0")

    on_shelf(tmp_path / "s", test)


def test_the_first_file_in_a_new_folder_syncs_the_way_to_it_and_the_folder_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(shelf: LocalShelf) -> None:
        await shelf.create("tasks/log/0/999", b"x")
        other = LocalShelf(str(tmp_path / "s"))
        await other.open(create=False)
        disk = Disk(monkeypatch, tmp_path / "s")
        await other.create("tasks/log/1/1000", b"x")
        before = [name for kind, name in disk.steps[: disk.steps.index(("link", "1000"))] if kind == "folder"]
        assert set(before) >= {".", "tasks", "tasks/log", "tasks/log/0"}
        await other.close()

    on_shelf(tmp_path / "s", test)


def test_without_fsync_nothing_is_synced_and_durable_is_not_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, tmp_path)

    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path / "q"), fsync=False) as backend:
            await backend.queue().enqueue([TaskRecord("t", "q", "n", b"")])
            assert Capability.DURABLE not in backend.capabilities
            health = await backend.check()
            assert health.durability.power_cut is Loss.ALL
            assert health.durability.server_killed is Loss.NONE
            assert any(
                finding.severity is Severity.WARNING and "fsync" in finding.message
                for finding in health.findings
            )

    asyncio.run(main())
    assert {kind for kind, _ in disk.steps} == {"link"}


def test_a_folder_that_cannot_be_synced_leaves_the_effect_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(shelf: LocalShelf) -> None:
        await shelf.create("log/1", b"x")
        fsync = os.fsync

        def fail_for_folders(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EIO, "the disk is dying")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", fail_for_folders)
        with pytest.raises(OSError, match="cannot be synced") as caught:
            await shelf.create("log/2", b"x")
        assert shelf.classify(caught.value) is ErrorCode.UNKNOWN_EFFECT

    on_shelf(tmp_path / "s", test)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, ErrorCode.EXHAUSTED),
        (errno.EDQUOT, ErrorCode.EXHAUSTED),
        (errno.EMFILE, ErrorCode.EXHAUSTED),
        (errno.EACCES, ErrorCode.PERMISSION),
        (errno.EROFS, ErrorCode.PERMISSION),
        (errno.ENOENT, ErrorCode.UNAVAILABLE),
        (errno.ELOOP, ErrorCode.CORRUPT),
        (errno.EIO, ErrorCode.UNKNOWN_EFFECT),
        (errno.EINVAL, ErrorCode.UNKNOWN),
    ],
)
def test_errors_of_the_system_are_told_apart(number: int, code: ErrorCode) -> None:
    assert FileBackend(base_dir="/nowhere").classify(OSError(number, os.strerror(number))) is code


def test_a_full_disk_fails_calls_without_an_effect_and_the_backend_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    full = False

    def limited(fd: int, data: Any) -> int:
        # The event loop's own pipe is no disk.
        if full and stat.S_ISREG(os.fstat(fd).st_mode):
            write(fd, bytes(data)[:10])
            raise OSError(errno.ENOSPC, "no space left")
        return write(fd, data)

    monkeypatch.setattr(os, "write", limited)

    async def main() -> None:
        nonlocal full
        async with FileBackend(base_dir=str(tmp_path / "q")) as backend:
            queue = backend.queue()
            await queue.enqueue([TaskRecord("t1", "q", "n", b"")])
            full = True
            with pytest.raises(OSError, match="no space") as caught:
                await queue.enqueue([TaskRecord("t2", "q", "n", b"")])
            assert backend.classify(caught.value) is ErrorCode.EXHAUSTED
            assert [s is None for s in await queue.get(["t1", "t2"])] == [False, True]
            full = False
            await queue.enqueue([TaskRecord("t2", "q", "n", b"")])
            assert None not in await queue.get(["t1", "t2"])

    asyncio.run(main())


def test_what_killed_processes_left_unfinished_is_swept_once_it_is_old(tmp_path: Path) -> None:
    tmp = tmp_path / "s" / "tmp"
    tmp.mkdir(parents=True)
    (tmp / "old").write_bytes(b"")
    (tmp / "new").write_bytes(b"")
    os.utime(tmp / "old", (time.time() - 2 * local.OLD_TMP_S,) * 2)

    async def test(shelf: LocalShelf) -> None:
        assert os.listdir(tmp) == ["new"]

    on_shelf(tmp_path / "s", test)


def test_what_is_stored_is_nobody_elses_to_read(tmp_path: Path) -> None:
    async def test(shelf: LocalShelf) -> None:
        await shelf.create("log/1", b"x")

    on_shelf(tmp_path / "s", test)
    assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o700


# --- symbolic links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link", ["tasks", "tasks/log", "tasks/horizon", "tasks/checkpoint", "tasks/log/00000000000000000"]
)
def test_a_symbolic_link_in_the_place_of_a_folder_is_refused_and_nothing_is_touched_behind_it(
    tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    place = tmp_path / "q" / "omniq" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)

    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path / "q")) as backend:
            await backend.queue().enqueue([TaskRecord("t", "q", "n", b"")])

    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        asyncio.run(main())
    assert os.listdir(outside) == ["precious"]


@pytest.mark.parametrize("link", ["turn", "tmp", "probe"])
def test_a_symbolic_link_in_the_place_of_the_shelfs_own_files_is_refused(
    tmp_path: Path, link: str, way: str
) -> None:
    if link == "tmp" and way == "unnamed":
        link = "probe"  # nothing is ever written to tmp then
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "q" / "omniq"
    place.mkdir(parents=True)
    (place / link).symlink_to(outside / "new" if link == "turn" else outside)

    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path / "q")):
            pass

    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        asyncio.run(main())
    assert os.listdir(outside) == []


def test_a_symbolic_link_in_the_place_of_a_commit_is_neither_read_nor_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "q/omniq/tasks/log/00000000000000000"
    folder.mkdir(parents=True)
    (folder / f"{1:020d}").symlink_to(secret)

    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path / "q")):
            pass

    with pytest.raises(OSError, match="Too many levels"):
        asyncio.run(main())
    assert secret.read_text() == "secret"


def test_the_project_folder_itself_may_not_be_a_symbolic_link_but_what_leads_to_it_may(
    tmp_path: Path,
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "q").symlink_to(real)

    async def use() -> None:
        async with FileBackend(base_dir=str(tmp_path / "q")) as backend:
            await backend.queue().enqueue([TaskRecord("t", "q", "n", b"")])

    asyncio.run(use())
    (real / "omniq").rename(real / "elsewhere")
    (real / "omniq").symlink_to(real / "elsewhere")
    with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
        asyncio.run(use())


def test_a_pipe_in_the_place_of_a_file_does_not_make_us_wait(tmp_path: Path) -> None:
    async def test(shelf: LocalShelf) -> None:
        await shelf.create("log/1", b"")
        os.mkfifo(tmp_path / "s/log/2")
        with pytest.raises(OSError, match="no regular file"):
            await shelf.read("log/2")
        assert list(await shelf.list("log")) == ["log/1"]

    on_shelf(tmp_path / "s", test)


# --- where it is -----------------------------------------------------------------------------------------------------


def test_a_file_system_without_links_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    async def test(shelf: LocalShelf) -> None:
        raise AssertionError("it was opened")

    with pytest.raises(OptionError, match="no hard links"):
        on_shelf(tmp_path / "s", test)


def test_a_network_file_system_is_refused_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "file_system_of", lambda _path: "nfs4")

    async def test(shelf: LocalShelf) -> None:
        assert "nfs4" in shelf.facts.product

    with pytest.raises(OptionError, match=r"nfs4.*allow_network_fs"):
        on_shelf(tmp_path / "s", test)
    on_shelf(tmp_path / "s", test, allow_network_fs=True)


def test_without_inotify_others_are_looked_for_now_and_then_and_waking_is_not_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turn, "listen", lambda self: None)

    async def main() -> None:
        first = FileBackend(base_dir=str(tmp_path / "q"))
        second = FileBackend(
            base_dir=str(tmp_path / "q"), max_finished=7
        )  # a clerk of its own, like another process
        async with first, second:
            assert Capability.WAKEUP not in first.capabilities
            assert any("inotify" in finding.message for finding in (await first.check()).findings)
            assert await first.queue().claim(["q"], max_tasks=1, lease_s=9, worker_id="w", claim_id="c") == []
            waiting = asyncio.create_task(first.queue().wait(["q"], timeout_s=10))
            await asyncio.sleep(0)
            await second.queue().enqueue([TaskRecord("t", "q", "n", b"")])
            began = time.monotonic()
            assert await waiting
            assert time.monotonic() - began < 1

    asyncio.run(main())
