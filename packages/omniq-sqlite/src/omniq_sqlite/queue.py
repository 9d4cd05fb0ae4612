"""The task queue: the contract's methods, each one transaction or one look."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from omniq_core import (
    Claim,
    Enqueued,
    Extension,
    Lease,
    Limits,
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
    TaskState,
)
from omniq_sqlite import claiming, looking, operating, upkeep, within
from omniq_sqlite.connection import Storage
from omniq_sqlite.enqueueing import enqueue
from omniq_sqlite.lockfile import QUEUE
from omniq_sqlite.settling import settle
from omniq_sqlite.statements import Transaction, micro, seconds

__all__ = ["SQLiteQueue"]

SLICE = 5000
"""Tasks that one look of a query walks over, about 10 ms."""
LOADED_AT_ONCE = 500
"""Tasks whose bodies are in memory twice for a moment, up to 16 KiB of each."""
BREATH_S = 0.002
"""Shortest time between two looks of one waiter, so that a flood of commits is looked at in lumps."""


class SQLiteQueue(Queue):
    """Tasks in the file."""

    backend_name = "sqlite"

    def __init__(self, storage: Storage, limits: Limits) -> None:
        self._storage = storage
        self.limits = limits

    def _now(self) -> int:
        return micro(self._storage.clock.time())

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        return await self._storage.write_joined(enqueue, records)

    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        def work(tx: Transaction) -> list[Claim]:
            return claiming.claim(tx, queues, max_tasks, lease_s, worker_id, claim_id)

        return await self._storage.write(work)

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        return await self._storage.write_joined(settle, settlements)

    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        return await self._storage.write(lambda tx: claiming.extend(tx, leases, lease_s))

    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        return await self._storage.read(looking.snapshots_by_id, task_ids)

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        """Looks whether a claim would find something, and looks again when something was committed or falls due."""
        storage = self._storage
        storage.check()
        watcher, time = storage.watcher, storage.watcher.loop.time
        end = time() + timeout_s
        ticket = watcher.join(QUEUE)
        try:
            while True:
                is_due, next_due = await storage.read(looking.what_is_due, queues, self._now())
                if is_due:
                    return True
                left_s = end - time()
                if left_s <= 0:
                    return False
                if next_due is not None:
                    left_s = min(left_s, max(seconds(next_due - self._now()), 0.001))
                began = time()
                if await ticket.wait(left_s) and time() - began < BREATH_S:
                    await asyncio.sleep(BREATH_S)
        finally:
            watcher.leave(ticket)

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        storage = self._storage
        todo = await storage.read(upkeep.due_work, self._now(), storage.retention)
        moved: list[Moved] = []
        pruned, more = 0, False
        for bit, work in ((upkeep.REAP, upkeep.reap), (upkeep.EXPIRE, upkeep.expire)):
            if todo & bit:
                some, is_cut = await storage.write(partial(work, limit=limit))
                moved += some
                more = more or is_cut
                if any(one.state is TaskState.PENDING for one in some):
                    todo |= upkeep.EXPIRE  # what comes back may have expired meanwhile
        for bit, prune in ((upkeep.PRUNE, upkeep.prune), (upkeep.PRUNE_RESULTS, upkeep.prune_results)):
            if todo & bit:
                count, is_cut = await storage.write(partial(prune, limit=limit))
                pruned += count
                more = more or is_cut
        await storage.truncate_log()
        return Maintained(moved, pruned, more)

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return await self._storage.write_joined(operating.cancel, task_ids)

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return await self._storage.write_joined(operating.requeue, task_ids)

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        seqs = await self._find(which, limit + 1, int(cursor) if cursor else 2**63 - 1)
        snapshots: list[TaskSnapshot] = []
        for start in range(0, min(limit, len(seqs)), LOADED_AT_ONCE):
            piece = seqs[start : min(limit, start + LOADED_AT_ONCE)]
            snapshots += await self._storage.read(looking.snapshots, piece)
        # A task that changed between the two looks and no longer matches did not "stay as it is".
        if which.states:
            snapshots = [one for one in snapshots if one.state in which.states]
        return Page(snapshots, str(seqs[limit - 1]) if len(seqs) > limit else None)

    async def _find(self, which: TaskFilter, count: int, before: int) -> list[int]:
        """The first ``count`` tasks below ``before`` that match, newest first."""
        found: list[int] = []
        while len(found) < count:
            seqs = await self._storage.read(looking.next_slice, which, before, SLICE)
            if seqs:
                found += await self._storage.read(looking.find, which, seqs)
                before = seqs[-1]
            if len(seqs) < SLICE:
                break
        return found[:count]

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        return await self._storage.read(looking.queue_stats, queues, self._now())

    async def queue_names(self) -> Sequence[str]:
        return await self._storage.read(looking.queue_names)

    async def pause(self, queues: Sequence[str], /) -> None:
        await self._storage.write(lambda tx: operating.set_paused(tx, queues, True))

    async def resume(self, queues: Sequence[str], /) -> None:
        await self._storage.write(lambda tx: operating.set_paused(tx, queues, False))

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        if which.states:
            states = frozenset(which.states) - {TaskState.RUNNING}
            if not states:
                return 0
        else:
            states = frozenset(TaskState) - {TaskState.RUNNING}
        deletable = TaskFilter(
            queues=which.queues,
            names=which.names,
            states=sorted(states),
            enqueued_after=which.enqueued_after,
            enqueued_before=which.enqueued_before,
        )
        seqs = await self._find(deletable, limit, 2**63 - 1)
        purged = 0
        # In pieces, so that claims get their turn between them.
        for start in range(0, len(seqs), self.limits.max_batch):
            piece = seqs[start : start + self.limits.max_batch]
            purged += await self._storage.write(partial(operating.purge, seqs=piece, states=states))
        return purged

    async def enqueue_within(
        self, transaction: object, records: Sequence[TaskRecord], /
    ) -> Sequence[Enqueued]:
        """``enqueue`` within the transaction of a ``sqlite3.Connection`` or ``aiosqlite.Connection`` to the same file."""
        return await within.run(self._storage, transaction, lambda tx: enqueue(tx, records))

    async def settle_within(
        self, transaction: object, settlements: Sequence[Settlement], /
    ) -> Sequence[Outcome]:
        """``settle`` within the same kinds of transaction."""
        return await within.run(self._storage, transaction, lambda tx: settle(tx, settlements))
