"""What a worker holds: tasks that were claimed and are not settled yet.

A task is *ready* (claimed ahead, not started), *running* (in a slot), or *finished* (waiting to be settled). All three are
leased, and the lease thread extends all of them alike. Everything here belongs to the worker's event loop; the lease thread
takes snapshots, and writes nothing but ``trusted_until``.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from omniq.codec import CallOptions
from omniq.context import TaskContext
from omniq.outcome import Ending
from omniq_core import Claim, Settlement, TaskState

__all__ = ["Counts", "Desk", "Held", "Slot"]


class Slot:
    """One of the long-lived coroutines in which runs happen, one after the other."""

    __slots__ = ("held", "number", "task")

    def __init__(self, number: int) -> None:
        self.number = number
        self.task: asyncio.Task[None] | None = None
        self.held: Held | None = None
        """The run that is suspended in it. ``None`` between runs: there is nothing to interrupt then."""


# gc=False: thousands of these live for milliseconds each. The one cycle, with its slot, is undone when the run ends.
class Held(msgspec.Struct, eq=False, gc=False):
    """A claimed task, until it is settled."""

    claim: Claim
    claimed_at: float
    """Monotonic."""
    trusted_until: float
    """Monotonic: until then nobody else can have been given the task."""
    lost: bool = False
    """Somebody else has it, or may have: whatever comes of the run is dropped."""
    cancel_requested: bool = False
    interrupted: Ending | None = None
    """Why its run was cancelled by us."""
    slot: Slot | None = None
    """While the run is suspended."""
    context: TaskContext | None = None
    left_running: bool = False
    """It could not be stopped: a thread is at it still."""
    timeout_s: float | None = None
    deadline: float | None = None
    """Monotonic, of a run with a time-out."""
    options: CallOptions | None = None
    started_at: float = 0.0
    """Wall clock; 0: it was not started."""
    ended_at: float = 0.0
    settlement: Settlement | None = None
    result: bytes | None = None
    """The body of a result record that goes to another backend."""
    result_state: TaskState | None = None
    refused: bool = False
    """The store refused its settlement as such."""
    error: BaseException | None = None
    """For a hook that asks for it; taken away when the hook was called."""


class Counts:
    """What a worker did so far."""

    __slots__ = ("cancelled", "claimed", "dead", "released", "retried", "stale", "succeeded")

    def __init__(self) -> None:
        self.claimed = self.succeeded = self.retried = self.dead = self.cancelled = self.released = (
            self.stale
        ) = 0


class Desk:
    """Everything that the worker holds."""

    def __init__(self) -> None:
        self.held: set[Held] = set()
        """All of it."""
        self.ready: deque[Held] = deque()
        """Claimed ahead, in the order in which it will be started."""
        self.finished: list[Held] = []
        """To be settled next."""
        self.ended = 0
        """How many runs have ended; from it the claimer measures the rate."""
        self.counts = Counts()

    def snapshot(self) -> list[Held]:
        """Everything that is held, for another thread."""
        while True:
            try:
                return list(self.held)
            except RuntimeError:  # it changed in the middle, which a garbage collection can make possible
                continue

    def find(self, task_id: str) -> list[Held]:
        """What is held of a task; a lost hold and its successor may be there at once."""
        return [held for held in self.held if held.claim.task_id == task_id]
