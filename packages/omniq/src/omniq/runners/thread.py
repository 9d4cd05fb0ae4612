"""Running plain functions in threads: the ``thread_pool`` worker type, and the plain functions of the ``async`` one.

The pool is our own, as it must do two things that ``ThreadPoolExecutor`` does not: leave a thread that will not end to
itself and put a new one in its place, and hand results back to the event loop with one wake-up for many of them. A thread
cannot be stopped from outside; a function that wants to be asks ``current_task().cancelled`` now and then.

The threads are daemons: a function that hangs does not keep the process from ending.

Async functions of the ``thread_pool`` type run on one more thread, see :mod:`omniq.runners.private_loop`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from contextvars import Context, copy_context
from typing import Any

from omniq.runners.private_loop import PrivateLoop
from omniq.runners.runner import Call, invoke, portable
from omniq_core.native import SimpleQueue, make_thread

__all__ = ["ThreadRunner", "Threads"]

log = logging.getLogger("omniq.worker")


class _Job:
    """One call on its way through a thread."""

    __slots__ = ("abandoned", "call", "context", "error", "future", "is_begun", "value")

    def __init__(self, call: Call, context: Context, future: asyncio.Future[Any]) -> None:
        self.call = call
        self.context = context
        self.future = future
        self.is_begun = False
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None


class Threads:
    """A pool of threads for one event loop."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[_Job] = deque()
        self._wake_is_due = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._most = 0
        self._size = 0
        self._busy = 0
        self._numbers = itertools.count(1)
        self.left_behind = 0
        """Threads whose function did not end when it was asked to, and still runs."""

    def start(self, most: int) -> None:
        """Gets ready for at most ``most`` calls at once. Threads are made when they are needed."""
        self._loop = asyncio.get_running_loop()
        self._jobs = SimpleQueue()
        self._most = most

    def stop(self) -> None:
        """Lets idle threads end. Busy ones end after their function."""
        self._jobs.put(None)  # handed on from thread to thread
        self._size = 0

    async def run(self, call: Call) -> Any:
        """Runs a call in a thread; see :class:`~omniq.runners.runner.Runner`."""
        assert self._loop is not None
        job = _Job(call, copy_context(), self._loop.create_future())
        self._busy += 1
        if self._busy > self._size and self._size < self._most:
            self._add_thread()
        self._jobs.put(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            if job.future.cancelled():
                self._abandon(job)
            raise
        finally:
            self._busy -= 1

    def _add_thread(self) -> None:
        self._size += 1
        name = f"omniq-task-{next(self._numbers)}"
        make_thread(self._work, name=name).start()

    def _abandon(self, job: _Job) -> None:
        """Nobody waits for this job any more. If a thread is at it, another takes that one's place."""
        job.abandoned = True
        job.call.context.ask_to_stop()
        if job.is_begun and not job.call.ended:
            job.call.left_running = True
            self.left_behind += 1
            self._size -= 1
            log.warning(
                "task %s (%s) goes on in its thread, as a thread cannot be stopped; let it look at "
                "current_task().cancelled, or use a process pool. Threads left behind: %d",
                job.call.context.task_id,
                job.call.definition.name,
                self.left_behind,
            )

    # --- in the threads -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        jobs = self._jobs
        get = jobs.get
        done = self._done
        while True:
            job = get()
            if job is None:
                jobs.put(None)
                return
            if job.abandoned:  # before it was begun
                continue
            job.is_begun = True
            try:
                job.value = job.context.run(invoke, job.call)
            except BaseException as error:
                job.error = portable(error)
            job.call.ended = True
            done.append(job)
            # The delivery clears the flag before it empties the list, so what was added before is seen by it, and what is
            # added after finds the flag down.
            if not self._wake_is_due:
                self._wake_is_due = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)  # type: ignore[union-attr]
                except RuntimeError:  # the loop is closed: the worker is gone
                    return
            left_behind = job.call.left_running
            del job
            if left_behind:
                return  # another thread has this one's place

    # --- on the event loop --------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        self._wake_is_due = False
        done = self._done
        while done:
            job = done.popleft()
            if job.call.left_running:
                self.left_behind -= 1
            future = job.future
            if future.done():
                continue
            if job.error is None:
                future.set_result(job.value)
            else:
                future.set_exception(job.error)


class ThreadRunner:
    """Plain functions in threads, async functions on an event loop of their own."""

    def __init__(self) -> None:
        self._threads = Threads()
        self._coroutines = PrivateLoop()

    async def start(self, *, concurrency: int) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._threads.start(concurrency)

    async def stop(self) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._threads.stop()
        self._coroutines.stop()

    async def run(self, call: Call) -> Any:
        """See :class:`~omniq.runners.runner.Runner`."""
        where = self._coroutines if call.definition.is_async else self._threads
        return await where.run(call)
