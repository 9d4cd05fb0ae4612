"""Several processes on one file: starting at once, dying, forking, waking one another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from omniq_core import BackendError, Capability, Closed, TaskRecord
from omniq_sqlite import SQLiteBackend, wakeup
from omniq_sqlite.lockfile import LockFile

Tasks = Callable[..., list[TaskRecord]]

HEAD = """
import asyncio, sys, uuid
from omniq_core import Settlement, TaskRecord, Verb
from omniq_sqlite import SQLiteBackend
def tasks(count):
    return [TaskRecord(id=str(uuid.uuid4()), queue="q", name="task", body=b"x" * 300) for _ in range(count)]
"""
OPEN_ON_COMMAND = (
    HEAD
    + """
async def main():
    backend = SQLiteBackend(db_path=sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    async with backend:
        await backend.queue().enqueue(tasks(1))
        print("done", flush=True)
asyncio.run(main())
"""
)
STREAM = (
    HEAD
    + """
async def main():
    async with SQLiteBackend(db_path=sys.argv[1]) as backend:
        queue = backend.queue()
        async def stream(size):
            number = 0
            while True:
                records = tasks(size)
                await queue.enqueue(records)
                print("enqueued", *[record.id for record in records], flush=True)
                number += 1
                claims = await queue.claim(["q"], max_tasks=size, lease_s=60, worker_id="w", claim_id=f"{size}.{number}")
                done = [Settlement(claim.lease, Verb.SUCCEED, result=b"r") for claim in claims]
                await queue.settle(done)
                print("settled", *[claim.task_id for claim in claims], flush=True)
        await asyncio.gather(*[stream(size) for size in (1, 3, 10, 40)])
asyncio.run(main())
"""
)
ENQUEUE_ON_COMMAND = (
    HEAD
    + """
async def main():
    async with SQLiteBackend(db_path=sys.argv[1]) as backend:
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            await backend.queue().enqueue(tasks(1))
            print("enqueued", flush=True)
asyncio.run(main())
"""
)
FORK_AND_HOLD = """
import os, sys, signal
from omniq_sqlite.lockfile import LockFile
lock = LockFile(sys.argv[1] + ".lock")
lock.acquire()
heir = os.fork()
if not heir:
    os.close(0), os.close(1)  # its parent's pipes
    signal.pause()
print(heir, flush=True)
signal.pause()
"""


def test_processes_that_open_a_fresh_file_at_once_agree_on_its_tables(path: str, child: Any) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            children = [await stack.enter_async_context(child(OPEN_ON_COMMAND, path)) for _ in range(4)]
            for process in children:
                assert await process.says() == "ready"
            for process in children:
                process.tell()
            for process in children:
                assert await process.says() == "done"
        async with SQLiteBackend(db_path=path) as backend:
            assert (await backend.queue().stats(["q"]))[0].ready == 4

    asyncio.run(main())


def test_a_writer_killed_in_the_middle_leaves_the_file_whole_and_all_that_it_acknowledged(
    path: str, child: Any
) -> None:
    async def main() -> None:
        enqueued: set[str] = set()
        settled: set[str] = set()
        for kill in range(4):
            async with child(STREAM, path) as process:
                for _ in range(30 + 17 * kill):
                    what, *ids = (await process.says()).split()
                    (enqueued if what == "enqueued" else settled).update(ids)
                await process.kill()
        database = sqlite3.connect(path)
        assert database.execute("pragma integrity_check").fetchone()[0] == "ok"
        database.close()
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            for task_id, task in zip(enqueued, await queue.get(list(enqueued)), strict=True):
                assert task is not None, task_id
                assert task_id not in settled or task.state == "succeeded"
            assert None not in await backend.result_store().get(list(settled))
            (stats,) = await queue.stats(["q"])
            counted = {
                state: len((await queue.query(_states(state), limit=10**6)).items)
                for state in ("pending", "running")
            }
            assert counted == {"pending": stats.ready, "running": stats.running}

    asyncio.run(main())


def _states(state: str) -> Any:
    from omniq_core import TaskFilter, TaskState

    return TaskFilter(states=(TaskState(state),))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are a POSIX matter")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_told_so_and_is_kept_from_its_parents_file(path: str, tasks: Tasks) -> None:
    async def in_the_fork(backend: SQLiteBackend, queue: Any) -> int:
        for call in (queue.enqueue(tasks(1)), queue.get(["x"]), backend.check()):
            with pytest.raises(Closed, match="fork"):
                await call
        with pytest.raises(BackendError, match="both sides of a fork"):
            await backend.twin().open()
        async with SQLiteBackend(db_path=path + ".own") as own:
            await own.queue().enqueue(tasks(1))
        await backend.close()  # gives nothing back that is its parent's
        return 0

    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            await queue.enqueue(tasks(1))
            pid = os.fork()
            if not pid:
                status = 2
                try:
                    status = asyncio.run(in_the_fork(backend, queue))
                finally:
                    os._exit(status)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            await queue.enqueue(tasks(1))
            assert (await queue.stats(["q"]))[0].ready == 2
        database = sqlite3.connect(path)
        assert database.execute("pragma integrity_check").fetchone()[0] == "ok"
        database.close()

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are a POSIX matter")
def test_the_turn_of_a_killed_process_is_not_kept_by_its_fork(path: str, child: Any) -> None:
    async def main() -> None:
        async with child(FORK_AND_HOLD, path) as process:
            heir = int(await process.says())
            lock = LockFile(path + ".lock")
            assert not lock.try_acquire()
            await process.kill()
            try:
                os.kill(heir, 0)  # the fork lives on
                assert lock.try_acquire()
            finally:
                os.kill(heir, signal.SIGKILL)
                lock.close()

    asyncio.run(main())


def test_a_task_wakes_a_worker_in_another_process(path: str, child: Any, claim: Any) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend, child(ENQUEUE_ON_COMMAND, path) as process:
            queue = backend.queue()
            assert await process.says() == "ready"
            for _ in range(20):
                assert await claim(queue) == []
                waiting = asyncio.create_task(queue.wait(["q"], timeout_s=60))
                process.tell()
                assert await asyncio.wait_for(waiting, 30) is True
                assert len(await claim(queue)) == 1

    asyncio.run(main())


def test_without_inotify_the_wait_still_ends_but_is_not_called_a_wake_up(
    path: str, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> int:
        raise OSError(24, "no more instances")

    monkeypatch.setattr(wakeup._Inotify, "open", refuse)

    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend, child(ENQUEUE_ON_COMMAND, path) as process:
            pushed = {Capability.WAKEUP, Capability.RESULT_WAIT, Capability.EVENT_TAIL}
            assert not pushed & backend.capabilities
            assert all("20 ms" in backend.absent[capability] for capability in pushed)
            assert await process.says() == "ready"
            waiting = asyncio.create_task(backend.queue().wait(["q"], timeout_s=60))
            process.tell()
            assert await asyncio.wait_for(waiting, 30) is True

    asyncio.run(main())


def test_without_inotify_what_comes_between_the_first_look_and_the_first_question_wakes(
    path: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> int:
        raise OSError(24, "no more instances")

    monkeypatch.setattr(wakeup._Inotify, "open", refuse)

    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend, SQLiteBackend(db_path=path) as other:
            assert backend._storage is not None
            watcher = backend._storage.watcher
            ask, committed = watcher._data_version, asyncio.Event()

            async def late() -> int:
                await committed.wait()
                return await ask()

            monkeypatch.setattr(watcher, "_data_version", late)
            waiting = asyncio.create_task(backend.queue().wait(["q"], timeout_s=60))
            await asyncio.sleep(0)
            await backend.queue().get(["x"])  # reads come one after the other: it has looked
            await other.queue().enqueue(tasks(1))
            committed.set()
            assert await asyncio.wait_for(waiting, 30) is True

    asyncio.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere who waits has to ask")
def test_who_waits_costs_nothing_while_nothing_happens(path: str) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            await backend.queue().wait(["q"], timeout_s=0.01)
            before = time.process_time()
            assert await backend.queue().wait(["q"], timeout_s=1.0) is False
            assert time.process_time() - before < 0.1

    asyncio.run(main())


def test_commits_that_concern_nobody_ring_no_bell(path: str, tasks: Tasks, claim: Any) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            await queue.enqueue(tasks(2))
            lock = LockFile(path + ".lock")
            before = lock.counts()
            claims = await claim(queue)
            await queue.extend([one.lease for one in claims], lease_s=60)
            await queue.maintain()
            assert await claim(queue) == []
            assert lock.counts() == before
            lock.close()

    asyncio.run(main())
