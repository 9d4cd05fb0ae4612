"""How functions run: what the engine asks of a runner.

The engine's slots (see :mod:`omniq.engine.execute`) await :meth:`Runner.run`, one call each, so a runner needs no queue
and no limit of its own. A runner decides only *where* the function runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from omniq.codec import Envelope, Failure
from omniq.context import TaskContext
from omniq.task import TaskDefinition

__all__ = ["Call", "ChildCrashed", "RemoteFailure", "Runner"]


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
