"""Upkeep: taking over what ended leases held, and expiring tasks. Finished tasks go by themselves, by their time to live."""

from __future__ import annotations

import copy

import msgspec

from omniq_core import Maintained, Moved, TaskFilter, TaskState
from omniq_nats.claiming import expired
from omniq_nats.documents import CANCELLED, DEAD, PENDING, RUNNING, STATES, WORKER_LOST, Document
from omniq_nats.holdings import Holding
from omniq_nats.jetstream import CONFLICT
from omniq_nats.lines import FORGET_S
from omniq_nats.looking import Looking
from omniq_nats.tasks import Tasks

__all__ = ["Upkeep"]

REAPING_S = 10.0
"""How long one who takes over a claim's tasks has for it; then another goes on."""
AT_ONCE = 1000


class Upkeep:
    """See :meth:`omniq_core.Queue.maintain`."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def maintain(self, limit: int) -> Maintained:
        reaped, more_reaped = await self._reap(limit)
        over, more_over = await self._expire(limit)
        return Maintained([*reaped, *over], 0, more=more_reaped or more_over)

    # --- leases that have ended ---------------------------------------------------------------------------------

    async def _reap(self, limit: int) -> tuple[list[Moved], bool]:
        tasks = self._tasks
        now = await tasks.lines.now()
        ended = [holding for holding in await tasks.holdings.all() if holding.lease.ends_at <= now]
        ended.sort(key=lambda holding: holding.lease.ends_at)
        moved: list[Moved] = []
        for holding in ended:
            if len(moved) >= limit:
                return moved, True
            moved += await self._take_over(holding, now, limit - len(moved))
        return moved, len(moved) >= limit and bool(ended)

    async def _take_over(self, holding: Holding, now: float, limit: int) -> list[Moved]:
        """Gives the tasks of a claim to others; at most about ``limit`` of them."""
        tasks = self._tasks
        # From here on its owner cannot extend it. If we die, the next one goes on after a while.
        lease, seq = holding.now
        marked = msgspec.structs.replace(lease, taken_over=True, ends_at=now + REAPING_S)
        if not await tasks.holdings.rewrite(holding, seq, marked):
            return []
        entries = await tasks.holdings.entries(marked)
        found = await tasks.read([entry.task_id for entry in entries])
        final: list[tuple[Document, int]] = []
        pending: list[tuple[Document, int]] = []
        untouched: list[tuple[Document, int]] = []
        for entry in entries:
            version = found.get(entry.task_id)
            if version is None:
                continue
            seq, document = version
            if document.state == RUNNING and document.claim == marked.claim_id:
                changed = _lost(document, now)
                (pending if changed.state == PENDING else final).append((changed, seq))
            elif document.state == PENDING and document.hint == entry.hint:
                # Its claimer stopped before it took it. Written anew it is not the one that it would still take.
                untouched.append((copy.copy(document), seq))
        is_cut = len(final) + len(pending) > limit
        final = final[:limit]
        pending = pending[: limit - len(final)]
        answers: list[int] = []
        if final:
            answers += await tasks.change(final, now)
        if pending or untouched:
            answers += await tasks.make_pending(pending + untouched, now, returned=True)
        done = [
            document
            for (document, _), answer in zip(final + pending, answers, strict=False)
            if answer != CONFLICT
        ]
        if is_cut or CONFLICT in answers:
            # The rest in the next round, by whoever comes: also what its claimer has taken just now after all.
            await tasks.holdings.rewrite(
                holding, holding.now[1], msgspec.structs.replace(marked, ends_at=now)
            )
        else:
            await tasks.holdings.end(*holding.now)
        tasks.wake([document.queue for document, _ in pending + untouched])
        return [_moved(document, marked.worker_id) for document in done]

    # --- lines or claims that are gone --------------------------------------------------------------------------

    async def mend(self, looking: Looking, *, lines: bool) -> None:
        """After somebody deleted a stream: the tasks' documents tell all that stood in it."""
        tasks = self._tasks
        held = {holding.lease.claim_id for holding in await tasks.holdings.all()}
        async for page in looking.walk(TaskFilter(states=[TaskState.PENDING, TaskState.RUNNING])):
            now = await tasks.lines.now()
            changes = []
            for seq, document in page:
                if document.state == PENDING and lines:
                    changes.append((copy.copy(document), seq))
                elif document.state == RUNNING and document.claim not in held:
                    changes.append((_lost(document, now), seq))
            await tasks.make_pending([c for c in changes if c[0].state == PENDING], now, returned=False)
            await tasks.change([c for c in changes if c[0].state != PENDING], now)

    # --- tasks that were not claimed in time --------------------------------------------------------------------

    async def _expire(self, limit: int) -> tuple[list[Moved], bool]:
        tasks = self._tasks
        buckets = await tasks.lines.expiring()
        now = tasks.clock.now()
        now_ms = int(now * 1000)
        moved: list[Moved] = []
        for bucket in buckets:
            if bucket.start_ms > now_ms:
                break
            if len(moved) >= limit:
                return moved, True
            hints = await tasks.lines.inside(bucket.subject, min(AT_ONCE, limit))
            is_fine = bucket.length_ms <= 100
            looked = [hint for hint in hints if hint.due_ms <= now_ms or not is_fine]
            versions = await tasks.read([hint.task_id for hint in looked])
            over: list[tuple[Document, int]] = []
            marks: list[tuple[str, bytes]] = []
            for hint in looked:
                version = versions.get(hint.task_id)
                if version is None or version[1].expires_at is None or version[1].state != PENDING:
                    continue  # gone, or running: if it becomes pending again, it is marked again
                seq, document = version
                ends = document.expires_at or 0.0
                if ends <= now:
                    over.append((expired(document, now), seq))
                else:
                    marks.append(tasks.lines.expiry_mark(document.id, ends, now))
            answers = await tasks.change(over, now)
            ended = [
                document for (document, _), answer in zip(over, answers, strict=True) if answer != CONFLICT
            ]
            if marks:
                await tasks.lines.put(marks)
            # The mark of a task that is still on its way stays until then.
            early = {
                hint.seq
                for hint in looked
                if hint.task_id not in versions and now_ms - hint.due_ms < FORGET_S * 1000
            }
            conflicts = {d.id for (d, _), answer in zip(over, answers, strict=True) if answer == CONFLICT}
            done = [h.seq for h in looked if h.seq not in early and h.task_id not in conflicts]
            await tasks.lines.drop([*done, *(document.hint for document in ended)])
            moved += [_moved(document, None) for document in ended]
        return moved, len(moved) >= limit


def _lost(document: Document, now: float) -> Document:
    """The document of a task whose lease has ended."""
    changed = copy.copy(document)
    changed.fence += 1
    changed.crashes += 1
    changed.claim = None
    changed.reason = WORKER_LOST
    if document.cancel:
        changed.state = CANCELLED
    elif changed.crashes >= document.max_crashes:
        changed.state = DEAD
    else:
        changed.state, changed.run_at = PENDING, now
        return changed
    changed.finished_at = now
    return changed


def _moved(document: Document, worker_id: str | None) -> Moved:
    return Moved(
        document.id,
        document.queue,
        document.name,
        STATES[document.state],
        document.fence,
        document.attempt,
        document.crashes,
        document.reason,
        worker_id,
    )
