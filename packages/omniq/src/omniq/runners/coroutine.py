"""Running async functions on the worker's own event loop: the ``async`` worker type. Plain functions go to threads.

A slot is one asyncio task that runs many functions, one after the other. So a function's ``asyncio.current_task()`` is the
slot's, and ``asyncio.timeout``, ``TaskGroup`` and cancellation work inside; but each run has a
:class:`contextvars.Context` of its own, so that no context variable leaks into the next one. :func:`drive` does that:
it steps the coroutine inside the context and passes what it awaits on to the slot's task.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

from omniq.codec import decode_arguments
from omniq.context import running_task
from omniq.runners.runner import Call
from omniq.runners.thread import Threads

__all__ = ["CoroutineRunner", "drive"]


@types.coroutine
def drive(coroutine: Coroutine[Any, Any, Any], context: Context, awaited: Any) -> Generator[Any, Any, Any]:
    """Runs a coroutine on to its end inside ``context``, after its first step.

    Args:
        coroutine: it has been stepped once.
        context: where every step happens.
        awaited: what the first step yielded.
    """
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                awaited = context.run(coroutine.throw, error)
            else:
                awaited = context.run(coroutine.send, sent)
    except StopIteration as stop:
        return stop.value


async def run_in(context: Context, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a whole coroutine inside ``context``, in the current asyncio task."""
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    return await drive(coroutine, context, awaited)


class CoroutineRunner:
    """Async functions here, plain functions in threads."""

    runs_coroutines_here = True
    """The engine may step an async function itself, without coming through :meth:`run`."""

    def __init__(self) -> None:
        self._threads = Threads()

    async def start(self, *, concurrency: int) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._threads.start(concurrency)

    async def stop(self) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._threads.stop()

    async def run(self, call: Call) -> Any:
        """See :class:`~omniq.runners.runner.Runner`."""
        if not call.definition.is_async:
            return await self._threads.run(call)
        args, kwargs = call.definition.convert(*decode_arguments(call.envelope))
        context = copy_context()
        context.run(running_task.set, call.context)
        return await run_in(context, call.definition.func(*args, **kwargs))
