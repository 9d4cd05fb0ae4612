"""OmniQ: a task queue whose storage is a plugin.

::

    from omniq import OmniQ

    oq = OmniQ("sqlite:///tasks.db")


    @oq.task
    def add(a: int, b: int) -> int:
        return a + b


    with oq:
        oq.start_worker()
        print(add.enqueue(1, b=2).result(timeout=10))

Everything here is loaded when it is first used: importing ``omniq`` loads no backend and no client library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from omniq.app import AsyncOmniQ as AsyncOmniQ
    from omniq.codec import register_exception as register_exception
    from omniq.context import TaskContext as TaskContext
    from omniq.context import current_task as current_task
    from omniq.errors import ArgumentError as ArgumentError
    from omniq.errors import DuplicateTask as DuplicateTask
    from omniq.errors import NotSerializable as NotSerializable
    from omniq.errors import PartMissing as PartMissing
    from omniq.errors import RemoteTraceback as RemoteTraceback
    from omniq.errors import TaskCancelled as TaskCancelled
    from omniq.errors import TaskDead as TaskDead
    from omniq.errors import TaskError as TaskError
    from omniq.errors import TaskExpired as TaskExpired
    from omniq.errors import TaskTimeout as TaskTimeout
    from omniq.errors import UnknownTask as UnknownTask
    from omniq.errors import WorkerLost as WorkerLost
    from omniq.events import AsyncEventStore as AsyncEventStore
    from omniq.events import EventStore as EventStore
    from omniq.handles import AsyncTask as AsyncTask
    from omniq.handles import AsyncTaskHandle as AsyncTaskHandle
    from omniq.handles import Task as Task
    from omniq.handles import TaskHandle as TaskHandle
    from omniq.models import EventType as EventType
    from omniq.models import TaskEvent as TaskEvent
    from omniq.models import TaskInfo as TaskInfo
    from omniq.models import TaskResult as TaskResult
    from omniq.models import TaskStatus as TaskStatus
    from omniq.outcome import Reject as Reject
    from omniq.outcome import Retry as Retry
    from omniq.outcome import Snooze as Snooze
    from omniq.queue import AsyncTaskQueue as AsyncTaskQueue
    from omniq.queue import TaskQueue as TaskQueue
    from omniq.results import AsyncResultStore as AsyncResultStore
    from omniq.results import ResultStore as ResultStore
    from omniq.retry import RetryPolicy as RetryPolicy
    from omniq.sync import OmniQ as OmniQ
    from omniq.workers import AsyncWorker as AsyncWorker
    from omniq.workers import ProcessPoolWorker as ProcessPoolWorker
    from omniq.workers import ThreadPoolWorker as ThreadPoolWorker
    from omniq.workers import Worker as Worker
    from omniq_core import OmniQError as OmniQError

_HOMES = {
    "app": ("AsyncOmniQ",),
    "codec": ("register_exception",),
    "context": ("TaskContext", "current_task"),
    "errors": (
        "ArgumentError", "DuplicateTask", "NotSerializable", "PartMissing", "RemoteTraceback", "TaskCancelled",
        "TaskDead", "TaskError", "TaskExpired", "TaskTimeout", "UnknownTask", "WorkerLost",
    ),
    "events": ("AsyncEventStore", "EventStore"),
    "handles": ("AsyncTask", "AsyncTaskHandle", "Task", "TaskHandle"),
    "models": ("EventType", "TaskEvent", "TaskInfo", "TaskResult", "TaskStatus"),
    "outcome": ("Reject", "Retry", "Snooze"),
    "queue": ("AsyncTaskQueue", "TaskQueue"),
    "results": ("AsyncResultStore", "ResultStore"),
    "retry": ("RetryPolicy",),
    "sync": ("OmniQ",),
    "workers": ("AsyncWorker", "ProcessPoolWorker", "ThreadPoolWorker", "Worker"),
}  # fmt: skip
_home_of = {name: f"omniq.{module}" for module, names in _HOMES.items() for name in names}
_home_of["OmniQError"] = "omniq_core"

__all__ = [
    "ArgumentError",
    "AsyncEventStore",
    "AsyncOmniQ",
    "AsyncResultStore",
    "AsyncTask",
    "AsyncTaskHandle",
    "AsyncTaskQueue",
    "AsyncWorker",
    "DuplicateTask",
    "EventStore",
    "EventType",
    "NotSerializable",
    "OmniQ",
    "OmniQError",
    "PartMissing",
    "ProcessPoolWorker",
    "Reject",
    "RemoteTraceback",
    "ResultStore",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskDead",
    "TaskError",
    "TaskEvent",
    "TaskExpired",
    "TaskHandle",
    "TaskInfo",
    "TaskQueue",
    "TaskResult",
    "TaskStatus",
    "TaskTimeout",
    "ThreadPoolWorker",
    "UnknownTask",
    "Worker",
    "WorkerLost",
    "current_task",
    "register_exception",
]


def __getattr__(name: str) -> Any:
    home = _home_of.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(home), name)
    globals()[name] = found  # the next look-up does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
