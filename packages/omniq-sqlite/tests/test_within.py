"""Tasks within the caller's own transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import aiosqlite
import pytest

from omniq_core import BackendError, ErrorCode, Outcome, Settlement, TaskRecord, TaskState, Verb
from omniq_sqlite import SQLiteBackend

Tasks = Callable[..., list[TaskRecord]]


def own(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.row_factory = sqlite3.Row
    database.text_factory = bytes
    database.execute("create table if not exists orders(id)")
    return database


def test_tasks_come_and_go_with_the_callers_transaction(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, database = backend.queue(), own(path)
            for end in ("rollback", "commit"):
                records = tasks(3, unique_key=None, queue=f"new-{end}")
                database.execute("begin immediate")
                database.execute("insert into orders values (1)")
                assert {a.outcome for a in await queue.enqueue_within(database, records)} == {Outcome.OK}
                assert await queue.get([record.id for record in records]) == [None] * 3
                database.execute(end)
                there = await queue.get([record.id for record in records])
                assert all((task is not None) == (end == "commit") for task in there)
            assert database.execute("select count(*) from orders").fetchone()[0] == 1
            assert await queue.queue_names() == ["new-commit"]
            assert database.text_factory is bytes
            database.close()

    asyncio.run(main())


def test_an_aiosqlite_connection_serves_as_well(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend, aiosqlite.connect(path) as database:
            await database.execute("begin immediate")
            (answer,) = await backend.queue().enqueue_within(database, tasks(1))
            await database.commit()
            (task,) = await backend.queue().get([answer.task_id])
            assert task is not None
            assert task.state is TaskState.PENDING

    asyncio.run(main())


def test_a_run_is_settled_together_with_its_effect_or_not_at_all(path: str, tasks: Tasks, claim: Any) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, database = backend.queue(), own(path)
            await queue.enqueue(tasks(1))
            (taken,) = await claim(queue)
            done = [Settlement(taken.lease, Verb.SUCCEED, result=b"paid")]
            for end, state in (("rollback", TaskState.RUNNING), ("commit", TaskState.SUCCEEDED)):
                database.execute("begin immediate")
                assert await queue.settle_within(database, done) == [Outcome.OK]
                database.execute(end)
                (task,) = await queue.get([taken.task_id])
                assert task is not None
                assert task.state is state
            database.close()

    asyncio.run(main())


def test_a_refused_batch_leaves_the_callers_transaction_as_it_was(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, database = backend.queue(), own(path)
            database.execute("begin immediate")
            database.execute("insert into orders values (1)")
            with pytest.raises((sqlite3.Error, OverflowError)):
                await queue.enqueue_within(database, tasks(1) + tasks(1, priority=2**70))
            assert database.in_transaction
            database.execute("commit")
            assert database.execute("select count(*) from orders").fetchone()[0] == 1
            assert (await queue.stats(["q"]))[0].ready == 0
            database.close()

    asyncio.run(main())


def test_only_an_open_transaction_on_the_same_file_will_do(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            elsewhere = sqlite3.connect(":memory:", isolation_level=None)
            elsewhere.execute("begin")
            for transaction, hint in (
                (own(path), "BEGIN"),
                (elsewhere, "same file"),
                (object(), "sqlite3.Connection"),
            ):
                with pytest.raises(BackendError, match=hint) as caught:
                    await backend.queue().enqueue_within(transaction, tasks(1))
                assert caught.value.error_code is ErrorCode.INVALID
            elsewhere.close()

    asyncio.run(main())


def test_the_callers_commit_wakes_who_waits(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, database = backend.queue(), own(path)
            waiting = asyncio.create_task(queue.wait(["q"], timeout_s=60))
            database.execute("begin immediate")
            await queue.enqueue_within(database, tasks(1))
            database.execute("commit")
            assert await asyncio.wait_for(waiting, 30) is True
            database.close()

    asyncio.run(main())
