"""How a run can end, and the exceptions by which a task says so itself.

A task that returns has succeeded, a task that raises has failed and is retried while its policy allows. Three exceptions
say something else; ``raise`` them from the task's function.
"""

from __future__ import annotations

import datetime
import enum

__all__ = ["Ending", "Reject", "Retry", "Signal", "Snooze", "seconds"]


def seconds(duration: datetime.timedelta | float) -> float:
    """A duration in seconds, from a ``timedelta`` or a number of seconds."""
    return duration.total_seconds() if isinstance(duration, datetime.timedelta) else float(duration)


class Ending(enum.StrEnum):
    """How a run ended, as the worker saw it."""

    RETURNED = "returned"
    RAISED = "raised"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    """Stopped because somebody asked to cancel the task."""
    STOPPED = "stopped"
    """Stopped, or never started, because the worker shuts down."""
    CRASHED = "crashed"
    """The child process that ran it died."""
    RETRY = "retry"
    REJECTED = "rejected"
    SNOOZED = "snoozed"
    UNKNOWN_TASK = "unknown task"
    UNDECODABLE = "undecodable"


class Signal(Exception):
    """What a task raises to decide about its own end."""


class Retry(Signal):
    """The task failed, and is to be tried again (if its policy still allows).

    Args:
        after: not before so long from now; by default the policy's delay.
        reason: kept with the task, for people.
    """

    def __init__(
        self, after: datetime.timedelta | float | None = None, *, reason: str = "it asked to be retried"
    ) -> None:
        super().__init__(reason)
        self.after_s = None if after is None else seconds(after)
        self.reason = reason


class Reject(Signal):
    """The task can never succeed: it is dead at once, whatever its policy.

    Args:
        reason: kept with the task, for people.
    """

    def __init__(self, reason: str = "it rejected itself") -> None:
        super().__init__(reason)
        self.reason = reason


class Snooze(Signal):
    """Not now: the task comes back later, and this start does not count.

    Args:
        delay: how long from now.
        reason: kept with the task, for people.
    """

    def __init__(self, delay: datetime.timedelta | float, *, reason: str = "it snoozed") -> None:
        super().__init__(reason)
        self.delay_s = seconds(delay)
        self.reason = reason
