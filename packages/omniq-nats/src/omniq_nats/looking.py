"""Looking at tasks: by id, by filter and page, and as counts."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Collection, Sequence

from omniq_core import Page, QueueStats, TaskFilter, TaskSnapshot
from omniq_nats.documents import RUNNING, STATES, Document, decode, snapshot
from omniq_nats.lines import Look
from omniq_nats.subjects import text_of
from omniq_nats.tasks import Tasks, Version

__all__ = ["Looking", "matches"]


class Looking:
    """See ``get``, ``query``, ``stats`` and ``queue_names`` of :class:`omniq_core.Queue`."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def get(self, task_ids: Sequence[str]) -> list[TaskSnapshot | None]:
        versions = await self._tasks.read(list(dict.fromkeys(task_ids)))
        shown = await self._show(versions.values())
        return [shown.get(task_id) for task_id in task_ids]

    async def _show(self, versions: Collection[Version]) -> dict[str, TaskSnapshot]:
        tasks = self._tasks
        running = [version for version in versions if version[1].state == RUNNING]
        leases = await tasks.holdings.leases({document.claim for _, document in running if document.claim})
        shadows = await tasks.shadows.among(versions, leases)
        if shadows:
            await tasks.shadows.let_go(version for version in versions if version[1].id in shadows)
        shown = {}
        for _, document in versions:
            if document.id in shadows:
                continue
            lease = leases.get(document.claim or "") if document.state == RUNNING else None
            if lease is None:
                shown[document.id] = snapshot(document)
            else:
                shown[document.id] = snapshot(document, lease.worker_id, lease.ends_at)
        return shown

    async def walk(self, which: TaskFilter) -> AsyncIterator[list[Version]]:
        """All tasks that match, in no particular order. One that changes meanwhile may come again."""
        tasks = self._tasks
        prefix = tasks.subjects.root + "t."
        async for page in tasks.js.walk(tasks.subjects.tasks):
            versions = [
                (stored.seq, decode(stored.payload)) for stored in page if stored.subject.startswith(prefix)
            ]
            found = [version for version in versions if matches(version[1], which)]
            if found:
                yield found

    async def query(self, which: TaskFilter, limit: int, cursor: str | None) -> Page[TaskSnapshot]:
        before = _place(cursor) if cursor else None
        found: dict[str, Version] = {}
        most = limit + 1
        async for page in self.walk(which):
            for version in page:
                # It may have come before, as it was then.
                if before is None or _order(version) < before:
                    found[version[1].id] = version
            if len(found) > 4 * most:
                newest = heapq.nlargest(most, found.values(), key=_order)
                found = {version[1].id: version for version in newest}
        newest = heapq.nlargest(most, found.values(), key=_order)
        more = len(newest) > limit
        newest = newest[:limit]
        shown = await self._show(newest)
        last = newest[-1] if newest else None
        return Page(
            [shown[document.id] for _, document in newest if document.id in shown],
            f"{last[1].born} {last[1].id}" if more and last is not None else None,
        )

    # --- counts -------------------------------------------------------------------------------------------------

    async def stats(self, queues: Sequence[str]) -> list[QueueStats]:
        await self._tasks.lines.settle_counts()
        looks = await self._tasks.lines.look(queues)
        holdings = await self._tasks.holdings.all()
        running: dict[str, int] = {}
        for holding in holdings:
            for queue, count in holding.lease.open_in().items():
                running[queue] = running.get(queue, 0) + count
        now_ms = int(self._tasks.clock.now() * 1000)
        found = {}
        for look in looks:
            delayed = await self._delayed(look, now_ms)
            waiting = sum(line.fresh + line.returned for line in look.lines.values())
            waiting += sum(bucket.count for bucket in look.buckets)
            found[look.queue] = QueueStats(
                look.queue, waiting - delayed, delayed, running.get(look.queue, 0), look.is_paused
            )
        return [found[queue] for queue in queues]

    async def _delayed(self, look: Look, now_ms: int) -> int:
        delayed = 0
        for bucket in look.buckets:
            if bucket.start_ms > now_ms:
                delayed += bucket.count
            elif bucket.end_ms > now_ms:  # the one in which we are
                hints = await self._tasks.lines.inside(bucket.subject, 1000)
                due = sum(hint.due_ms <= now_ms for hint in hints)
                delayed += bucket.count - due
        return delayed

    async def queue_names(self) -> list[str]:
        tasks = self._tasks
        prefix = tasks.subjects.root + "n."
        counts, *_ = await tasks.js.counts(tasks.subjects.tasks, prefix + "*")
        return sorted(text_of(subject[len(prefix) :]) for subject in counts)


def _order(version: Version) -> tuple[int, str]:
    return version[1].born, version[1].id


def _place(cursor: str) -> tuple[int, str]:
    born, _, task_id = cursor.partition(" ")
    return int(born), task_id


def matches(document: Document, which: TaskFilter) -> bool:
    """Whether a task is one of those that are asked for."""
    return (
        (not which.queues or document.queue in which.queues)
        and (not which.names or document.name in which.names)
        and (not which.states or STATES[document.state] in which.states)
        and (which.enqueued_after is None or document.enqueued_at >= which.enqueued_after)
        and (which.enqueued_before is None or document.enqueued_at < which.enqueued_before)
    )
