"""Servers that die or stand still, replies that get lost, callers that leave: nothing acknowledged is lost, nothing hangs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from omniq_conformance import ServerSuite
from omniq_conformance.hand import Hand, ids
from omniq_conformance.load import insist
from omniq_conformance.servers import PostgresServer, Proxy
from omniq_core import (
    ErrorCode,
    Event,
    EventFilter,
    Outcome,
    ResultRecord,
    Settlement,
    TaskState,
    Verb,
)
from omniq_postgres import PostgresBackend

pytestmark = pytest.mark.slow  # the server is killed and frozen


async def listening(worker: PostgresBackend) -> None:
    """Returns when it hears, once it has begun to wait."""
    await asyncio.sleep(0)
    assert worker._listener is not None
    await worker._listener.listening.wait()


class TestServer(ServerSuite):
    producers = (1, 6, 11, 1, 6, 11, 1, 6)

    @pytest.fixture
    def server(self, postgres_server: PostgresServer) -> PostgresServer:
        return postgres_server

    @pytest.fixture
    def durable_server(self, postgres_server_durable: PostgresServer) -> PostgresServer:
        return postgres_server_durable

    def backend_at(self, url: str, namespace: str, *, patience_s: float = 10.0) -> PostgresBackend:
        return PostgresBackend.from_url(
            url, schema=namespace, statement_timeout_s=patience_s, connect_timeout_s=patience_s
        )


def test_a_listener_that_was_cut_off_listens_again(
    postgres_server: PostgresServer, postgres_schema: str, server_proxy: Callable[[PostgresServer], Proxy]
) -> None:
    proxy = server_proxy(postgres_server)

    async def main() -> None:
        url = proxy.url_for(postgres_server.url)
        async with (
            PostgresBackend.from_url(url, schema=postgres_schema, poll_interval_s=30.0) as worker,
            PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as producer,
        ):
            hand = Hand(worker)
            for _ in range(2):
                assert await hand.claim() == []
                # With its connections the call may fail as well, and is repeated.
                wait = partial(worker.queue().wait, ["q"], timeout_s=25.0)
                waiting = asyncio.ensure_future(insist(worker, wait))
                await listening(worker)
                proxy.cut()
                async with asyncio.timeout(5.0):
                    assert await waiting, "a listener that stands again wakes everybody"
                assert await insist(worker, hand.claim) == []
                waiting = asyncio.ensure_future(worker.queue().wait(["q"], timeout_s=25.0))
                await asyncio.sleep(0.05)
                task = await Hand(producer).put_one()
                async with asyncio.timeout(5.0):
                    assert await waiting
                held = await hand.claim_one()
                assert held.task_id == task.id
                await worker.queue().settle([Settlement(held.lease, Verb.SUCCEED)])

    asyncio.run(main())


def swallow(proxy: Proxy, name: str) -> None:
    """The reply to the next call of a prepared statement: what follows its Bind message."""
    proxy.swallow_reply(
        predicate=lambda chunk: chunk[:1] == b"B" and b"omniq_" + name.encode() + b"\0" in chunk
    )


def test_a_swallowed_reply_doubles_nothing_and_loses_nothing(
    postgres_server: PostgresServer, postgres_schema: str, server_proxy: Callable[[PostgresServer], Proxy]
) -> None:
    proxy = server_proxy(postgres_server)

    async def main() -> None:
        url = proxy.url_for(postgres_server.url)
        async with PostgresBackend.from_url(url, schema=postgres_schema, notify=True) as backend:
            hand = Hand(backend)
            queue, results, events = hand.queue, hand.results, hand.events

            async def lost(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
                """The call's reply is swallowed once; it is repeated, and its second answer counts."""
                before = proxy.counters.swallowed
                swallow(proxy, name)
                # The first attempt may have to prepare the statement on its connection; then it is the one that is hit.
                with pytest.raises(psycopg.Error) as caught:
                    await call()
                assert backend.classify(caught.value) is ErrorCode.UNKNOWN_EFFECT
                await asyncio.to_thread(proxy.wait_for, lambda counters: counters.swallowed == before + 1)
                return await insist(backend, call)

            tasks = hand.records(8)
            answers = await lost("enqueue", lambda: queue.enqueue(tasks))
            assert [a.outcome for a in answers] == [Outcome.DUPLICATE] * 8

            claim_id = str(uuid.uuid4())
            claims = await lost("claim", lambda: hand.claim(max_tasks=4, claim_id=claim_id))
            assert ids(claims) == ids(tasks[:4]), "the repeated claim took others"
            [stats] = await queue.stats(["q"])
            assert (stats.ready, stats.running) == (4, 4)

            extensions = await lost("extend", lambda: queue.extend([c.lease for c in claims], lease_s=60.0))
            assert [e.outcome for e in extensions] == [Outcome.OK] * 4

            verbs = [Verb.SUCCEED, Verb.RETRY, Verb.RELEASE, Verb.DEAD]
            ends = [
                Settlement(c.lease, verb, result=b"r" if verb is Verb.SUCCEED else None)
                for c, verb in zip(claims, verbs, strict=True)
            ]
            outcomes = await lost("settle", lambda: queue.settle(ends))
            assert outcomes == [Outcome.DUPLICATE] * 4
            snapshots = await lost("get", lambda: queue.get(ids(tasks[:4])))
            assert [(s.state.value, s.attempt) for s in snapshots] == [
                ("succeeded", 1), ("pending", 1), ("pending", 0), ("dead", 1),
            ]  # fmt: skip
            [found] = await lost("get_results", lambda: results.get([tasks[0].id]))
            assert found.body == b"r"

            assert await lost("cancel", lambda: queue.cancel([tasks[5].id])) == [Outcome.FINISHED]
            assert await lost("requeue", lambda: queue.requeue([tasks[3].id])) == [Outcome.DUPLICATE]

            await hand.running(queue="lost", max_crashes=1, lease_s=0.05)
            await asyncio.sleep(0.1)
            await lost("reap", queue.maintain)
            await lost("tidy", queue.maintain)
            [stats] = await queue.stats(["lost"])
            assert (stats.ready, stats.running) == (0, 0)

            await lost("pause", lambda: queue.pause(["q"]))
            assert await hand.claim() == []
            await lost("pause", lambda: queue.resume(["q"]))

            put = [ResultRecord("elsewhere", 3, TaskState.SUCCEEDED, b"r")]
            assert await lost("put_results", lambda: results.put(put)) == [Outcome.DUPLICATE]
            assert await lost("delete_results", lambda: results.delete(["elsewhere"])) == 0

            log = [Event(f"e{n}", "t", "x", float(n)) for n in range(3)]
            assert await lost("append", lambda: events.append(log)) == [Outcome.DUPLICATE] * 3
            assert len((await events.read(EventFilter())).items) == 3
            assert await lost("truncate", lambda: events.truncate(before=1.0)) == 0

            left = ids(await hand.claim(max_tasks=100))
            assert sorted(left) == sorted(t.id for n, t in enumerate(tasks) if n not in (0, 5))
            [stats] = await queue.stats(["q"])
            assert (stats.ready, stats.running) == (0, 6), "a repeated call was counted twice"

    asyncio.run(main())


def test_cancelled_calls_leave_no_transaction_and_no_lock(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, pool_size=2
        ) as backend:
            hand = Hand(backend)
            tasks = await hand.put(20)
            held = await hand.claim_one()

            def calls() -> list[Callable[[], Awaitable[Any]]]:
                return [
                    lambda: backend.queue().enqueue(Hand.records(300)),
                    lambda: hand.claim(max_tasks=3, lease_s=0.05),
                    lambda: backend.queue().settle([Settlement(held.lease, Verb.RETRY)]),
                    lambda: backend.queue().extend([held.lease], lease_s=9.0),
                    lambda: backend.queue().cancel([tasks[7].id]),
                    backend.queue().maintain,
                    lambda: backend.event_store().append([Event(str(uuid.uuid4()), "t", "x", 1.0)] * 300),
                    lambda: backend.queue().wait(["q"], timeout_s=5.0),
                ]

            for yields in (0, 1, 2, 3, 5, 9):
                for make in calls():
                    call = asyncio.ensure_future(make())
                    for _ in range(yields):
                        await asyncio.sleep(0)
                    call.cancel()
                    async with asyncio.timeout(2.0):
                        await asyncio.wait([call])
                    call.cancelled() or call.exception()
            async with asyncio.timeout(10.0):
                while True:
                    [[open_]] = await asyncio.to_thread(
                        postgres_server.execute,
                        "select count(*) from pg_stat_activity where state <> 'idle' and xact_start is not null "
                        f"and pid <> pg_backend_pid() and query like '%{postgres_schema}%'",
                    )
                    if open_ == "0":
                        break
            async with asyncio.timeout(5.0):
                await hand.put_one()
                await hand.claim_one()

    asyncio.run(main())


def test_all_connections_in_use_is_told_in_time(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        backend = PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, pool_size=1, connect_timeout_s=0.2
        )
        async with backend:
            link = await backend.pool.take()
            with pytest.raises(psycopg.Error) as caught:
                await backend.queue().get(["x"])
            assert backend.classify(caught.value) is ErrorCode.TIMEOUT, "nothing was sent"
            backend.pool.give_back(link)
            assert await backend.queue().get(["x"]) == [None]

    asyncio.run(main())


def test_a_callers_bad_item_is_not_anothers_failure(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend:
            bad = Hand.record(max_attempts=2**40)
            good = Hand.records(20)
            calls = [backend.queue().enqueue([task]) for task in [*good[:10], bad, *good[10:]]]
            answers: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(answers.pop(10), Exception)
            assert all(answer[0].outcome is Outcome.OK for answer in answers)

    asyncio.run(main())
