"""A load believes what it was told, and finds out whoever told it a lie."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest

from omniq_conformance.load import Load, insist, until
from omniq_core import BackendError, Claim, Enqueued, ErrorCode, Outcome, Settlement, TaskRecord, Verb
from omniq_memory.backend import MemoryBackend, MemoryQueue

T = TypeVar("T")


class Server:
    """Memory behind a line of some milliseconds: what it was sent it does, also when it dies before it has answered."""

    def __init__(self) -> None:
        self.is_up = True
        self.kills = 0
        self.under_way = {"enqueue": 0, "work": 0}
        self.cut: list[dict[str, int]] = []
        """What was under way at each kill."""

    def kill(self) -> None:
        self.is_up = False
        self.kills += 1
        self.cut.append(dict(self.under_way))

    def start(self) -> None:
        self.is_up = True

    async def answer(self, kind: str, call: Callable[[], Awaitable[T]]) -> T:
        with self._counted(kind):
            sent_in = self.kills
            await asyncio.sleep(0.001)
            answer = await call()
            await asyncio.sleep(0.001)
            if self.kills != sent_in:
                raise BackendError("the connection was lost", ErrorCode.UNKNOWN_EFFECT)
            return answer

    @contextmanager
    def _counted(self, kind: str) -> Iterator[None]:
        if not self.is_up:
            raise BackendError("nobody listens", ErrorCode.UNAVAILABLE)
        self.under_way[kind] += 1
        try:
            yield
        finally:
            self.under_way[kind] -= 1


class Honest(MemoryQueue):
    """Keeps what it acknowledged."""

    server: Server

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        return await self.server.answer("enqueue", partial(super().enqueue, records))

    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        return await self.server.answer("work", partial(super().claim, queues, **rest))

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        return await self.server.answer("work", partial(super().settle, settlements))


class Counting(Honest):
    """Notes how runs ended, of those whose end was answered."""

    ends: Counter[Verb]

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        outcomes = await super().settle(settlements)
        self.__dict__.setdefault("ends", Counter()).update(end.verb for end in settlements)
        return outcomes


class LosingTasks(Honest):
    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        await super().enqueue(records[1:])
        return [Enqueued(Outcome.OK, record.id) for record in records]


class LosingSettlements(Honest):
    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        return [*(Outcome.OK for _ in settlements[:1]), *await super().settle(settlements[1:])]


class LosingResults(Honest):
    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        return await super().settle([msgspec.structs.replace(end, result=None) for end in settlements])


class HandingOutTwice(Honest):
    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        claims = await super().claim(queues, **rest)
        first: list[Claim] = self.__dict__.setdefault("first", list(claims[:1]))
        return [*claims[: rest["max_tasks"] - 1], *first] if claims else []


class Keeping(Honest):
    """Its tasks are there, and nobody is given one."""

    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        return await super().claim(["another"], **rest)


class RefusingNewTasks(Honest):
    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        return [Enqueued(Outcome.CONFLICT, record.id) for record in records]


class BreakingDown(Honest):
    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        raise BackendError("the layout is another", ErrorCode.SCHEMA)


class Remote(MemoryBackend):
    """A backend whose queue is of a kind."""

    def __init__(self, kind: type[Honest], server: Server) -> None:
        super().__init__()
        self._kind = kind
        self._server = server

    async def open(self) -> None:
        await super().open()
        self._queue = self._kind(self)
        self._queue.server = self._server


async def load_on(kind: type[Honest], server: Server, kills: int, within_s: float = 30.0) -> Load:
    """A load that has been checked, on a queue of a kind whose server was killed."""
    async with asyncio.timeout(20), Remote(kind, server) as backend:
        load = Load(backend)
        load.start(1, 5, 20, workers=2)
        for _ in range(kills):
            await load.kill(server)
            server.start()
            if kind is Honest:
                await load.goes_on()
        await load.stop()
        await load.check(within_s=within_s)
        return load


def test_a_server_is_killed_while_a_task_is_enqueued_and_another_worked_on_and_all_are_done_once() -> None:
    server = Server()
    load = asyncio.run(load_on(Honest, server, kills=5))
    assert len(server.cut) == 5
    assert all(all(cut.values()) for cut in server.cut), server.cut
    assert len(load.acknowledged) >= 5 * 120
    assert sorted(load.done) == sorted(load.acknowledged)


def test_some_runs_are_retried_or_released_and_their_tasks_are_handed_out_again() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), Remote(Counting, Server()) as backend:
            load = Load(backend)
            load.start(5, workers=2)
            for _ in range(3):
                await load.goes_on()
            await load.stop()
            await load.check()
            queue = backend.queue()
            assert isinstance(queue, Counting)
            assert queue.ends[Verb.SUCCEED] == len(load.done) == len(load.acknowledged)
            assert queue.ends[Verb.RETRY] > 0
            assert queue.ends[Verb.RELEASE] > 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (LosingTasks, "an acknowledged task is gone"),
        (LosingSettlements, "an acknowledged settlement is gone"),
        (LosingResults, "an acknowledged result is gone"),
        (HandingOutTwice, "handed out twice"),
        (Keeping, "cannot be claimed"),
        (RefusingNewTasks, "new tasks were answered"),
    ],
)
def test_a_storage_that_acknowledges_what_it_does_not_do_fails(kind: type[Honest], what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        asyncio.run(load_on(kind, Server(), kills=1, within_s=0.1))


def test_a_failure_that_may_not_be_repeated_ends_the_wait_for_the_next_kill() -> None:
    with pytest.raises(BackendError, match="the layout is another"):
        asyncio.run(load_on(BreakingDown, Server(), kills=1000))


def test_a_server_that_takes_long_to_start_is_not_met_by_more_than_so_many_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Load, "MOST", 40)

    async def main() -> None:
        server = Server()
        async with asyncio.timeout(20), Remote(Honest, server) as backend:
            load = Load(backend)
            load.start(1, 5, workers=1)
            await load.kill(server)
            before = len(load.acknowledged)
            server.start()
            await until(lambda: len(load.acknowledged) >= before + 40)
            await asyncio.sleep(0.2)  # in which ten times as many would have come
            assert len(load.acknowledged) < before + 40 + 1 + 5
            await load.kill(server)  # it goes on for the next
            server.start()
            await load.stop()
            await load.check()

    asyncio.run(main())


def test_a_call_is_insisted_on_while_its_failures_may_be_repeated_and_in_time() -> None:
    failures = [ErrorCode.UNAVAILABLE, ErrorCode.UNKNOWN_EFFECT, ErrorCode.SCHEMA]
    calls = 0

    async def failing() -> int:
        nonlocal calls
        calls += 1
        if failures:
            raise BackendError("failed", failures.pop(0))
        return calls

    async def main() -> None:
        async with MemoryBackend() as backend:
            with pytest.raises(BackendError) as final:
                await insist(backend, failing)
            assert final.value.error_code is ErrorCode.SCHEMA
            assert await insist(backend, failing) == 4
            failures.extend([ErrorCode.UNAVAILABLE] * 1000)
            with pytest.raises(AssertionError, match=r"within 0\.1 s: its last failure was BackendError"):
                await insist(backend, failing, within_s=0.1)
            with pytest.raises(AssertionError, match="it hangs"):
                await insist(backend, asyncio.Event().wait, within_s=0.05)

    asyncio.run(main())


def test_a_condition_that_never_comes_true_is_not_waited_for_for_ever() -> None:
    looks = iter([False, False, True])
    asyncio.run(until(lambda: next(looks)))
    with pytest.raises(AssertionError, match=r"waited 0\.05 s in vain"):
        asyncio.run(until(lambda: False, within_s=0.05))
