"""Tasks that are enqueued, and ended, inside the caller's own transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from omniq_conformance.hand import Hand
from omniq_conformance.servers import PostgresServer
from omniq_core import Outcome, Settlement, TaskRecord, TaskState, Verb
from omniq_postgres import PostgresBackend


class Undo(Exception):
    pass


def alchemy_url(server: PostgresServer) -> str:
    return server.url.replace("postgresql://", "postgresql+psycopg://")


@asynccontextmanager
async def psycopg_async(server: PostgresServer) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        yield connection


@asynccontextmanager
async def psycopg_sync(server: PostgresServer) -> AsyncIterator[Any]:
    with psycopg.connect(server.url) as connection:
        yield connection


@asynccontextmanager
async def psycopg_autocommit_block(server: PostgresServer) -> AsyncIterator[Any]:
    async with (
        await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection,
        connection.transaction(),
    ):
        yield connection


@asynccontextmanager
async def psycopg_with_other_rows(server: PostgresServer) -> AsyncIterator[Any]:
    with psycopg.connect(server.url, row_factory=psycopg.rows.dict_row) as connection:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        yield connection


@asynccontextmanager
async def alchemy_connection(server: PostgresServer) -> AsyncIterator[Any]:
    engine = sqlalchemy.create_engine(alchemy_url(server), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        yield connection


@asynccontextmanager
async def alchemy_session(server: PostgresServer) -> AsyncIterator[Any]:
    engine = sqlalchemy.create_engine(alchemy_url(server), poolclass=sqlalchemy.NullPool)
    with Session(engine) as session, session.begin():
        yield session


@asynccontextmanager
async def alchemy_async_connection(server: PostgresServer) -> AsyncIterator[Any]:
    engine = create_async_engine(alchemy_url(server), poolclass=sqlalchemy.NullPool)
    async with engine.begin() as connection:
        yield connection


@asynccontextmanager
async def alchemy_async_session(server: PostgresServer) -> AsyncIterator[Any]:
    engine = create_async_engine(alchemy_url(server), poolclass=sqlalchemy.NullPool)
    async with AsyncSession(engine) as session, session.begin():
        yield session


KINDS = [
    psycopg_async,
    psycopg_sync,
    psycopg_autocommit_block,
    psycopg_with_other_rows,
    alchemy_connection,
    alchemy_session,
    alchemy_async_connection,
    alchemy_async_session,
]
each_kind = pytest.mark.parametrize("transaction", KINDS, ids=lambda kind: kind.__name__)


def run(server: PostgresServer, schema: str, body: Callable[[PostgresBackend], Awaitable[None]]) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(server.url, schema=schema) as backend:
            await body(backend)

    asyncio.run(main())


@each_kind
def test_a_task_comes_with_the_commit_and_not_before(
    postgres_server: PostgresServer, postgres_schema: str, transaction: Any
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        records = [
            TaskRecord(f"t{n}", "q", "send 100%", b"\x00%s", unique_key=f"k{n}", ttl_s=90.0) for n in range(3)
        ]
        async with transaction(postgres_server) as open_transaction:
            answers = await queue.enqueue_within(open_transaction, [*records, records[0]])
            assert [a.outcome for a in answers] == [Outcome.OK] * 3 + [Outcome.DUPLICATE]
            assert await queue.get(["t0"]) == [None], "a task was seen before the commit"
            assert await Hand(backend).claim() == [], "a task was claimed before the commit"
        claims = await Hand(backend).claim()
        assert [(c.task_id, c.name, c.body) for c in claims] == [(r.id, r.name, r.body) for r in records]

    run(postgres_server, postgres_schema, body)


@each_kind
def test_a_task_goes_with_the_rollback(
    postgres_server: PostgresServer, postgres_schema: str, transaction: Any
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        record = TaskRecord("t", "q", "send", b"", unique_key="k")
        with pytest.raises(Undo):  # noqa: PT012 - the body is the transaction
            async with transaction(postgres_server) as open_transaction:
                await queue.enqueue_within(open_transaction, [record])
                raise Undo
        assert await Hand(backend).claim() == []
        [answer] = await queue.enqueue([record])
        assert answer.outcome is Outcome.OK, "the id or the key outlived the rollback"
        [stats] = await queue.stats(["q"])
        assert (stats.ready, stats.running) == (1, 0), "the counts outlived the rollback"

    run(postgres_server, postgres_schema, body)


@each_kind
def test_a_task_ends_with_the_commit_of_its_own_work(
    postgres_server: PostgresServer, postgres_schema: str, transaction: Any
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue, results = backend.queue(), backend.result_store()
        await queue.enqueue([TaskRecord("t", "q", "send", b"")])
        held = await Hand(backend).claim_one()
        done = Settlement(held.lease, Verb.SUCCEED, result=b"r")
        with pytest.raises(Undo):  # noqa: PT012 - the body is the transaction
            async with transaction(postgres_server) as open_transaction:
                assert list(await queue.settle_within(open_transaction, [done])) == [Outcome.OK]
                raise Undo
        assert await results.get(["t"]) == [None]
        async with transaction(postgres_server) as open_transaction:
            assert list(await queue.settle_within(open_transaction, [done])) == [Outcome.OK]
        [record] = await results.get(["t"])
        assert record is not None
        assert (record.body, record.state) == (b"r", TaskState.SUCCEEDED)
        assert list(await queue.settle([done])) == [Outcome.DUPLICATE]
        async with transaction(postgres_server) as open_transaction:
            assert list(await queue.settle_within(open_transaction, [done])) == [Outcome.DUPLICATE]

    run(postgres_server, postgres_schema, body)


def test_a_task_that_ends_within_a_transaction_holds_up_nobody(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        await queue.enqueue([TaskRecord(f"t{n}", "q", "send", b"") for n in range(4)])
        first, second, third, lost = await Hand(backend).claim(lease_s=0.2)
        async with psycopg_async(postgres_server) as transaction, asyncio.timeout(5.0):
            await queue.settle_within(transaction, [Settlement(first.lease, Verb.SUCCEED)])
            [extension] = await queue.extend([second.lease], lease_s=0.05)
            assert extension.outcome is Outcome.OK, "an extension waited for somebody's transaction"
            assert list(await queue.settle([Settlement(second.lease, Verb.SUCCEED)])) == [Outcome.OK]
            await asyncio.sleep(max(0.0, extension.expires_at - (await backend.check()).now) + 0.01)
            assert (await queue.maintain()).moved == [], "a claim was reaped while its owner writes"
            assert list(await queue.settle([Settlement(third.lease, Verb.RETRY)])) == [Outcome.OK]
        moved = (await queue.maintain()).moved
        assert [m.task_id for m in moved] == [lost.task_id]
        states = [s.state.value for s in await queue.get([f"t{n}" for n in range(4)]) if s is not None]
        assert states == ["succeeded", "succeeded", "pending", "pending"]
        assert postgres_server.execute(f"select count(*) from {postgres_schema}.claim") == [["0"]]
        [stats] = await queue.stats(["q"])
        assert (stats.ready, stats.running) == (2, 0)

    run(postgres_server, postgres_schema, body)


def test_a_new_queue_in_an_open_transaction_blocks_no_producer(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        async with psycopg_async(postgres_server) as transaction:
            await queue.enqueue_within(transaction, [TaskRecord("within", "new", "send", b"")])
            async with asyncio.timeout(5.0):
                await queue.enqueue([TaskRecord("beside", "new", "send", b"")])
        assert len(await queue.claim(["new"], max_tasks=5, lease_s=9.0, worker_id="w", claim_id="c")) == 2

    run(postgres_server, postgres_schema, body)


def test_what_cannot_be_a_transaction_is_refused(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        record = TaskRecord("t", "q", "send", b"")
        async with await psycopg.AsyncConnection.connect(postgres_server.url, autocommit=True) as connection:
            with pytest.raises(ValueError, match="autocommit"):
                await queue.enqueue_within(connection, [record])
        with pytest.raises(TypeError, match="psycopg"):
            await queue.enqueue_within(object(), [record])
        with (
            sqlalchemy.create_engine("sqlite://").connect() as other,
            pytest.raises(TypeError, match="psycopg"),
        ):
            await queue.enqueue_within(other, [record])
        assert await queue.get(["t"]) == [None]

    run(postgres_server, postgres_schema, body)


def test_a_waiting_worker_hears_of_a_commit_before_its_poll(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        async with PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, poll_interval_s=30.0
        ) as worker:
            assert (
                await worker.queue().claim(["q"], max_tasks=1, lease_s=9.0, worker_id="w", claim_id="a") == []
            )
            async with psycopg_sync(postgres_server) as transaction:
                await backend.queue().enqueue_within(transaction, [TaskRecord("t", "q", "send", b"")])
            async with asyncio.timeout(5.0):
                while not await worker.queue().claim(
                    ["q"], max_tasks=1, lease_s=9.0, worker_id="w", claim_id="b"
                ):
                    await worker.queue().wait(["q"], timeout_s=10.0)

    run(postgres_server, postgres_schema, body)
