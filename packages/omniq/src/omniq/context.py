"""What a running task can know about itself: ``omniq.current_task()``.

To make an effect outside OmniQ safe to repeat, pass ``idempotency_key`` (the same over all attempts) or ``fence`` (rises
with every start) on to the outside system. OmniQ's own fencing stops stale writes to *its* stores; it cannot stop a stale
worker's e-mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from omniq.errors import TaskCancelled
from omniq_core import Claim, Lease

__all__ = ["TaskContext", "current_task", "running_task"]

_NO_HEADERS: Mapping[str, str] = {}


class TaskContext:
    """The task that runs here and now.

    Args:
        claim: what the worker claimed.
        worker_id: the worker.
        headers: what travelled along with the call.
    """

    # A worker makes one for each run, so it holds what it was given and looks the rest up when asked.
    __slots__ = ("_claim", "_stop", "headers", "worker_id")

    def __init__(self, claim: Claim, worker_id: str, headers: Mapping[str, str] | None = None) -> None:
        self._claim = claim
        self._stop = False
        self.worker_id = worker_id
        self.headers: Mapping[str, str] = headers or _NO_HEADERS

    @property
    def task_id(self) -> str:
        return self._claim.task_id

    @property
    def name(self) -> str:
        return self._claim.name

    @property
    def queue(self) -> str:
        return self._claim.queue

    @property
    def attempt(self) -> int:
        """Which start this is, from 1."""
        return self._claim.attempt

    @property
    def crashes(self) -> int:
        """How many earlier starts ended with the death of their worker."""
        return self._claim.crashes

    @property
    def max_attempts(self) -> int:
        return self._claim.max_attempts

    @property
    def max_crashes(self) -> int:
        return self._claim.max_crashes

    @property
    def fence(self) -> int:
        """The fencing token: rises with every start of this task."""
        return self._claim.lease.fence

    @property
    def lease(self) -> Lease:
        """What the worker holds the task by."""
        return self._claim.lease

    @property
    def enqueued_at(self) -> float:
        return self._claim.enqueued_at

    @property
    def idempotency_key(self) -> str:
        """The same over all attempts of this task."""
        return self._claim.task_id

    @property
    def cancelled(self) -> bool:
        """Whether the task should stop: it was cancelled, ran out of time, or its lease was lost.

        An async task is interrupted; a sync one in a thread cannot be, and should look here now and then.
        """
        return self._stop

    def check(self) -> None:
        """Raises :class:`~omniq.errors.TaskCancelled` if the task should stop."""
        if self._stop:
            raise TaskCancelled("the task was asked to stop", task_id=self.task_id)

    def ask_to_stop(self) -> None:
        """The worker's side of :attr:`cancelled`."""
        self._stop = True

    def __repr__(self) -> str:
        return f"<TaskContext {self.name} {self.task_id} attempt {self.attempt}>"


running_task: ContextVar[TaskContext | None] = ContextVar("omniq_running_task", default=None)


def current_task() -> TaskContext:
    """The task whose function is calling.

    Raises:
        LookupError: called outside a task.
    """
    context = running_task.get()
    if context is None:
        raise LookupError("omniq.current_task() is for code that runs inside a task; none is running here")
    return context
