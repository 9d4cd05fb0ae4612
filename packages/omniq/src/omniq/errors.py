"""What an application meets when a task did not end well, or could not be sent.

The contract's own errors (plugins, options, backends) are in :mod:`omniq_core.errors`. Each class has a stable code and
a heading in ``docs/errors.md``.
"""

from __future__ import annotations

from omniq_core import OmniQError

__all__ = [
    "ArgumentError",
    "DuplicateTask",
    "LeaseLost",
    "NotSerializable",
    "PartMissing",
    "RemoteTraceback",
    "TaskCancelled",
    "TaskDead",
    "TaskError",
    "TaskExpired",
    "TaskTimeout",
    "UnknownTask",
    "WorkerLost",
]


class ArgumentError(OmniQError, TypeError):
    """The arguments do not fit the task's signature. Raised where the task is enqueued; nothing was sent."""

    code = "OMQ-T001"


class NotSerializable(OmniQError, TypeError):
    """An argument or a result cannot be encoded. For an argument nothing was sent; for a result the task failed."""

    code = "OMQ-T002"


class UnknownTask(OmniQError, LookupError):
    """No function of that name is registered in this program."""

    code = "OMQ-T003"


class DuplicateTask(OmniQError, ValueError):
    """Two functions claim one task name."""

    code = "OMQ-T004"


class PartMissing(OmniQError, RuntimeError):
    """A method needs a part (a result store, an event store, a worker) that this program was made without."""

    code = "OMQ-T005"


class TaskError(OmniQError):
    """A task ended without a value: raised where its result is asked for.

    A task's own exception comes back as itself if it is a builtin one (or was registered with
    ``omniq.register_exception``), else as this class. Either way its ``__cause__`` holds the remote traceback.

    Attributes:
        task_id: the task.
        type_name: the exception's ``module.qualname`` in the worker; ``None`` if there was no exception.
        remote_traceback: the worker's traceback as text; empty if there was none.
    """

    code = "OMQ-T010"

    def __init__(
        self, message: str, *, task_id: str = "", type_name: str | None = None, remote_traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.type_name = type_name
        self.remote_traceback = remote_traceback


class TaskDead(TaskError):
    """The task is dead without an exception of its own: rejected, or undecodable."""

    code = "OMQ-T011"


class TaskCancelled(TaskError):
    """The task was cancelled."""

    code = "OMQ-T012"


class TaskExpired(TaskError):
    """The task was not started within its time to live."""

    code = "OMQ-T013"


class TaskTimeout(TaskError):
    """The task ran longer than it may. (Waiting too short a time for a result is the builtin ``TimeoutError``.)"""

    code = "OMQ-T014"


class WorkerLost(TaskError):
    """The workers that ran the task died under it, as often as it was allowed to."""

    code = "OMQ-T015"


class LeaseLost(TaskError):
    """Another worker has the task: what this run was about to write must not be written."""

    code = "OMQ-T016"


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in a worker; always a ``__cause__``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'
