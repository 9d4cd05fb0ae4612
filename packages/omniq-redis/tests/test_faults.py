"""Broken connections, lost replies, silent and restarted servers: what was acknowledged stays, and nothing happens twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from omniq_conformance import ServerSuite
from omniq_conformance.hand import Hand, ids
from omniq_conformance.load import insist, until
from omniq_conformance.servers import Proxy, Server, ValkeyServer
from omniq_core import (
    ErrorCode,
    Event,
    EventFilter,
    Outcome,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskState,
    Verb,
)
from omniq_redis import RedisBackend
from omniq_redis.errors import ConnectionLost
from omniq_redis.keys import prefix
from omniq_redis.scripts import SCRIPTS

pytestmark = pytest.mark.slow  # servers are killed and frozen

OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE
Make = Callable[..., RedisBackend]
Call = Callable[[], Awaitable[Any]]
Blocked = Callable[..., Awaitable[None]]


class TestServer(ServerSuite):
    @pytest.fixture
    def server(self, valkey_server: ValkeyServer) -> ValkeyServer:
        return valkey_server

    @pytest.fixture
    def durable_server(self, valkey_server_durable: ValkeyServer) -> ValkeyServer:
        return valkey_server_durable

    def backend_at(self, url: str, namespace: str, *, patience_s: float = 10.0) -> RedisBackend:
        return RedisBackend.from_url(
            url, project_name=namespace, timeout_s=patience_s, connect_timeout_s=patience_s
        )


def test_scripts_that_the_server_forgot_are_sent_again(valkey_server: ValkeyServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(valkey_server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            done: list[str] = []
            records = hand.records(400)

            async def work(mine: list[TaskRecord]) -> None:
                for record in mine:
                    await queue.enqueue([record])
                    for c in await hand.claim(max_tasks=1):
                        assert await queue.settle([Settlement(c.lease, Verb.SUCCEED)]) == [OK]
                        done.append(c.task_id)

            jobs = asyncio.gather(*(work(records[n::8]) for n in range(8)))
            while not jobs.done():
                await asyncio.to_thread(valkey_server.command, "SCRIPT", "FLUSH")
            await jobs
            while claims := await hand.claim():
                await hand.finish_all(claims)
                done += ids(claims)
            assert sorted(done) == sorted(record.id for record in records)

    asyncio.run(main())


def test_a_reply_lost_of_any_kind_of_call_can_be_asked_for_again(
    valkey_server: ValkeyServer, backend_at: Make, server_proxy: Callable[[Server], Proxy]
) -> None:
    proxy = server_proxy(valkey_server)

    async def main() -> None:
        async with backend_at(proxy.url_for(valkey_server.url)) as backend:
            hand = Hand(backend)
            queue, results, events = hand.queue, hand.results, hand.events

            cut = 0

            async def twice(mark: str, call: Call) -> Any:
                """Swallows the reply of a call, and makes it again."""
                nonlocal cut
                cut += 1
                wanted = SCRIPTS[mark].sha if mark in SCRIPTS else b"\r\n" + mark.encode() + b"\r\n"
                proxy.swallow_reply(predicate=lambda data: wanted in data)
                with pytest.raises(ConnectionLost) as lost:
                    await call()
                assert backend.classify(lost.value) is ErrorCode.UNKNOWN_EFFECT
                return await call()

            # The server must know the scripts: a refused EVALSHA would be swallowed instead of what acts.
            for script in SCRIPTS.values():
                valkey_server.command("SCRIPT", "LOAD", script.text)

            plain, unique, delayed = (
                hand.records(4),
                hand.records(1, unique_key="k"),
                hand.records(1, queue="late", delay_s=60.0),
            )
            answers = await twice("enqueue", lambda: queue.enqueue(plain))
            assert [a.outcome for a in answers] == [DUPLICATE] * 4
            answers = await twice("enqueue_each", lambda: queue.enqueue(unique + delayed))
            assert [a.outcome for a in answers] == [DUPLICATE] * 2

            claims = await twice("claim", lambda: hand.claim(max_tasks=5, claim_id="one claim"))
            assert ids(claims) == ids(plain + unique), "the same claim, and no task twice"
            assert await hand.claim() == []
            leases = [c.lease for c in claims]
            [first, *_] = await twice("extend", lambda: queue.extend(leases, lease_s=90.0))
            assert first.outcome is OK
            ends = [
                Settlement(leases[0], Verb.SUCCEED, result=b"r"),
                Settlement(leases[1], Verb.RETRY, reason="x"),
            ]
            assert await twice("settle", lambda: queue.settle(ends)) == [DUPLICATE, DUPLICATE]
            assert await twice("cancel", lambda: queue.cancel([plain[2].id])) == [Outcome.REQUESTED]
            await queue.settle([Settlement(leases[2], Verb.CANCEL), Settlement(leases[3], Verb.DEAD)])
            again = await twice("requeue", lambda: queue.requeue([plain[2].id, plain[3].id]))
            assert again == [DUPLICATE, DUPLICATE]
            await twice("SADD", lambda: queue.pause(["q"]))
            assert await hand.claim() == []
            await twice("resume", lambda: queue.resume(["q"]))
            back = await hand.claim(lease_s=0.05)
            assert ids(back) == ids(plain[1:]), "each once, in the order of arrival"

            before = (await queue.get([back[0].task_id]))[0]
            while (await queue.get([back[0].task_id]))[0].state is TaskState.RUNNING:  # type: ignore[union-attr]
                await twice("reap", lambda: queue.maintain())
            after = (await queue.get([back[0].task_id]))[0]
            assert before is not None
            assert after is not None
            assert after.crashes == before.crashes + 1
            assert len(await hand.claim()) == 3, "reaped once"
            assert await twice("purge", lambda: queue.purge(TaskFilter(queues=["late"]))) == 0
            assert await queue.get([delayed[0].id]) == [None]

            record = ResultRecord("r", 3, TaskState.DEAD, b"body")
            assert await twice("put", lambda: results.put([record])) == [DUPLICATE]
            assert await twice("UNLINK", lambda: results.delete(["r"])) == 0
            happened = [Event(str(n), "t", "x", float(n)) for n in range(4)]
            assert await twice("append", lambda: events.append(happened)) == [DUPLICATE] * 4
            assert await twice("truncate", lambda: events.truncate(before=2.0)) == 0
            assert [e.id for e in (await events.read(EventFilter())).items] == ["2", "3"]

            for mark, call in (
                ("get", lambda: queue.get([plain[0].id])),
                ("scan", lambda: queue.query(TaskFilter())),
                ("stats", lambda: queue.stats(["q"])),
                ("SMEMBERS", lambda: queue.queue_names()),
                ("peek", lambda: queue.wait(["nothing"], timeout_s=0.01)),
                ("MGET", lambda: results.get([plain[0].id])),
                ("XRANGE", lambda: events.read(EventFilter())),
            ):
                await twice(mark, call)
            [stats] = await queue.stats(["q"])
            assert (stats.ready, stats.running) == (0, 4), (
                "the counts did not drift: unique and three reaped ones run"
            )
            assert proxy.counters.swallowed == cut, "every first call was cut short"

    asyncio.run(main())


def test_who_waits_for_a_result_hears_of_it_after_the_subscription_was_cut(
    valkey_server: ValkeyServer,
    backend_at: Make,
    server_proxy: Callable[[Server], Proxy],
    project: str,
) -> None:
    proxy = server_proxy(valkey_server)

    async def main() -> None:
        async with (
            backend_at(proxy.url_for(valkey_server.url)) as waiter,
            backend_at(valkey_server.url) as other,
        ):
            first = asyncio.ensure_future(waiter.result_store().wait(["a"], timeout_s=10))
            await until(lambda: valkey_server.command("EXISTS", f"{prefix(project)}wt:a"))
            await waiter.queue().get(["x"])  # answers come in order: all that the wait has asked is answered
            proxy.cut()
            await other.result_store().put([ResultRecord("a", 1, TaskState.SUCCEEDED, b"result")])
            async with asyncio.timeout(3):
                [found] = await first
            assert found is not None
            assert found.body == b"result"

    asyncio.run(main())


def test_a_former_owner_stays_out_even_of_a_server_that_forgot_everything(backend_at: Make) -> None:
    async def main(server: ValkeyServer) -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            record = await hand.put_one()
            old = await hand.claim_one()
            await asyncio.to_thread(server.kill)  # without a snapshot, and without an append-only file
            await asyncio.to_thread(server.start)
            await insist(backend, lambda: queue.enqueue([record]))
            new = await hand.claim_one()
            assert new.lease.fence > old.lease.fence
            assert await queue.settle([Settlement(old.lease, Verb.SUCCEED)]) == [Outcome.STALE]
            assert await queue.settle([Settlement(new.lease, Verb.SUCCEED)]) == [OK]

    with ValkeyServer(settings={"save": "", "appendonly": "no"}) as server:
        asyncio.run(main(server))
