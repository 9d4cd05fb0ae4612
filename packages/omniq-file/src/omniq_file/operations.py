"""What can be asked of the log of tasks: the operations in a commit, and the codes that stand for words in them.

An operation is a tuple that begins with its code; the method of :class:`~omniq_file.machine.TaskMachine` that applies it
says what follows. Bodies are not in it, only their lengths: they lie in the commit's blob in the order of the operations.
All of these numbers are written to disk: none may ever change its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omniq_core import TaskState, Verb
from omniq_file.index import CANCELLED, DEAD, SUCCEEDED

__all__ = [
    "CANCEL", "CLAIM", "DELETE", "ENQUEUE", "EXTEND", "FINAL_STATES", "MAINTAIN", "MOVE", "PAUSE", "PRUNE", "PURGE", "PUT",
    "RELEASE", "REQUEUE", "SETTLE", "STATES", "STATE_CODES", "VERBS", "VERB_CODES", "Operation",
]  # fmt: skip

Operation = Sequence[Any]

ENQUEUE, CLAIM, SETTLE, EXTEND, MAINTAIN, CANCEL, REQUEUE, PAUSE, PURGE, PUT, DELETE, PRUNE, MOVE = range(
    1, 14
)

VERBS = (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL, Verb.RETRY, Verb.RELEASE)
VERB_CODES = {verb: code for code, verb in enumerate(VERBS)}
FINAL_STATES = (SUCCEEDED, DEAD, CANCELLED)
"""By verb code; the others make the task pending."""
RELEASE = VERB_CODES[Verb.RELEASE]
STATES = (
    TaskState.PENDING, TaskState.PENDING, TaskState.RUNNING, TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED,
    TaskState.EXPIRED,
)  # fmt: skip
"""By state code."""
STATE_CODES = {state: code for code, state in enumerate(STATES)}
