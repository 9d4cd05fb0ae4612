"""The task queue. What happens to a task is decided by the functions in ``sql/``; here calls are joined, sent and read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from omniq_core import (
    Claim,
    Enqueued,
    Extension,
    Lease,
    Maintained,
    Moved,
    Outcome,
    Page,
    Queue,
    QueueStats,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
)
from omniq_postgres.batching import Batcher
from omniq_postgres.connection import Row
from omniq_postgres.filters import candidates
from omniq_postgres.leases import STATES, Place, claims_of, find, snapshot_of
from omniq_postgres.notify import FEW, QUEUE, RESULT, Ended, Key, checksum
from omniq_postgres.settling import EnqueueBatch, SettleBatch, is_plain, is_plain_success, parameters_of
from omniq_postgres.statements import (
    CANCEL,
    CLAIM,
    ENQUEUE,
    ENQUEUE_ONE,
    EXTEND,
    GET,
    LOCATE,
    PAUSE,
    PEEK,
    QUEUE_IDS,
    QUEUE_NAMES,
    REAP,
    REQUEUE,
    SETTLE,
    SETTLE_ONE,
    STATS,
    TIDY,
    Statement,
)
from omniq_postgres.transaction import run_within

if TYPE_CHECKING:
    from omniq_postgres.backend import PostgresBackend

__all__ = ["PostgresQueue"]


class PostgresQueue(Queue):
    """The queue of an opened backend."""

    backend_name = "postgres"

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._options = backend.options
        self._pool = backend.pool
        self._ringer = backend.ringer
        self._bell = backend.bell
        self.limits = backend.limits
        self._known_queues: set[str] = set()
        self._seen: dict[str, int] = {}  # a queue's rings as of before the last claim that found it empty
        largest = self.limits.max_batch
        at_fault = backend.is_about_items
        self._enqueue = Batcher(
            self._send_enqueue,
            largest=largest,
            at_fault=at_fault,
            weigh=lambda record: len(record.body),
            goes_alone=True,
        )
        self._settle = Batcher(
            self._send_settle,
            largest=largest,
            at_fault=at_fault,
            weigh=lambda item: len(item.result or b"") + len(item.error or b""),
            goes_alone=True,
        )
        self._get = Batcher(self._send_get, largest=largest, at_fault=at_fault)
        self._extenders: dict[float, Batcher[Lease, Extension]] = {}

    # --- the contract's five ------------------------------------------------------------------------------------

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        self._backend.check_open()
        return await self._enqueue(records)

    async def _send_enqueue(self, records: Sequence[TaskRecord]) -> Sequence[Enqueued]:
        if len(records) == 1 and is_plain(records[0]):
            return [await self._send_one(records[0])]
        batch = EnqueueBatch(records)
        keys = [(QUEUE, checksum(name)) for name in batch.queues]
        return batch.answers(await self._run(ENQUEUE, batch.parameters, keys))

    async def _send_one(self, record: TaskRecord) -> Enqueued:
        keys = [(QUEUE, checksum(record.queue))]
        [(is_duplicate,)] = await self._run(ENQUEUE_ONE, parameters_of(record), keys)
        return Enqueued(Outcome.DUPLICATE if is_duplicate else Outcome.OK, record.id)

    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        self._backend.check_open()
        if not queues:
            return []
        rings = [(name, self._bell.count(checksum(name))) for name in queues]
        rows = await self._pool.run(
            CLAIM, list(queues), max_tasks, lease_s, worker_id, claim_id, self._options.retention_s
        )
        if rows:
            self._backend.vacuum.note(len(rows))
        else:
            self._seen.update(rings)
        return claims_of(rows)

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        self._backend.check_open()
        return await self._settle(settlements)

    async def _send_settle(self, settlements: Sequence[Settlement]) -> Sequence[Outcome]:
        places = await find(self._pool, [item.lease for item in settlements])
        goes_alone = len(settlements) == 1 and is_plain_success(settlements[0], places[0])
        if goes_alone and await self._settle_one(settlements[0], places[0]):
            return [Outcome.OK]
        batch = SettleBatch(settlements, places, retention_s=self._options.retention_s)
        for numbers, parameters in batch.calls():
            # Whether a settlement is good is known afterwards; to tell of one that was not costs its waiter a look.
            with_result = [number for number in numbers if settlements[number].result is not None]
            keys = [(RESULT, checksum(settlements[number].lease.task_id)) for number in with_result]
            few = with_result if len(with_result) <= FEW else ()
            ended = [_ended(settlements[number], places[number]) for number in few]
            batch.take(numbers, await self._run(SETTLE, parameters, keys, ended))
        await self._look_again(batch)
        self._ring(batch.rung)
        return batch.answers()

    async def _settle_one(self, item: Settlement, place: Place) -> bool:
        values = (place.fence, place.seq, item.result_ttl_s, item.result, self._options.retention_s)
        if item.result is None:
            [(is_done,)] = await self._pool.run(SETTLE_ONE, *values)
        else:
            keys = [(RESULT, checksum(place.task_id))]
            [(is_done,)] = await self._run(SETTLE_ONE, values, keys, [_ended(item, place)])
        return bool(is_done)

    async def _look_again(self, batch: SettleBatch) -> None:
        if gone := batch.gone():
            rows = await self._pool.run(
                LOCATE, [lease.task_id for lease in gone], [lease.fence for lease in gone]
            )
            batch.take_reused({gone[place - 1].task_id for place, *_ in rows})

    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        self._backend.check_open()
        joined = self._extenders.get(lease_s)
        if joined is None:
            if len(self._extenders) >= 16:  # a program has one or two lengths of lease; tests have many
                self._extenders.clear()

            async def send(items: Sequence[Lease]) -> Sequence[Extension]:
                return await self._send_extend(items, lease_s)

            joined = self._extenders[lease_s] = Batcher(
                send, largest=self.limits.max_batch, at_fault=self._backend.is_about_items
            )
        return await joined(leases)

    async def _send_extend(self, leases: Sequence[Lease], lease_s: float) -> Sequence[Extension]:
        answers = [Extension(Outcome.STALE)] * len(leases)
        places = await find(self._pool, leases)
        held = [(number, place) for number, place in enumerate(places) if place.seq > 0]
        if held:
            fences = [place.fence for _, place in held]
            tokens = list(dict.fromkeys(fences))
            rows = await self._pool.run(
                EXTEND,
                tokens,
                None if len(tokens) == 1 else fences,
                [place.seq for _, place in held],
                lease_s,
            )
            for place, until, cancel_requested in rows:
                answers[held[place - 1][0]] = Extension(Outcome.OK, until, cancel_requested)
        return answers

    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        self._backend.check_open()
        return await self._get(task_ids)

    async def _send_get(self, task_ids: Sequence[str]) -> Sequence[TaskSnapshot | None]:
        found = {row[1]: row for row in await self._pool.run(GET, list(dict.fromkeys(task_ids)))}
        rows = map(found.get, task_ids)
        return [None if row is None else snapshot_of(row) for row in rows]

    # --- waiting and upkeep -------------------------------------------------------------------------------------

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        self._backend.check_open()
        if not self._options.notify:
            await self._backend.pause_for(min(timeout_s, self._options.poll_s))
            return True
        self._backend.listen()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        numbers = [checksum(name) for name in queues]
        keys = [(QUEUE, number) for number in numbers]
        counts = [self._bell.count(number) for number in numbers]
        if any(self._seen.get(name, count) != count for name, count in zip(queues, counts, strict=True)):
            self._seen.update(zip(queues, counts, strict=True))
            return True
        while True:
            waiter = self._bell.waiter(keys)
            try:
                [(is_ready, due_s)] = await self._pool.run(PEEK, list(queues))
                pause_s = min(end - loop.time(), self._options.poll_s)
                is_due = due_s is not None and due_s <= pause_s
                if due_s is not None and is_due:
                    pause_s = due_s
                if is_ready or (is_due and pause_s <= 0) or waiter.done():
                    return True
                if await self._bell.sleep(waiter, pause_s) or is_due:
                    return True
            finally:
                self._bell.forget(waiter, keys)
            if loop.time() >= end:
                return False

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        self._backend.check_open()
        retention_s = self._options.retention_s
        rows = await self._pool.run(REAP, limit, retention_s)
        moved = [
            Moved(task_id, queue, name, STATES[state], fence, attempt, crashes, reason, worker_id)
            for task_id, queue, name, state, fence, attempt, crashes, reason, worker_id in rows
        ]
        self._ring({item.queue for item in moved if not item.state.is_final})
        [(tasks, results, is_more)] = await self._pool.run(TIDY, limit, retention_s, True)
        return Maintained(moved, tasks + results, more=is_more or len(moved) >= limit)

    # --- operators ----------------------------------------------------------------------------------------------

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        self._backend.check_open()
        letters = {"o": Outcome.OK, "r": Outcome.REQUESTED, "f": Outcome.FINISHED}
        rows = await self._pool.run(CANCEL, list(dict.fromkeys(task_ids)), self._options.retention_s)
        found = {task_id: letters[letter] for task_id, letter in rows}
        return _one_by_one(task_ids, found, {Outcome.OK: Outcome.FINISHED})

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        self._backend.check_open()
        letters = {"o": Outcome.OK, "d": Outcome.DUPLICATE, "f": Outcome.FINISHED, "c": Outcome.CONFLICT}
        rows = await self._pool.run(REQUEUE, list(dict.fromkeys(task_ids)))
        self._ring({queue for _, _, queue in rows if queue is not None})
        found = {task_id: letters[letter] for task_id, letter, _ in rows}
        return _one_by_one(task_ids, found, {Outcome.OK: Outcome.DUPLICATE})

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        self._backend.check_open()
        chosen, types, values = candidates(which, limit + 1, before=None if cursor is None else int(cursor))
        rows = await self._pool.query(f"select * from @schema.snapshots(array({chosen}))", types, values)
        items = [snapshot_of(row) for row in rows[:limit]]
        return Page(items, str(rows[limit - 1][0]) if len(rows) > limit else None)

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        self._backend.check_open()
        found = {row[0]: row for row in await self._pool.run(STATS, list(queues))}
        answers = []
        for name in queues:
            if name not in found:
                answers.append(QueueStats(name))
                continue
            _, pending, delayed, running, paused, due_at, now = found[name]
            waits_s = None if due_at is None else max(0.0, now - due_at)
            answers.append(
                QueueStats(name, max(0, pending - delayed), delayed, max(0, running), paused, waits_s)
            )
        return answers

    async def queue_names(self) -> Sequence[str]:
        self._backend.check_open()
        return [name for (name,) in await self._pool.run(QUEUE_NAMES)]

    async def pause(self, queues: Sequence[str], /) -> None:
        self._backend.check_open()
        await self._pool.run(PAUSE, list(dict.fromkeys(queues)), True)

    async def resume(self, queues: Sequence[str], /) -> None:
        self._backend.check_open()
        await self._pool.run(PAUSE, list(dict.fromkeys(queues)), False)
        self._ring(queues)

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        self._backend.check_open()
        chosen, types, values = candidates(which, limit, to_purge=True)
        rows = await self._pool.query(
            f"select * from @schema.purge(array({chosen}))", types, values, writes=True
        )
        purged = int(rows[0][0])
        self._backend.vacuum.note(
            purged
        )  # those that waited have left entries behind, as those that are claimed do
        return purged

    # --- inside the caller's transaction ------------------------------------------------------------------------

    async def enqueue_within(
        self, transaction: object, records: Sequence[TaskRecord], /
    ) -> Sequence[Enqueued]:
        self._backend.check_open()
        if not records:
            return []
        batch = EnqueueBatch(records)
        unknown = sorted(set(batch.queues) - self._known_queues)
        if unknown:
            # Beforehand and by ourselves: the row of a new queue in an open transaction would block all its producers.
            await self._pool.run(QUEUE_IDS, unknown)
            self._known_queues.update(unknown)
        rows = await run_within(transaction, self._pool.schema, ENQUEUE, batch.parameters)
        if self._ringer is not None:
            self._ringer.queues_later(batch.queues)
        return batch.answers(rows)

    async def settle_within(
        self, transaction: object, settlements: Sequence[Settlement], /
    ) -> Sequence[Outcome]:
        self._backend.check_open()
        if not settlements:
            return []
        places: Sequence[Place] = await find(self._pool, [item.lease for item in settlements])
        batch = SettleBatch(settlements, places, retention_s=self._options.retention_s, joins=True)
        for numbers, parameters in batch.calls():
            batch.take(numbers, await run_within(transaction, self._pool.schema, SETTLE, parameters))
        await self._look_again(batch)
        outcomes = batch.answers()
        if self._ringer is not None:
            self._ringer.queues_later(batch.rung)
        return outcomes

    async def _run(
        self, statement: Statement, parameters: Sequence[Any], keys: list[Key], ended: Sequence[Ended] = ()
    ) -> list[Row]:
        """Calls a statement, and tells those who wait for these keys."""
        if self._ringer is None:
            return await self._pool.run(statement, *parameters)
        return await self._ringer.run(statement, parameters, keys, ended)

    def _ring(self, queues: Iterable[str]) -> None:
        if self._ringer is not None:
            self._ringer.queues(queues)


def _ended(item: Settlement, place: Place) -> Ended:
    return Ended(place.seq, place.fence, len(place.task_id.encode()) + len(item.result or b""))


def _one_by_one(
    task_ids: Sequence[str], found: dict[str, Outcome], again: dict[Outcome, Outcome]
) -> list[Outcome]:
    """Answers by position; an id that comes again is answered as a second call would be."""
    answers = []
    seen: set[str] = set()
    for task_id in task_ids:
        outcome = found.get(task_id, Outcome.NOT_FOUND)
        answers.append(again.get(outcome, outcome) if task_id in seen else outcome)
        seen.add(task_id)
    return answers
