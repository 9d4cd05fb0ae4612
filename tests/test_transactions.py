"""Enqueuing and completing as a part of the caller's own transaction, through the faces that users hold."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from omniq import AsyncOmniQ, OmniQ
from omniq_conformance.servers import Server
from omniq_core import Capability, MissingCapability, TaskState


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def postgres(place_on: Callable[..., str], server_of: Callable[[str], Server]) -> tuple[str, str]:
    """The URL of the queue, and that for the program's own connections."""
    return place_on("postgres"), server_of("postgres").url


def test_a_task_enqueued_in_a_psycopg_transaction_is_there_after_the_commit_and_gone_after_a_rollback(
    postgres: tuple[str, str],
) -> None:
    place, own = postgres
    with OmniQ(place) as oq, psycopg.connect(own) as connection:
        connection.execute("select 1")
        kept = oq.enqueue(double, 1, transaction=connection)
        assert oq.get_task(kept) is None
        connection.commit()
        assert oq.get_task(kept) is not None
        connection.execute("select 1")
        dropped = oq.enqueue_many([(double, [2]), (double, [3])], transaction=connection)
        connection.rollback()
        assert [oq.get_task(task_id) for task_id in dropped] == [None, None]


def test_a_decorated_task_joins_a_sqlalchemy_session(postgres: tuple[str, str]) -> None:
    place, own = postgres
    engine = sqlalchemy.create_engine(own.replace("postgresql://", "postgresql+psycopg://"))
    with OmniQ(place) as oq:
        task = oq.task(double)
        with Session(engine) as session:
            session.execute(sqlalchemy.text("select 1"))
            handle = task.with_options(transaction=session).enqueue(21)
            session.commit()
        oq.start_worker()
        assert handle.result(timeout=30) == 42
    engine.dispose()


@pytest.mark.parametrize("commits", [True, False])
def test_a_task_completes_within_its_own_transaction(postgres: tuple[str, str], commits: bool) -> None:
    place, own = postgres

    async def run() -> None:
        oq = AsyncOmniQ(place)

        @oq.task(name="transfer", max_retries=0)
        async def transfer(table: str) -> str:
            async with await psycopg.AsyncConnection.connect(own) as connection:
                await connection.execute(f"insert into {table} values (1)")
                await oq.complete_within(connection, "within")
                if not commits:
                    await connection.rollback()
            return "afterwards"

        async with oq, await psycopg.AsyncConnection.connect(own, autocommit=True) as watching:
            table = f"effects_{place[-8:]}"
            await watching.execute(f"create table {table} (n int)")
            await oq.start_worker()
            handle = await transfer.enqueue(table)
            assert await handle.result(timeout=30) == ("within" if commits else "afterwards")
            info = await oq.get_task(handle.id)
            assert info is not None
            assert (info.state, info.attempts) == (TaskState.SUCCEEDED, 1)
            [(count,)] = await (await watching.execute(f"select count(*) from {table}")).fetchall()
            assert count == int(commits)
            await watching.execute(f"drop table {table}")

    asyncio.run(run())


def test_a_task_joins_a_transaction_on_the_programs_own_sqlite_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with OmniQ(f"sqlite:///{path}") as oq:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("create table orders (n int)")
        connection.execute("begin immediate")
        connection.execute("insert into orders values (1)")
        task_id = oq.enqueue(double, 4, transaction=connection)
        connection.execute("commit")
        connection.close()
        assert oq.get_task(task_id) is not None


def test_what_is_no_transaction_is_refused_and_nothing_is_sent(postgres: tuple[str, str]) -> None:
    place, _ = postgres
    with OmniQ(place) as oq:
        with pytest.raises(TypeError, match="must be a psycopg Connection"):
            oq.enqueue(double, 1, transaction=object())
        assert oq.get_queue_size() == 0


def test_a_backend_without_transactions_says_so_by_name() -> None:
    with OmniQ("memory://") as oq:
        with pytest.raises(MissingCapability, match="TX_ENQUEUE, which transaction= needs") as refused:
            oq.enqueue(double, 1, transaction=object())
        assert refused.value.missing == {Capability.TX_ENQUEUE}


def test_completing_outside_a_task_is_refused() -> None:
    with OmniQ("memory://") as oq, pytest.raises(LookupError, match="inside a task"):
        oq.complete_within(object(), 1)


def test_a_transaction_is_for_all_calls_of_enqueue_many() -> None:
    calls: list[Any] = [{"func": double, "func_args": [1], "transaction": object()}]
    with OmniQ("memory://") as oq, pytest.raises(TypeError, match="give it to enqueue_many itself"):
        oq.enqueue_many(calls)
