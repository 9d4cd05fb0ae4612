"""Running plain functions in greenlets, async ones on an event loop of their own beside them.

The engine is on one thread, the greenlets on another, which runs their hub. Calls go over in one direction and outcomes in
the other through two queues; whoever adds to a queue wakes its reader only if it is not woken already, so that a crowd of
short tasks shares a wake-up.

**Stopping.** A greenlet is stopped by ``GreenletExit``, raised in it where it waits. One that computes, or waits in a C
library that knows nothing of gevent, cannot be reached before it lets go of the hub; it is left to itself, as a thread is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

import gevent
import gevent.hub
from gevent.greenlet import Greenlet

from omniq.runners.private_loop import PrivateLoop
from omniq.runners.runner import STOP_WAIT_S, Call, invoke, portable
from omniq_core.native import RLock, make_thread

__all__ = ["GreenletRunner"]

log = logging.getLogger("omniq.worker")


class _Job:
    """One call on its way through a greenlet."""

    __slots__ = ("call", "context", "ended", "error", "greenlet", "is_begun", "is_cancelled", "value")

    def __init__(self, call: Call, context: Context, ended: asyncio.Future[None]) -> None:
        self.call = call
        self.context = context
        self.ended = ended
        self.greenlet: Greenlet[..., None] | None = None
        self.is_begun = self.is_cancelled = False
        self.value: Any = None
        self.error: BaseException | None = None


def _error_of(job: _Job, error: BaseException) -> BaseException:
    """What is raised for a run that ended so."""
    if job.is_cancelled and isinstance(error, gevent.GreenletExit):
        return asyncio.CancelledError()
    return portable(error)


class GreenletRunner:
    """Plain functions in greenlets, async functions on an event loop of their own.

    Args:
        hub: whose greenlets; made in its thread, which must let it run. ``None``: a hub in a thread of its own.
    """

    def __init__(self, hub: gevent.hub.Hub | None = None) -> None:
        self._bell = None if hub is None else _Bell(hub, self._take)
        self._own = _HubThread(self._take) if hub is None else None
        self._coroutines = PrivateLoop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._to_do: deque[_Job] = deque()
        self._done: deque[_Job] = deque()
        self._hub_is_woken = self._loop_is_woken = False

    async def start(self, *, concurrency: int) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._loop = asyncio.get_running_loop()
        if self._own is not None:
            self._bell = await self._own.start()
        if self._bell is not None:
            self._bell.keep()

    async def stop(self) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._coroutines.stop()
        if self._bell is not None:
            self._bell.remove()
            self._bell = None

    async def run(self, call: Call) -> Any:
        """See :class:`~omniq.runners.runner.Runner`."""
        if call.definition.is_async:
            return await self._coroutines.run(call)
        assert self._loop is not None
        job = _Job(call, copy_context(), self._loop.create_future())
        self._to_do.append(job)
        self._wake_hub()
        try:
            await asyncio.shield(job.ended)
        except asyncio.CancelledError:
            await self._cancel(job)
        if job.error is not None:
            raise job.error
        return job.value

    async def _cancel(self, job: _Job) -> None:
        """Stops a run, and waits for its end, but not for ever."""
        job.call.context.ask_to_stop()
        job.call.left_running = True  # until it is known to have ended, should we be cancelled once more
        job.is_cancelled = True
        self._to_do.append(job)
        self._wake_hub()
        await asyncio.wait([job.ended], timeout=STOP_WAIT_S)
        if not job.ended.done():
            log.warning(
                "task %s (%s) does not let gevent's hub run, or does not end by GreenletExit; it is left to itself",
                job.call.context.task_id,
                job.call.definition.name,
            )
            raise asyncio.CancelledError
        job.call.left_running = False

    def _wake_hub(self) -> None:
        # Whoever is woken takes the flag down before it empties the queue: what was added before is seen, and what is
        # added after finds the flag down.
        if not self._hub_is_woken and self._bell is not None:
            self._hub_is_woken = True
            self._bell.ring()

    # --- on the hub's thread ------------------------------------------------------------------------------------

    def _take(self) -> None:
        self._hub_is_woken = False
        to_do = self._to_do
        while to_do:
            job = to_do.popleft()
            if not job.is_cancelled:
                job.greenlet = Greenlet(self._work, job)
                job.greenlet.start()
            elif job.greenlet is None:  # cancelled before it came here, or it has ended
                if not job.call.ended:
                    job.error = asyncio.CancelledError()
                    self._hand_over(job)
            elif job.is_begun:
                job.greenlet.kill(block=False)  # one that is not begun sees for itself that it need not

    def _work(self, job: _Job) -> None:
        job.is_begun = True
        try:
            if job.is_cancelled:
                raise gevent.GreenletExit
            job.value = job.context.run(invoke, job.call)
        except BaseException as error:
            job.error = _error_of(job, error)
            if isinstance(error, KeyboardInterrupt):
                raise  # Ctrl-C strikes whatever greenlet is at work; the hub passes it on to the program
        finally:
            self._hand_over(job)

    def _hand_over(self, job: _Job) -> None:
        job.call.ended = True
        job.greenlet = None
        self._done.append(job)
        if not self._loop_is_woken and self._loop is not None:
            self._loop_is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: the worker is gone
                pass

    # --- on the event loop --------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        self._loop_is_woken = False
        done = self._done
        while done:
            ended = done.popleft().ended
            if not ended.done():
                ended.set_result(None)


class _Bell:
    """Rung in any thread, answered in the hub's. It is made there.

    (``run_callback_threadsafe`` of gevent's loops is not as safe as its name: :mod:`omniq_core.native` says why.)
    """

    def __init__(self, hub: gevent.hub.Hub, answer: Callable[[], object], *, is_kept: bool = False) -> None:
        self._answer = answer
        self._is_kept = is_kept
        self._is_removed = False
        self._lock = RLock()  # an earlier ring must not close it between the two steps of its removal
        self.on_removal: Callable[[], object] = lambda: None
        self._watcher: Any = hub.loop.async_(ref=is_kept)
        self._watcher.start(self._hear)

    def ring(self) -> None:
        """Has the hub answer, once or more often."""
        self._watcher.send()

    def keep(self) -> None:
        """From now on the hub knows that it may ring. Else a program that waits for what a task will do, and for nothing
        else, is told that it would wait for ever (LoopExit)."""
        self._is_kept = True
        self.ring()

    def remove(self) -> None:
        """The last that is called: what was rung for before is still answered."""
        with self._lock:
            self._is_removed = True
            self.ring()

    def _hear(self) -> None:
        if self._is_kept and not self._watcher.ref:
            self._watcher.ref = True
        self._answer()
        with self._lock:
            is_removed = self._is_removed
        if is_removed:
            self._watcher.stop()
            self._watcher.close()
            self.on_removal()


class _HubThread:
    """A thread that does nothing but run a hub."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer
        self._thread = make_thread(self._run, name="omniq-greenlets")

    async def start(self) -> _Bell:
        """A bell of its hub, once it runs. Removing it ends the thread."""
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[_Bell] = self._loop.create_future()
        self._thread.start()
        return await self._started

    def _run(self) -> None:
        hub = gevent.hub.get_hub()
        over: gevent.hub.Waiter[None] = gevent.hub.Waiter(hub)
        bell = _Bell(hub, self._answer, is_kept=True)
        bell.on_removal = lambda: over.switch(None)
        self._loop.call_soon_threadsafe(self._started.set_result, bell)
        over.get()
        hub.destroy(True)
