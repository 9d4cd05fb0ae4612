"""Features, stores and whole backends that break one promise each. The suite must reject every one of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from omniq_core import (
    BackendError,
    Capability,
    Claim,
    Closed,
    Enqueued,
    ErrorCode,
    Event,
    EventFilter,
    Outcome,
    Page,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    Unsupported,
    Verb,
)
from omniq_memory.backend import MemoryEventStore, MemoryQueue, MemoryResultStore, _wait
from omniq_memory.store import CANCELLED, Store, Task, _event_matches
from specimens.mutants_of_queues import OK, STALE, mutant
from specimens.trial import Specimen

# --- cancel, pause, unique, expiry -------------------------------------------------------------------------------------


@mutant("cancel")
class ForgettingRequests(Store):
    """cancelling a running task is answered REQUESTED, and nobody is told."""

    def cancel(self, task_ids: Sequence[str]) -> list[Outcome]:
        answers = super().cancel(task_ids)
        for task in self._running.values():
            task.cancel_requested = False
        return answers


@mutant("cancel")
class RetryingTheCancelled(Store):
    """a task whose cancellation was requested is retried."""

    def _settle(self, task: Task, settlement: Settlement, now: float) -> None:
        task.cancel_requested = False
        super()._settle(task, settlement, now)


@mutant("cancel")
class RevivingTheCancelled(Store):
    """the reaper hands out a task whose cancellation was requested."""

    def _reap(self, task: Task, now: float) -> Any:
        task.cancel_requested = False
        return super()._reap(task, now)


@mutant("cancel")
class DecidingForTheOwner(Store):
    """a request to cancel overrules the owner's success."""

    def _settle(self, task: Task, settlement: Settlement, now: float) -> None:
        if task.cancel_requested:
            settlement = msgspec.structs.replace(settlement, verb=Verb.CANCEL)
        super()._settle(task, settlement, now)


@mutant("pause")
class IgnoringPauses(Store):
    """a paused queue gives tasks."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        for queue in self._queues.values():
            queue.paused = False
        return super().claim(queues, **rest)


@mutant("pause")
class PausingAlone(MemoryQueue):
    """a pause holds only for the backend that asked for it."""

    async def pause(self, queues: Sequence[str], /) -> None:
        self.__dict__.setdefault("mine", set()).update(queues)

    async def resume(self, queues: Sequence[str], /) -> None:
        self.__dict__.setdefault("mine", set()).difference_update(queues)

    async def claim(self, queues: Sequence[str], /, **rest: Any) -> Sequence[Claim]:
        mine = self.__dict__.setdefault("mine", set())
        return await super().claim([name for name in queues if name not in mine], **rest)


@mutant("unique")
class KeepingKeys(Store):
    """a unique key is never freed."""

    def _free_key(self, task: Task) -> None:
        pass


@mutant("unique")
class KeepingKeysOfTheLost(Store):
    """a task that died of crashes keeps its unique key."""

    def _reap(self, task: Task, now: float) -> Any:
        self._free_key, kept = (lambda task: None), self._free_key  # type: ignore[method-assign, assignment]
        try:
            return super()._reap(task, now)
        finally:
            self._free_key = kept  # type: ignore[method-assign]


@mutant("unique")
class LookingAtTheKeyFirst(Store):
    """the unique key is looked at before the id."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        answers = []
        for record in records:
            holder = self._unique.get(record.unique_key or "")
            answers += [Enqueued(Outcome.CONFLICT, holder)] if holder else super().enqueue([record])
        return answers


@mutant("unique")
class KeyPerQueue(Store):
    """a unique key holds only within its queue."""

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        kept = self._unique
        answers = []
        for record in records:
            self._unique = {key: t for key, t in kept.items() if self._tasks[t].queue == record.queue}
            answers += super().enqueue([record])
            kept.update(self._unique)
        self._unique = kept
        return answers


@mutant("expiry")
class StartingTheExpired(Store):
    """a task is claimed after its time has passed."""

    def claim(self, queues: Sequence[str], **rest: Any) -> list[Claim]:
        for task in self._tasks.values():
            task.expires_at = None
        return super().claim(queues, **rest)


@mutant("expiry")
class ExpiringTheRunning(Store):
    """a running task expires."""

    def maintain(self, limit: int) -> Any:
        now = self.clock.time()
        for task in list(self._running.values()):
            if task.expires_at is not None and task.expires_at <= now:
                self._leave_running(task)
                self._finish(task, TaskState.EXPIRED, now)
        return super().maintain(limit)


@mutant("expiry")
class HeldUpByTheRunning(Store):
    """one running task keeps upkeep from expiring the others."""

    def maintain(self, limit: int) -> Any:
        waits, self._expiring = self._expiring, []
        if not any(task.expires_at for task in self._running.values()):
            self._expiring = waits
            waits = []
        done = super().maintain(limit)
        self._expiring += waits
        return done


# --- query, stats, requeue, purge --------------------------------------------------------------------------------------


@mutant("query_stats")
class RepeatingPages(Store):
    """the last task of a page comes again on the next one."""

    def query(self, which: TaskFilter, limit: int, cursor: str | None) -> Page[TaskSnapshot]:
        page = super().query(which, limit, cursor)
        return Page(page.items, str(int(page.cursor) + 1) if page.cursor and limit > 1 else page.cursor)


@mutant("query_stats")
class CountingTheDelayedAsReady(Store):
    """what is delayed is counted as ready."""

    def stats(self, queues: Sequence[str]) -> list[Any]:
        return [
            msgspec.structs.replace(s, ready=s.ready + s.delayed, delayed=0) for s in super().stats(queues)
        ]


@mutant("query_stats")
class NamingPausedQueues(Store):
    """queue_names tells queues that were only paused."""

    def queue_names(self) -> list[str]:
        return sorted(self._queues)


@mutant("requeue_purge", "lease")
class RequeueingWithOldFences(Store):
    """requeuing sets the fence back."""

    def _requeue(self, task: Task | None, now: float) -> Outcome:
        outcome = super()._requeue(task, now)
        if outcome is OK:
            self._last_fence = 0
        return outcome


@mutant("requeue_purge")
class RequeueingSuccesses(Store):
    """a task that succeeded is requeued."""

    def _requeue(self, task: Task | None, now: float) -> Outcome:
        if task is not None and task.state is TaskState.SUCCEEDED:
            task.state = CANCELLED
        return super()._requeue(task, now)


@mutant("requeue_purge")
class KeepingResultsOfTheRequeued(Store):
    """a requeued task keeps the result of its last end."""

    def _requeue(self, task: Task | None, now: float) -> Outcome:
        kept = dict(self._results)
        outcome = super()._requeue(task, now)
        self._results = kept
        return outcome


@mutant("requeue_purge")
class ForgettingFencesOfThePurged(Store):
    """after a purge fences start again from the beginning."""

    def purge(self, which: TaskFilter, limit: int) -> int:
        self._last_fence = 0
        return super().purge(which, limit)


@mutant("requeue_purge")
class PurgingTheRunning(Store):
    """purge deletes running tasks."""

    def purge(self, which: TaskFilter, limit: int) -> int:
        now = self.clock.time()
        for task in list(self._running.values()):
            self._leave_running(task)
            self._finish(task, CANCELLED, now)
        return super().purge(which, limit)


# --- results -----------------------------------------------------------------------------------------------------------


@mutant("results")
class Provisional(Store):
    """a provisional record overwrites the final one of its fence."""

    def put_results(self, records: Sequence[ResultRecord]) -> list[Outcome]:
        for record in records:
            old = self._results.get(record.task_id)
            if old is not None and not record.final and old.fence == record.fence:
                del self._results[record.task_id]
        return super().put_results(records)


@mutant("results")
class LastWriterWins(Store):
    """a lower fence overwrites a result."""

    def put_results(self, records: Sequence[ResultRecord]) -> list[Outcome]:
        for record in records:
            old = self._results.get(record.task_id)
            if old is not None and old.fence > record.fence:
                del self._results[record.task_id]
        return super().put_results(records)


@mutant("results")
class LosingSettledResults(Store):
    """ATOMIC_SETTLE is declared, and the result of a settled task is lost."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        return super().settle([msgspec.structs.replace(s, result=None) for s in settlements])


@mutant("results")
class StoringZombiesResults(Store):
    """a stale settle is refused, and its result is stored."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        answers = super().settle(settlements)
        for s, outcome in zip(settlements, answers, strict=True):
            if outcome is STALE and s.result is not None:
                record = ResultRecord(s.lease.task_id, s.lease.fence, TaskState.SUCCEEDED, s.result)
                super().put_results([record])
        return answers


@mutant("results")
class StoringResultsLater(MemoryQueue):
    """ATOMIC_SETTLE is declared, and the result comes after the state."""

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        store = self._backend.store()
        outcomes = store.settle([msgspec.structs.replace(s, result=None) for s in settlements])
        await asyncio.sleep(0)
        for s, outcome in zip(settlements, outcomes, strict=True):
            if outcome is OK and s.result is not None:
                state = store._tasks[s.lease.task_id].state
                record = ResultRecord(s.lease.task_id, s.lease.fence, state, s.result, s.result_ttl_s)
                store.put_results([record])
        return outcomes


@mutant("results")
class KeepingResultsForEver(Store):
    """RESULT_TTL is declared and ignored."""

    def put_results(self, records: Sequence[ResultRecord]) -> list[Outcome]:
        return super().put_results([msgspec.structs.replace(record, ttl_s=None) for record in records])


@mutant("result_wait")
class EasilySatisfied(Specimen):
    """waiting for a result returns on a provisional record."""

    class Results(MemoryResultStore):
        async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Any:
            for _ in range(round(timeout_s / 0.005) + 1):
                found = await self.get(task_ids)
                if any(found):
                    break
                await asyncio.sleep(0.005)
            return found

    results_type = Results


@mutant("result_wait")
class WakingLate(Specimen):
    """RESULT_WAIT is declared, and waiting polls every two seconds."""

    class Results(MemoryResultStore):
        async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Any:
            while not any(r and r.final for r in await self.get(task_ids)) and timeout_s > 0:
                await asyncio.sleep(min(timeout_s, 2.0))
                timeout_s -= 2.0
            return await self.get(task_ids)

    results_type = Results


# --- events ------------------------------------------------------------------------------------------------------------


@mutant("events")
class StoringEventsTwice(Store):
    """an event with a known id is stored again."""

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        self._event_ids.clear()
        return super().append(events)


@mutant("events")
class Skipping(Store):
    """the cursor of a full page is at the end of the log."""

    def read(self, which: EventFilter, after: str | None, limit: int) -> Page[Event]:
        page = super().read(which, after, limit)
        return Page(page.items, str(len(self._events) + self._events_dropped))


@mutant("events")
class SkippingInARace(Specimen):
    """events get their numbers before they are visible, and a reader passes those that are still to come."""

    class Log(MemoryEventStore):
        async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
            store = self._backend.store()
            place = store.__dict__.setdefault("next_place", [0])
            mine, place[0] = place[0], place[0] + 1
            if mine % 3 == 0:
                await asyncio.sleep(0.001)
            outcomes = store.append(events)
            numbers = store.__dict__.setdefault("numbers", {})
            numbers.update((e.id, mine + n / 1000) for n, e in enumerate(events) if outcomes[n] is OK)
            return outcomes

        async def read(
            self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
        ) -> Page[Event]:
            store = self._backend.store()
            numbers = store.__dict__.setdefault("numbers", {})
            since = float(after or -1)
            with store.lock:  # what it gets wrong is the order, not the memory
                kept = list(store._events)
            later = (e for e in kept if numbers.get(e.id, -1) > since and _event_matches(e, which))
            found = sorted(later, key=lambda e: (numbers[e.id], e.at))[:limit]
            return Page(found, repr(numbers[found[-1].id]) if found else after or "-1")

    events_type = Log


@mutant("events")
class LosingItsPlace(Store):
    """a cursor counts from the first event that is left."""

    def read(self, which: EventFilter, after: str | None, limit: int) -> Page[Event]:
        self._events_dropped, dropped = 0, self._events_dropped
        try:
            return super().read(which, after, limit)
        finally:
            self._events_dropped = dropped


# --- waiting -----------------------------------------------------------------------------------------------------------


@mutant("waiting")
class SleepingThrough(MemoryQueue):
    """what comes between an empty claim and the wait is slept through."""

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        store = self._backend.store()
        keys = [("queue", name) for name in queues]
        return await _wait(self._backend, store.bell, keys, timeout_s, lambda: False)


@mutant("waiting")
class Polling(MemoryQueue):
    """WAKEUP is declared, and wait polls every two seconds."""

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        end = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(min(2.0, timeout_s))
            self._backend.store()
        return True


@mutant("waiting")
class WaitingOnAfterClose(MemoryQueue):
    """a wait goes on after its backend was closed."""

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        answer = False
        for _ in range(round(timeout_s / 0.02)):
            try:
                answer = answer or await super().wait(queues, timeout_s=0.02)
            except Closed:
                await asyncio.sleep(0.02)
            if answer:
                break
        return answer


# --- the backend itself ------------------------------------------------------------------------------------------------


@mutant("contract")
class WorkingAfterClose(Specimen):
    """a closed backend goes on working."""

    async def close(self) -> None:
        pass


@mutant("contract")
class Leaking(Specimen):
    """every opening leaves a thread behind."""

    async def open(self) -> None:
        await super().open()
        threading.Thread(target=threading.Event().wait, args=(60.0,), daemon=True).start()


@mutant("contract")
class LonelyTwin(Specimen):
    """a twin has a storage of its own."""

    def twin(self) -> Any:
        return type(self)(name=f"{self.config['name']} twin", clock=self.clock)


@mutant("contract")
class OnItsOwnClock(Specimen):
    """the injected clock is not used."""

    def __init__(self, config: Any = None, /, *, clock: Any = None, **settings: object) -> None:
        super().__init__(config, **settings)


@mutant("contract")
class NotImplied(Specimen):
    """ATOMIC_SETTLE is declared without FENCED_SETTLE."""

    async def open(self) -> None:
        await super().open()
        self.capabilities = self.capabilities - {Capability.FENCED_SETTLE}


@mutant("errors")
class Guessing(Specimen):
    """an unknown error is said to have had no effect."""

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, (BackendError, Unsupported)):
            return super().classify(error)
        return ErrorCode.UNAVAILABLE


@mutant("time_and_order")
class FalselyDelayed(Specimen):
    """DELAYED is declared, and a delay is refused."""

    class Queue(MemoryQueue):
        async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
            if any(record.delay_s for record in records):
                raise Unsupported(Capability.DELAYED)
            return await super().enqueue(records)

    queue_type = Queue


class Hiding(Specimen):
    hidden: ClassVar[frozenset[Capability]] = frozenset()

    async def open(self) -> None:
        await super().open()
        self.capabilities = self.capabilities - self.hidden


@mutant("cancel")
class HidingCancel(Hiding):
    """CANCEL is not declared and works."""

    hidden = frozenset({Capability.CANCEL})


@mutant("settle")
class HidingTheFence(Hiding):
    """FENCED_SETTLE is not declared, and a stale settle is refused."""

    hidden = frozenset({Capability.FENCED_SETTLE, Capability.ATOMIC_SETTLE})


@mutant("time_and_order")
class HidingDelays(Hiding):
    """DELAYED is not declared, and a delay is honoured."""

    hidden = frozenset({Capability.DELAYED})


@mutant("results")
class HidingTheTimeToLive(Hiding):
    """RESULT_TTL is not declared, and results go when their time is over."""

    hidden = frozenset({Capability.RESULT_TTL})


@mutant("processes")
class FalselyShared(Specimen):
    """MULTI_PROCESS is declared for what is in one process."""

    async def open(self) -> None:
        await super().open()
        self.capabilities = self.capabilities | {Capability.MULTI_PROCESS}
        self.absent = {}


@mutant("faults")
class FalselyDurable(Specimen):
    """DURABLE is declared for what goes with its last backend."""

    async def open(self) -> None:
        await super().open()
        self.capabilities = self.capabilities | {Capability.DURABLE}
        self.absent = {}

    async def close(self) -> None:
        await super().close()
        self._store = None
