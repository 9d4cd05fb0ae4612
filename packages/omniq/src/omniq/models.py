"""What an application reads: a task's result, its status, and events."""

from __future__ import annotations

import datetime
import enum
import importlib
from typing import Any

import msgspec

from omniq.codec import (
    Failure,
    ResultBody,
    Undecodable,
    decode_arguments,
    decode_call,
    decode_failure,
    decode_result,
    decode_value,
    raise_failure,
)
from omniq.errors import TaskCancelled, TaskDead, TaskError, TaskExpired, WorkerLost
from omniq_core import Event, ResultRecord, TaskSnapshot, TaskState

__all__ = [
    "EventType",
    "TaskEvent",
    "TaskInfo",
    "TaskResult",
    "TaskStatus",
    "result_of_record",
    "result_of_snapshot",
]


class TaskStatus(enum.StrEnum):
    """How a task stands, in the words of its result."""

    PENDING = "pending"
    RUNNING = "running"
    RETRY = "retry"
    """It failed or crashed before and waits for another try."""
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @classmethod
    def of(cls, state: TaskState, attempt: int = 0) -> TaskStatus:
        """The status of a task in that stored state."""
        if state is TaskState.PENDING and attempt:
            return cls.RETRY
        return _STATUS[state]


_STATUS = {
    TaskState.PENDING: TaskStatus.PENDING,
    TaskState.RUNNING: TaskStatus.RUNNING,
    TaskState.SUCCEEDED: TaskStatus.SUCCESS,
    TaskState.DEAD: TaskStatus.ERROR,
    TaskState.CANCELLED: TaskStatus.CANCELLED,
    TaskState.EXPIRED: TaskStatus.EXPIRED,
}


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a task ended. True in a condition, whatever its value; ``str()`` shows the value of a success."""

    task_id: str
    status: TaskStatus
    result: Any = None
    """The task's value; ``None`` unless it succeeded."""
    error: str | None = None
    """Type and message of what it raised, or the reason why there is no value."""
    error_traceback: str | None = None
    started_at: datetime.datetime | None = None
    completed_at: datetime.datetime | None = None
    worker_id: str | None = None
    attempts: int = 0
    """How often it was started."""
    name: str = ""
    queue_name: str = ""
    schedule_id: str | None = None
    expires_at: datetime.datetime | None = None
    failure: Failure | None = None

    @property
    def execution_time(self) -> float | None:
        """How long the last run took, in seconds."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()

    @property
    def retry_count(self) -> int:
        return max(0, self.attempts - 1)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return str(self.result) if self.status is TaskStatus.SUCCESS else f"{self.status}: {self.error}"

    def unwrap(self) -> Any:
        """The value of a success.

        Raises:
            the task's own exception: builtin and registered classes as themselves, others as ``TaskError``, with the
                remote traceback as the cause.
            TaskCancelled, TaskExpired, TaskDead, WorkerLost: it ended without one.
        """
        if self.status is TaskStatus.SUCCESS:
            return self.result
        if self.failure is not None:
            where = f" on worker {self.worker_id}" if self.worker_id else ""
            note = f"OmniQ task {self.task_id} ({self.name}) failed{where} after {self.attempts} attempt(s)"
            raise_failure(self.failure, task_id=self.task_id, note=note)
        text = f"task {self.task_id} ({self.name}) {self.status}" + (f": {self.error}" if self.error else "")
        raise _WITHOUT_FAILURE.get(self.status, TaskDead)(text, task_id=self.task_id)


_WITHOUT_FAILURE: dict[TaskStatus, type[TaskError]] = {
    TaskStatus.CANCELLED: TaskCancelled,
    TaskStatus.EXPIRED: TaskExpired,
    TaskStatus.ERROR: TaskDead,
}


def _moment(at: float | None) -> datetime.datetime | None:
    return None if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC)


def _line(failure: Failure) -> str:
    return f"{failure.type_name.removeprefix('builtins.')}: {failure.message}"


def result_of_record(record: ResultRecord) -> TaskResult:
    """The result that a stored record tells of."""
    body: ResultBody = decode_result(record.body)
    failure = body.failure
    return TaskResult(
        task_id=record.task_id,
        status=TaskStatus.of(record.state),
        result=decode_value(body.value),
        error=_line(failure) if failure else body.reason,
        error_traceback=failure.traceback if failure else None,
        started_at=_moment(body.started_at),
        completed_at=_moment(body.finished_at or record.stored_at),
        worker_id=body.worker_id,
        attempts=body.attempt,
        name=body.name,
        queue_name=body.queue,
        schedule_id=body.schedule_id,
        expires_at=_moment(record.expires_at),
        failure=failure,
    )


def result_of_snapshot(task: TaskSnapshot) -> TaskResult:
    """The result that the task itself tells of, where there is no record: nobody wrote one, or it has expired."""
    failure = decode_failure(task.error) if task.error else None
    if failure is None and task.state is TaskState.DEAD and task.crashes >= task.max_crashes:
        failure = Failure(
            f"{WorkerLost.__module__}.{WorkerLost.__name__}", task.reason or "its worker was lost"
        )
    return TaskResult(
        task_id=task.id,
        status=TaskStatus.of(task.state, task.attempt),
        error=_line(failure) if failure else task.reason,
        error_traceback=failure.traceback if failure else None,
        completed_at=_moment(task.finished_at),
        worker_id=task.worker_id,
        attempts=task.attempt,
        name=task.name,
        queue_name=task.queue,
        failure=failure,
    )


class EventType(enum.StrEnum):
    """What can happen to a task."""

    ENQUEUED = "enqueued"
    EXECUTING = "executing"
    COMPLETED = "completed"
    ERROR = "error"
    """It is dead."""
    RETRY = "retry"
    RELEASED = "released"
    """Given back without counting: a worker that stopped, a snooze, an unknown task."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    WORKER_LOST = "worker_lost"
    """Its lease ended; it was handed out again, or is dead."""
    FENCED = "fenced"
    """A worker that had lost its lease came back with an outcome; it was dropped."""
    REQUEUED = "requeued"

    STARTED = EXECUTING
    COMPLETE = COMPLETED
    FAILED = ERROR
    RETRIED = RETRY


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the event log."""

    id: str
    task_id: str
    event_type: str
    timestamp: datetime.datetime
    queue_name: str = ""
    name: str = ""
    worker_id: str | None = None
    message: str | None = None
    error: str | None = None
    execution_time: float | None = None
    """Seconds."""
    attempt: int | None = None
    schedule_id: str | None = None
    data: dict[str, Any] = {}
    """Everything else that was noted."""

    @classmethod
    def of(cls, event: Event) -> TaskEvent:
        """The event as the log has it; unreadable data is left out."""
        try:
            data = msgspec.json.decode(event.data, type=dict[str, Any])
        except (msgspec.DecodeError, ValueError):
            data = {}
        known = {
            key: data.pop(key, None)
            for key in ("message", "error", "execution_time", "attempt", "schedule_id")
        }
        return cls(
            id=event.id,
            task_id=event.task_id,
            event_type=event.type,
            timestamp=datetime.datetime.fromtimestamp(event.at, datetime.UTC),
            queue_name=event.queue,
            name=event.name,
            worker_id=event.worker_id,
            data=data,
            **known,
        )


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue knows of a task now."""

    task_id: str
    name: str
    queue_name: str
    status: TaskStatus
    state: TaskState
    """As it is stored; ``status`` tells a task that will be retried from a new one."""
    attempts: int
    """How often it was started."""
    max_attempts: int
    crashes: int
    """How many of its starts ended with the loss of the worker."""
    priority: int
    enqueued_at: datetime.datetime
    run_at: datetime.datetime
    """Not before then; for a task that waits to be retried, when that is."""
    expires_at: datetime.datetime | None = None
    completed_at: datetime.datetime | None = None
    worker_id: str | None = None
    """Who runs it now."""
    unique_key: str | None = None
    cancel_requested: bool = False
    reason: str | None = None
    """One line about what became of it last."""
    error: str | None = None
    """Type and message of what it raised last."""
    error_traceback: str | None = None
    body: bytes = b""

    @classmethod
    def of(cls, task: TaskSnapshot) -> TaskInfo:
        """The task as the store has it."""
        failure = decode_failure(task.error) if task.error else None
        return cls(
            task_id=task.id,
            name=task.name,
            queue_name=task.queue,
            status=TaskStatus.of(task.state, task.attempt),
            state=task.state,
            attempts=task.attempt,
            max_attempts=task.max_attempts,
            crashes=task.crashes,
            priority=task.priority,
            enqueued_at=datetime.datetime.fromtimestamp(task.enqueued_at, datetime.UTC),
            run_at=datetime.datetime.fromtimestamp(task.run_at, datetime.UTC),
            expires_at=_moment(task.expires_at),
            completed_at=_moment(task.finished_at),
            worker_id=task.worker_id,
            unique_key=task.unique_key,
            cancel_requested=task.cancel_requested,
            reason=task.reason,
            error=_line(failure) if failure else None,
            error_traceback=failure.traceback if failure else None,
            body=task.body,
        )

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """The positional and keyword arguments as plain data; ``None`` if they cannot be read here."""
        try:
            return decode_arguments(decode_call(self.body))
        except Undecodable:
            return None


def __getattr__(name: str) -> Any:
    # ``SQLiteTaskQueueConfig`` and the like, from the modules of the components (which stand above this one).
    if name.endswith("Config"):
        for module in ("queue", "results", "events"):
            try:
                return getattr(importlib.import_module(f"omniq.{module}"), name)
            except AttributeError:
                continue
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
