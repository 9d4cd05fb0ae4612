"""The suite for backends that speak to a server: what they owe when it is killed, frozen, cut off, or not there at all."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import pytest

from omniq_conformance.hand import Hand, ids
from omniq_conformance.load import Killable, Load, insist
from omniq_conformance.servers.proxy import Proxy
from omniq_core import (
    Backend,
    Capability,
    ErrorCode,
    Event,
    Outcome,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskState,
    Verb,
)

__all__ = ["ServerSuite", "ServerUnderTest"]

PATIENCE_S = 0.5
"""What a backend is told to wait for a connection, and for an answer, where a server will give none."""
AWHILE_S = 5.0
"""How soon something that needs no waiting must have happened, on however busy a machine."""


class ServerUnderTest(Killable, Protocol):
    """What the suite does to a server: a :class:`~omniq_conformance.servers.Server`, or an author's own."""

    @property
    def url(self) -> str:
        """Where it is, on this machine, by host and port. The same after a restart."""
        ...

    def start(self) -> None:
        """Starts it unless it runs. Returns when it answers."""

    def freeze(self) -> None:
        """Stops it (``SIGSTOP``): its connections stay, and nobody answers."""

    def thaw(self) -> None:
        """Lets it go on."""


class ServerSuite:
    """What a backend owes when something becomes of its server. :class:`~omniq_conformance.BackendSuite` kills the processes
    that use a storage, and knows no server: this stands beside it. Subclass it, and say where the server is and how a backend
    is made::

        class TestAcmeServer(ServerSuite):
            @pytest.fixture
            def server(self, acme_server):
                return acme_server

            def backend_at(self, url, namespace, *, patience_s=10.0):
                return AcmeBackend.from_url(url, project_name=namespace, timeout_s=patience_s)

    Nothing here goes into a report: that is about a storage, and must be had on a server that is nobody's to kill.
    """

    __test__ = False

    kills: ClassVar[int] = 3
    """How often the server is killed under load."""
    producers: ClassVar[Sequence[int]] = (1, 5, 20)
    """Who enqueues under that load: one producer each, by the size of its batches."""

    # --- the author's part --------------------------------------------------------------------------------------

    @abstractmethod
    def backend_at(self, url: str, namespace: str, /, *, patience_s: float = 10.0) -> Backend:
        """A closed backend.

        Args:
            url: of the server, or of a proxy in front of it.
            namespace: a text of ``[a-z0-9_]``; backends with the same one see the same storage, others do not.
            patience_s: seconds that it may wait for a connection, and for an answer.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say how its backend is made: def backend_at(...)"
        )

    @pytest.fixture
    def server(self) -> ServerUnderTest:
        """A server that runs. It is frozen, thawed, and cut off by a proxy."""
        raise NotImplementedError(f"{type(self).__name__} must say which server it tests: a fixture `server`")

    @pytest.fixture
    def durable_server(self, server: ServerUnderTest) -> ServerUnderTest:
        """One that keeps what it has acknowledged. It is killed, and started again."""
        return server

    # --- the suite's part ---------------------------------------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `__test__ = False` is inherited: each subclass is collected unless it says otherwise itself.
        if "__test__" not in vars(cls):
            cls.__test__ = True

    @pytest.fixture
    def namespace(self) -> str:
        """One that no other test has."""
        return f"test_{uuid.uuid4().hex[:12]}"

    def test_what_was_acknowledged_and_nothing_else_is_there_after_the_server_was_killed_again_and_again(
        self, durable_server: ServerUnderTest, namespace: str
    ) -> None:
        async def main() -> None:
            async with self.backend_at(durable_server.url, namespace) as backend:
                load = Load(backend)
                load.start(*self.producers, workers=2)
                for _ in range(self.kills):
                    await load.kill(durable_server)
                    await asyncio.to_thread(durable_server.start)
                await load.stop()
                await load.check()
                if Capability.QUERY in backend.capabilities:
                    # Whoever was not answered has asked again, so all that is there was acknowledged in the end.
                    assert sorted(await _all_tasks(backend)) == sorted(load.done)
                    unfinished = TaskFilter(states=[TaskState.PENDING, TaskState.RUNNING])
                    assert (await insist(backend, partial(backend.queue().query, unfinished))).items == []

        asyncio.run(main())

    def test_a_frozen_server_hangs_nobody_and_everything_goes_on_when_it_thaws(
        self, server: ServerUnderTest, namespace: str
    ) -> None:
        async def main() -> None:
            async with self.backend_at(server.url, namespace, patience_s=PATIENCE_S) as backend:
                hand, queue = Hand(backend), backend.queue()
                await hand.put_one()
                held = await hand.claim_one()
                waiting = asyncio.ensure_future(queue.wait(["q"], timeout_s=30.0))
                await asyncio.sleep(0.05)
                await asyncio.to_thread(server.freeze)
                try:
                    late = hand.record()
                    claim = partial(hand.claim, claim_id=str(uuid.uuid4()))
                    calls: list[Awaitable[object]] = [
                        queue.enqueue([late]),
                        queue.extend([held.lease], lease_s=60.0),
                        claim(),
                        queue.get(["x"]),
                        queue.maintain(),
                    ]
                    if hand.has(Capability.RESULTS):
                        calls.append(hand.results.get(["x"]))
                    if hand.has(Capability.EVENTS):
                        calls.append(hand.events.append([Event("e", "x", "t", 1.0)]))
                    async with asyncio.timeout(PATIENCE_S + AWHILE_S):
                        errors = await asyncio.gather(*calls, return_exceptions=True)
                    codes = []
                    for found in errors:
                        assert isinstance(found, Exception), f"a frozen server answered {found!r}"
                        codes.append(backend.classify(found))
                        assert codes[-1].is_retryable, f"{found!r} is {codes[-1]}"
                    assert codes[0] is ErrorCode.UNKNOWN_EFFECT, (
                        "it was sent on a connection that stood, and may yet be done"
                    )
                    # The system still accepts connections for it, and then nobody speaks.
                    error = await _failure(queue.get(["x"]), PATIENCE_S + AWHILE_S)
                    assert backend.classify(error) is ErrorCode.UNAVAILABLE, f"nothing was sent: {error!r}"
                finally:
                    await asyncio.to_thread(server.thaw)
                [answer] = await insist(backend, partial(queue.enqueue, [late]))
                assert answer.outcome in (Outcome.OK, Outcome.DUPLICATE)
                assert ids(await insist(backend, claim)) == [late.id], "the same claim once more"
                assert list(await queue.settle([Settlement(held.lease, Verb.SUCCEED)])) == [Outcome.OK]
                async with asyncio.timeout(AWHILE_S):
                    await asyncio.wait([waiting])
                await asyncio.gather(waiting, return_exceptions=True)

        asyncio.run(main())

    def test_who_waits_for_tasks_is_woken_when_the_server_dies_and_hears_again_when_it_is_back(
        self, durable_server: ServerUnderTest, namespace: str
    ) -> None:
        async def main() -> None:
            url = durable_server.url
            async with self.backend_at(url, namespace) as backend, self.backend_at(url, namespace) as other:
                queue = backend.queue()
                waits = partial(queue.wait, ["q"], timeout_s=30.0)
                await queue.wait(["q"], timeout_s=0.05)
                waiting = asyncio.ensure_future(waits())
                await asyncio.sleep(0.1)
                await asyncio.to_thread(durable_server.kill)
                async with asyncio.timeout(AWHILE_S):
                    await asyncio.wait([waiting])
                error = waiting.exception()
                if error is None:
                    assert waiting.result(), "a wake-up may have been lost with the connection: claim"
                else:
                    assert backend.classify(error).is_retryable, repr(error)

                await asyncio.to_thread(durable_server.start)
                await insist(backend, partial(queue.wait, ["q"], timeout_s=0.05))
                waiting = asyncio.ensure_future(insist(backend, waits))
                await asyncio.sleep(0.05)
                record = Hand.record()
                await insist(other, partial(other.queue().enqueue, [record]))
                async with asyncio.timeout(AWHILE_S):
                    assert await waiting is True, "it does not hear what comes after the restart"
                assert ids(await insist(backend, Hand(backend).claim)) == [record.id]

        asyncio.run(main())

    def test_who_waits_for_a_result_hears_of_it_after_its_connections_were_cut(
        self, server: ServerUnderTest, namespace: str
    ) -> None:
        async def main() -> None:
            with Proxy(server.url) as proxy:
                async with (
                    self.backend_at(proxy.url_for(server.url), namespace) as waiter,
                    self.backend_at(server.url, namespace) as other,
                ):
                    if Capability.RESULTS not in waiter.capabilities:
                        pytest.skip("it declares no results")
                    waits = partial(waiter.result_store().wait, ["a"], timeout_s=30.0)
                    waiting = asyncio.ensure_future(insist(waiter, waits))
                    await asyncio.sleep(0.05)
                    await waiter.queue().get(["x"])
                    proxy.cut()
                    record = ResultRecord("a", 1, TaskState.SUCCEEDED, b"result")
                    await other.result_store().put([record])
                    async with asyncio.timeout(AWHILE_S):
                        [found] = await waiting
                    assert found is not None, "it waited no longer, though there was time"
                    assert found.body == b"result"

        asyncio.run(main())

    def test_cancelled_calls_never_mix_up_the_answers_of_others(
        self, server: ServerUnderTest, namespace: str
    ) -> None:
        async def main() -> None:
            chance = random.Random(7)
            async with self.backend_at(server.url, namespace) as backend:
                hand, queue = Hand(backend), backend.queue()
                records = hand.records(200)
                await hand.put_records(records)
                for _ in range(20):
                    asked = [
                        (r.id, asyncio.ensure_future(queue.get([r.id])))
                        for r in chance.choices(records, k=40)
                    ]
                    for _, call in asked[:: chance.randint(2, 4)]:
                        for _ in range(chance.randint(0, 3)):
                            await asyncio.sleep(0)
                        call.cancel()
                    await asyncio.wait([call for _, call in asked])
                    for task_id, call in asked:
                        if not call.cancelled():
                            assert [t and t.id for t in call.result()] == [task_id], (
                                "an answer of another call"
                            )

        asyncio.run(main())

    def test_a_server_that_is_not_there_is_told_in_time_and_by_its_address(
        self, server: ServerUnderTest, namespace: str
    ) -> None:
        async def main() -> None:
            with Proxy(server.url) as proxy:
                url = proxy.url_for(server.url)
                for away in (proxy.refuse, proxy.half_open):
                    proxy.accept()
                    away()
                    backend = self.backend_at(url, namespace, patience_s=PATIENCE_S)
                    error = await _failure(backend.open(), PATIENCE_S + AWHILE_S)
                    assert backend.classify(error) is ErrorCode.UNAVAILABLE, repr(error)
                    assert str(proxy.port) in str(error), f"which server? {error}"

        asyncio.run(main())


async def _failure(call: Awaitable[object], within_s: float) -> Exception:
    """What a call fails with."""
    began = time.monotonic()
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            answer = await call
    except Exception as error:
        assert not limit.expired(), f"it hung for {time.monotonic() - began:.1f} s"
        return error
    raise AssertionError(f"a server that answers nobody answered {answer!r}")


async def _all_tasks(backend: Backend) -> list[str]:
    """The ids of all tasks of a namespace."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await insist(backend, partial(backend.queue().query, TaskFilter(), limit=100, cursor=cursor))
        found += ids(page.items)
        cursor = page.cursor
        if cursor is None:
            return found
