"""Tests of what a backend does while its server is killed, away, or slow to come back.

:class:`Load` enqueues, claims and settles all the time, remembers what it was told, and kills the server in the midst of it;
in the end it holds the storage to what was acknowledged. :func:`insist` and :func:`until` are the waiting that such tests
need, for what sends no signal.

For any backend that keeps what it acknowledges, and any server that can be killed and started again::

    async with AcmeBackend.from_url(server.url) as backend:
        load = Load(backend)
        load.start(1, 5, 20, workers=2)
        for _ in range(5):
            await load.kill(server)
            await asyncio.to_thread(server.start)
        await load.stop()
        await load.check()
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from omniq_conformance.hand import Hand, chunks, ids
from omniq_core import Backend, Capability, Outcome, Settlement, TaskState, Verb

__all__ = ["Killable", "Load", "insist", "until"]

T = TypeVar("T")

PAUSE_S = 0.02
"""Between two looks, or two attempts: without it they would take the core that the server needs."""
ENDS = (Verb.SUCCEED, Verb.RETRY, Verb.RELEASE)
"""How the runs of a load end, and how often in ten: most succeed, the others are handed out again."""
OFTEN = (8, 1, 1)
ACCEPTED = frozenset({Outcome.OK, Outcome.DUPLICATE})
"""What a call may say that is repeated because its first answer was lost."""


async def insist(backend: Backend, call: Callable[[], Awaitable[T]], *, within_s: float = 30.0) -> T:
    """Repeats a call until it succeeds, as OmniQ does, and returns its answer.

    Args:
        backend: says by ``classify`` which failures may be repeated.
        call: makes the same call each time: a claim with the same ``claim_id``.
        within_s: seconds until it must have succeeded.

    Raises:
        AssertionError: it did not succeed in time, or hangs; or the call itself raised this.
        Exception: the failure of the call that may not be repeated.
    """
    last: Exception | None = None
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            while True:
                try:
                    return await call()
                except AssertionError:
                    raise
                except Exception as error:
                    if not backend.classify(error).is_retryable:
                        raise
                    last = error
                await asyncio.sleep(PAUSE_S)
    except TimeoutError:
        if not limit.expired():
            raise
        how = "it hangs" if last is None else f"its last failure was {last!r}"
        raise AssertionError(f"a call did not succeed within {within_s:g} s: {how}") from last


async def until(condition: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Returns when something has come true in another process, which has no signal for us: so we look again and again.

    Args:
        condition: called in a thread, since looking may block.
        within_s: seconds until it must be true.

    Raises:
        AssertionError: it is not.
    """
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, f"waited {within_s:g} s in vain"
        await asyncio.sleep(PAUSE_S)


class Killable(Protocol):
    """What a load can kill: a :class:`~omniq_conformance.servers.Server`, or an author's own."""

    def kill(self) -> object:
        """Ends the server without warning it. Returns when it is dead."""
        ...


class Load:
    """Producers and workers on one backend, and what they were told. Some runs are retried or released, the others succeed.

    Every call is repeated until it succeeds, so in the end all that was begun is acknowledged. However long a server is away
    or takes to start, no more than :attr:`MOST` tasks are enqueued until the next kill.

    Args:
        backend: opened. Nobody else may use its queue ``q`` meanwhile.
    """

    MOST = 300
    """How many tasks are enqueued after a server was killed until another is to be."""

    def __init__(self, backend: Backend) -> None:
        self.acknowledged: list[str] = []
        """The tasks whose enqueuing was acknowledged."""
        self.done: list[str] = []
        """The tasks whose success was acknowledged."""
        self._backend = backend
        self._hand = Hand(backend)
        self._handed_out: set[str] = set()
        self._chance = random.Random(7)
        self._stopped = self._hurried = False
        self._most = float("inf")
        self._under_way = {"enqueue": 0, "work": 0}
        self._changed = asyncio.Event()
        self._jobs: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    def start(self, *sizes: int, workers: int = 1) -> None:
        """Starts producers and workers, which go on until :meth:`stop`.

        Args:
            sizes: one producer each, that enqueues so many tasks at a time.
            workers: how many claim and settle.
        """
        jobs = [*map(self._produce, sizes), *(self._work() for _ in range(workers))]
        self._jobs += [asyncio.create_task(self._run(job)) for job in jobs]

    async def stop(self) -> None:
        """Begins nothing more, and returns when every call that was begun has succeeded.

        Raises:
            Exception: what a producer or a worker failed with.
        """
        self._stopped = True
        self._tell()
        await asyncio.gather(*self._jobs)
        self._raise()

    async def kill(self, server: Killable, *, after: int = 60) -> None:
        """Kills a server while at least one task is being enqueued and another claimed or settled.

        Args:
            server: killed here and now; the caller starts it again, in a thread.
            after: how many more tasks must have been acknowledged before.

        Raises:
            Exception: what a producer or a worker failed with meanwhile.
        """
        goal = len(self.acknowledged) + after
        self._most = float("inf")
        self._tell()
        await self._until(lambda: len(self.acknowledged) >= goal)
        self._hurried = True  # while they pause, a quick server does both at once but once in seconds
        await self._until(lambda: all(self._under_way.values()))
        server.kill()  # not from a thread: what is under way would have ended by then
        self._hurried = False
        self._most = len(self.acknowledged) + self.MOST

    async def goes_on(self) -> None:
        """Returns when some more has been enqueued, and some more been done. Without an end of its own: set a timeout.

        Raises:
            Exception: what a producer or a worker failed with meanwhile.
        """
        acknowledged, done = len(self.acknowledged) + 60, len(self.done) + 20
        await self._until(lambda: len(self.acknowledged) >= acknowledged and len(self.done) >= done)

    async def check(self, *, within_s: float = 30.0) -> None:
        """Call it after :meth:`stop`. Nothing that was acknowledged is lost: no task, no settlement, no result. And every
        task that was not done yet can be: afterwards :attr:`done` holds all that :attr:`acknowledged` does, each once.

        Args:
            within_s: seconds in which what is left must come: what some storages give back only after a while.

        Raises:
            AssertionError: something is lost, or was handed out twice.
        """
        states = await self._states(self.acknowledged)
        gone = [task_id for task_id, state in states.items() if state is None]
        assert not gone, f"an acknowledged task is gone: {_some(gone)}"
        back = [task_id for task_id in self.done if states[task_id] is not TaskState.SUCCEEDED]
        assert not back, f"an acknowledged settlement is gone: {_some(back)}"
        await self._check_results()
        left = {task_id for task_id, state in states.items() if state is not TaskState.SUCCEEDED}
        end = time.monotonic() + within_s
        while left:
            assert time.monotonic() < end, (
                f"of {len(states)} acknowledged tasks cannot be claimed: {_some(sorted(left))}"
            )
            finished = await self._finish_some(self._hand.limits.max_batch)
            left.difference_update(finished)
            if not finished:
                await asyncio.sleep(PAUSE_S)
                await insist(self._backend, self._hand.maintain)

    async def _states(self, task_ids: Sequence[str]) -> dict[str, TaskState | None]:
        found = await insist(self._backend, partial(self._hand.states, task_ids))
        return dict(zip(task_ids, found, strict=True))

    async def _check_results(self) -> None:
        if not self._hand.has(Capability.RESULTS):
            return
        for batch in chunks(self.done, self._hand.limits.max_batch):
            found = await insist(self._backend, partial(self._hand.results.get, batch))
            gone = [task_id for task_id, result in zip(batch, found, strict=True) if result is None]
            assert not gone, f"an acknowledged result is gone: {_some(gone)}"

    async def _run(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except Exception as error:
            self._failure = self._failure or error  # for whoever drives the load: the others end by it, too
            self._tell()

    async def _produce(self, size: int) -> None:
        while not self._stopped:
            records = self._hand.records(size, max_crashes=100, max_attempts=100)
            answers = await self._insist("enqueue", partial(self._hand.enqueue, records))
            assert {answer.outcome for answer in answers} <= ACCEPTED, f"new tasks were answered {answers}"
            self.acknowledged.extend(ids(records))
            self._tell()
            await self._pause()  # so that the workers keep up
            await self._until(lambda: self._stopped or len(self.acknowledged) < self._most)

    async def _work(self) -> None:
        while not self._stopped:
            if not await self._finish_some(5, OFTEN):
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(0 if self._hurried else PAUSE_S)

    async def _finish_some(self, most: int, often: Sequence[int] = (1, 0, 0)) -> list[str]:
        """Claims and settles; the tasks that succeeded. What was handed out is nobody else's, whatever happened to the call
        that took it."""
        most = min(most, self._hand.limits.max_batch)
        claim = partial(self._hand.claim, max_tasks=most, claim_id=str(uuid.uuid4()))
        claims = await self._insist("work", claim)
        found = ids(claims)
        assert self._handed_out.isdisjoint(found), f"handed out twice: {_some(found)}"
        self._handed_out.update(found)
        ends = [
            Settlement(claim.lease, verb, result=b"done" if verb is Verb.SUCCEED else None)
            for claim, verb in zip(claims, self._chance.choices(ENDS, often, k=len(claims)), strict=True)
        ]
        succeeded = [end.lease.task_id for end in ends if end.verb is Verb.SUCCEED]
        self._handed_out.difference_update(set(found).difference(succeeded))
        outcomes = await self._insist("work", partial(self._hand.settle_all, ends))
        assert ACCEPTED.issuperset(outcomes), f"the owner settled its tasks and was answered {outcomes}"
        self.done.extend(succeeded)
        self._tell()
        return succeeded

    async def _insist(self, kind: Literal["enqueue", "work"], call: Callable[[], Awaitable[T]]) -> T:
        async def counted() -> T:
            self._under_way[kind] += 1
            self._tell()
            try:
                return await call()
            finally:
                self._under_way[kind] -= 1

        return await insist(self._backend, counted)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while self._failure is None and not condition():
            await self._changed.wait()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        # No Condition: its lock would come between a call that is counted and its beginning.
        self._changed.set()
        self._changed = asyncio.Event()


def _some(task_ids: Sequence[str]) -> str:
    """How many, and the first of them."""
    return f"{len(task_ids)}, {', '.join(task_ids[:3])}{' ...' if len(task_ids) > 3 else ''}"
