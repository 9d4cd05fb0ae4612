"""Backends that promise less, and keep it. The suite must accept every one of them.

One for each capability that the memory backend declares, without it and refusing properly; and some that make use of
what the contract leaves open. A check that needs what it does not ask for fails on one of these, as it would fail on an
honest plugin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from omniq_core import (
    IMPLIED,
    SYSTEM_CLOCK,
    Backend,
    Capability,
    Claim,
    Enqueued,
    EventStore,
    Extension,
    Health,
    Lease,
    Limits,
    Maintained,
    Outcome,
    Queue,
    ResultRecord,
    ResultStore,
    Settlement,
    TaskRecord,
    Unsupported,
)
from omniq_memory.backend import ABSENT, MemoryEventStore, MemoryQueue, MemoryResultStore
from omniq_memory.store import Store, Task
from specimens.mutants_of_queues import LastInFirstOut, Unfenced
from specimens.trial import Specimen

C = Capability
LESSER: dict[str, type[Specimen]] = {}
"""By what is lesser about it."""

FIELDS: dict[Capability, Callable[[TaskRecord], bool]] = {
    C.DELAYED: lambda record: record.delay_s != 0,
    C.PRIORITY: lambda record: record.priority != 0,
    C.EXPIRY: lambda record: record.ttl_s is not None,
    C.UNIQUE: lambda record: record.unique_key is not None,
}
DEFAULTS: dict[Capability, dict[str, dict[str, Any]]] = {
    C.CANCEL: {"queue": {"cancel": Queue.cancel}},
    C.PAUSE: {"queue": {"pause": Queue.pause, "resume": Queue.resume}},
    C.QUERY: {"queue": {"query": Queue.query}},
    C.STATS: {"queue": {"stats": Queue.stats, "queue_names": Queue.queue_names}},
    C.REQUEUE: {"queue": {"requeue": Queue.requeue}},
    C.PURGE: {"queue": {"purge": Queue.purge}},
    C.WAKEUP: {"queue": {"wait": Queue.wait}},
    C.RESULTS: {"backend": {"result_store": Backend.result_store}},
    C.RESULT_WAIT: {"results": {"wait": ResultStore.wait}},
    C.EVENTS: {"backend": {"event_store": Backend.event_store}},
    C.EVENT_TAIL: {"events": {"tail": EventStore.tail}},
    C.EVENT_TRUNCATE: {"events": {"truncate": EventStore.truncate}},
}
"""What an author gets by not writing something."""


def _without(left_out: Capability) -> type[Specimen]:
    gone = {left_out}
    gone |= {capability for capability, implied in IMPLIED.items() if implied & gone}
    parts: dict[str, dict[str, Any]] = {"backend": {}, "queue": {}, "results": {}, "events": {}}
    for capability in gone:
        for part, methods in DEFAULTS.get(capability, {}).items():
            parts[part].update(methods)

    class RefusingQueue(MemoryQueue):
        async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
            for capability in gone & FIELDS.keys():
                if any(FIELDS[capability](record) for record in records):
                    raise Unsupported(capability, "lesser")
            if C.ATOMIC_BATCH not in gone:
                return await super().enqueue(records)
            answers: list[Enqueued] = []
            for record in records:
                answers += await super().enqueue([record])
                await asyncio.sleep(0)
            return answers

        async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
            for s in settlements:
                if C.DELAYED in gone and s.delay_s:
                    raise Unsupported(C.DELAYED, "lesser")
                if C.ATOMIC_SETTLE in gone and s.result is not None:
                    raise Unsupported(C.ATOMIC_SETTLE, "lesser")
                if C.RESULT_TTL in gone and s.result_ttl_s is not None:
                    raise Unsupported(C.RESULT_TTL, "lesser")
            return await super().settle(settlements)

    class RefusingResults(MemoryResultStore):
        async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
            if C.RESULT_TTL in gone and any(record.ttl_s is not None for record in records):
                raise Unsupported(C.RESULT_TTL, "lesser")
            return await super().put(records)

    async def open_(self: Specimen) -> None:
        await Specimen.open(self)
        self.capabilities = self.capabilities - gone

    stores: dict[Capability, type[Store]] = {C.FENCED_SETTLE: Unfenced, C.FIFO: LastInFirstOut}
    namespace = {
        "store_type": stores.get(left_out, Store),
        "queue_type": type("LesserQueue", (RefusingQueue,), parts["queue"]),
        "results_type": type("LesserResults", (RefusingResults,), parts["results"]),
        "events_type": type("LesserEvents", (MemoryEventStore,), parts["events"]),
        "open": open_,
        **parts["backend"],
    }
    return type(f"Without{left_out.name}", (Specimen,), namespace)


LESSER.update(
    (f"without {left_out.name}", _without(left_out)) for left_out in Capability if left_out not in ABSENT
)


def honest(cls: type[Specimen]) -> type[Specimen]:
    assert cls.__doc__
    LESSER[cls.__doc__.strip().rstrip(".")] = cls
    return cls


@honest
class Plain(Specimen):
    """in real time."""


@honest
class OnAServersClock(Specimen):
    """that keeps to its server's clock, whatever it is given."""

    def _attach(self) -> Store:
        store = super()._attach()
        store.clock = SYSTEM_CLOCK
        return store

    async def open(self) -> None:
        await super().open()
        self.capabilities = self.capabilities | {C.SERVER_CLOCK}
        self.absent = {c: reason for c, reason in ABSENT.items() if c is not C.SERVER_CLOCK}

    async def check(self) -> Health:
        return msgspec.structs.replace(await super().check(), now=SYSTEM_CLOCK.time())


@honest
class SmallLimits(Specimen):
    """with batches of at most 3 and bodies of at most 1,024 bytes."""

    async def open(self) -> None:
        await super().open()
        self.limits = Limits(max_batch=3, max_body_bytes=1024, max_result_bytes=1024)
        self._queue.limits = self.limits


@honest
class LeasingWholeClaims(Specimen):
    """where extending one task of a claim extends the others."""

    class WholeClaims(Store):
        def extend(self, leases: Sequence[Lease], *, lease_s: float) -> list[Extension]:
            answers = super().extend(leases, lease_s=lease_s)
            for lease, answer in zip(leases, answers, strict=True):
                if answer.outcome is Outcome.OK:
                    for task in self._claims[self._tasks[lease.task_id].claim_id or ""]:
                        task.lease_until = max(task.lease_until or 0.0, answer.expires_at)
            return answers

    store_type = WholeClaims


@honest
class Forgetful(Specimen):
    """which tells DUPLICATE from STALE only while it must."""

    class ShortMemory(Store):
        def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
            answers = []
            for settlement in settlements:
                [answer] = super().settle([settlement])
                task = self._tasks.get(settlement.lease.task_id)
                forgotten = task is not None and not task.state.is_final
                answers.append(Outcome.STALE if answer is Outcome.DUPLICATE and forgotten else answer)
            return answers

    store_type = ShortMemory


@honest
class GappedFences(Specimen):
    """whose fences have gaps."""

    class Counter(Store):
        def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
            self._last_fence += 7
            return super().claim(queues, **rest)

        def _reap(self, task: Task, now: float) -> Any:
            self._last_fence += 1_000_000_007
            return super()._reap(task, now)

    store_type = Counter


@honest
class ReapingByItself(Specimen):
    """that does its upkeep by itself, a moment late."""

    class SelfReaping(Store):
        def upkeep(self) -> None:
            Store.maintain(self, 1000)

        def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
            self.upkeep()
            return super().claim(queues, **rest)

        def get(self, task_ids: Sequence[str]) -> Any:
            self.upkeep()
            return super().get(task_ids)

        def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
            self.upkeep()
            return super().settle(settlements)

        def extend(self, leases: Sequence[Lease], *, lease_s: float) -> list[Extension]:
            self.upkeep()
            return super().extend(leases, lease_s=lease_s)

    store_type = SelfReaping
    queue_type = type("QueueWithoutUpkeep", (MemoryQueue,), {"maintain": Queue.maintain})


@honest
class ReapingLate(Specimen):
    """that takes over a quarter of a second after the end of a lease."""

    class LateStore(Store):
        def maintain(self, limit: int) -> Maintained:
            now = self.clock.time()
            early = [t for t in self._running.values() if now < (t.lease_until or 0.0) + 0.25]
            kept = {task.id: task.lease_until for task in early}
            for task in early:
                task.lease_until = None
            done = super().maintain(limit)
            for task in early:
                task.lease_until = kept[task.id]
            return done

    store_type = LateStore

    async def open(self) -> None:
        await super().open()
        self.limits = Limits(reclaim_delay_s=0.25)
        self._queue.limits = self.limits


def _slow(cls: type[Any], names: Sequence[str]) -> type[Any]:
    """A store whose calls begin and end with a wait, as on a socket."""

    def slow(name: str) -> Any:
        original = getattr(cls, name)

        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            answer = await original(self, *args, **kwargs)
            await asyncio.sleep(0)
            return answer

        return call

    return type(f"Slow{cls.__name__}", (cls,), {name: slow(name) for name in names})


@honest
class Distant(Specimen):
    """whose calls take a while."""

    queue_type = _slow(
        MemoryQueue, ["enqueue", "claim", "settle", "extend", "get", "maintain", "cancel", "pause"]
    )
    results_type = _slow(MemoryResultStore, ["put", "get", "delete"])
    events_type = _slow(MemoryEventStore, ["append", "read"])


@honest
class Tupled(Specimen):
    """that answers with tuples."""

    class Tuples(MemoryQueue):
        async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
            return tuple(await super().enqueue(records))

        async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
            return tuple(await super().claim(queues, **rest))

        async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
            return tuple(await super().settle(settlements))

        async def get(self, task_ids: Sequence[str], /) -> Any:
            return tuple(await super().get(task_ids))

        async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
            return tuple(await super().cancel(task_ids))

    queue_type = Tuples


@honest
class Unchanged(Specimen):
    """that is the memory backend itself."""
