"""How calls share connections: notifications that travel with a call, and callers who go alone or together."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from omniq_conformance.hand import Hand
from omniq_conformance.servers import PostgresServer
from omniq_core import Outcome, Settlement, Verb
from omniq_postgres import PostgresBackend


def run(
    server: PostgresServer, schema: str, body: Callable[[PostgresBackend], Awaitable[None]], **settings: Any
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(server.url, schema=schema, **settings) as backend:
            await body(backend)

    asyncio.run(main())


def test_a_notification_travels_with_the_call_that_it_is_about(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(producer: PostgresBackend) -> None:
        async with PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, poll_interval_s=30.0
        ) as worker:
            queue = worker.queue()
            waiting = asyncio.create_task(queue.wait(["q"], timeout_s=20.0))
            await asyncio.sleep(0)
            assert worker._listener is not None
            await worker._listener.listening.wait()
            await waiting  # whoever begins to listen looks once
            task = Hand.record()
            await producer.queue().enqueue([task])
            assert producer.ringer is not None
            assert producer.ringer._link is None, "it took a connection of its own"
            async with asyncio.timeout(10.0):
                while not (
                    claims := await queue.claim(
                        ["q"], max_tasks=1, lease_s=9.0, worker_id="w", claim_id=str(uuid.uuid4())
                    )
                ):
                    assert await queue.wait(["q"], timeout_s=20.0)
                result = asyncio.create_task(producer.result_store().wait([task.id], timeout_s=20.0))
                await asyncio.sleep(0.1)
                await queue.settle([Settlement(claims[0].lease, Verb.SUCCEED, result=b"r")])
                [found] = await result
            assert found is not None
            assert found.body == b"r"
            assert worker.ringer is not None
            assert worker.ringer._link is None

    run(postgres_server, postgres_schema, body, poll_interval_s=30.0)


def test_a_connection_with_a_notification_behind_takes_the_next_call(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.notify.FEW_S", 0.0)  # behind every call

    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        for number in range(100):
            task = Hand.record()
            assert [answer.outcome for answer in await queue.enqueue([task])] == [Outcome.OK]
            assert [answer.outcome for answer in await queue.enqueue([task])] == [Outcome.DUPLICATE]
            [claim] = await queue.claim(["q"], max_tasks=1, lease_s=9.0, worker_id="w", claim_id=f"c{number}")
            assert claim.task_id == task.id
            settlement = Settlement(claim.lease, Verb.SUCCEED, result=b"r")
            assert list(await queue.settle([settlement])) == [Outcome.OK]
            assert list(await queue.settle([settlement])) == [Outcome.DUPLICATE]

    run(postgres_server, postgres_schema, body, pool_size=1)


def test_a_call_that_fails_leaves_a_connection_that_works(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.notify.FEW_S", 0.0)

    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        for _ in range(10):
            with pytest.raises(psycopg.DataError):
                await queue.enqueue([Hand.record(name="no\0text")])
            await queue.enqueue([Hand.record()])
        links = set(backend.pool._links)
        assert len(links) == 1
        assert len(await queue.claim(["q"], max_tasks=99, lease_s=9.0, worker_id="w", claim_id="c")) == 10
        assert backend.pool._links == links

    run(postgres_server, postgres_schema, body, pool_size=1)


def test_a_caller_who_goes_alone_and_leaves_strands_nobody(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        queue = backend.queue()
        for _ in range(20):
            await queue.enqueue([Hand.record()])  # the last one had no company
            first = asyncio.create_task(queue.enqueue([Hand.record()]))
            await asyncio.sleep(0)
            others = [asyncio.create_task(queue.enqueue([Hand.record()])) for _ in range(5)]
            await asyncio.sleep(0)
            first.cancel()
            answers = await asyncio.gather(*others)
            assert {answer.outcome for [answer] in answers} == {Outcome.OK}
        [stats] = await queue.stats(["q"])
        assert 120 <= stats.ready <= 140

    run(postgres_server, postgres_schema, body)


def test_closing_lets_the_last_notification_out(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(worker: PostgresBackend) -> None:
        queue = worker.queue()
        await queue.wait(["q"], timeout_s=0.0)
        assert worker._listener is not None
        await worker._listener.listening.wait()
        for number in range(20):
            await queue.claim(["q"], max_tasks=9, lease_s=9.0, worker_id="w", claim_id=f"c{number}")
            assert (
                await queue.claim(["q"], max_tasks=9, lease_s=9.0, worker_id="w", claim_id=f"d{number}") == []
            )
            waiting = asyncio.create_task(queue.wait(["q"], timeout_s=20.0))
            async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as producer:
                await producer.queue().enqueue([Hand.record(body=b"b" * 20_000)])
            async with asyncio.timeout(5.0):
                assert await waiting

    run(postgres_server, postgres_schema, body, poll_interval_s=30.0)
