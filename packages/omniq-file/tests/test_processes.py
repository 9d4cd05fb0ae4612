"""Real processes on one folder: killed and frozen at every step of a commit, a checkpoint and a trim, and racing."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest

from omniq_conformance.nursery import start as start_process
from omniq_core import SYSTEM_CLOCK, Clock, ManualClock, Outcome, Settlement, TaskRecord, TaskState, Verb
from omniq_file import FileBackend, tidying

pytestmark = pytest.mark.slow  # processes race and are killed

SMALL = 3000
"""Bytes after which the log is tidied up here: within a few commits."""

CHILD = f"{Path(__file__).with_name('on_a_folder.py')}:main"


class Child:
    """Another process."""

    def __init__(self, folder: Path, errors: IO[bytes]) -> None:
        self._errors = errors
        self.process = start_process(CHILD, str(folder), SMALL, schemes=["file"], stderr=errors.fileno())
        assert self.hear() == "open"

    def say(self, *command: Any) -> None:
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    def hear(self) -> Any:
        """The next line; None at the end."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def do(self, *command: Any) -> Any:
        self.say(*command)
        return self.hear()

    def do_until_there(self, *command: Any) -> list[Any]:
        """Until the process stands still, or is dead; what it said before."""
        self.say(*command)
        heard = []
        while (line := self.hear()) not in ("there", "done", None):
            heard.append(line)
        assert line == "there", (line, heard)
        return heard

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> str:
        """What it wrote to its error stream."""
        self.process.kill()
        self.process.wait()
        self._errors.seek(0)
        return self._errors.read().decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "q"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Child]]:
    with ExitStack() as stack:

        def start() -> Child:
            child = Child(folder, stack.enter_context(TemporaryFile()))
            stack.enter_context(child.process)
            return child

        yield start


@pytest.fixture(autouse=True)
def tidy_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying.Tidying, "due_bytes", SMALL)


def on_folder(
    folder: Path, work: Callable[[FileBackend], Awaitable[Any]], clock: Clock = SYSTEM_CLOCK
) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(60), FileBackend(base_dir=str(folder), clock=clock) as backend:
            return await work(backend)

    return asyncio.run(main())


async def claim(backend: FileBackend, most: int = 1000, lease_s: float = 60.0) -> Any:
    return await backend.queue().claim(
        ["q"], max_tasks=most, lease_s=lease_s, worker_id="parent", claim_id=uuid.uuid4().hex
    )


async def succeed(backend: FileBackend, claims: Any) -> list[Outcome]:
    return list(
        await backend.queue().settle([Settlement(c.lease, Verb.SUCCEED, result=b"parent") for c in claims])
    )


async def enqueue(backend: FileBackend, *ids: str) -> list[Outcome]:
    return [a.outcome for a in await backend.queue().enqueue([TaskRecord(i, "q", "n", b"b") for i in ids])]


async def churn(backend: FileBackend, name: str, rounds: int = 60) -> None:
    """Until whatever was there before is deleted."""
    for number in range(rounds):
        await backend.queue().enqueue([TaskRecord(f"{name}-{number}", "other", "n", b"x" * 100)])
        await backend.queue().cancel([f"{name}-{number}"])


async def tidied(backend: FileBackend) -> None:
    """Until the tidying up that is under way has ended."""
    clerk = backend._now_open().clerk()

    async def ended() -> None:
        await asyncio.gather(*clerk.tasks._tidying.tasks)

    await clerk._run_there(ended())


def numbers(folder: Path, kind: str) -> list[int]:
    return sorted(int(path.name) for path in (folder / "omniq" / "tasks" / kind).rglob("*") if path.is_file())


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "name", "passes"),
    [
        ("before", "tasks/log", 8),
        ("after", "tasks/log", 8),
        ("before", "tasks/part", 3),
        ("after", "tasks/part", 4),
        ("before", "tasks/checkpoint", 2),
        ("after", "tasks/checkpoint", 2),
        ("before", "tasks/horizon", 2),
        ("after", "tasks/horizon", 2),
        ("unlink", "0000", 0),
        ("unlink", "0000", 7),
        ("unlink", "0000", 40),
    ],
)  # fmt: skip
def test_a_process_that_is_killed_at_any_step_loses_nothing_that_it_acknowledged(
    folder: Path, start: Callable[[], Child], step: str, name: str, passes: int
) -> None:
    child = start()
    child.do("stop_at", step, name, passes, "kill")
    heard = child.do_until_there("churn", "t", 400)
    assert child.process.wait(10) == -signal.SIGKILL
    enqueued = {line[1] for line in heard if line[0] == "enqueued"}
    settled = {line[1]: line[2] for line in heard if line[0] == "settled"}
    assert set(settled.values()) == {"ok"}

    async def look(backend: FileBackend) -> None:
        ids = sorted(enqueued)
        for task_id, snapshot in zip(ids, await backend.queue().get(ids), strict=True):
            assert snapshot is not None, task_id
            if task_id in settled:
                assert snapshot.state is TaskState.SUCCEEDED
        # At most one more: that of the call that was under way.
        ahead = await backend.queue().get([f"t-{number}" for number in range(len(ids), len(ids) + 3)])
        assert sum(snapshot is not None for snapshot in ahead) <= 1
        results = await backend.result_store().get(sorted(settled))
        assert all(record is not None and record.body == b"child" for record in results)
        # And the log goes on, through further checkpoints and trims.
        await churn(backend, "more")

    on_folder(folder, look)
    on_folder(folder, look)


def test_processes_that_are_killed_at_random_lose_nothing_and_do_nothing_twice(
    folder: Path, start: Callable[[], Child]
) -> None:
    chance = random.Random(7)
    enqueued: set[str] = set()
    settled: list[str] = []

    def note(line: Any) -> None:
        if line is not None and line[0] == "enqueued":
            enqueued.add(line[1])
        elif line is not None and line[0] == "settled" and line[2] == "ok":
            settled.append(line[1])

    for life in range(8):
        pair = [start(), start()]
        for index, child in enumerate(pair):
            child.say("churn", f"{life}-{index}", 300)
        for _ in range(chance.randrange(10, 120)):
            note(pair[0].hear())
        pair[0].process.kill()
        while (line := pair[0].hear()) is not None:
            note(line)
        pair[1].process.kill()
        while (line := pair[1].hear()) is not None and line != "done":
            note(line)
    assert len(settled) == len(set(settled))

    async def look(backend: FileBackend) -> None:
        ids = sorted(enqueued.union(settled))
        states: dict[str, TaskState] = {}
        for first in range(0, len(ids), 500):
            for snapshot in await backend.queue().get(ids[first : first + 500]):
                assert snapshot is not None
                states[snapshot.id] = snapshot.state
        assert {states[task_id] for task_id in settled} == {TaskState.SUCCEEDED}

    on_folder(folder, look)
    assert len(enqueued) > 100


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_a_process_that_is_frozen_within_its_turn_holds_up_nobody(
    folder: Path, start: Callable[[], Child]
) -> None:
    child = start()
    child.do("stop_at", "before", "tasks/log", 0, "stop")
    child.do_until_there("enqueue", "frozen")

    async def work(backend: FileBackend) -> float:
        began = time.monotonic()
        for number in range(10):
            assert await enqueue(backend, f"t{number}") == [Outcome.OK]
        return time.monotonic() - began

    assert on_folder(folder, work) < 3.0
    child.wake()
    assert child.hear() == ["ok"]
    assert child.do("states", "frozen", "t9") == ["pending", "pending"]


@pytest.mark.parametrize("step", ["before", "after"])
def test_what_a_process_writes_that_was_frozen_past_its_lease_and_past_a_trim_is_void(
    folder: Path, start: Callable[[], Child], step: str
) -> None:
    child = start()
    assert child.do("enqueue", "t") == ["ok"]
    assert child.do("claim", 1, 60.0) == ["t"]
    past_its_lease = ManualClock(time.time() + 100)
    commit = numbers(folder, "log")[-1] + 1
    child.do("stop_at", step, "tasks/log", 0, "stop")
    child.do_until_there("settle", "t")
    # "after": its settlement is in the log, and it did not look at the horizon yet.
    assert (numbers(folder, "log")[-1] == commit) == (step == "after")

    async def take_over(backend: FileBackend) -> None:
        await backend.queue().maintain()
        claims = await claim(backend)
        assert [c.task_id for c in claims] == (["t"] if step == "before" else [])
        await succeed(backend, claims)
        await churn(backend, "other")
        await tidied(backend)

    on_folder(folder, take_over, past_its_lease)
    horizon = numbers(folder, "horizon")[-1]
    assert horizon > commit
    # "after": its result is still needed.
    assert (commit in numbers(folder, "log")) == (step == "after")
    child.wake()
    # "after": its commit stood and was declared void, so it looks again and finds it done.
    assert child.hear() == (["stale"] if step == "before" else ["duplicate"])
    assert child.do("states", "t") == ["succeeded"]
    assert child.do("enqueue", "next") == ["ok"]
    assert "is void" in child.end()

    async def look(backend: FileBackend) -> None:
        (record,) = await backend.result_store().get(["t"])
        assert record is not None
        assert record.body == (b"parent" if step == "before" else b"child")
        (snapshot,) = await backend.queue().get(["next"])
        assert snapshot is not None
        # The lie, if there is one, is deleted by the next that tidies up.
        await churn(backend, "again")
        await tidied(backend)

    on_folder(folder, look)
    assert (commit in numbers(folder, "log")) == (step == "after")


def test_a_claim_of_a_process_that_was_frozen_past_a_trim_takes_nothing_that_others_have(
    folder: Path, start: Callable[[], Child]
) -> None:
    child = start()
    child.do("enqueue", "t1", "t2")
    child.do("stop_at", "before", "tasks/log", 0, "stop")
    child.do_until_there("claim", 5, 60.0)

    async def take_over(backend: FileBackend) -> None:
        await succeed(backend, await claim(backend))
        await churn(backend, "other")
        await enqueue(backend, "t3")

    on_folder(folder, take_over)
    child.wake()
    assert child.hear() == ["t3"]


def test_a_reader_that_was_frozen_past_a_trim_sees_what_is_true(
    folder: Path, start: Callable[[], Child]
) -> None:
    child = start()
    child.do("enqueue", "t1")
    child.process.send_signal(signal.SIGSTOP)

    async def move_on(backend: FileBackend) -> None:
        await succeed(backend, await claim(backend))
        await churn(backend, "other")

    on_folder(folder, move_on)
    child.wake()
    assert child.do("states", "t1", "other-59") == ["succeeded", "cancelled"]


# --- racing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_race_share_the_tasks_out_each_to_one(
    folder: Path, start: Callable[[], Child], count: int
) -> None:
    children = [start() for _ in range(count)]
    for index, child in enumerate(children):
        child.say("churn", f"c{index}", 100)
    enqueued, settled = set(), []
    for child in children:
        while (line := child.hear()) != "done":
            assert line is not None, child.end()
            if line[0] == "enqueued":
                enqueued.add(line[1])
            else:
                assert line[2] == "ok"
                settled.append(line[1])
    assert len(settled) == len(set(settled)) == len(enqueued) == 100 * count
    assert numbers(folder, "horizon"), "nothing was trimmed meanwhile"


# --- forked ----------------------------------------------------------------------------------------------------------


def test_a_forked_child_must_open_again_and_then_works(folder: Path) -> None:
    code = f"""
import asyncio, os, sys
from omniq_core import TaskRecord, BackendError
from omniq_file import FileBackend

backend = FileBackend(base_dir={str(folder)!r})

async def before():
    await backend.open()
    await backend.queue().enqueue([TaskRecord("parent", "q", "n", b"")])
    return backend.queue()

loop = asyncio.new_event_loop()
queue = loop.run_until_complete(before())
pid = os.fork()
if pid == 0:
    async def child():
        try:
            await queue.get(["parent"])
        except BackendError as error:
            assert "forked" in str(error), error
        else:
            os._exit(2)
        await backend.open()
        (found,) = await backend.queue().get(["parent"])
        assert found is not None
        await backend.queue().enqueue([TaskRecord("child", "q", "n", b"")])
        await backend.close()
    try:
        asyncio.run(child())
    except BaseException:
        import traceback; traceback.print_exc(); os._exit(3)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status

async def after():
    assert None not in await queue.get(["parent", "child"])
    await backend.close()

loop.run_until_complete(after())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
