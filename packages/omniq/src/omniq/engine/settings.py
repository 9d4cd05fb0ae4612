"""The knobs of a worker."""

from __future__ import annotations

import msgspec

from omniq_core import check_name

__all__ = ["WorkerSettings"]


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works. Times are in seconds."""

    max_workers: int = 10
    """Most tasks that run at once."""
    queues: tuple[str, ...] = ()
    """The queues to work on, in strict order of preference. Empty: all there are, ``default`` first."""
    and_others: bool = False
    """Work on all other queues as well, after ``queues``: ``default`` first, the rest by name."""
    lease_s: float = 30.0
    """How long others wait before they take over from a worker that died. It is extended three times in that time, so a
    shorter one costs more calls, and makes a worker that stands still for so long (a suspended virtual machine) lose what
    it runs."""
    grace_s: float = 25.0
    """How long running tasks may go on when the worker is stopped. Kubernetes kills after 30."""
    max_prefetch: int = 1000
    """Most tasks that are claimed ahead of a free slot. As few are as will be started within a fifth of a second, so slow
    tasks are never hoarded."""
    poll_s: float = 1.0
    """When idle, look for tasks at least so often, should a wake-up have been lost."""
    upkeep_s: float = 5.0
    """How often to look for tasks whose worker died."""
    task_timeout_s: float | None = None
    """Longest run of a task that has no time-out of its own; ``None``: no limit."""
    name: str = ""
    """The worker's id, kept with the tasks that it runs. It must be unique; empty: made of host, process and chance."""
    allow_unfenced: bool = False
    """Work even on a backend that does not refuse a stale owner's write (no ``FENCED_SETTLE``). A task that two workers
    ran may then end with either's result."""

    def __post_init__(self) -> None:
        if self.max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {self.max_workers}")
        if self.max_prefetch < 0:
            raise ValueError(f"max_prefetch must not be negative, got {self.max_prefetch}")
        for field in ("lease_s", "poll_s", "upkeep_s"):
            value = getattr(self, field)
            if not value > 0:
                raise ValueError(f"{field} must be more than 0 seconds, got {value}")
        if not self.grace_s >= 0:
            raise ValueError(f"grace_s must not be negative, got {self.grace_s}")
        if self.task_timeout_s is not None and not self.task_timeout_s > 0:
            raise ValueError(f"task_timeout_s must be more than 0 seconds, got {self.task_timeout_s}")
        queues: object = self.queues
        if isinstance(queues, str):
            raise TypeError(f"queues must be a sequence of names, got the text {self.queues!r}")
        for queue in self.queues:
            check_name("queue name", queue)
        if len(set(self.queues)) != len(self.queues):
            raise ValueError(f"queues must not repeat a name, got {self.queues}")
        if self.name:
            check_name("worker name", self.name)

    @property
    def trust_margin_s(self) -> float:
        """How long before its end a lease is given up, by the worker's own clock: for the way of the last extension, and
        for a clock that runs slow."""
        return min(5.0, self.lease_s / 6)
