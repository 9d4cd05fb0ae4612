"""The rules of a queue as a deterministic machine: state + commit -> state + answers. Pure: no clock, no chance, no I/O.

Every process that applies the same commits in the same order holds the same state, so what a commit *did* need not be
written, only what was asked: a claim of five hundred tasks is one short line. Read :mod:`omniq_core.queue` beside it:
the methods here are its table of transitions. Whatever could make two replicas differ is a bug: an answer may depend
on the state, the operation and the commit's own time and retention, and on nothing else; and a state that was restored
from a checkpoint must go on exactly like the one that was saved.

The state has four parts. Here are the tasks, with their claims and unique keys, and every rule that changes one. Who is next
stands in :mod:`omniq_file.lines`, the results in :mod:`omniq_file.result_index`, and which bytes are still needed in
:mod:`omniq_file.blobs`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from omniq_core import Enqueued, Extension, Maintained, Moved, Outcome
from omniq_file import moving, saving, selecting
from omniq_file import operations as op
from omniq_file.blobs import Blobs
from omniq_file.commit import CRC_BYTES, Place
from omniq_file.index import (
    CANCELLED,
    DEAD,
    DELAYED,
    EXPIRED,
    GONE,
    READY,
    RUNNING,
    SUCCEEDED,
    ClaimRecord,
    Kind,
    Rare,
    Task,
)  # fmt: skip
from omniq_file.lines import NamedQueue
from omniq_file.operations import Operation
from omniq_file.result_index import ResultIndex

__all__ = ["TaskMachine"]

OK, DUPLICATE, STALE = Outcome.OK, Outcome.DUPLICATE, Outcome.STALE
CONFLICT, FINISHED, NOT_FOUND, REQUESTED = (
    Outcome.CONFLICT,
    Outcome.FINISHED,
    Outcome.NOT_FOUND,
    Outcome.REQUESTED,
)
LOST = Extension(STALE)

WORKER_LOST = "its worker was lost: the lease ended"
TOO_LATE = "its time to live passed before it was started"
MOST_DUE = 2000
"""How many tasks that fell due join the line of a queue per claim: when a million fall due at once, no claim pays for all."""


class TaskMachine:
    """Tasks, results and queues."""

    def __init__(self) -> None:
        self.seq = 0
        self.last_fence = 0
        self.tasks: dict[str, Task] = {}
        """By arrival."""
        self.kinds: list[Kind] = []
        self._kind_codes: dict[Kind, int] = {}
        self.homes: list[NamedQueue] = []
        """The queue of each kind."""
        self.queues: dict[str, NamedQueue] = {}
        self.unique: dict[str, str] = {}
        self.claims: dict[int, ClaimRecord] = {}
        self.claims_by_id: dict[str, ClaimRecord] = {}
        self.expiring: list[tuple[float, int, Task]] = []
        """Who expires when, and some that will not."""
        self.pruning: deque[tuple[float, Task]] = deque()
        """Who finished when, oldest first, and some that were requeued or deleted since."""
        self.finished = 0
        self.blobs = Blobs()
        self.results = ResultIndex(self.blobs)
        self.rung: set[str] = set()
        """Queues that may have something new since the last look of whoever waits; he empties it."""
        self._now = 0.0
        self._retention_s = 0.0
        self._apply: dict[int, Callable[[Any], Any]] = {
            op.ENQUEUE: self._enqueue, op.CLAIM: self._claim, op.SETTLE: self._settle, op.EXTEND: self._extend,
            op.MAINTAIN: self._maintain, op.CANCEL: self._cancel, op.REQUEUE: self._requeue, op.PAUSE: self._pause,
            op.PURGE: self._purge, op.PUT: self._put, op.DELETE: self._delete, op.PRUNE: self._prune, op.MOVE: self._move,
        }  # fmt: skip
        self._idle: dict[int, Callable[[Any, float], bool]] = {
            op.ENQUEUE: self._idle_enqueue, op.CLAIM: self._idle_claim, op.SETTLE: self._idle_settle,
            op.EXTEND: self._idle_extend, op.MAINTAIN: self._idle_maintain, op.CANCEL: self._idle_cancel,
            op.REQUEUE: self._idle_requeue, op.PAUSE: self._idle_pause, op.PURGE: self._idle_purge, op.PUT: self._idle_put,
            op.DELETE: self._idle_delete, op.PRUNE: self._idle_prune, op.MOVE: self._idle_move,
        }  # fmt: skip

    # --- applying --------------------------------------------------------------------------------------------------

    def apply(
        self,
        number: int,
        now: float,
        policy: Sequence[Any],
        operations: Sequence[Operation],
        blob_at: int,
        blob_bytes: int,
    ) -> list[Any]:
        """Applies one commit; the answer to each of its operations.

        Args:
            number: of the commit.
            now: its time.
            policy: how long finished tasks are kept, in seconds, and how many, as its writer was set.
            operations: what was asked.
            blob_at: where its blob begins in its file.
            blob_bytes: how long that is.
        """
        self._now, self._retention_s = now, policy[0]
        self.blobs.begin(number, blob_at)
        answers = [self._apply[operation[0]](operation) for operation in operations]
        while self.finished > policy[1]:
            self._forget(*self.pruning.popleft())
        self.blobs.end(blob_bytes)
        return answers

    def is_idle(self, operation: Operation, now: float, policy: Sequence[Any]) -> bool:
        """Whether applying it now would change nothing. In doubt no."""
        self._retention_s = policy[0]
        return self._idle[operation[0]](operation, now)

    def answer_idle(self, operation: Operation, now: float, policy: Sequence[Any]) -> Any:
        """The answer to an operation that :meth:`is_idle`."""
        self._now, self._retention_s = now, policy[0]
        return self._apply[operation[0]](operation)

    def needs(self, number: int) -> bool:
        """Whether some body of that commit is still needed."""
        return number in self.blobs.live

    def size_of(self, number: int) -> int:
        """How long the blob of a commit that is needed is."""
        return self.blobs.sizes.get(number, 0)

    # --- from state to state ---------------------------------------------------------------------------------------

    def queue(self, name: str) -> NamedQueue:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = NamedQueue()
        return queue

    def kind_code(self, kind: Kind) -> int:
        code = self._kind_codes.get(kind)
        if code is None:
            code = self._kind_codes[kind] = len(self.kinds)
            self.kinds.append(kind)
            self.homes.append(self.queue(kind.queue))
        return code

    def _make_pending(self, task: Task, delay_s: float = 0.0) -> None:
        home, rare = self.homes[task.kind], task.rare
        task.run_at = self._now + delay_s
        if rare is not None and rare.expires_at is not None:
            # Upkeep may have dropped it meanwhile.
            heapq.heappush(self.expiring, (rare.expires_at, task.seq, task))
        kind = self.kinds[task.kind]
        if delay_s > 0:
            home.delay(task)
        else:
            home.join(task, kind.priority)
        self.rung.add(kind.queue)

    def _leave_line(self, task: Task) -> None:
        """A pending task goes otherwise than by a claim."""
        home = self.homes[task.kind]
        home.leave(task)
        home.sweep()

    def _leave_running(self, task: Task) -> None:
        self.homes[task.kind].running -= 1
        claim = self.claims[task.fence]
        del claim.open[task.id]
        if not claim.open:
            del self.claims[task.fence]
            del self.claims_by_id[claim.claim_id]

    def _finish(self, task: Task, state: int) -> None:
        """Makes a task final. Its counts in the queue were taken off by the caller."""
        task.state = state
        self._rare(task).finished_at = self._now
        self._free_key(task)
        self.pruning.append((self._now, task))
        self.finished += 1

    def _free_key(self, task: Task) -> None:
        key = task.rare.unique_key if task.rare is not None else None
        if key is not None and self.unique.get(key) == task.id:
            del self.unique[key]

    @staticmethod
    def _rare(task: Task) -> Rare:
        rare = task.rare
        if rare is None:
            rare = task.rare = Rare()
        return rare

    def _say_why(self, task: Task, reason: str | None, error: Place | None) -> None:
        if task.rare is None and reason is None and error is None:
            return
        rare = self._rare(task)
        rare.reason = reason
        if rare.error is not None:
            self.blobs.release(rare.error[0], rare.error[2])
        rare.error = error

    def _moved(self, task: Task, worker_id: str | None) -> Moved:
        kind = self.kinds[task.kind]
        reason = task.rare.reason if task.rare is not None else None
        return Moved(
            task.id,
            kind.queue,
            kind.name,
            op.STATES[task.state],
            task.fence,
            task.attempt,
            task.crashes,
            reason,
            worker_id,
        )

    def _expire(self, task: Task) -> Moved:
        self.homes[task.kind].leave(task)
        self._rare(task).reason = TOO_LATE
        self._finish(task, EXPIRED)
        return self._moved(task, None)

    def _forget(self, finished_at: float, task: Task) -> int:
        """Deletes a finished task, unless it was requeued or deleted since: 1 or 0."""
        if (
            task.state == GONE
            or task.state <= RUNNING
            or task.rare is None
            or task.rare.finished_at != finished_at
        ):
            return 0
        self._drop(task)
        self.results.drop_with_task(task.id)
        return 1

    def _drop(self, task: Task) -> None:
        if task.state > RUNNING:
            self.finished -= 1
        task.state = GONE
        del self.tasks[task.id]
        self.blobs.release(task.body_in, task.body_bytes)
        if task.rare is not None and task.rare.error is not None:
            self.blobs.release(task.rare.error[0], task.rare.error[2])

    # --- the contract's required -----------------------------------------------------------------------------------

    def _enqueue(self, operation: Operation) -> list[Enqueued]:
        """``(ENQUEUE, kinds, rows)``; a row is ``(id, kind, body length)``, or that and ``(delay, ttl, unique key)``."""
        tasks, now, blobs = self.tasks, self._now, self.blobs
        number, at = blobs.number, blobs.at
        kinds: list[tuple[int, NamedQueue, deque[Task]] | None] = [None] * len(operation[1])
        answers, held, seq = [], 0, self.seq
        for row in operation[2]:
            task_id, length = row[0], row[2]
            at += CRC_BYTES
            body_at = at
            at += length
            if task_id in tasks:
                answers.append(Enqueued(DUPLICATE, task_id))
                continue
            rare, run_at = None, now
            if len(row) > 3:
                delay_s, ttl_s, key = row[3], row[4], row[5]
                if key is not None:
                    holder = self.unique.setdefault(key, task_id)
                    if holder != task_id:
                        answers.append(Enqueued(CONFLICT, holder))
                        continue
                rare = Rare(None if ttl_s is None else now + ttl_s, key)
                run_at = now + delay_s
            kind = kinds[row[1]]
            if kind is None:
                kind = kinds[row[1]] = self._enter_kind(Kind(*operation[1][row[1]]))
            code, home, fresh = kind
            seq += 1
            held += length + CRC_BYTES
            task = tasks[task_id] = Task(task_id, code, seq, now, run_at, number, body_at, length)
            task.rare = rare
            if run_at > now:
                home.delay(task)
            else:
                home.ready += 1
                fresh.append(task)
            if rare is not None and rare.expires_at is not None:
                heapq.heappush(self.expiring, (rare.expires_at, seq, task))
            answers.append(Enqueued(OK, task_id))
        if seq != self.seq:
            self.seq = seq
            blobs.live[number] = blobs.live.get(number, 0) + held
        blobs.at = at
        return answers

    def _enter_kind(self, kind: Kind) -> tuple[int, NamedQueue, deque[Task]]:
        code = self.kind_code(kind)
        home = self.homes[code]
        home.used = True
        self.rung.add(kind.queue)
        return code, home, home.line(kind.priority).fresh

    def _idle_enqueue(self, operation: Operation, _: float) -> bool:
        tasks, unique = self.tasks, self.unique
        return all(
            row[0] in tasks or (len(row) > 3 and row[5] is not None and unique.get(row[5], row[0]) != row[0])
            for row in operation[2]
        )

    def _claim(self, operation: Operation) -> list[Task]:
        """``(CLAIM, queues, most tasks, lease, worker, claim id)``; the tasks that are open in that claim."""
        _, names, most, lease_s, worker_id, claim_id = operation
        repeated = self.claims_by_id.get(claim_id)
        if repeated is not None:
            return list(repeated.open.values())
        now = self._now
        taken: list[Task] = []
        fence = self.last_fence + 1  # one for all of the claim, and never given out again
        for name in names:
            home = self.queues.get(name)
            if home is None or home.paused:
                continue
            if home.waiting:
                home.promote(now, max(most, MOST_DUE), self.kinds)
            before = len(taken)
            for priority in home.order:
                if len(taken) == most:
                    break
                pop = home.lines[priority].pop
                while len(taken) < most:
                    task = pop()
                    if task is None:
                        home.drop_line(priority)
                        break
                    if task.state != READY:
                        continue
                    if task.run_at > now:
                        # The clock went back, or this writer's is behind that of who let it join the line.
                        home.ready -= 1
                        home.delay(task)
                        continue
                    rare = task.rare
                    if rare is not None and rare.expires_at is not None and rare.expires_at <= now:
                        self._expire(task)
                        continue
                    task.state = RUNNING
                    task.attempt += 1
                    task.fence = fence
                    taken.append(task)
            home.ready -= len(taken) - before
            home.running += len(taken) - before
        if taken:
            self.last_fence = fence
            claim = self.claims[fence] = self.claims_by_id[claim_id] = ClaimRecord(
                fence, claim_id, worker_id, now + lease_s
            )
            claim.open = {task.id: task for task in taken}
        return taken

    def _idle_claim(self, operation: Operation, now: float) -> bool:
        if operation[5] in self.claims_by_id:
            return True
        return not any(home is not None and home.is_due(now) for home in map(self.queues.get, operation[1]))

    def _settle(self, operation: Operation) -> list[Outcome]:
        """``(SETTLE, rows)``; a row is ``(id, fence, verb, result length, result ttl)``, or that and ``(delay, reason,
        error length, crashed)``."""
        tasks, place = self.tasks, self.blobs.place
        answers = []
        for row in operation[1]:
            error = None if len(row) == 5 or row[7] is None else place(row[7])
            result = None if row[3] is None else place(row[3])
            task = tasks.get(row[0])
            if task is None:
                answers.append(NOT_FOUND)
            elif task.state == RUNNING and task.fence == row[1]:
                self._settle_one(task, row, error, result)
                answers.append(OK)
            else:
                # A take-over raises the fence: one that is not running under its own was settled by it.
                answers.append(DUPLICATE if task.state != RUNNING and task.fence == row[1] else STALE)
        return answers

    def _settle_one(self, task: Task, row: Sequence[Any], error: Place | None, result: Place | None) -> None:
        self._leave_running(task)
        verb = row[2]
        if len(row) == 5:
            delay_s = 0.0
            self._say_why(task, None, None)
        else:
            delay_s = row[5]
            if error is not None:
                self.blobs.hold(error[0], error[2])
            self._say_why(task, row[6], error)
            task.crashes += row[8]
        if verb < len(op.FINAL_STATES):
            final = op.FINAL_STATES[verb]
        else:
            if verb == op.RELEASE:
                task.attempt -= 1
            if task.rare is None or not task.rare.cancel_requested:
                self._make_pending(task, delay_s)
                return
            final = CANCELLED
        if result is not None:
            self.results.put(task.id, task.fence, final, result, row[4], True, self._now, self._retention_s)
        self._finish(task, final)

    def _idle_settle(self, operation: Operation, _: float) -> bool:
        return not any(map(self._owns, operation[1]))

    def _owns(self, row: Sequence[Any]) -> bool:
        task = self.tasks.get(row[0])
        return task is not None and task.state == RUNNING and task.fence == row[1]

    def _extend(self, operation: Operation) -> list[Extension]:
        """``(EXTEND, rows, lease)``; a row is ``(id, fence)``."""
        until = self._now + operation[2]
        answers = []
        for row in operation[1]:
            if not self._owns(row):
                answers.append(LOST)
                continue
            task, claim = self.tasks[row[0]], self.claims[row[1]]
            claim.until = max(until, claim.until)
            answers.append(Extension(OK, claim.until, task.rare is not None and task.rare.cancel_requested))
        return answers

    def _idle_extend(self, operation: Operation, _: float) -> bool:
        return not any(map(self._owns, operation[1]))

    # --- upkeep ----------------------------------------------------------------------------------------------------

    def _maintain(self, operation: Operation) -> Maintained:
        """``(MAINTAIN, limit)``."""
        limit, now = operation[1], self._now
        moved: list[Moved] = []
        more = False
        for claim in [claim for claim in self.claims.values() if claim.until <= now]:
            lost = list(islice(claim.open.values(), limit - len(moved)))
            more = more or len(lost) < len(claim.open)
            moved.extend(self._reap(task, claim.worker_id) for task in lost)
        expired = 0
        while self.expiring and self.expiring[0][0] <= now and expired < limit:
            expires_at, _, task = heapq.heappop(self.expiring)
            if task.state <= DELAYED and task.rare is not None and task.rare.expires_at == expires_at:
                moved.append(self._expire(task))
                self.homes[task.kind].sweep()
                expired += 1
        pruned = 0
        while self.pruning and self.pruning[0][0] + self._retention_s <= now and pruned < limit:
            pruned += self._forget(*self.pruning.popleft())
        pruned += self.results.prune(now, limit)
        return Maintained(moved, pruned, more=more or expired == limit or pruned >= limit)

    def _idle_maintain(self, _: Operation, now: float) -> bool:
        return not (
            (self.expiring and self.expiring[0][0] <= now)
            or (self.pruning and self.pruning[0][0] + self._retention_s <= now)
            or self.results.has_ended(now)
            or any(claim.until <= now for claim in self.claims.values())
        )

    def _reap(self, task: Task, lost_by: str) -> Moved:
        self._leave_running(task)
        self.last_fence += 1
        task.fence = self.last_fence
        task.crashes += 1
        rare = self._rare(task)
        rare.reason = WORKER_LOST
        if rare.cancel_requested:
            self._finish(task, CANCELLED)
        elif task.crashes >= self.kinds[task.kind].max_crashes:
            self._finish(task, DEAD)
        else:
            self._make_pending(task)
        return self._moved(task, lost_by)

    # --- features --------------------------------------------------------------------------------------------------

    def _cancel(self, operation: Operation) -> list[Outcome]:
        """``(CANCEL, ids)``."""
        answers = []
        for task in map(self.tasks.get, operation[1]):
            if task is None:
                answers.append(NOT_FOUND)
            elif task.state <= DELAYED:
                self._leave_line(task)
                self._finish(task, CANCELLED)
                answers.append(OK)
            elif task.state == RUNNING:
                self._rare(task).cancel_requested = True
                answers.append(REQUESTED)
            else:
                answers.append(FINISHED)
        return answers

    def _idle_cancel(self, operation: Operation, _: float) -> bool:
        return not any(
            task is not None
            and (
                task.state <= DELAYED
                or (task.state == RUNNING and not (task.rare and task.rare.cancel_requested))
            )
            for task in map(self.tasks.get, operation[1])
        )

    def _requeue(self, operation: Operation) -> list[Outcome]:
        """``(REQUEUE, ids)``."""
        return [self._requeue_one(self.tasks.get(task_id), True) for task_id in operation[1]]

    def _idle_requeue(self, operation: Operation, _: float) -> bool:
        return not any(self._requeue_one(self.tasks.get(task_id), False) is OK for task_id in operation[1])

    def _requeue_one(self, task: Task | None, do: bool) -> Outcome:
        if task is None:
            return NOT_FOUND
        if task.state <= RUNNING:
            return DUPLICATE
        if task.state == SUCCEEDED:
            return FINISHED
        key = task.rare.unique_key if task.rare is not None else None
        if key is not None and self.unique.get(key, task.id) != task.id:
            return CONFLICT
        if do:
            if key is not None:
                self.unique[key] = task.id
            self.results.drop(task.id)
            self._say_why(task, None, None)
            self.finished -= 1
            task.attempt = task.crashes = 0
            task.rare = None if key is None else Rare(unique_key=key)
            self._make_pending(task)
        return OK

    def _pause(self, operation: Operation) -> None:
        """``(PAUSE, queues, whether)``."""
        for name in operation[1]:
            self.queue(name).paused = operation[2]
            self.rung.add(name)

    def _idle_pause(self, operation: Operation, _: float) -> bool:
        return all(name in self.queues and self.queues[name].paused == operation[2] for name in operation[1])

    def _purge(self, operation: Operation) -> int:
        """``(PURGE, filter, limit)``; for a filter see :func:`omniq_file.selecting.matching`."""
        doomed = list(islice(self._purgeable(operation[1]), operation[2]))
        for task in doomed:
            if task.state <= DELAYED:
                self._leave_line(task)
                self._free_key(task)
            self._drop(task)
            self.results.drop(task.id)
        return len(doomed)

    def _idle_purge(self, operation: Operation, _: float) -> bool:
        return next(self._purgeable(operation[1]), None) is None

    def _purgeable(self, which: Sequence[Any]) -> Iterator[Task]:
        return selecting.matching(self, which, self.tasks.values(), running=False)

    # --- results ---------------------------------------------------------------------------------------------------

    def _put(self, operation: Operation) -> list[Outcome]:
        """``(PUT, rows)``; a row is ``(task id, fence, state, body length, ttl, final)``."""
        results, now, place = self.results, self._now, self.blobs.place
        return [
            results.put(task_id, fence, state, place(length), ttl_s, final, now, self._retention_s)
            for task_id, fence, state, length, ttl_s, final in operation[1]
        ]

    def _idle_put(self, operation: Operation, now: float) -> bool:
        return not any(self.results.may_put(row[0], row[1], row[5], now) is OK for row in operation[1])

    def _delete(self, operation: Operation) -> int:
        """``(DELETE, ids)``; how many records there were."""
        dropped = map(self.results.drop, operation[1])
        return sum(result is not None and result.expires_at > self._now for result in dropped)

    def _idle_delete(self, operation: Operation, _: float) -> bool:
        return not any(task_id in self.results.by_task for task_id in operation[1])

    def _prune(self, operation: Operation) -> int:
        """``(PRUNE, limit)``."""
        return self.results.prune(self._now, operation[1])

    def _idle_prune(self, _: Operation, now: float) -> bool:
        return not self.results.has_ended(now)

    # --- moving bodies, and checkpoints --------------------------------------------------------------------------

    def _move(self, operation: Operation) -> int:
        """``(MOVE, rows)``; see :mod:`omniq_file.moving`."""
        return sum(moving.move(self, row, self.blobs.place(row[4])) for row in operation[1])

    def _idle_move(self, operation: Operation, _: float) -> bool:
        return not any(moving.lies(self, row) for row in operation[1])

    def repacking(self, horizon: int) -> Iterator[list[moving.Row]]:
        """What should be moved out of commits up to ``horizon``, in batches."""
        return moving.repacking(self, horizon)

    def save(self) -> Iterator[bytes]:
        """The state, in parts."""
        return saving.save(self)

    def restore(self, parts: Iterator[bytes]) -> Iterator[None]:
        """Fills a new machine. Yields now and then, so that the caller can let others run."""
        return saving.restore(self, parts)
