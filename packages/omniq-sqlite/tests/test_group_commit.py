"""Concurrent calls share a transaction, and nothing else: neither an error, nor a cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import aiosqlite
import pytest

from omniq_core import (
    Closed,
    ErrorCode,
    EventFilter,
    Outcome,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskState,
    Verb,
)
from omniq_sqlite import SQLiteBackend
from omniq_sqlite.lockfile import LockFile
from omniq_sqlite.writer import Writer

Tasks = Callable[..., list[TaskRecord]]


def writer(backend: SQLiteBackend) -> Writer:
    assert backend._storage is not None
    return backend._storage.writer


async def rounds_of_the_loop(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_aiosqlite_still_runs_everything_by_way_of_the_one_funnel_that_we_use(path: str) -> None:
    async def main() -> None:
        database = await aiosqlite.connect(path)
        through = []
        funnel = database._execute

        async def counted(function: Any, *values: Any, **named: Any) -> Any:
            through.append(function)
            return await funnel(function, *values, **named)

        database._execute = counted  # type: ignore[method-assign]
        await database.execute("create table t(x)")
        await database.commit()
        assert len(through) == 2
        assert await database._execute(threading.get_ident) == database._thread.ident
        assert database._conn.in_transaction is False
        await database.close()

    asyncio.run(main())


def test_a_hundred_calls_at_once_are_one_transaction(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, before = backend.queue(), writer(backend).transactions
            answers = await asyncio.gather(*[queue.enqueue(tasks(1)) for _ in range(100)])
            assert {answer[0].outcome for answer in answers} == {Outcome.OK}
            assert writer(backend).transactions - before <= 2

    asyncio.run(main())


def test_a_batch_of_five_hundred_takes_few_statements_and_reads_few_rows(
    path: str, tasks: Tasks, claim: Any
) -> None:
    """Each step of a statement gives the GIL away, and beside a busy event loop takes 5 ms to get it back."""

    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, storage = backend.queue(), backend._storage
            assert storage is not None
            ran: list[str] = []
            await storage.on_writer(lambda database: database.set_trace_callback(ran.append))
            await queue.enqueue(tasks(500))
            assert len(ran) <= 10
            ran.clear()
            claims = await claim(queue)
            assert len(claims) == 500
            assert len(ran) <= 10
            ran.clear()
            await queue.settle([Settlement(one.lease, Verb.SUCCEED, result=b"r") for one in claims])
            assert len(ran) <= 10

    asyncio.run(main())


def test_calls_that_come_while_the_thread_is_busy_share_the_next_transaction(
    path: str, tasks: Tasks, claim: Any
) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            await queue.enqueue(records := tasks(60))
            claims = await claim(queue)
            before = writer(backend).transactions
            turn = LockFile(path + ".lock")
            turn.acquire()
            first = asyncio.create_task(queue.enqueue(tasks(1)))
            await rounds_of_the_loop()
            rest = [
                asyncio.gather(*[queue.settle([Settlement(c.lease, Verb.SUCCEED)]) for c in claims]),
                asyncio.gather(*[queue.enqueue(tasks(1)) for _ in range(60)]),
                asyncio.gather(*[queue.cancel([record.id]) for record in records]),
            ]
            await rounds_of_the_loop()
            turn.release()
            await asyncio.gather(first, *rest)
            turn.close()
            assert writer(backend).transactions - before <= 3
            found = await queue.get([record.id for record in records])
            assert {task and task.state for task in found} == {TaskState.SUCCEEDED}

    asyncio.run(main())


@pytest.mark.parametrize(
    "bad", [{"priority": object()}, {"queue": "\ud800"}, {"priority": 2**70}, {"body": None}]
)
def test_one_call_that_cannot_be_stored_does_not_void_the_others(path: str, tasks: Tasks, bad: Any) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            good = [tasks(2) for _ in range(20)]
            calls = [queue.enqueue(records) for records in good]
            calls.insert(7, queue.enqueue(tasks(1) + tasks(1, **bad)))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            failed = answers.pop(7)
            assert isinstance(failed, Exception)
            assert backend.classify(failed) is ErrorCode.INVALID, failed
            assert all(not isinstance(answer, BaseException) for answer in answers), answers
            (stats,) = await queue.stats(["q"])
            assert stats.ready == 40
            assert len((await queue.query(TaskFilter())).items) == 40

    asyncio.run(main())


def test_a_call_that_waits_too_long_for_its_turn_is_withdrawn_for_good(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path, timeout=0.2) as backend:
            queue = backend.queue()
            turn = LockFile(path + ".lock")
            turn.acquire()
            late = tasks(1)
            with pytest.raises(TimeoutError, match=r"tasks\.db\.lock") as caught:
                await queue.enqueue(late)
            assert backend.classify(caught.value) is ErrorCode.TIMEOUT
            turn.close()
            assert (await queue.enqueue(tasks(1)))[0].outcome is Outcome.OK
            assert await queue.get([late[0].id]) == [None]

    asyncio.run(main())


def test_opening_does_not_hang_behind_a_process_that_holds_the_turn(path: str) -> None:
    async def main() -> None:
        turn = LockFile(path + ".lock")
        turn.acquire()
        backend = SQLiteBackend(db_path=path, timeout=0.2)
        with pytest.raises(TimeoutError):
            await backend.open()
        turn.close()
        async with backend:
            pass

    asyncio.run(main())


def test_a_cancelled_claim_that_has_not_begun_takes_nothing(path: str, tasks: Tasks, claim: Any) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            await queue.enqueue(tasks(5))
            turn = LockFile(path + ".lock")
            turn.acquire()
            waiting = asyncio.create_task(claim(queue))
            await rounds_of_the_loop()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            turn.close()
            assert len(await claim(queue)) == 5

    asyncio.run(main())


def test_calls_that_are_cancelled_at_any_moment_leave_no_transaction_behind(
    path: str, tasks: Tasks, claim: Any
) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend, SQLiteBackend(db_path=path) as other:
            queue = backend.queue()
            for moment in range(40):
                call = asyncio.create_task(queue.enqueue(tasks(50)))
                await rounds_of_the_loop(moment)
                call.cancel()
                await asyncio.wait([call])
                # Another connection can write at once, so no lock stayed behind.
                assert (await other.queue().enqueue(tasks(1)))[0].outcome is Outcome.OK
            assert len(await claim(queue)) >= 40

    asyncio.run(main())


def test_closing_ends_every_wait_and_leaves_nothing_running(path: str) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            results = backend.result_store()
            waits = [
                asyncio.create_task(backend.queue().wait(["q"], timeout_s=60)),
                *[asyncio.create_task(results.wait([name], timeout_s=60)) for name in "abc"],
                asyncio.create_task(anext(backend.event_store().tail(EventFilter()))),  # type: ignore[arg-type]
            ]
            assert await backend.queue().stats(["q"])
            await rounds_of_the_loop()
        ended = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 1)
        assert [type(one) for one in ended] == [Closed] * 5
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_waits_for_what_is_under_way(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        backend = SQLiteBackend(db_path=path)
        await backend.open()
        call = asyncio.create_task(backend.queue().enqueue(records := tasks(500)))
        await rounds_of_the_loop(2)
        await backend.close()
        assert {answer.outcome for answer in await call} == {Outcome.OK}
        async with backend:
            assert None not in await backend.queue().get([record.id for record in records])

    asyncio.run(main())
