"""Middleware: what surrounds the run of every task of a worker.

A middleware is an async function. It may look at the task before and after, change the call's context, swallow or raise::

    async def timing(task: TaskContext, call: Call, call_next: CallNext) -> Any:
        started = time.perf_counter()
        try:
            return await call_next()
        finally:
            print(task.name, time.perf_counter() - started)

The list is applied from the outside in. What the last ``call_next`` returns is the function's value (from a process pool:
its encoded form); what the first middleware returns is the task's result. An exception that leaves it is the task's. It
runs on the worker's event loop, in the task's own context: a context variable that it sets is seen by the function (not
in another process), and by no other task. Without middleware a run pays nothing for the possibility.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from omniq.context import TaskContext

__all__ = ["CallNext", "Middleware", "surround"]

CallNext: TypeAlias = Callable[[], Awaitable[Any]]
"""Goes on with the run, once."""
Middleware: TypeAlias = Callable[[TaskContext, Any, CallNext], Awaitable[Any]]
"""``async def middleware(task, call, call_next)``; ``call`` is an :class:`omniq.runners.runner.Call`."""


def surround(
    middleware: Sequence[Middleware], run: Callable[[Any], Awaitable[Any]]
) -> Callable[[TaskContext, Any], Coroutine[Any, Any, Any]]:
    """A function that runs a call inside the whole list.

    Args:
        middleware: from the outside in.
        run: runs the call itself.
    """

    async def surrounded(task: TaskContext, call: Any) -> Any:
        return await _step(0, task, call)

    async def _step(index: int, task: TaskContext, call: Any) -> Any:
        if index == len(middleware):
            return await run(call)
        return await middleware[index](task, call, lambda: _step(index + 1, task, call))

    return surrounded
