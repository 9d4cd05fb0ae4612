"""How functions run: what the engine asks of a runner.

The engine's slots (see :mod:`omniq.engine.execute`) await :meth:`Runner.run`, one call each, so a runner needs no queue
and no limit of its own. A runner decides only *where* the function runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from omniq.codec import Envelope, Failure, decode_arguments, failure_of
from omniq.context import TaskContext, running_task
from omniq.task import TaskDefinition

__all__ = [
    "STOP_WAIT_S",
    "Call",
    "ChildCrashed",
    "RemoteFailure",
    "Runner",
    "frames_above",
    "invoke",
    "invoke_async",
    "portable",
]

STOP_WAIT_S = 4.0
"""How long a cancelled run is waited for, in seconds, before it is left to itself: less than the engine, which insists."""


def _nothing() -> None:
    pass


class Call:
    """One run of a function."""

    __slots__ = ("begin", "context", "definition", "ended", "envelope", "left_running", "timeout_s")

    def __init__(
        self,
        definition: TaskDefinition[Any, Any],
        envelope: Envelope,
        context: TaskContext,
        timeout_s: float | None,
    ) -> None:
        self.definition = definition
        self.envelope = envelope
        self.context = context
        self.timeout_s = timeout_s
        self.begin: Callable[[], None] = _nothing
        """To be called when the function is about to run, by a runner with ``calls_wait``: its time-out counts from there."""
        self.ended = False
        """The function has returned or raised, in whatever thread it ran."""
        self.left_running = False
        """It could not be stopped, and is left to itself."""


class RemoteFailure(Exception):
    """The function raised in another process; the exception itself is there, this is its text.

    Args:
        failure: the exception as text.
        signal: the ``Retry``, ``Reject`` or ``Snooze`` that it was, made again here; ``None`` for any other.
    """

    def __init__(self, failure: Failure, signal: Exception | None = None) -> None:
        super().__init__(f"{failure.type_name}: {failure.message}")
        self.failure = failure
        self.signal = signal


class ChildCrashed(Exception):
    """The process that ran the function died.

    Args:
        reason: what is known of it, for people: "killed by SIGSEGV".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def invoke(call: Call) -> Any:
    """Runs the plain function of a call here, to its end: within its context, arguments converted. To be called in a
    :class:`contextvars.Context` of its own. The frames above it are not shown to those who read a task's traceback.

    Raises:
        Undecodable, ArgumentError, BaseException: see :meth:`Runner.run`.
    """
    running_task.set(call.context)
    args, kwargs = call.definition.convert(*decode_arguments(call.envelope))
    return call.definition.func(*args, **kwargs)


async def invoke_async(call: Call) -> Any:
    """:func:`invoke` for an async function: to be awaited in an asyncio task of its own."""
    running_task.set(call.context)
    args, kwargs = call.definition.convert(*decode_arguments(call.envelope))
    return await call.definition.func(*args, **kwargs)


def portable(error: BaseException) -> BaseException:
    """The exception of a function that ran elsewhere, as one that may be raised in a coroutine: some (``StopIteration``,
    ``SystemExit``) have a meaning there that the function did not intend, and become a :class:`RemoteFailure`."""
    if isinstance(error, Exception | asyncio.CancelledError) and not isinstance(error, StopIteration):
        return error
    return RemoteFailure(failure_of(error, skip_frames=frames_above(error)))


def frames_above(error: BaseException) -> int:
    """How many of the outermost frames of a traceback are the worker's, not the function's: those down to :func:`invoke` or
    :func:`invoke_async` where it is among them, else those of our own modules. 0 if there are no others."""
    trace = error.__traceback__
    count = found = 0
    is_ours = True
    while trace is not None:
        count += 1
        if trace.tb_frame.f_code in _INVOKING:
            found = count
        elif is_ours:
            is_ours = str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_OURS)
            found = count if is_ours else found
        trace = trace.tb_next
    return found if found < count else 0


_OURS = ("omniq.engine", "omniq.runners", "omniq.middleware")
_INVOKING = (invoke.__code__, invoke_async.__code__)


class Runner(Protocol):
    """Runs functions somewhere.

    Two attributes may be defined as well, both false by default: ``runs_coroutines_here`` (the engine may step an async
    function on its own loop without calling :meth:`run`) and ``calls_wait`` (a call may wait for a place, and says by
    ``call.begin()`` when it is about to run).
    """

    async def start(self, *, concurrency: int) -> None:
        """Gets ready.

        Args:
            concurrency: the most calls that will run at once.
        """
        ...

    async def stop(self) -> None:
        """Gives back threads and processes. Nothing runs any more, or what does is left behind."""
        ...

    async def run(self, call: Call) -> Any:
        """Runs one call to its end, within the call's context (``current_task()``), arguments converted by annotation.

        Cancelling the awaiting coroutine stops the run: a coroutine is cancelled, a child process is killed, and a thread,
        which cannot be stopped, is left to itself; its outcome is dropped, and ``call.left_running`` says so. In each
        case this returns soon, raising ``CancelledError``, after ``call.context.ask_to_stop()``.

        Returns:
            the function's value; or, from a runner that encodes where the function ran, a ``msgspec.Raw``.

        Raises:
            Undecodable: the arguments cannot be decoded.
            ArgumentError: they do not fit.
            RemoteFailure, ChildCrashed: from a runner of other processes.
            BaseException: what the function raised.
        """
        ...
