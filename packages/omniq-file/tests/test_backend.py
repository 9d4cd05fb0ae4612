"""Settings, places and names of the file backend, and clerks that are shared."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from omniq_core import (
    BackendError,
    Capability,
    Closed,
    ErrorCode,
    OptionError,
    Secret,
    TaskRecord,
    backend_class,
)
from omniq_file import FileBackend, FileOptions, clerk
from omniq_file.options import Hidden


def record(task_id: str, queue: str = "q", **fields: Any) -> TaskRecord:
    return TaskRecord(task_id, queue, "n", b"body", **fields)


# --- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "place"),
    [
        (FileBackend({"base_dir": "/tmp/omniq"}), "/tmp/omniq/omniq"),
        (FileBackend(base_dir="rel"), f"{os.getcwd()}/rel/omniq"),
        (FileBackend(path="/tmp/x"), "/tmp/x/omniq"),
        (FileBackend(base_dir="file:///tmp/x"), "/tmp/x/omniq"),
        (FileBackend.from_url("file:///tmp/x"), "/tmp/x/omniq"),
        (FileBackend.from_url("file:////tmp/x"), "/tmp/x/omniq"),
        (FileBackend.from_url("file://localhost/tmp/x?project_name=shop"), "/tmp/x/shop"),
        (FileBackend.from_url("file:///?base_dir=rel"), f"{os.getcwd()}/rel/omniq"),
        (FileBackend.from_url("s3://bucket/some/prefix"), "s3://bucket/some/prefix/omniq"),
        (FileBackend.from_url("gs://bucket"), "gs://bucket/omniq"),
        (FileBackend.from_url("abfs://container/p/"), "abfs://container/p/omniq"),
        (FileBackend(base_dir="memory://"), "memory:///omniq"),
        (FileBackend(base_dir="memory://a"), "memory://a/omniq"),
        (FileBackend.from_env(environ={"OMNIQ_FILE_BASE_DIR": "/tmp/e"}), "/tmp/e/omniq"),
    ],
)  # fmt: skip
def test_a_place_is_named_in_many_ways(backend: FileBackend, place: str) -> None:
    assert backend.place == place


def test_every_scheme_of_ours_leads_to_the_file_backend() -> None:
    for scheme in ("file", "s3", "gs", "gcs", "abfs", "az"):
        assert backend_class(scheme) is FileBackend


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_dir": ""}, "base_dir"),
        ({"base_dir": "a\0b"}, "base_dir"),
        ({"retention_s": -1}, "retention_s"),
        ({"max_events": 0}, "max_events"),
        ({"cache_mb": 0}, "cache_mb"),
        ({"bas_dir": "x"}, "did you mean 'base_dir'"),
        ({"storage_options": {"key": "k"}}, "no meaning for file"),
        ({"base_dir": "s3://b", "storage_options": {"kez": "k"}}, "did you mean 'key'"),
        ({"base_dir": "s3://b", "storage_options": {"anon": "yes"}}, "wrong type"),
        ({"base_dir": "s3://b", "storage_options": "{"}, "JSON object"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FileBackend(**settings)


@pytest.mark.parametrize("url", ["file://host/dir", "file://", "file:///"])
def test_a_url_that_names_no_folder_is_refused(url: str) -> None:
    with pytest.raises(OptionError):
        FileBackend.from_url(url)


def test_a_relative_folder_stays_where_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with FileBackend(base_dir="q") as backend:
            await backend.queue().enqueue([record("t")])
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
            async with backend.twin() as twin:
                assert None not in await twin.queue().get(["t"])

    asyncio.run(main())
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_missing_folder_is_made_only_if_that_is_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        backend = FileBackend(base_dir=str(tmp_path / "q"), create_dirs=False)
        with pytest.raises(FileNotFoundError) as caught:
            await backend.open()
        assert backend.classify(caught.value) is ErrorCode.UNAVAILABLE
        assert not (tmp_path / "q").exists()
        assert await FileBackend(base_dir=str(tmp_path / "q")).setup(dry_run=True)
        assert not (tmp_path / "q").exists()
        assert await FileBackend(base_dir=str(tmp_path / "q")).setup()
        assert await FileBackend(base_dir=str(tmp_path / "q")).setup() == ()
        await backend.open()
        await backend.close()

    asyncio.run(main())


def test_a_storage_without_exclusive_creation_is_refused_unless_one_process_uses_it(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(OptionError, match="single_process=True"):
            await FileBackend(base_dir=f"local://{tmp_path}/q").open()
        alone = FileBackend(base_dir=f"local://{tmp_path}/q", single_process=True)
        async with alone:
            assert {Capability.MULTI_PROCESS, Capability.MULTI_HOST, Capability.DURABLE}.isdisjoint(
                alone.capabilities
            )
            await alone.queue().enqueue([record("t")])
            assert any("second process" in finding.message for finding in (await alone.check()).findings)
        async with alone:
            (claim,) = await alone.queue().claim(["q"], max_tasks=5, lease_s=9, worker_id="w", claim_id="c")
            assert claim.body == b"body"
        with pytest.raises(OptionError, match="cannot reach"):
            await FileBackend(base_dir="nonsense://x", single_process=True).open()

    asyncio.run(main())


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_shows_itself() -> None:
    secret = "hush-hush"
    url = f"s3://bucket/p?key={secret}&secret={secret}&token={secret}&storage_options=" + json.dumps(
        {"secret": secret}
    )
    backends = [
        FileBackend.from_url(url),
        FileBackend(
            base_dir="s3://b", storage_options={"key": secret, "client_kwargs": {"region_name": "eu"}}
        ),
        FileBackend(base_dir="ftp://h/p", single_process=True, storage_options={"password": secret}),
    ]
    for backend in backends:
        for shown in (repr(backend), repr(backend.options), str(backend.config), repr(backend.place)):
            assert secret not in shown
    assert backends[0].config["secret"] == Secret(secret)
    assert backends[1].config["key"].reveal() == secret
    assert backends[1].config["region"] == "eu"
    with pytest.raises(TypeError):
        Hidden({"a": secret}).__reduce__()
    with pytest.raises(OptionError) as caught:
        FileBackend(base_dir="s3://b", storage_options={"secret": [secret]})
    assert secret not in str(caught.value)


# --- names -----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../x", "..", ".", "/", "/etc/passwd", "a/b", "a\\b", "*", ">", "a b", "CON", "nul", "ä/ö", "%2e%2e%2f", "~root",
    "$HOME", "-rf", "a;b", "x" * 255, "ü" * 127, "q", "Q", "log", "horizon", "checkpoint", "tasks", "turn", "\u202egnp.exe",
    ".hidden", "",
]  # fmt: skip


def test_hostile_names_of_queues_tasks_and_keys_touch_nothing_and_stay_apart(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if name] + ["nul\0in", "cr\r\nlf", "x" * 1024]

    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path / "q")) as backend:
            queue = backend.queue()
            for index, name in enumerate(names):
                await queue.enqueue(
                    [TaskRecord(f"{name}{index}", name, name, name.encode(), unique_key=name)]
                )
            assert sorted(await queue.queue_names()) == sorted(names)
            for index, name in enumerate(names):
                (claim,) = await queue.claim([name], max_tasks=9, lease_s=9, worker_id=name, claim_id=name)
                assert (claim.queue, claim.task_id, claim.body) == (name, f"{name}{index}", name.encode())
        async with FileBackend(base_dir=str(tmp_path / "q")) as backend:
            assert sorted(await backend.queue().queue_names()) == sorted(names)

    asyncio.run(main())
    assert os.listdir(tmp_path) == ["q"]
    assert os.listdir(tmp_path / "q") == ["omniq"]
    words = {
        part
        for path in (tmp_path / "q/omniq").rglob("*")
        for part in path.relative_to(tmp_path / "q/omniq").parts
    }
    assert {word for word in words if not word.isdigit()} <= {
        "tasks",
        "events",
        "log",
        "turn",
        "probe",
        "tmp",
    }


def test_hostile_project_names_stay_in_the_folder_and_apart(tmp_path: Path) -> None:
    names = [*HOSTILE, "nul\0in", "cr\r\nlf", "x" * 1024, "x" * 1023]
    folders = {FileOptions(base_dir=str(tmp_path), project_name=name).place for name in names}
    assert len(folders) == len(names)
    assert len({folder.lower() for folder in folders}) == len(names)
    for folder in folders:
        assert os.path.dirname(folder) == str(tmp_path)
        assert 0 < len(os.path.basename(folder)) <= 200
        os.mkdir(folder)

    async def main() -> None:
        for name in ("../../x", "a/b"):
            async with FileBackend(base_dir=str(tmp_path), project_name=name) as backend:
                await backend.queue().enqueue([record(name)])
        async with FileBackend(base_dir=str(tmp_path), project_name="a/b") as backend:
            assert [s is None for s in await backend.queue().get(["../../x", "a/b"])] == [True, False]

    asyncio.run(main())


def test_text_that_cannot_be_encoded_fails_its_own_call_and_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path)) as backend:
            queue = backend.queue()
            good, bad = await asyncio.gather(
                queue.enqueue([record("good")]), queue.enqueue([record("bad\ud800")]), return_exceptions=True
            )
            assert isinstance(bad, UnicodeEncodeError)
            assert backend.classify(bad) is ErrorCode.INVALID
            assert not isinstance(good, BaseException)
            for field in ({"delay_s": float("nan")}, {"ttl_s": float("nan")}):
                with pytest.raises(ValueError, match="nan"):
                    await queue.enqueue([record("nan", **field)])
            assert [s is None for s in await queue.get(["good", "nan"])] == [False, True]

    asyncio.run(main())


def expect_no_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "omniq-file":
            thread.join(5)  # it has answered, and is about to end
            assert not thread.is_alive()


# --- clerks ----------------------------------------------------------------------------------------------------------


def test_the_threads_in_which_a_clerk_had_work_done_end_before_it_does(tmp_path: Path) -> None:
    # Else the process would wait for them at its end, under gevent for ever.
    async def main() -> None:
        before = set(threading.enumerate())
        async with FileBackend(base_dir=f"local://{tmp_path}/q", single_process=True) as backend:
            await backend.queue().enqueue([record("t")])
            helpers = [t for t in threading.enumerate() if t not in before and t.name.startswith("asyncio_")]
            assert helpers
        assert not any(helper.is_alive() for helper in helpers)

    asyncio.run(main())


def test_backends_of_a_process_on_one_place_share_a_clerk_until_the_last_is_closed(tmp_path: Path) -> None:
    async def main() -> None:
        backends = [FileBackend(base_dir=str(tmp_path)) for _ in range(3)]
        other = FileBackend(base_dir=str(tmp_path), cache_mb=1)
        await asyncio.gather(*(backend.open() for backend in (*backends, other)))
        assert len(clerk._clerks) == 2
        await backends[0].close()
        await backends[0].close()
        with pytest.raises(Closed):
            backends[0].queue()
        await backends[1].queue().enqueue([record("t")])
        assert None not in await other.queue().get(["t"])
        for backend in (*backends, other):
            await backend.close()
        assert len(clerk._clerks) == 0
        expect_no_thread()

    asyncio.run(main())


def test_a_twin_extends_a_lease_while_the_loop_that_claimed_is_blocked(tmp_path: Path) -> None:
    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path)) as backend:
            await backend.queue().enqueue([record("t")])
            (claim,) = await backend.queue().claim(
                ["q"], max_tasks=1, lease_s=0.2, worker_id="w", claim_id="c"
            )
            twin, outcomes = backend.twin(), []

            async def extend() -> None:
                async with twin:
                    outcomes.extend(await twin.queue().extend([claim.lease], lease_s=60))

            thread = threading.Thread(target=lambda: asyncio.run(extend()))
            thread.start()
            thread.join(10)  # this loop stands still
            assert outcomes[0].outcome == "ok"

    asyncio.run(main())


def test_opening_that_fails_leaves_no_thread_and_may_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        backend = FileBackend(base_dir=str(tmp_path / "file"))
        for _ in range(2):
            with pytest.raises(OSError, match=r"Not a directory|File exists"):
                await backend.open()
        os.unlink(tmp_path / "file")
        await backend.open()
        await backend.close()
        expect_no_thread()

    asyncio.run(main())


def test_calls_that_are_under_way_when_a_backend_closes_end(tmp_path: Path) -> None:
    async def main() -> None:
        backend = FileBackend(base_dir=str(tmp_path))
        await backend.open()
        queue = backend.queue()
        calls = [asyncio.ensure_future(queue.enqueue([record(f"t{number}")])) for number in range(200)]
        calls.append(asyncio.ensure_future(queue.wait(["empty"], timeout_s=60)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await backend.close()
        for answer in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5):
            assert not isinstance(answer, BaseException) or isinstance(answer, BackendError)
            if isinstance(answer, BackendError):
                assert answer.error_code is ErrorCode.CLOSED

    asyncio.run(main())


def test_a_cancelled_call_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path)) as backend:
            queue = backend.queue()
            for number in range(50):
                call = asyncio.ensure_future(queue.enqueue([record(f"t{number}")]))
                await asyncio.sleep(0.0001 * (number % 5))  # at another moment of the commit each time
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            await queue.enqueue([record(f"t{number}") for number in range(50)])
            assert None not in await queue.get([f"t{number}" for number in range(50)])

    asyncio.run(main())


# --- large things ----------------------------------------------------------------------------------------------------


def test_large_bodies_are_read_back_one_by_one_after_a_restart(tmp_path: Path) -> None:
    bodies = [bytes([number]) * 700_000 for number in range(8)]

    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path), cache_mb=1) as backend:
            await backend.queue().enqueue(
                [TaskRecord(f"t{i}", "q", "n", body) for i, body in enumerate(bodies)]
            )
        async with FileBackend(base_dir=str(tmp_path), cache_mb=1) as backend:
            for index, body in enumerate(bodies):
                (claim,) = await backend.queue().claim(
                    ["q"], max_tasks=1, lease_s=9, worker_id="w", claim_id=f"c{index}"
                )
                assert claim.body == body

    asyncio.run(main())


def test_a_task_whose_body_was_damaged_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with FileBackend(base_dir=str(tmp_path), cache_mb=1) as backend:
            big = [TaskRecord(f"t{number}", "q", "n", bytes([number]) * 700_000) for number in range(3)]
            await backend.queue().enqueue(big)
            (commit,) = [path for path in (tmp_path / "omniq/tasks/log").rglob("*") if path.is_file()]
            commit.write_bytes(commit.read_bytes()[:-10] + b"damaged..!")
            claims = await backend.queue().claim(["q"], max_tasks=3, lease_s=9, worker_id="w", claim_id="c")
            assert [claim.task_id for claim in claims] == ["t0", "t1"]
            with pytest.raises(BackendError) as caught:
                await backend.queue().get(["t2"])
            assert caught.value.error_code is ErrorCode.CORRUPT

    asyncio.run(main())
