"""The values that cross the border between OmniQ and a backend.

Every record is a frozen ``msgspec.Struct``: cheap to make (a worker makes three for each task), comparable, and
readable in a debugger. Times on records are seconds since the Unix epoch, UTC, as ``float``, **by the store's clock**
where the store has one. Producers and workers never send a point in time, only delays: two machines that disagree
about the time still agree about a lease.

Six stored states. "Scheduled" and "retrying" are ``PENDING`` with ``run_at`` in the future, so there is no promoter
process that could crash between two states.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

__all__ = [
    "Claim",
    "Durability",
    "Enqueued",
    "Event",
    "EventFilter",
    "Extension",
    "Finding",
    "Health",
    "Lease",
    "Loss",
    "Maintained",
    "Moved",
    "Outcome",
    "Page",
    "QueueStats",
    "ResultRecord",
    "Settlement",
    "Severity",
    "TaskFilter",
    "TaskRecord",
    "TaskSnapshot",
    "TaskState",
    "Verb",
    "WorkerReport",
]

T = TypeVar("T")


class TaskState(enum.StrEnum):
    """The six stored states of a task."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether only an operator's requeue (or purge) can change the task again."""
        return self is not TaskState.PENDING and self is not TaskState.RUNNING


class Verb(enum.StrEnum):
    """What a settlement does to a task that its owner holds."""

    SUCCEED = "succeed"
    """``running`` -> ``succeeded``."""
    RETRY = "retry"
    """``running`` -> ``pending``, due after ``delay_s``; the attempt is spent."""
    DEAD = "dead"
    """``running`` -> ``dead``: kept with ``reason`` and ``error`` until an operator requeues or purges it."""
    RELEASE = "release"
    """``running`` -> ``pending``, due after ``delay_s``; the attempt is given back, the fence never."""
    CANCEL = "cancel"
    """``running`` -> ``cancelled``."""


class Outcome(enum.StrEnum):
    """What a store answers about one item of a batch. Each method's docstring lists the ones that it may give."""

    OK = "ok"
    """The item took effect now."""
    DUPLICATE = "duplicate"
    """The same item took effect earlier: a repeated call after a lost reply. Success to the caller."""
    STALE = "stale"
    """A newer owner exists, or none does: nothing was changed, and the caller must drop what it holds."""
    CONFLICT = "conflict"
    """Something else occupies the place (a unique key): nothing was changed."""
    REQUESTED = "requested"
    """The wish was recorded and the task's owner will be told (cancelling a running task)."""
    FINISHED = "finished"
    """The task is in a final state: nothing was changed."""
    NOT_FOUND = "not_found"
    """The store knows no such task: nothing was changed."""


class TaskRecord(msgspec.Struct, frozen=True, gc=False):
    """A task as its producer sends it. ``body`` is opaque to every backend."""

    id: str
    """Made by the producer (UUIDv7 text by default), so that enqueuing again is harmless. At most 128 bytes."""
    queue: str
    """Any text of 1 to 255 UTF-8 bytes without control characters. It is data: encode it, never paste it."""
    name: str
    """The task's name, for filters and displays. Same limits as ``queue``."""
    body: bytes
    """The encoded call. At most ``Limits.max_body_bytes``."""
    priority: int = 0
    """Within one queue a higher number is claimed first. -32768 to 32767."""
    delay_s: float = 0.0
    """Seconds from now, by the store's clock, before which the task is not claimed."""
    ttl_s: float | None = None
    """Seconds from now after which a task that is still pending becomes ``EXPIRED`` instead of being claimed."""
    max_attempts: int = 1
    """How often the task may *fail*. Stored and handed back; only the worker compares it."""
    max_crashes: int = 3
    """How many lost leases the task survives: the reaper makes it ``DEAD`` at this count. 1 means at most once."""
    unique_key: str | None = None
    """At most one pending or running task holds a key; any final state frees it. At most 255 bytes."""


class Enqueued(msgspec.Struct, frozen=True, gc=False):
    """The answer about one enqueued record."""

    outcome: Outcome
    """``OK``, ``DUPLICATE`` (this id is known already, in whatever state) or ``CONFLICT`` (unique key held)."""
    task_id: str
    """The record's id; with ``CONFLICT`` the id of the task that holds the key."""


class Lease(msgspec.Struct, frozen=True, gc=False):
    """The right to write about one task. Only ``task_id``, ``fence`` and ``handle`` are sent back to the store."""

    task_id: str
    fence: int
    """The fencing token: rises with every claim and every take-over of this task, and never repeats for its id, not even
    after the task was purged and the id was enqueued anew. From 1, below 2**53 (it passes through doubles)."""
    expires_at: float = 0.0
    """When somebody else may take the task over, by the store's clock. For display: the fence decides, not time."""
    handle: object = None
    """The driver's own: a claim's token and index, an acknowledgement subject. OmniQ hands it back untouched."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One task handed to a worker."""

    task_id: str
    queue: str
    name: str
    body: bytes
    attempt: int
    """Which start this is, from 1. A start whose worker crashed counts; a released one does not."""
    crashes: int
    """How many earlier starts ended with a lost lease."""
    max_attempts: int
    max_crashes: int
    enqueued_at: float
    lease: Lease


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """What the end of a run does to its task; see :class:`Verb`."""

    lease: Lease
    verb: Verb
    delay_s: float = 0.0
    """With ``RETRY`` and ``RELEASE``: seconds from now, by the store's clock, until the task is due again."""
    reason: str | None = None
    """One line for people, kept as the task's ``reason``. ``None`` clears it."""
    error: bytes | None = None
    """The encoded failure, kept as the task's ``error``. ``None`` clears it."""
    result: bytes | None = None
    """With ``ATOMIC_SETTLE`` and a final verb: the body of the result record to write in the same atomic write.
    ``None`` writes no record."""
    result_ttl_s: float | None = None
    """How long that record lives, in seconds, even if the task itself is pruned earlier; ``None``: as long as the store
    keeps the finished task."""
    crashed: bool = False
    """Adds one to the task's crashes: the run is known to have died (a killed child process)."""


class Extension(msgspec.Struct, frozen=True, gc=False):
    """The answer about one extended lease."""

    outcome: Outcome
    """``OK``: still yours, for longer. ``STALE``: lost; stop working on it."""
    expires_at: float = 0.0
    cancel_requested: bool = False
    """Somebody asked to cancel this running task."""


class TaskSnapshot(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the store knows about a task now."""

    id: str
    queue: str
    name: str
    state: TaskState
    body: bytes
    priority: int = 0
    attempt: int = 0
    max_attempts: int = 1
    crashes: int = 0
    max_crashes: int = 3
    fence: int = 0
    enqueued_at: float = 0.0
    run_at: float = 0.0
    expires_at: float | None = None
    finished_at: float | None = None
    worker_id: str | None = None
    """Who holds the task while it is running."""
    lease_expires_at: float | None = None
    unique_key: str | None = None
    cancel_requested: bool = False
    reason: str | None = None
    error: bytes | None = None


class TaskFilter(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Which tasks: all the given conditions hold. An empty sequence means any."""

    queues: Sequence[str] = ()
    names: Sequence[str] = ()
    states: Sequence[TaskState] = ()
    enqueued_after: float | None = None
    """``enqueued_at >= enqueued_after``."""
    enqueued_before: float | None = None
    """``enqueued_at < enqueued_before``."""


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some items, and where to go on."""

    items: Sequence[T]
    cursor: str | None = None
    """Opaque. Hand it back for the next page; ``None``: nothing follows at the moment."""


class QueueStats(msgspec.Struct, frozen=True, gc=False):
    """The counts of one queue. They may be a moment old, and must not cost a scan of the tasks."""

    queue: str
    ready: int = 0
    """Pending and due."""
    delayed: int = 0
    """Pending and not yet due."""
    running: int = 0
    paused: bool = False
    oldest_ready_s: float | None = None
    """How long the first task in line has been due, in seconds, where the store can tell."""


class Moved(msgspec.Struct, frozen=True, gc=False):
    """A task whose state upkeep changed: reaped (its lease ended) or expired."""

    task_id: str
    queue: str
    name: str
    state: TaskState
    fence: int
    attempt: int
    crashes: int
    reason: str | None = None
    worker_id: str | None = None
    """Who had lost it."""


class Maintained(msgspec.Struct, frozen=True):
    """What one round of upkeep did."""

    moved: Sequence[Moved] = ()
    pruned: int = 0
    """Finished tasks and expired results that were deleted."""
    more: bool = False
    """The limit cut the round short: call again soon."""


class ResultRecord(msgspec.Struct, frozen=True, gc=False):
    """How a task ended, for those who wait. ``body`` is opaque to every backend."""

    task_id: str
    fence: int
    """The fence under which it was made. A lower fence never overwrites a higher one."""
    state: TaskState
    """A final state."""
    body: bytes = b""
    ttl_s: float | None = None
    """On ``put``: seconds to live; ``None``: as long as the store keeps anything. It must be ``None`` without
    ``RESULT_TTL``."""
    final: bool = True
    """``False``: written ahead of the queue's own settlement, which is on another backend. A reader asks the queue."""
    stored_at: float = 0.0
    """On reading: when."""
    expires_at: float | None = None
    """On reading: until when."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to a task. Written after the fact; appending one again is harmless."""

    id: str
    """Unique; UUIDv7 text by default."""
    task_id: str
    type: str
    at: float
    """By the emitter's clock."""
    queue: str = ""
    name: str = ""
    worker_id: str | None = None
    data: bytes = b"{}"
    """A JSON object in UTF-8. Stores keep it as it is."""


class EventFilter(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Which events: all the given conditions hold. An empty sequence means any."""

    task_ids: Sequence[str] = ()
    types: Sequence[str] = ()
    queues: Sequence[str] = ()
    since: float | None = None
    """``at >= since``."""
    until: float | None = None
    """``at < until``."""


class Loss(enum.StrEnum):
    """What becomes of acknowledged writes in an accident."""

    NONE = "none"
    WINDOW = "window"
    """The last moments are lost: ``Durability.window_s``."""
    ALL = "all"
    UNKNOWN = "unknown"
    """The client cannot see the server's settings."""


class Durability(msgspec.Struct, frozen=True):
    """What acknowledged writes survive, by the opened store's *own settings*."""

    server_killed: Loss
    """The store's process is killed (for an embedded store: any process that has it open)."""
    power_cut: Loss
    """The machine loses power."""
    window_s: float | None = None
    """How much is lost, in seconds, where the answer above is ``WINDOW``."""


class Severity(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """One line of a backend's own check."""

    severity: Severity
    message: str
    """What was found and what it means. No secrets."""
    advice: str = ""
    """What to do about it."""


class Health(msgspec.Struct, frozen=True):
    """What a backend found out about its server and settings."""

    server: str
    """Product and version, for example ``"SQLite 3.54.0"``."""
    now: float
    """The store's clock."""
    durability: Durability
    findings: Sequence[Finding] = ()
    settings: Mapping[str, str] = {}
    """The settings that the durability was read from. No secrets."""


class WorkerReport(msgspec.Struct, frozen=True):
    """What a worker did between its start and its end."""

    worker_id: str
    started_at: float
    stopped_at: float
    claimed: int = 0
    succeeded: int = 0
    retried: int = 0
    dead: int = 0
    cancelled: int = 0
    released: int = 0
    stale: int = 0
    """Outcomes that were dropped because the lease had been lost."""
