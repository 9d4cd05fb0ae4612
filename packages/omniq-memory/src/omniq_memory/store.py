"""The data of a memory backend and the rules for changing it: plain, synchronous, under one lock.

Each public method is one atomic step of the contract; the async shell in ``backend`` adds nothing but waiting. Read
:mod:`omniq_core.queue` beside it: the methods here are its table of transitions, row by row.

How it stays fast: a pending task that is due stands in the line of its queue and priority, a ``deque`` (new ones) or a
small heap (returned ones, by age); one that is not due stands in one heap by ``run_at``. Nothing is ever removed from
the middle of these: a place in line carries a ticket, and a ticket that is not the task's newest one is skipped.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from omniq_core import (
    Claim,
    Clock,
    Enqueued,
    Event,
    EventFilter,
    Extension,
    Lease,
    Maintained,
    Moved,
    Outcome,
    Page,
    QueueStats,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    Verb,
)
from omniq_core.native import RLock
from omniq_memory.bell import Bell

PENDING, RUNNING = TaskState.PENDING, TaskState.RUNNING
SUCCEEDED, DEAD, CANCELLED, EXPIRED = (
    TaskState.SUCCEEDED,
    TaskState.DEAD,
    TaskState.CANCELLED,
    TaskState.EXPIRED,
)
OK, DUPLICATE, STALE = Outcome.OK, Outcome.DUPLICATE, Outcome.STALE

FINAL_STATE = {Verb.SUCCEED: SUCCEEDED, Verb.DEAD: DEAD, Verb.CANCEL: CANCELLED}
WORKER_LOST = "its worker was lost: the lease ended"


class Task:
    """One stored task."""

    __slots__ = (
        "attempt", "body", "cancel_requested", "claim_id", "crashes", "enqueued_at", "error", "expires_at", "fence",
        "finished_at", "home", "id", "lease_until", "max_attempts", "max_crashes", "name", "priority", "queue", "reason",
        "run_at", "seq", "settled_fence", "state", "ticket", "unique_key", "worker_id",
    )  # fmt: skip

    def __init__(self, record: TaskRecord, home: NamedQueue, seq: int, now: float) -> None:
        self.home = home
        self.id, self.queue, self.name, self.body = record.id, record.queue, record.name, record.body
        self.priority, self.unique_key = record.priority, record.unique_key
        self.max_attempts, self.max_crashes = record.max_attempts, record.max_crashes
        self.seq = seq
        self.enqueued_at = now
        self.run_at = now + record.delay_s
        self.expires_at = None if record.ttl_s is None else now + record.ttl_s
        self.state = PENDING
        self.attempt = self.crashes = self.fence = self.settled_fence = self.ticket = 0
        self.finished_at: float | None = None
        self.worker_id: str | None = None
        self.claim_id: str | None = None
        self.lease_until: float | None = None
        self.reason: str | None = None
        self.error: bytes | None = None
        self.cancel_requested = False


class Line:
    """The due tasks of one queue and priority: new ones in order of arrival, returned ones by age."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[tuple[int, int, Task]] = deque()
        self.returned: list[tuple[int, int, Task]] = []

    def pop(self) -> tuple[int, int, Task] | None:
        if self.returned and not (self.fresh and self.fresh[0][0] < self.returned[0][0]):
            return heapq.heappop(self.returned)
        return self.fresh.popleft() if self.fresh else None


class NamedQueue:
    """The lines of one queue by priority, and its counts."""

    __slots__ = ("lines", "order", "paused", "pending", "running", "used")

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.order: list[int] = []  # priorities, highest first
        self.paused = False
        self.used = False  # whether it was ever enqueued to, and not just paused
        self.pending = self.running = 0

    def line(self, priority: int) -> Line:
        line = self.lines.get(priority)
        if line is None:
            line = self.lines[priority] = Line()
            self.order = sorted(self.lines, reverse=True)
        return line


class Store:
    """Everything that a memory backend and its twins share."""

    def __init__(self, clock: Clock, *, retention_s: float, max_finished: int, max_events: int) -> None:
        self.clock = clock
        self.retention_s, self.max_finished, self.max_events = retention_s, max_finished, max_events
        self.lock = RLock()
        self.bell = Bell()
        self._seq = 0
        self._last_fence = 0
        self._tasks: dict[str, Task] = {}
        self._queues: dict[str, NamedQueue] = {}
        self._unique: dict[str, str] = {}
        self._delayed: list[tuple[float, int, int, Task]] = []
        self._expiring: list[tuple[float, int, Task]] = []
        self._running: dict[str, Task] = {}
        self._claims: dict[str, list[Task]] = {}
        self._finished: deque[tuple[float, Task]] = deque()
        self._results: dict[str, ResultRecord] = {}
        self._result_ends: list[tuple[float, str]] = []
        self._events: deque[Event] = deque()
        self._event_ids: set[str] = set()
        self._events_dropped = 0

    # --- pending: in line or waiting for its time ----------------------------------------------------------------

    def _queue(self, name: str) -> NamedQueue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = NamedQueue()
        return queue

    def _put_in_line(self, task: Task, now: float, *, fresh: bool = False) -> None:
        task.ticket += 1
        if task.run_at > now:
            heapq.heappush(self._delayed, (task.run_at, task.seq, task.ticket, task))
            return
        line = task.home.line(task.priority)
        place = (task.seq, task.ticket, task)
        if fresh:
            line.fresh.append(place)
        else:
            heapq.heappush(line.returned, place)

    def _make_pending(self, task: Task, now: float, delay_s: float = 0.0) -> None:
        task.state = PENDING
        task.run_at = now + delay_s
        task.worker_id = task.claim_id = task.lease_until = None
        if task.expires_at is not None:
            heapq.heappush(
                self._expiring, (task.expires_at, task.seq, task)
            )  # upkeep may have dropped it meanwhile
        task.home.pending += 1
        self._put_in_line(task, now)
        self.bell.ring(task.queue)

    def _promote(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            _, _, ticket, task = heapq.heappop(self._delayed)
            if task.ticket == ticket and task.state is PENDING:
                self._put_in_line(task, now)

    def _finish(self, task: Task, state: TaskState, now: float) -> None:
        """Makes a task final. Its counts in the queue were taken off by the caller."""
        task.state = state
        task.finished_at = now
        task.worker_id = task.claim_id = task.lease_until = None
        self._free_key(task)
        self._finished.append((now, task))
        if len(self._finished) > self.max_finished:
            self._forget(*self._finished.popleft())
        self.bell.ring_result(task.id)

    def _free_key(self, task: Task) -> None:
        if task.unique_key is not None and self._unique.get(task.unique_key) == task.id:
            del self._unique[task.unique_key]

    def _leave_running(self, task: Task) -> None:
        del self._running[task.id]
        task.home.running -= 1
        claim = self._claims.get(task.claim_id or "")
        if claim is not None:
            if len(claim) == 1:
                del self._claims[task.claim_id or ""]
            else:
                claim.remove(task)

    def _expire(self, task: Task, now: float) -> Moved:
        task.home.pending -= 1
        task.reason = "its time to live passed before it was started"
        self._finish(task, EXPIRED, now)
        return self._moved(task, None)

    @staticmethod
    def _moved(task: Task, worker_id: str | None) -> Moved:
        return Moved(
            task.id,
            task.queue,
            task.name,
            task.state,
            task.fence,
            task.attempt,
            task.crashes,
            task.reason,
            worker_id,
        )

    # --- the contract's required five ----------------------------------------------------------------------------

    def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        now = self.clock.time()
        answers = []
        rung = set()
        with self.lock:
            for record in records:
                if record.id in self._tasks:
                    answers.append(Enqueued(DUPLICATE, record.id))
                    continue
                if record.unique_key is not None:
                    holder = self._unique.setdefault(record.unique_key, record.id)
                    if holder != record.id:
                        answers.append(Enqueued(Outcome.CONFLICT, holder))
                        continue
                self._seq += 1
                queue = self._queue(record.queue)
                queue.used = True
                queue.pending += 1
                task = self._tasks[record.id] = Task(record, queue, self._seq, now)
                self._put_in_line(task, now, fresh=True)
                if task.expires_at is not None:
                    heapq.heappush(self._expiring, (task.expires_at, task.seq, task))
                rung.add(task.queue)
                answers.append(Enqueued(OK, record.id))
            for name in rung:
                self.bell.ring(name)
        return answers

    def claim(
        self, queues: Sequence[str], *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> list[Claim]:
        now = self.clock.time()
        with self.lock:
            repeated = self._claims.get(claim_id)
            if repeated is not None:
                return [self._claimed(task) for task in repeated]
            self._promote(now)
            taken: list[Task] = []
            fence = self._last_fence + 1  # one for all of the claim, and never given out again
            for name in queues:
                queue = self._queues.get(name)
                if queue is None or queue.paused or not queue.pending:
                    continue
                for priority in queue.order:
                    line = queue.lines[priority]
                    while len(taken) < max_tasks:
                        place = line.pop()
                        if place is None:
                            break
                        _, ticket, task = place
                        if task.ticket != ticket or task.state is not PENDING:
                            continue
                        if task.expires_at is not None and task.expires_at <= now:
                            self._expire(task, now)
                            continue
                        queue.pending -= 1
                        queue.running += 1
                        task.state = RUNNING
                        task.attempt += 1
                        task.fence = fence
                        task.lease_until = now + lease_s
                        task.worker_id = worker_id
                        task.claim_id = claim_id
                        taken.append(task)
            if taken:
                self._last_fence = fence
                self._claims[claim_id] = list(taken)
                self._running.update((task.id, task) for task in taken)
            return [self._claimed(task) for task in taken]

    @staticmethod
    def _claimed(task: Task) -> Claim:
        return Claim(
            task.id, task.queue, task.name, task.body, task.attempt, task.crashes, task.max_attempts, task.max_crashes,
            task.enqueued_at, Lease(task.id, task.fence, task.lease_until or 0.0),
        )  # fmt: skip

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        now = self.clock.time()
        answers = []
        with self.lock:
            for settlement in settlements:
                lease = settlement.lease
                task = self._tasks.get(lease.task_id)
                if task is None:
                    answers.append(Outcome.NOT_FOUND)
                elif task.state is RUNNING and task.fence == lease.fence:
                    self._settle(task, settlement, now)
                    answers.append(OK)
                else:
                    answers.append(DUPLICATE if task.settled_fence == lease.fence else STALE)
        return answers

    def _settle(self, task: Task, settlement: Settlement, now: float) -> None:
        self._leave_running(task)
        task.settled_fence = task.fence
        task.reason, task.error = settlement.reason, settlement.error
        task.crashes += settlement.crashed
        final = FINAL_STATE.get(settlement.verb)
        if final is None:
            if settlement.verb is Verb.RELEASE:
                task.attempt -= 1
            if not task.cancel_requested:
                self._make_pending(task, now, settlement.delay_s)
                return
            final = CANCELLED
        if settlement.result is not None:
            self._put_result(
                ResultRecord(task.id, task.fence, final, settlement.result, settlement.result_ttl_s), now
            )
        self._finish(task, final, now)

    def extend(self, leases: Sequence[Lease], *, lease_s: float) -> list[Extension]:
        until = self.clock.time() + lease_s
        answers = []
        with self.lock:
            for lease in leases:
                task = self._tasks.get(lease.task_id)
                if task is None or task.state is not RUNNING or task.fence != lease.fence:
                    answers.append(Extension(STALE))
                    continue
                task.lease_until = max(until, task.lease_until or 0.0)
                answers.append(Extension(OK, task.lease_until, task.cancel_requested))
        return answers

    def get(self, task_ids: Sequence[str]) -> list[TaskSnapshot | None]:
        with self.lock:
            return [None if task is None else self._snapshot(task) for task in map(self._tasks.get, task_ids)]

    @staticmethod
    def _snapshot(task: Task) -> TaskSnapshot:
        return TaskSnapshot(
            id=task.id, queue=task.queue, name=task.name, state=task.state, body=task.body, priority=task.priority,
            attempt=task.attempt, max_attempts=task.max_attempts, crashes=task.crashes, max_crashes=task.max_crashes,
            fence=task.fence, enqueued_at=task.enqueued_at, run_at=task.run_at, expires_at=task.expires_at,
            finished_at=task.finished_at, worker_id=task.worker_id, lease_expires_at=task.lease_until,
            unique_key=task.unique_key, cancel_requested=task.cancel_requested, reason=task.reason, error=task.error,
        )  # fmt: skip

    # --- upkeep --------------------------------------------------------------------------------------------------

    def maintain(self, limit: int) -> Maintained:
        now = self.clock.time()
        moved: list[Moved] = []
        with self.lock:
            ended = [t for t in self._running.values() if t.lease_until is not None and t.lease_until <= now]
            moved.extend(self._reap(task, now) for task in islice(ended, limit))
            expired = 0
            while self._expiring and self._expiring[0][0] <= now and expired < limit:
                _, _, task = heapq.heappop(self._expiring)
                if task.state is PENDING and task.expires_at is not None and task.expires_at <= now:
                    moved.append(self._expire(task, now))
                    expired += 1
            pruned = 0
            while self._finished and self._finished[0][0] + self.retention_s <= now and pruned < limit:
                pruned += self._forget(*self._finished.popleft())
            pruned += self._prune_results(limit, now)
        return Maintained(moved, pruned, more=len(ended) > limit or expired == limit or pruned >= limit)

    def _reap(self, task: Task, now: float) -> Moved:
        lost_by = task.worker_id
        self._leave_running(task)
        self._last_fence += 1
        task.fence = self._last_fence
        task.crashes += 1
        task.reason = WORKER_LOST
        if task.cancel_requested:
            self._finish(task, CANCELLED, now)
        elif task.crashes >= task.max_crashes:
            self._finish(task, DEAD, now)
        else:
            self._make_pending(task, now)
        return self._moved(task, lost_by)

    def _forget(self, finished_at: float, task: Task) -> int:
        if not task.state.is_final or task.finished_at != finished_at:
            return 0  # it was requeued since
        if self._tasks.get(task.id) is not task:
            return 0  # it was purged since, and the id may belong to a new task
        del self._tasks[task.id]
        result = self._results.get(task.id)
        if result is not None and result.ttl_s is None:  # one with a time of its own lives on until then
            del self._results[task.id]
        return 1

    # --- features ------------------------------------------------------------------------------------------------

    def cancel(self, task_ids: Sequence[str]) -> list[Outcome]:
        now = self.clock.time()
        answers = []
        with self.lock:
            for task in map(self._tasks.get, task_ids):
                if task is None:
                    answers.append(Outcome.NOT_FOUND)
                elif task.state is PENDING:
                    task.home.pending -= 1
                    self._finish(task, CANCELLED, now)
                    answers.append(OK)
                elif task.state is RUNNING:
                    task.cancel_requested = True
                    answers.append(Outcome.REQUESTED)
                else:
                    answers.append(Outcome.FINISHED)
        return answers

    def requeue(self, task_ids: Sequence[str]) -> list[Outcome]:
        now = self.clock.time()
        with self.lock:
            return [self._requeue(self._tasks.get(task_id), now) for task_id in task_ids]

    def _requeue(self, task: Task | None, now: float) -> Outcome:
        if task is None:
            return Outcome.NOT_FOUND
        if not task.state.is_final:
            return DUPLICATE
        if task.state is SUCCEEDED:
            return Outcome.FINISHED
        if task.unique_key is not None and self._unique.setdefault(task.unique_key, task.id) != task.id:
            return Outcome.CONFLICT
        self._results.pop(task.id, None)
        task.attempt = task.crashes = 0
        task.expires_at = task.finished_at = task.reason = task.error = None
        task.cancel_requested = False
        self._make_pending(task, now)
        return OK

    def query(self, which: TaskFilter, limit: int, cursor: str | None) -> Page[TaskSnapshot]:
        before = int(cursor) if cursor else self._seq + 1
        found: list[Task] = []
        with self.lock:
            # Newest first, and ``_tasks`` keeps the order of arrival.
            for task in reversed(self._tasks.values()):
                if task.seq < before and _matches(task, which):
                    found.append(task)
                    if len(found) > limit:
                        break
            more = len(found) > limit
            found = found[:limit]
            return Page([self._snapshot(task) for task in found], str(found[-1].seq) if more else None)

    def stats(self, queues: Sequence[str]) -> list[QueueStats]:
        now = self.clock.time()
        with self.lock:
            self._promote(now)
            delayed: dict[str, int] = {}
            for _, _, ticket, task in self._delayed:
                if task.ticket == ticket and task.state is PENDING:
                    delayed[task.queue] = delayed.get(task.queue, 0) + 1
            answers = []
            for name in queues:
                queue = self._queues.get(name)
                if queue is None:
                    answers.append(QueueStats(name))
                else:
                    later = delayed.get(name, 0)
                    answers.append(
                        QueueStats(name, queue.pending - later, later, queue.running, queue.paused)
                    )
            return answers

    def queue_names(self) -> list[str]:
        with self.lock:
            return sorted(name for name, queue in self._queues.items() if queue.used)

    def set_paused(self, queues: Sequence[str], paused: bool) -> None:
        with self.lock:
            for name in queues:
                self._queue(name).paused = paused
                self.bell.ring(name)

    def purge(self, which: TaskFilter, limit: int) -> int:
        with self.lock:
            doomed = list(
                islice(
                    (t for t in self._tasks.values() if t.state is not RUNNING and _matches(t, which)), limit
                )
            )
            for task in doomed:
                if task.state is PENDING:
                    task.home.pending -= 1
                    self._free_key(task)
                    task.state = CANCELLED  # so that its place in line is skipped
                self._results.pop(task.id, None)
                del self._tasks[task.id]
            return len(doomed)

    def seconds_to_next_due(self) -> float | None:
        with self.lock:
            return self._delayed[0][0] - self.clock.time() if self._delayed else None

    # --- results -------------------------------------------------------------------------------------------------

    def put_results(self, records: Sequence[ResultRecord]) -> list[Outcome]:
        now = self.clock.time()
        with self.lock:
            answers = [self._put_result(record, now) for record in records]
            for record in records:
                if record.final:
                    self.bell.ring_result(record.task_id)
            return answers

    def _put_result(self, record: ResultRecord, now: float) -> Outcome:
        old = self._live_result(record.task_id, now)
        if old is not None:
            if old.fence > record.fence:
                return STALE
            if old.fence == record.fence and (old.final or not record.final):
                return DUPLICATE
        ends = now + (self.retention_s if record.ttl_s is None else record.ttl_s)
        self._results[record.task_id] = ResultRecord(
            record.task_id, record.fence, record.state, record.body, record.ttl_s, record.final, now, ends
        )
        heapq.heappush(self._result_ends, (ends, record.task_id))
        return OK

    def _live_result(self, task_id: str, now: float) -> ResultRecord | None:
        record = self._results.get(task_id)
        return None if record is None or (record.expires_at or now) <= now else record

    def get_results(self, task_ids: Iterable[str]) -> list[ResultRecord | None]:
        now = self.clock.time()
        with self.lock:
            return [self._live_result(task_id, now) for task_id in task_ids]

    def delete_results(self, task_ids: Sequence[str]) -> int:
        now = self.clock.time()
        with self.lock:
            live = sum(self._live_result(task_id, now) is not None for task_id in set(task_ids))
            for task_id in task_ids:
                self._results.pop(task_id, None)
            return live

    def prune_results(self, limit: int) -> int:
        with self.lock:
            return self._prune_results(limit, self.clock.time())

    def _prune_results(self, limit: int, now: float) -> int:
        pruned = 0
        while self._result_ends and self._result_ends[0][0] <= now and pruned < limit:
            _, task_id = heapq.heappop(self._result_ends)
            if task_id in self._results and self._live_result(task_id, now) is None:
                del self._results[task_id]
                pruned += 1
        return pruned

    # --- events --------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        answers = []
        with self.lock:
            for event in events:
                if event.id in self._event_ids:
                    answers.append(DUPLICATE)
                    continue
                self._event_ids.add(event.id)
                self._events.append(event)
                if len(self._events) > self.max_events:
                    self._drop_first_event()
                answers.append(OK)
            self.bell.ring_events()
        return answers

    def _drop_first_event(self) -> None:
        self._event_ids.discard(self._events.popleft().id)
        self._events_dropped += 1

    def read(self, which: EventFilter, after: str | None, limit: int) -> Page[Event]:
        with self.lock:
            start = max(0, int(after or 0) - self._events_dropped)
            found: list[Event] = []
            place = start
            for event in islice(self._events, start, None):
                if len(found) == limit:
                    break
                place += 1
                if _event_matches(event, which):
                    found.append(event)
            return Page(found, str(place + self._events_dropped))

    def truncate(self, before: float, limit: int) -> int:
        with self.lock:
            dropped = 0
            while self._events and self._events[0].at < before and dropped < limit:
                self._drop_first_event()
                dropped += 1
            return dropped


def _matches(task: Task, which: TaskFilter) -> bool:
    return (
        (not which.queues or task.queue in which.queues)
        and (not which.names or task.name in which.names)
        and (not which.states or task.state in which.states)
        and (which.enqueued_after is None or task.enqueued_at >= which.enqueued_after)
        and (which.enqueued_before is None or task.enqueued_at < which.enqueued_before)
    )


def _event_matches(event: Event, which: EventFilter) -> bool:
    return (
        (not which.task_ids or event.task_id in which.task_ids)
        and (not which.types or event.type in which.types)
        and (not which.queues or event.queue in which.queues)
        and (which.since is None or event.at >= which.since)
        and (which.until is None or event.at < which.until)
    )
