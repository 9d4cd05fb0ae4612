"""Running async functions on an event loop of their own, in a thread of the system beside the worker's: for worker types that
are about plain functions. A coroutine that blocks there harms the others of its kind, never the worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from omniq.runners.runner import STOP_WAIT_S, Call, invoke_async, portable
from omniq_core.native import make_thread

__all__ = ["PrivateLoop"]

log = logging.getLogger("omniq.worker")


class PrivateLoop:
    """A thread with an event loop, started by the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Future[asyncio.AbstractEventLoop] | None = None

    def stop(self) -> None:
        """Cancels what still runs, and lets the thread end. Idempotent."""
        loop, self._loop, self._starting = self._loop, None, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    async def run(self, call: Call) -> Any:
        """Runs the call of an async function; see :class:`~omniq.runners.runner.Runner`."""
        theirs = self._loop or await self._start()
        ours = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Any, BaseException | None]] = ours.create_future()
        running: list[asyncio.Task[None]] = []

        async def body() -> None:
            value, error = None, None
            try:
                value = await invoke_async(call)
            except BaseException as raised:  # SystemExit too, which would end the loop under all the others
                error = portable(raised)
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

    async def _start(self) -> asyncio.AbstractEventLoop:
        """Starts the thread, once, however many calls come at the same time."""
        starting = self._starting
        if starting is None:
            ours = asyncio.get_running_loop()
            starting = self._starting = ours.create_future()

            def is_up(loop: asyncio.AbstractEventLoop) -> None:
                assert starting is not None
                if self._starting is starting:
                    self._loop = loop
                    starting.set_result(loop)
                else:  # stopped meanwhile
                    loop.call_soon_threadsafe(loop.stop)

            make_thread(
                _run_loop, lambda loop: ours.call_soon_threadsafe(is_up, loop), name="omniq-coroutines"
            ).start()
        return await asyncio.shield(starting)


def _run_loop(is_up: Callable[[asyncio.AbstractEventLoop], object]) -> None:
    loop = asyncio.new_event_loop()  # here, as under gevent it belongs to this thread's hub
    asyncio.set_event_loop(loop)
    loop.call_soon(is_up, loop)
    try:
        loop.run_forever()
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if pending:
            loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
