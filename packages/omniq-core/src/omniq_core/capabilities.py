"""What an *opened* backend can do, as data.

Capabilities are a frozen set on the opened backend: never ``isinstance`` (a wrapper that forwards attributes lies),
never the class (two servers of one product differ). OmniQ may emulate a missing convenience (it polls without
``WAKEUP`` and ``RESULT_WAIT``), never a missing safety. What a program needs and its backend lacks stops the program
before it takes work, by name.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

__all__ = ["IMPLIED", "Capability", "Limits", "with_implied"]


class Capability(enum.StrEnum):
    """One promise. Declaring one that does not hold, and hiding one that does, both fail the conformance suite."""

    # safety: never emulated
    DURABLE = "durable"
    """What was acknowledged survives the death of every process of ours and of the server, by its settings now."""
    MULTI_PROCESS = "multi_process"
    """Several processes of one machine may use the storage at once."""
    MULTI_HOST = "multi_host"
    """Several machines may."""
    FENCED_SETTLE = "fenced_settle"
    """A stale owner's settle is refused, atomically. (A stale ``extend`` is refused by every backend.)"""
    ATOMIC_BATCH = "atomic_batch"
    """``enqueue`` stores a batch wholly or not at all."""
    ATOMIC_SETTLE = "atomic_settle"
    """``settle`` writes the task's state and its result in one atomic write."""
    SERVER_CLOCK = "server_clock"
    """Due times and leases are decided by one clock, the server's. Without it, by the host's (or an injected) clock."""

    # features of the queue
    DELAYED = "delayed"
    """``delay_s`` on enqueue, retry and release is honoured."""
    PRIORITY = "priority"
    """A higher priority of one queue is claimed first."""
    FIFO = "fifo"
    """Equal priorities of one queue are claimed in the order of their arrival; a delayed task may count from its due time."""
    UNIQUE = "unique"
    """``unique_key``."""
    EXPIRY = "expiry"
    """``ttl_s``: a task that was not claimed in time expires."""
    CANCEL = "cancel"
    PAUSE = "pause"
    """``pause`` and ``resume`` of queues."""
    QUERY = "query"
    STATS = "stats"
    """``stats`` and ``queue_names``."""
    REQUEUE = "requeue"
    PURGE = "purge"
    WAKEUP = "wakeup"
    """``wait`` returns because something happened, not because it polled."""
    TX_ENQUEUE = "tx_enqueue"
    """``enqueue_within`` and ``settle_within``: writes that join the caller's own transaction."""

    # stores
    RESULTS = "results"
    RESULT_TTL = "result_ttl"
    RESULT_WAIT = "result_wait"
    """``ResultStore.wait`` returns because a result came, not because it polled."""
    EVENTS = "events"
    EVENT_TAIL = "event_tail"
    """``EventStore.tail`` is pushed."""
    EVENT_TRUNCATE = "event_truncate"


IMPLIED: Mapping[Capability, frozenset[Capability]] = {
    Capability.MULTI_HOST: frozenset({Capability.MULTI_PROCESS}),
    Capability.ATOMIC_SETTLE: frozenset({Capability.RESULTS, Capability.FENCED_SETTLE}),
    Capability.RESULT_TTL: frozenset({Capability.RESULTS}),
    Capability.RESULT_WAIT: frozenset({Capability.RESULTS}),
    Capability.EVENT_TAIL: frozenset({Capability.EVENTS}),
    Capability.EVENT_TRUNCATE: frozenset({Capability.EVENTS}),
}
"""What declaring the key promises as well. A declaration that leaves an implied one out is refused by the suite."""


def with_implied(capabilities: Iterable[Capability]) -> frozenset[Capability]:
    """``capabilities`` and everything that they imply."""
    found = set(capabilities)
    for capability in tuple(found):
        found |= IMPLIED.get(capability, frozenset())
    return frozenset(found)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes and times of an opened backend. OmniQ checks them before it calls, and cuts batches to fit."""

    max_batch: int = 1000
    """Most items in one call of any method that takes a sequence."""
    max_body_bytes: int = 1024 * 1024
    """Largest task body."""
    max_result_bytes: int = 4 * 1024 * 1024
    """Largest result body or error."""
    min_lease_s: float = 0.05
    """Shortest lease, in seconds."""
    reclaim_delay_s: float = 0.0
    """How long after the end of a lease ``maintain`` followed by ``claim`` may still not hand the task out."""
    time_resolution_s: float = 0.001
    """Two times closer than this may be treated as equal."""
    poll_interval_s: float = 0.1
    """How long the default ``Queue.wait`` sleeps where there is no ``WAKEUP``, in seconds."""
