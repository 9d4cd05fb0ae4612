"""What a running task can know about itself: ``omniq.current_task()``.

To make an effect outside OmniQ safe to repeat, pass ``idempotency_key`` (the same over all attempts) or ``fence`` (rises
with every start) on to the outside system. OmniQ's own fencing stops stale writes to *its* stores; it cannot stop a stale
worker's e-mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from omniq.errors import TaskCancelled

__all__ = ["TaskContext", "current_task", "running_task"]


class TaskContext:
    """The task that runs here and now."""

    __slots__ = (
        "_stop", "attempt", "enqueued_at", "fence", "headers", "max_attempts", "name", "queue", "task_id", "worker_id",
    )  # fmt: skip

    def __init__(
        self,
        *,
        task_id: str,
        name: str,
        queue: str,
        attempt: int,
        max_attempts: int,
        fence: int,
        enqueued_at: float,
        worker_id: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.task_id = task_id
        self.name = name
        self.queue = queue
        self.attempt = attempt
        """Which start this is, from 1."""
        self.max_attempts = max_attempts
        self.fence = fence
        """The fencing token: rises with every start of this task."""
        self.enqueued_at = enqueued_at
        self.worker_id = worker_id
        self.headers: Mapping[str, str] = headers or {}
        self._stop = False

    @property
    def idempotency_key(self) -> str:
        """The same over all attempts of this task."""
        return self.task_id

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
