"""Running plain functions in threads: the ``thread_pool`` worker type, and the plain functions of the ``async`` one.

The pool is our own, as it must do two things that ``ThreadPoolExecutor`` does not: leave a thread that will not end to
itself and put a new one in its place, and hand results back to the event loop with one wake-up for many of them. A thread
cannot be stopped from outside; a function that wants to be asks ``current_task().cancelled`` now and then.

The threads are daemons: a function that hangs does not keep the process from ending.

Async functions of the ``thread_pool`` type run on one more thread, on an event loop of their own: one that blocks harms the
others of its kind, never the worker.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any

from omniq.codec import decode_arguments, failure_of
from omniq.context import running_task
from omniq.runners.runner import Call, RemoteFailure

__all__ = ["ThreadRunner", "Threads"]

log = logging.getLogger("omniq.worker")

STOP_WAIT_S = 5.0


class _Job:
    """One call on its way through a thread."""

    __slots__ = ("abandoned", "call", "context", "error", "future", "thread", "value")

    def __init__(self, call: Call, context: Context, future: asyncio.Future[Any]) -> None:
        self.call = call
        self.context = context
        self.future = future
        self.thread: threading.Thread | None = None
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None


def _portable(error: BaseException) -> BaseException:
    """An exception that may be raised in a coroutine: some have a meaning there that the function did not intend."""
    if isinstance(error, Exception | asyncio.CancelledError) and not isinstance(error, StopIteration):
        return error
    return RemoteFailure(failure_of(error, skip_frames=2))


def _invoke(call: Call) -> Any:
    running_task.set(call.context)
    args, kwargs = call.definition.convert(*decode_arguments(call.envelope))
    return call.definition.func(*args, **kwargs)


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
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _abandon(self, job: _Job) -> None:
        """Nobody waits for this job any more. If a thread is at it, another takes that one's place."""
        job.abandoned = True
        job.call.context.ask_to_stop()
        if job.thread is not None and not job.call.ended:
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
        me = threading.current_thread()
        while True:
            job = get()
            if job is None:
                jobs.put(None)
                return
            if job.abandoned:  # before it was begun
                continue
            job.thread = me
            try:
                job.value = job.context.run(_invoke, job.call)
            except BaseException as error:
                job.error = _portable(error)
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None

    async def start(self, *, concurrency: int) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._threads.start(concurrency)

    async def stop(self) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._threads.stop()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    async def run(self, call: Call) -> Any:
        """See :class:`~omniq.runners.runner.Runner`."""
        if not call.definition.is_async:
            return await self._threads.run(call)
        theirs = self._private_loop()
        ours = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Any, BaseException | None]] = ours.create_future()
        running: list[asyncio.Task[None]] = []

        async def body() -> None:
            value, error = None, None
            try:
                running_task.set(call.context)
                args, kwargs = call.definition.convert(*decode_arguments(call.envelope))
                value = await call.definition.func(*args, **kwargs)
            except BaseException as raised:  # SystemExit too, which would end the loop under all the others
                error = _portable(raised)
            call.ended = True
            try:
                ours.call_soon_threadsafe(hand_over, value, error)
            except RuntimeError:  # the worker's loop is closed: the worker is gone
                pass

        def hand_over(value: Any, error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result((value, error))

        context = copy_context()
        theirs.call_soon_threadsafe(lambda: running.append(theirs.create_task(body(), context=context)))
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            call.context.ask_to_stop()
            call.left_running = True
            theirs.call_soon_threadsafe(lambda: running[0].cancel())
            await asyncio.wait([ended], timeout=STOP_WAIT_S)
            if not ended.done():
                log.warning(
                    "task %s (%s) does not let itself be cancelled; it is left to itself",
                    call.context.task_id,
                    call.definition.name,
                )
                raise
            call.left_running = False
        value, error = ended.result()
        if error is not None:
            raise error
        return value

    def _private_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop_thread = threading.Thread(
                target=_run_loop, args=(self._loop,), name="omniq-coroutines", daemon=True
            )
            self._loop_thread.start()
        return self._loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if pending:
            loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
