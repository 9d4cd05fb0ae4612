"""What a check is given: an opened backend on a storage of its own, time that it can move, and company."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from omniq_conformance.env import Env, Unavailable
from omniq_conformance.hand import Hand
from omniq_conformance.remote import Remote
from omniq_core import Backend, BackendError, Capability, ErrorCode, TaskState, Unreachable, Unsupported
from omniq_core.native import make_thread

if TYPE_CHECKING:
    from omniq_conformance.suite import BackendSuite

__all__ = ["Bench", "Chance", "Elsewhere", "NotOffered", "bench_of", "refused"]

T = TypeVar("T")

CLOSE_S = 5.0
"""How long giving back a backend may take at the end of a test."""
MANUAL_SPAN_S = 60.0
"""A stretch of time on a clock that the suite moves: long enough that no rounding matters."""


@dataclass(frozen=True)
class Chance:
    """How random histories are made.

    Args:
        examples: how many.
        repeatable: the same ones in each run.
    """

    examples: int = 30
    repeatable: bool = True


class NotOffered(Exception):
    """The author does not say how to cause what a check needs (a restart): reported, and no failure.

    Args:
        what: the author's method.
        needed: a promise was declared and stays unchecked for it: then the test counts as not run.
    """

    def __init__(self, what: str, *, needed: bool = False) -> None:
        super().__init__(what)
        self.needed = needed


async def refused(call: Awaitable[object], capability: Capability) -> None:
    """Fails unless the call raises ``Unsupported`` for that capability."""
    try:
        answer = await call
    except Unsupported as error:
        assert error.capability is capability, (
            f"{capability.name} is not declared, but the refusal names {error.capability.name}"
        )
        return
    raise AssertionError(
        f"{capability.name} is not declared, so the call must raise Unsupported({capability.name}); it answered "
        f"{answer!r}. Declare what the backend can do, or refuse it"
    )


class Elsewhere:
    """A twin of the backend on another thread and event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hand: Hand) -> None:
        self._loop = loop
        self.hand = hand

    async def do(self, function: Callable[[Hand], Coroutine[object, object, T]]) -> T:
        """Awaits ``function(hand)`` on the other loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(self.hand), self._loop))


class Bench(Hand):
    """An opened backend and its surroundings.

    Args:
        suite: the author's class.
        env: the place of this test.
        stack: closes what the check opens.
        backend: opened.
        chance: how random histories are made.
    """

    def __init__(
        self, suite: BackendSuite, env: Env, stack: AsyncExitStack, backend: Backend, chance: Chance
    ) -> None:
        super().__init__(backend)
        self.suite = suite
        self.env = env
        self.chance = chance
        self._stack = stack

    # --- time ---------------------------------------------------------------------------------------------------

    @property
    def moves_time(self) -> bool:
        """Whether the suite moves the backend's clock; else real time must pass, in short spans."""
        return self.env.manual is not None and Capability.SERVER_CLOCK not in self.capabilities

    @property
    def span_s(self) -> float:
        """A stretch of time that a check can afford to let pass: a lease, a delay, a time to live."""
        if self.moves_time:
            return MANUAL_SPAN_S
        return max(self.suite.short_lease_s, self.limits.min_lease_s, 4 * self.limits.time_resolution_s)

    async def advance(self, seconds: float) -> None:
        """Lets time pass."""
        if self.moves_time and self.env.manual is not None:
            self.env.manual.advance(seconds)
        else:
            await asyncio.sleep(seconds)

    async def pass_span(self, spans: float = 1.0) -> None:
        """Lets that many spans pass, and the little more in which two times may count as equal."""
        slack = 2 * self.limits.time_resolution_s + 0.01
        # Where time costs nothing, a store that reaps late gets its time; else `reaped` waits for it.
        slack += self.limits.reclaim_delay_s if self.moves_time else 0.0
        await self.advance(self.span_s * spans + slack)

    async def lose(self, *task_ids: str) -> None:
        """Lets a lease of one span end, and waits until upkeep has reaped these tasks."""
        await self.pass_span()
        await self.reaped(*task_ids)

    async def reaped(self, *task_ids: str) -> None:
        """Upkeep until none of the tasks, whose leases have ended, is running."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.reclaim_delay_s + 2.0
        while True:
            await self.maintain()
            if "running" not in await self.states(task_ids):
                return
            assert loop.time() < end, f"the leases of {task_ids} have ended, and maintain does not reap them"
            await asyncio.sleep(0.02)

    async def expired(self, task_id: str) -> None:
        """Upkeep until the task, whose time has passed, is expired."""
        state = TaskState.PENDING
        for _ in range(100):
            await self.maintain()
            state = await self.state(task_id)
            if state is TaskState.EXPIRED:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"a task whose time has passed is still {state} after upkeep")

    def now(self) -> float:
        """The backend's idea of the time, where the suite shares it."""
        return self.env.clock.time()

    # --- company ------------------------------------------------------------------------------------------------

    def unopened(self) -> AbstractAsyncContextManager[Backend]:
        """Another backend on the same storage, closed."""
        return self.suite.backend(self.env)

    def unopened_in(self, env: Env) -> AbstractAsyncContextManager[Backend]:
        """A backend on another storage, closed."""
        return self.suite.backend(env)

    async def another(self) -> Hand:
        """A second backend on the same storage, open until the end of the test."""
        backend = await self._stack.enter_async_context(self.suite.backend(self.env))
        return await self.opened(backend)

    async def opened(self, backend: Backend) -> Hand:
        """Opens a backend, and closes it at the end of the test."""
        self._stack.push_async_callback(close, backend)
        await backend.open()
        return Hand(backend)

    @asynccontextmanager
    async def on_another_thread(self) -> AsyncIterator[Elsewhere]:
        """A twin of the backend, opened on another thread's event loop."""
        twin = self.backend.twin()
        here = asyncio.get_running_loop()
        started: asyncio.Future[asyncio.AbstractEventLoop] = here.create_future()

        def run() -> None:
            # A Runner ends the threads of to_thread, too: under gevent they are on this thread's hub, never end after it,
            # and the process would wait for them at its end.
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                loop.call_soon(here.call_soon_threadsafe, started.set_result, loop)
                loop.run_forever()

        thread = make_thread(run, name="conformance: elsewhere")
        thread.start()
        loop = await started
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(twin.open(), loop))
            yield Elsewhere(loop, Hand(twin))
        finally:
            try:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(close(twin), loop))
            finally:
                loop.call_soon_threadsafe(loop.stop)
                await asyncio.to_thread(thread.join, CLOSE_S)

    async def process(self) -> Remote:
        """Another process with the storage open, until the end of the test."""
        return await self._stack.enter_async_context(Remote.start(self.suite.url_for(self.env)))


async def close(backend: Backend) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await backend.close()
    except TimeoutError:
        raise AssertionError(f"close() did not end within {CLOSE_S:g} s") from None


@asynccontextmanager
async def bench_of(suite: BackendSuite, env: Env, chance: Chance) -> AsyncIterator[Bench]:
    """A bench with one opened backend of the author's.

    Raises:
        Unavailable: the service that the backend needs does not answer.
    """
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(suite.backend(env))
        stack.push_async_callback(close, backend)
        try:
            await backend.open()
        except Unavailable:
            raise
        except Exception as error:
            code = error.error_code if isinstance(error, BackendError) else backend.classify(error)
            if isinstance(error, Unreachable) or code is ErrorCode.UNAVAILABLE:
                raise Unavailable(f"open() raised {type(error).__name__}: {error}") from error
            raise
        yield Bench(suite, env, stack, backend, chance)
