"""What is kept in memory of a task, a result and a claim: an index, without the bodies.

Tasks and results are ``msgspec`` structs in array form, of numbers and text only: a checkpoint encodes them as they are, in
C, and the garbage collector does not walk them (``gc=False``), so a million of them cost memory and nothing else.
"""

from __future__ import annotations

import msgspec

from omniq_file.commit import Place

__all__ = [
    "CANCELLED", "DEAD", "DELAYED", "EXPIRED", "GONE", "READY", "RUNNING", "SUCCEEDED", "ClaimRecord", "Kind", "Rare",
    "Result", "Task",
]  # fmt: skip

READY, DELAYED, RUNNING, SUCCEEDED, DEAD, CANCELLED, EXPIRED, GONE = range(8)
"""A task's state. Pending is two: in line, or waiting for its time. ``GONE``: deleted, and perhaps still in a line."""


class Rare(msgspec.Struct, array_like=True, gc=False):
    """What most pending tasks do not have."""

    expires_at: float | None = None
    unique_key: str | None = None
    finished_at: float | None = None
    reason: str | None = None
    error: Place | None = None
    cancel_requested: bool = False


class Task(msgspec.Struct, array_like=True, gc=False):
    """One stored task."""

    id: str
    kind: int
    """Its place in ``TaskMachine.kinds``."""
    seq: int
    """The order of arrival."""
    enqueued_at: float
    run_at: float
    body_in: int
    """Where its body lies: the commit's number, the offset, the length."""
    body_at: int
    body_bytes: int
    state: int = READY
    attempt: int = 0
    crashes: int = 0
    fence: int = 0
    """Of its newest claim or take-over; of the claim that it is open in, while it runs."""
    rare: Rare | None = None


class Kind(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the tasks of one kind have in common."""

    queue: str
    name: str
    priority: int
    max_attempts: int
    max_crashes: int


class Result(msgspec.Struct, array_like=True, gc=False):
    """One stored result record."""

    task_id: str
    fence: int
    state: int
    final: bool
    ttl_s: float | None
    stored_at: float
    expires_at: float
    body_in: int
    body_at: int
    body_bytes: int


class ClaimRecord:
    """One call of claim, while a task of it is open. Its fence is the fence of its tasks, and no other claim's."""

    __slots__ = ("claim_id", "fence", "open", "until", "worker_id")

    def __init__(self, fence: int, claim_id: str, worker_id: str, until: float) -> None:
        self.fence, self.claim_id, self.worker_id, self.until = fence, claim_id, worker_id, until
        self.open: dict[str, Task] = {}
