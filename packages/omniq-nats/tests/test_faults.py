"""Broken connections, lost replies, silent and restarted servers: what was acknowledged stays, and nothing happens twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from omniq_conformance import ServerSuite
from omniq_conformance.hand import Hand, ids
from omniq_conformance.servers import NatsServer, Proxy, Server
from omniq_core import (
    ErrorCode,
    Event,
    EventFilter,
    Outcome,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskState,
    Verb,
)
from omniq_nats import NatsBackend
from omniq_nats.errors import ConnectionLost
from omniq_nats.subjects import Subjects

pytestmark = pytest.mark.slow  # servers are killed and frozen

OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE
Make = Callable[..., NatsBackend]
Call = Callable[[], Awaitable[Any]]


@pytest.mark.usefixtures("hints_come_back_soon")
class TestServer(ServerSuite):
    kills = 10

    @pytest.fixture
    def server(self, nats_server: NatsServer) -> NatsServer:
        return nats_server

    @pytest.fixture(params=["default", "durable"])
    def durable_server(self, request: pytest.FixtureRequest) -> Iterator[NatsServer]:
        # Its own: one that others use has all their streams to read whenever it starts.
        with NatsServer(request.param) as server:
            yield server

    def backend_at(self, url: str, namespace: str, *, patience_s: float = 10.0) -> NatsBackend:
        return NatsBackend.from_url(
            url, project_name=namespace, timeout_s=patience_s, connect_timeout_s=patience_s
        )


def test_a_second_server_is_tried_when_the_first_is_not_there(
    nats_server: NatsServer, backend_at: Make, server_proxy: Callable[[Server], Proxy]
) -> None:
    proxy = server_proxy(nats_server)

    async def main() -> None:
        proxy.refuse()
        second = nats_server.url.removeprefix("nats://")
        async with backend_at(f"nats://127.0.0.1:{proxy.port},{second}", connect_timeout_s=2.0) as both:
            assert await both.queue().get(["nothing"]) == [None]

    asyncio.run(main())


def test_a_reply_lost_of_any_kind_of_call_can_be_asked_for_again(
    nats_server: NatsServer,
    backend_at: Make,
    project: str,
    server_proxy: Callable[[Server], Proxy],
) -> None:
    proxy = server_proxy(nats_server)
    names = Subjects(project)

    async def main() -> None:
        async with backend_at(proxy.url_for(nats_server.url)) as backend:
            hand = Hand(backend)
            queue, results, events = hand.queue, hand.results, hand.events
            cut = 0

            async def twice(mark: str, call: Call, *, skip: int = 0) -> Any:
                """Swallows the reply of the request to a subject, and makes the call again."""
                nonlocal cut
                cut += 1
                proxy.swallow_reply(predicate=lambda data: mark.encode() in data, skip=skip)
                with pytest.raises(ConnectionLost) as lost:
                    await call()
                assert backend.classify(lost.value) is ErrorCode.UNKNOWN_EFFECT
                return await call()

            root = f"PUB {names.root}"
            plain, unique = hand.records(4), hand.records(1, unique_key="k")
            late = hand.records(2, queue="late", delay_s=60.0)
            lone = hand.records(2, queue="lone")
            # Of each kind of call every write: the hints, the documents, the claim.
            answers = await twice(f"{root}l.", lambda: queue.enqueue([lone[0]]))
            assert [a.outcome for a in answers] == [OK], "only its hint had been stored"
            answers = await twice(f"{root}t.", lambda: queue.enqueue([lone[1]]))
            assert [a.outcome for a in answers] == [DUPLICATE]
            answers = await twice(f"{root}t.", lambda: queue.enqueue(plain))
            assert [a.outcome for a in answers] == [DUPLICATE] * 4
            answers = await twice(f"{root}u.", lambda: queue.enqueue(unique))
            assert [a.outcome for a in answers] == [DUPLICATE]
            answers = await twice(f"{root}l.", lambda: queue.enqueue(late))
            assert [a.outcome for a in answers] == [OK] * 2
            found = await hand.claim("lone")
            assert ids(found) == ids(lone), "each once"
            await hand.finish_all(found)

            # The lease and its tasks leave together; what was taken, comes back under the same claim.
            claims = await twice(f"{root}c.", lambda: hand.claim(max_tasks=5, claim_id="first"))
            assert ids(claims) == ids(plain + unique)
            await hand.finish_all(claims, Verb.RELEASE)
            claims = await twice(f"{root}t.", lambda: hand.claim(max_tasks=5, claim_id="second"))
            assert ids(claims) == ids(plain + unique), "the same claim, and no task twice"
            assert await hand.claim() == []
            leases = [c.lease for c in claims]
            [extended, *_] = await twice(f"{root}c.", lambda: queue.extend(leases, lease_s=90.0))
            assert extended.outcome is OK
            end = [Settlement(leases[0], Verb.SUCCEED, result=b"r")]
            assert await twice(f"{root}t.", lambda: queue.settle(end)) == [DUPLICATE]
            end = [Settlement(leases[1], Verb.RETRY, reason="x")]
            assert await twice(f"{root}l.", lambda: queue.settle(end)) == [OK], (
                "only the hint had been stored"
            )
            assert await queue.settle(end) == [DUPLICATE]
            assert await twice(f"{root}t.", lambda: queue.cancel([plain[2].id])) == [Outcome.REQUESTED]
            await queue.settle([Settlement(leases[2], Verb.CANCEL), Settlement(leases[3], Verb.DEAD)])
            again = await twice(f"{root}t.", lambda: queue.requeue([plain[2].id]))
            assert again == [DUPLICATE]
            again = await twice(f"{root}l.", lambda: queue.requeue([plain[3].id]))
            assert again == [OK], "only the hint had been stored"
            await twice(f"{root}l.", lambda: queue.pause(["q"]))
            assert await hand.claim() == []
            await twice("STREAM.PURGE", lambda: queue.resume(["q"]))
            back = await hand.claim(lease_s=0.05)
            assert sorted(ids(back)) == sorted(ids(plain[1:])), "each once"
            assert back[0].task_id == plain[1].id, "what was given back goes first"

            before = (await queue.get([back[0].task_id]))[0]
            await asyncio.sleep(0.1)
            await twice(f"{root}c.", lambda: queue.maintain())
            # Whoever takes over is given ten seconds, then another goes on: let that have passed.
            claims_of = backend._opened().tasks.holdings
            for holding in await claims_of.all():
                lease, seq = holding.now
                if lease.taken_over:
                    assert await claims_of.rewrite(holding, seq, msgspec.structs.replace(lease, ends_at=0.0))
            await twice(f"{root}t.", lambda: queue.maintain())
            for holding in await claims_of.all():
                lease, seq = holding.now
                if lease.taken_over:
                    assert await claims_of.rewrite(holding, seq, msgspec.structs.replace(lease, ends_at=0.0))
            await queue.maintain()
            after = (await queue.get([back[0].task_id]))[0]
            assert before is not None
            assert after is not None
            assert after.crashes == before.crashes + 1
            assert len(await hand.claim()) == 3, "reaped once"
            assert await twice("STREAM.MSG.DELETE", lambda: queue.purge(TaskFilter(queues=["late"]))) in (
                0,
                1,
                2,
            )
            assert await queue.get([record.id for record in late]) == [None, None]

            record = ResultRecord("r", 3, TaskState.DEAD, b"body")
            assert await twice(f"{root}r.", lambda: results.put([record])) == [DUPLICATE]
            assert await twice("STREAM.MSG.DELETE", lambda: results.delete(["r"])) == 0
            happened = [Event(str(n), "t", "x", float(n)) for n in range(4)]
            assert await twice(f"{root}e", lambda: events.append(happened)) == [DUPLICATE] * 4
            assert await twice("STREAM.PURGE", lambda: events.truncate(before=2.0)) == 0
            assert [e.id for e in (await events.read(EventFilter())).items] == ["2", "3"]

            for mark, call in (
                ("DIRECT.GET", lambda: queue.get([plain[0].id])),
                ("DIRECT.GET", lambda: queue.query(TaskFilter())),
                ("STREAM.INFO", lambda: queue.stats(["q"])),
                ("STREAM.INFO", lambda: queue.queue_names()),
                ("STREAM.INFO", lambda: queue.wait(["nothing"], timeout_s=0.01)),
                ("DIRECT.GET", lambda: results.get([plain[0].id])),
                ("DIRECT.GET", lambda: events.read(EventFilter())),
            ):
                await twice(mark, call)
            assert proxy.counters.swallowed == cut, "every first call was cut short"

    asyncio.run(main())


def test_a_former_owner_stays_out_even_of_a_server_that_forgot_everything(backend_at: Make) -> None:
    async def main(server: NatsServer) -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            record = await hand.put_one()
            old = await hand.claim_one()
            for name in ("tasks", "lines", "claims", "events"):
                server.api(f"STREAM.DELETE.{getattr(backend._opened().subjects, name)}")
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            await queue.enqueue([record])
            new = await hand.claim_one()
            assert new.lease.fence > old.lease.fence
            assert await queue.settle([Settlement(old.lease, Verb.SUCCEED)]) == [Outcome.STALE]
            assert await queue.settle([Settlement(new.lease, Verb.SUCCEED)]) == [OK]

    with NatsServer() as server:
        asyncio.run(main(server))
