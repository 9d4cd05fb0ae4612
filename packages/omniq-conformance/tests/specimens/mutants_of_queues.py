"""Queues that break one promise each. The suite must reject every one of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from omniq_core import Claim, Enqueued, Extension, Lease, Outcome, Settlement, TaskRecord, TaskState, Verb
from omniq_memory.backend import MemoryQueue
from omniq_memory.store import Line, Store, Task
from specimens.trial import Specimen

OK, STALE, DUPLICATE = Outcome.OK, Outcome.STALE, Outcome.DUPLICATE
MUTANTS: dict[str, tuple[type[Specimen], tuple[str, ...]]] = {}
"""By what is wrong: the backend, and the topics that must notice."""


def mutant(*topics: str) -> Callable[[type[Any]], type[Any]]:
    """Makes a mutant of a broken part: a store, a queue or a whole backend."""

    def put(part: type[Any]) -> type[Any]:
        assert part.__doc__, f"{part.__name__} does not say what is wrong with it"
        what = part.__doc__.strip().splitlines()[0].rstrip(".")
        if issubclass(part, Specimen):
            backend = part
        elif issubclass(part, Store):
            backend = type(f"With{part.__name__}", (Specimen,), {"store_type": part})
        else:
            backend = type(f"With{part.__name__}", (Specimen,), {"queue_type": part})
        assert what not in MUTANTS, f"two mutants say {what!r}"
        MUTANTS[what] = (backend, topics)
        return part

    return put


def with_fence(settlement: Settlement, fence: int) -> Settlement:
    return msgspec.structs.replace(settlement, lease=Lease(settlement.lease.task_id, fence))


# --- enqueue ---------------------------------------------------------------------------------------------------------


@mutant("enqueue")
class Overwriting(Store):
    """enqueuing a known id replaces the task's body."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        answers = super().enqueue(records)
        for record, answer in zip(records, answers, strict=True):
            if answer.outcome is DUPLICATE:
                self._tasks[record.id].body = record.body
        return answers


@mutant("enqueue")
class Reenqueueing(Store):
    """the id of a finished task is accepted again."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        for record in records:
            task = self._tasks.get(record.id)
            if task is not None and task.state.is_final:
                del self._tasks[record.id]
        return super().enqueue(records)


@mutant("enqueue")
class Disordered(Store):
    """answers to enqueue are sorted by outcome."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        return sorted(super().enqueue(records), key=lambda answer: answer.outcome)


@mutant("enqueue", "claim")
class LosingAField(Store):
    """max_crashes is not stored."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        return super().enqueue([msgspec.structs.replace(record, max_crashes=3) for record in records])


@mutant("data_edges")
class CuttingBodies(Store):
    """a body ends at its first zero byte."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        return super().enqueue([msgspec.structs.replace(r, body=r.body.partition(b"\0")[0]) for r in records])


@mutant("data_edges")
class FoldingCase(Store):
    """queue names are compared without case."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        return super().enqueue([msgspec.structs.replace(r, queue=r.queue.casefold()) for r in records])

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        return super().claim([name.casefold() for name in queues], **rest)


@mutant("concurrency")
class CheckingThenActing(MemoryQueue):
    """enqueue looks whether an id is known, waits, and then stores."""

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        store = self._backend.store()
        known = {record.id for record in records if record.id in store._tasks}
        await asyncio.sleep(0)
        for record in records:
            if record.id not in known:
                store._tasks.pop(record.id, None)
        return store.enqueue(records)


@mutant("enqueue")
class StoringBitByBit(MemoryQueue):
    """ATOMIC_BATCH is declared, and a batch is stored record by record."""

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        answers: list[Enqueued] = []
        for record in records:
            answers += self._backend.store().enqueue([record])
            await asyncio.sleep(0)
        return answers


# --- claim -----------------------------------------------------------------------------------------------------------


@mutant("claim")
class IgnoringQueues(Store):
    """claim takes tasks of every queue."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        return super().claim([*queues, *(name for name in self._queues if name not in queues)], **rest)


@mutant("claim")
class IgnoringTheOrderOfQueues(Store):
    """claim takes the queues in the order of their names."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        return super().claim(sorted(queues), **rest)


@mutant("claim")
class IgnoringTheLimit(Store):
    """claim takes more than max_tasks."""

    def claim(self, queues: Sequence[str], *, max_tasks: int, **rest: Any) -> list[Claim]:
        return super().claim(queues, max_tasks=max_tasks + 1, **rest)


@mutant("claim")
class ReclaimingItsOwn(Store):
    """a worker is given the tasks that it holds already."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        mine = [t for t in self._running.values() if t.worker_id == rest["worker_id"] and t.queue in queues]
        return super().claim(queues, **rest) or [self._claimed(task) for task in mine]


@mutant("claim")
class TakingMoreWhenRepeated(Store):
    """a repeated claim_id takes new tasks."""

    def claim(self, queues: Sequence[str], *, claim_id: str, **rest: Any) -> list[Claim]:
        return super().claim(queues, claim_id=f"{claim_id} {self._seq} {len(self._running)}", **rest)


@mutant("claim")
class RememberingWholeClaims(Store):
    """a repeated claim_id gives what was settled since as well."""

    def claim(self, queues: Sequence[str], *, claim_id: str, **rest: Any) -> list[Claim]:
        told = self.__dict__.setdefault("told", {})
        if claim_id not in told:
            told[claim_id] = super().claim(queues, claim_id=claim_id, **rest)
        found: list[Claim] = told[claim_id]
        return found


@mutant("claim")
class FrozenFence(Store):
    """claiming does not raise the fence."""

    def claim(self, queues: Sequence[str], *, claim_id: str, **rest: Any) -> list[Claim]:
        repeated = claim_id in self._claims
        claims = super().claim(queues, claim_id=claim_id, **rest)
        tasks = [self._tasks[claim.task_id] for claim in claims]
        for task in tasks:
            task.fence -= not repeated and task.fence > 1
        return [self._claimed(task) for task in tasks]


@mutant("lease", "settle")
class ConstantFence(Store):
    """every claim has fence 1."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        tasks = [self._tasks[claim.task_id] for claim in super().claim(queues, **rest)]
        for task in tasks:
            task.fence = 1
        return [self._claimed(task) for task in tasks]


@mutant("concurrency")
class LosingCancelledClaims(MemoryQueue):
    """a claim that is cancelled leaves its tasks running for ever."""

    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        claims = await super().claim(queues, **rest)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            for claim in claims:
                self._backend.store()._tasks[claim.task_id].lease_until = math.inf
            raise
        return claims


@mutant("concurrency")
class KeepingALock(MemoryQueue):
    """a claim that is cancelled keeps the lock of the queue."""

    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        locks = self._backend.store().__dict__.setdefault("locks", {})
        lock: asyncio.Lock = locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        await lock.acquire()
        await asyncio.sleep(0)
        claims = await super().claim(queues, **rest)
        lock.release()
        return claims


@mutant("concurrency")
class ClaimingInTwoSteps(MemoryQueue):
    """claim looks what is there, waits, and then takes it from whoever was faster."""

    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        store = self._backend.store()
        seen = [t for t in store._tasks.values() if t.state is TaskState.PENDING and t.queue in queues]
        await asyncio.sleep(0)
        claims = store.claim(queues, **rest)
        return (
            claims or [store._claimed(t) for t in seen if t.state is TaskState.RUNNING][: rest["max_tasks"]]
        )


# --- leases ----------------------------------------------------------------------------------------------------------


@mutant("lease")
class LeasingForEver(Store):
    """a lease never ends."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        claims = super().claim(queues, **rest)
        for claim in claims:
            self._tasks[claim.task_id].lease_until = math.inf
        return claims


@mutant("lease")
class ReapingEarly(Store):
    """upkeep takes tasks whose leases have not ended."""

    def maintain(self, limit: int) -> Any:
        for task in self._running.values():
            task.lease_until = 0.0
        return super().maintain(limit)


@mutant("lease")
class NotFencingTheReaped(Store):
    """reaping does not raise the fence."""

    def _reap(self, task: Task, now: float) -> Any:
        fence = task.fence
        moved = super()._reap(task, now)
        task.fence = fence
        return moved


@mutant("lease")
class NotCountingCrashes(Store):
    """a lost lease is not counted as a crash."""

    def _reap(self, task: Task, now: float) -> Any:
        task.crashes -= 1
        return super()._reap(task, now)


@mutant("lease")
class ChargingTheRetryBudget(Store):
    """a task whose worker was lost dies at max_attempts."""

    def _reap(self, task: Task, now: float) -> Any:
        if task.attempt >= task.max_attempts:
            task.crashes = task.max_crashes
        return super()._reap(task, now)


@mutant("lease")
class RefundingLostAttempts(Store):
    """a lost lease gives its attempt back."""

    def _reap(self, task: Task, now: float) -> Any:
        task.attempt -= 1
        return super()._reap(task, now)


@mutant("lease")
class KillingTooEarly(Store):
    """a task dies one crash before max_crashes."""

    def _reap(self, task: Task, now: float) -> Any:
        task.max_crashes -= 1
        moved = super()._reap(task, now)
        task.max_crashes += 1
        return moved


@mutant("lease")
class KillingTooLate(Store):
    """a task dies one crash after max_crashes."""

    def _reap(self, task: Task, now: float) -> Any:
        task.max_crashes += 1
        moved = super()._reap(task, now)
        task.max_crashes -= 1
        return moved


@mutant("lease")
class PretendingToExtend(Store):
    """extend answers OK and does nothing."""

    def extend(self, leases: Sequence[Lease], *, lease_s: float) -> list[Extension]:
        kept = {task.id: task.lease_until for task in self._running.values()}
        answers = super().extend(leases, lease_s=lease_s)
        for task in self._running.values():
            task.lease_until = kept[task.id]
        return answers


@mutant("lease")
class ExtendingById(Store):
    """extend looks at the task and not at the fence."""

    def extend(self, leases: Sequence[Lease], *, lease_s: float) -> list[Extension]:
        current = [Lease(x.task_id, t.fence if (t := self._tasks.get(x.task_id)) else 0) for x in leases]
        return super().extend(current, lease_s=lease_s)


@mutant("lease")
class Shortening(Store):
    """extend shortens a lease."""

    def extend(self, leases: Sequence[Lease], *, lease_s: float) -> list[Extension]:
        for lease in leases:
            task = self._tasks.get(lease.task_id)
            if task is not None and task.fence == lease.fence and task.state is TaskState.RUNNING:
                task.lease_until = 0.0
        return super().extend(leases, lease_s=lease_s)


@mutant("lease")
class RefusingTheLate(Store):
    """an owner whose lease ended is refused though nobody reaped it."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        now = self.clock.time()
        late = [
            (t := self._tasks.get(s.lease.task_id)) is not None and (t.lease_until or math.inf) <= now
            for s in settlements
        ]
        current = [with_fence(s, -1) if too else s for s, too in zip(settlements, late, strict=True)]
        return super().settle(current)


# --- settle ----------------------------------------------------------------------------------------------------------


@mutant("settle")
class Unfenced(Store):
    """settle looks at the task and not at the fence."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        found = [self._tasks.get(s.lease.task_id) for s in settlements]
        return super().settle(
            [with_fence(s, t.fence) if t else s for s, t in zip(settlements, found, strict=True)]
        )


@mutant("settle")
class AnsweringOkToTheStale(Store):
    """a stale settle changes nothing and is answered OK."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        return [OK if outcome is STALE else outcome for outcome in super().settle(settlements)]


@mutant("settle")
class AnsweringOkTwice(Store):
    """a repeated settle is answered OK."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        return [OK if outcome is DUPLICATE else outcome for outcome in super().settle(settlements)]


@mutant("settle")
class StoppingAtABadItem(Store):
    """settle stops at the first item that is not OK."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        answers: list[Outcome] = []
        for settlement in settlements:
            bad = any(outcome is not OK for outcome in answers)
            answers += [STALE] if bad else super().settle([settlement])
        return answers


@mutant("settle")
class SpendingReleasedAttempts(Store):
    """RELEASE spends the attempt."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        def changed(s: Settlement) -> Settlement:
            return msgspec.structs.replace(s, verb=Verb.RETRY) if s.verb is Verb.RELEASE else s

        return super().settle([changed(s) for s in settlements])


@mutant("settle")
class LosingErrors(Store):
    """the error of a retried task is not kept."""

    def _settle(self, task: Task, settlement: Settlement, now: float) -> None:
        super()._settle(task, settlement, now)
        if settlement.verb is Verb.RETRY:
            task.error = None


@mutant("settle")
class Returning(Store):
    """a task that succeeded comes back when its old lease ends."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        ghosts = self.__dict__.setdefault("ghosts", {})
        ghosts.update((t.id, t.lease_until) for t in self._running.values())
        return super().settle(settlements)

    def maintain(self, limit: int) -> Any:
        now = self.clock.time()
        for task_id, until in list(self.__dict__.get("ghosts", {}).items()):
            task = self._tasks.get(task_id)
            if task is not None and task.state is TaskState.SUCCEEDED and until <= now:
                self._make_pending(task, now)
        return super().maintain(limit)


@mutant("settle")
class ComparingMaxAttempts(Store):
    """the store itself makes a task dead at max_attempts."""

    def _settle(self, task: Task, settlement: Settlement, now: float) -> None:
        if settlement.verb is Verb.RETRY and task.attempt >= task.max_attempts:
            settlement = msgspec.structs.replace(settlement, verb=Verb.DEAD)
        super()._settle(task, settlement, now)


# --- time and order --------------------------------------------------------------------------------------------------


@mutant("time_and_order")
class IgnoringDelays(Store):
    """a delayed task is due at once."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        return super().enqueue([msgspec.structs.replace(record, delay_s=0.0) for record in records])


@mutant("time_and_order")
class IgnoringDelaysOfRetries(Store):
    """a retry is due at once."""

    def _settle(self, task: Task, settlement: Settlement, now: float) -> None:
        super()._settle(task, msgspec.structs.replace(settlement, delay_s=0.0), now)


@mutant("time_and_order")
class LastInFirstOut(Store):
    """the newest task goes first."""

    def _put_in_line(self, task: Task, now: float, *, fresh: bool = False) -> None:
        super()._put_in_line(task, now, fresh=fresh)
        line: Line = self._queue(task.queue).line(task.priority)
        if fresh and line.fresh:
            line.fresh.rotate(1)


@mutant("time_and_order")
class QueueingAgain(Store):
    """a task that is given back goes to the end of its queue."""

    def _make_pending(self, task: Task, now: float, delay_s: float = 0.0) -> None:
        self._seq += 1
        task.seq = self._seq
        super()._make_pending(task, now, delay_s)


@mutant("time_and_order")
class IgnoringPriority(Store):
    """PRIORITY is declared and ignored."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        return super().enqueue([msgspec.structs.replace(record, priority=0) for record in records])
