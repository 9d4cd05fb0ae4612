"""Settling and extending: a worker's writes. Each is a compare-and-set against the very document that its claim wrote, so a
former owner's write fails by itself; what it was, the newer document tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from omniq_core import Extension, Outcome, Settlement, Verb
from omniq_core import Lease as Owned
from omniq_nats.documents import CANCELLED, DEAD, PENDING, RUNNING, SUCCEEDED, Document, text
from omniq_nats.holdings import Held, Holding
from omniq_nats.jetstream import CONFLICT
from omniq_nats.tasks import Tasks, Version

__all__ = ["Settling"]

OK, DUPLICATE, STALE = Outcome.OK, Outcome.DUPLICATE, Outcome.STALE
FINAL = {Verb.SUCCEED: SUCCEEDED, Verb.DEAD: DEAD, Verb.CANCEL: CANCELLED}


class Settling:
    """See :meth:`omniq_core.Queue.settle` and ``extend``."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        tasks = self._tasks
        answers: dict[int, Outcome] = {}
        closed: list[tuple[Owned, str | None]] = []
        now = await tasks.lines.now()
        left = list(range(len(settlements)))
        unread: set[str] = set()
        queues: list[str] = []
        while left:
            turn, later = _first_of_each(settlements, left)
            versions = self._held(settlements, turn, unread)
            missing = [
                settlements[i].lease.task_id for i in turn if settlements[i].lease.task_id not in versions
            ]
            versions.update(await tasks.read(missing))
            final: list[tuple[int, Document, int]] = []
            pending: list[tuple[int, Document, int]] = []
            for index in turn:
                settlement = settlements[index]
                lease = settlement.lease
                version = versions.get(lease.task_id)
                if version is None:
                    answers[index] = Outcome.NOT_FOUND
                    continue
                seq, document = version
                if document.state != RUNNING or document.fence != lease.fence:
                    answers[index] = DUPLICATE if document.settled == lease.fence else STALE
                    if answers[index] is DUPLICATE:
                        closed.append((lease, None))
                    continue
                changed = self._settled(document, settlement, now)
                (pending if changed.state == PENDING else final).append((index, changed, seq))
            found = []
            if final:
                has_results = any(document.result is not None for _, document, _ in final)
                found += await tasks.change(
                    [(document, seq) for _, document, seq in final], now, tell=has_results
                )
            if pending:
                found += await tasks.make_pending(
                    [(document, seq) for _, document, seq in pending], now, returned=True
                )
            left = later
            for (index, document, _), answer in zip(final + pending, found, strict=True):
                unread.add(document.id)
                if answer == CONFLICT:
                    left.append(
                        index
                    )  # a request to cancel came in between, or we own it no more: the document tells
                    continue
                answers[index] = OK
                closed.append((settlements[index].lease, versions[document.id][1].claim))
                if document.state == PENDING:
                    queues.append(document.queue)
        tasks.wake(queues)
        await self._close(closed)
        return [answers[index] for index in range(len(settlements))]

    @staticmethod
    def _held(settlements: Sequence[Settlement], turn: Iterable[int], unread: set[str]) -> dict[str, Version]:
        """The documents that their owners have, and so need not be read."""
        versions = {}
        for index in turn:
            lease = settlements[index].lease
            held = lease.handle
            if isinstance(held, Held) and lease.task_id not in unread:
                document = held.document
                if document.id == lease.task_id and document.fence == lease.fence:
                    versions[document.id] = (held.seq, document)
        return versions

    @staticmethod
    def _settled(document: Document, settlement: Settlement, now: float) -> Document:
        verb, result = settlement.verb, settlement.result
        state, attempt = FINAL.get(verb), document.attempt
        if state is None:
            if verb is Verb.RELEASE:
                attempt -= 1
            state = CANCELLED if document.cancel else PENDING
        changed = msgspec.structs.replace(
            document,
            state=state,
            attempt=attempt,
            crashes=document.crashes + settlement.crashed,
            settled=document.fence,
            claim=None,
            reason=text(settlement.reason),
            error=settlement.error,
        )
        if state == PENDING:
            changed.run_at = now + settlement.delay_s if settlement.delay_s > 0 else now
            return changed
        changed.finished_at = now
        changed.result = result
        ttl_s = settlement.result_ttl_s
        changed.result_ends_at = now + ttl_s if result is not None and ttl_s is not None else None
        return changed

    async def _close(self, closed: Sequence[tuple[Owned, str | None]]) -> None:
        """Notes on the claims what is settled."""
        holdings = self._tasks.holdings
        by_holding: dict[int, tuple[Holding, list[int]]] = {}
        strangers: dict[str, list[str]] = {}
        for lease, claim_id in closed:
            held = lease.handle
            if isinstance(held, Held) and held.document.id == lease.task_id:
                by_holding.setdefault(id(held.holding), (held.holding, []))[1].append(held.index)
            elif claim_id is not None:
                strangers.setdefault(claim_id, []).append(lease.task_id)
        for holding, indexes in by_holding.values():
            await holdings.close(holding, indexes)
        for claim_id, task_ids in strangers.items():
            found = await holdings.find(claim_id)
            if found is not None:
                entries = await holdings.entries(found.lease)
                await holdings.close(
                    found, [i for i, entry in enumerate(entries) if entry.task_id in task_ids]
                )

    async def extend(self, leases: Sequence[Owned], *, lease_s: float) -> list[Extension]:
        tasks = self._tasks
        until = await tasks.lines.now() + lease_s
        versions = await tasks.read(list({lease.task_id for lease in leases}))
        owned: dict[str, None] = {}
        for lease in leases:
            version = versions.get(lease.task_id)
            if version is not None and _owns(version[1], lease) and version[1].claim is not None:
                owned[version[1].claim] = None
        known = {
            lease.handle.holding.lease.claim_id: lease.handle.holding
            for lease in leases
            if isinstance(lease.handle, Held)
        }
        ends: dict[str, float] = {}
        for claim_id in owned:
            end = await self._extend(claim_id, known.get(claim_id), until)
            if end is not None:
                ends[claim_id] = end
        answers = []
        for lease in leases:
            version = versions.get(lease.task_id)
            claim = version[1].claim if version is not None and _owns(version[1], lease) else None
            if version is None or claim is None or claim not in ends:
                answers.append(Extension(STALE))
            else:
                answers.append(Extension(OK, ends[claim], version[1].cancel))
        return answers

    async def _extend(self, claim_id: str, holding: Holding | None, until: float) -> float | None:
        """Extends one claim; its end, or ``None`` if others have its tasks."""
        holdings = self._tasks.holdings
        if holding is None:
            holding = await holdings.find(claim_id)
        while holding is not None and not holding.lease.taken_over:
            lease, seq = holding.now
            changed = msgspec.structs.replace(lease, ends_at=max(until, lease.ends_at))
            if await holdings.rewrite(holding, seq, changed):
                return changed.ends_at
            if not await holdings.refresh(holding):
                return None
        return None


def _owns(document: Document, lease: Owned) -> bool:
    return document.state == RUNNING and document.fence == lease.fence


def _first_of_each(settlements: Sequence[Settlement], indexes: Sequence[int]) -> tuple[list[int], list[int]]:
    """One settlement of each task, and the rest."""
    seen: set[str] = set()
    turn: list[int] = []
    rest: list[int] = []
    for index in indexes:
        task_id = settlements[index].lease.task_id
        (rest if task_id in seen else turn).append(index)
        seen.add(task_id)
    return turn, rest
