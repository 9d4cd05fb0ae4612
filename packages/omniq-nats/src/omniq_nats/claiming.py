"""Claiming: dealt hints are read, proved by their documents, and taken by compare-and-set.

The order of the writes: the claim's own record (lease, ids), then the documents, then the hints are acknowledged. Whoever
dies in between leaves a record whose lease ends, or hints that are dealt again; never a task that nobody knows of.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from omniq_core import Claim
from omniq_core import Lease as Owned
from omniq_nats.distance import Distance
from omniq_nats.documents import EXPIRED, OVER, PENDING, RUNNING, Document, decode_if
from omniq_nats.holdings import Entry, Held, Holding, Lease
from omniq_nats.jetstream import CONFLICT
from omniq_nats.lines import FORGET_S, PEEK, Bucket, Hint, Line, Look
from omniq_nats.tasks import Tasks, Version

__all__ = ["Claiming", "expired"]

MOVED_AT_ONCE = 500
PART, READ_AHEAD = 125, 2
"""A claim takes its tasks in such parts, and reads so many of them ahead: a server answers a connection's readings one after
the other, and what is written has to wait behind them."""
MOST_TURNS, MANY = 20, 200
"""How often a claim looks again when nothing of what it found did hold, and at how many."""


class Claiming:
    """See :meth:`omniq_core.Queue.claim`."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._distance = Distance()

    async def claim(
        self, queues: Sequence[str], *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> list[Claim]:
        tasks = self._tasks
        for turn in range(MOST_TURNS):
            # When nothing of what it found did hold, it looks at many, and gives back what is too much.
            wanted = max(max_tasks, MANY) if turn else max_tasks
            looks, earlier = await asyncio.gather(tasks.lines.look(queues), tasks.holdings.find(claim_id))
            if earlier is not None:
                return await self._again(earlier)
            hints: list[Hint] = []
            queue_of: list[str] = []  # of each hint
            for look in looks:
                if not look.is_paused and len(hints) < wanted:
                    await self._gather(look, wanted, hints)
                    queue_of += [look.queue] * (len(hints) - len(queue_of))
            if not hints:
                return []
            if turn:
                chosen = await self._choose(hints, max_tasks)
                hints, queue_of = [hints[i] for i in chosen], [queue_of[i] for i in chosen]
                if not hints:
                    continue
            counts = list(Counter(queue_of).items())
            lease = Lease(claim_id, worker_id, tasks.clock.now() + lease_s, secrets.token_hex(4), counts)
            entries = [Entry(hint.task_id, hint.seq) for hint in hints]
            begun = asyncio.ensure_future(tasks.holdings.begin(lease, entries))
            # In parts, so that the server works on one while we work on another.
            size = PART if turn == 0 and not tasks.js.is_slow else len(hints)
            reading = asyncio.Semaphore(READ_AHEAD)
            parts = await asyncio.gather(
                *(
                    self._take_part(
                        range(start, min(start + size, len(hints))), hints, entries, begun, reading
                    )
                    for start in range(0, len(hints), size)
                ),
                return_exceptions=True,
            )
            holding = await begun
            if holding is None:
                await tasks.lines.give_back(hints)
                continue
            claims: list[Claim] = []
            lost: list[int] = []
            for part in parts:
                if isinstance(part, BaseException):
                    raise part  # the caller repeats the claim, and gets what it took
                claims += part[0]
                lost += part[1]
            # By its fence, not by its task: of two hints of one task, one holds.
            fences = {claim.lease.fence for claim in claims}
            won = {i for i, hint in enumerate(hints) if _fence(hint.seq) in fences}
            await tasks.lines.done([hints[i] for i in sorted(won)])
            if len(won) < len(hints):
                # Somebody changed a task meanwhile, or a hint did not hold. What does hold is found anew.
                await tasks.lines.not_yet([hints[i] for i in lost], tasks.clock.now())
                await tasks.holdings.close(holding, [i for i in range(len(hints)) if i not in won])
            if claims:
                return claims
        return []

    async def _take_part(
        self,
        places: range,
        hints: Sequence[Hint],
        entries: Sequence[Entry],
        begun: asyncio.Future[Holding | None],
        reading: asyncio.Semaphore,
    ) -> tuple[list[Claim], list[int]]:
        """Proves some of a claim's hints and takes their tasks; the claims, and the places of those that others were quicker
        to take or change."""
        async with reading:
            versions = await self._read([hints[i] for i in places])
        holding = await begun
        if holding is None:
            return [], []
        good = [places[i] for i in await self._prove([hints[i] for i in places], versions)]
        return await self._take(
            holding, [entries[i] for i in good], [versions[entries[i].task_id] for i in good], good
        )

    async def _choose(self, hints: Sequence[Hint], most: int) -> list[int]:
        """The places of the first hints that hold, at most ``most``: a claim names no more tasks than were asked for, since
        whoever repeats it is given all that it names. The other hints are given back, or put right."""
        good = await self._prove(hints, await self._read(hints))
        await self._tasks.lines.give_back([hints[i] for i in good[most:]])
        return good[:most]

    async def _take(
        self,
        holding: Holding,
        entries: Sequence[Entry],
        versions: Sequence[Version],
        indexes: Sequence[int],
    ) -> tuple[list[Claim], list[int]]:
        """Makes tasks running under a claim; those that became it, and the indexes of the others."""
        tasks = self._tasks
        claim_id = holding.lease.claim_id
        claims: dict[int, Claim] = {}
        lost: list[int] = []
        todo = list(zip(indexes, entries, versions, strict=True))
        while todo:
            changes: list[tuple[Document, int]] = []
            answers = await tasks.change(_running(todo, claim_id, changes), 0.0)
            again = []
            for (index, entry, _), answer, (document, _) in zip(todo, answers, changes, strict=True):
                if answer == CONFLICT:
                    again.append((index, entry))
                else:
                    claims[index] = _claim(holding, index, document, answer)
            found = await tasks.read([entry.task_id for _, entry in again])
            todo = []
            for index, entry in again:
                version = found.get(entry.task_id)
                if version is not None and _has_taken(version[1], claim_id, entry):
                    # A repetition of this very call was quicker.
                    claims[index] = _claim(holding, index, version[1], version[0])
                elif version is not None and version[1].state == PENDING and version[1].hint == entry.hint:
                    todo.append((index, entry, version))
                else:
                    lost.append(index)
        return [claims[index] for index in sorted(claims)], lost

    async def _read(self, hints: Sequence[Hint]) -> dict[str, Version]:
        """The documents of hints, those that exist. They may be old: a compare-and-set follows."""
        tasks = self._tasks
        versions: dict[str, Version] = {}
        distance = self._distance.likely
        if distance is not None:
            guesses = [hint.seq + distance for hint in hints]
            for hint, seq, payload in zip(
                hints, guesses, await tasks.js.bare(tasks.subjects.tasks, guesses), strict=True
            ):
                document = None if payload is None else decode_if(payload)
                if document is not None and document.id == hint.task_id:
                    versions[document.id] = (seq, document)
        missing = [hint.task_id for hint in hints if hint.task_id not in versions]
        versions.update(await tasks.read(missing, fresh=False))
        self._distance.learn(
            [(hint.seq, versions[hint.task_id][0]) for hint in hints if hint.task_id in versions]
        )
        return versions

    # --- what may be taken --------------------------------------------------------------------------------------

    async def _gather(self, look: Look, most: int, hints: list[Hint]) -> None:
        """Adds the hints of one queue, by priority and age, until there are ``most``."""
        tasks = self._tasks
        now_ms = int(tasks.clock.now() * 1000)
        due = [bucket for bucket in look.buckets if bucket.start_ms <= now_ms]
        if due:
            await self._move(look, due)
        for priority in sorted(look.lines, reverse=True):
            line = look.lines[priority]
            if line.returned and len(hints) < most:
                subject = tasks.subjects.returned(look.queue, priority)
                found = await tasks.lines.inside(subject, max(PEEK, most))
                found.sort(key=lambda hint: hint.born)
                hints += found[: most - len(hints)]
            if line.fresh and len(hints) < most:
                hints += await tasks.lines.deal(look.queue, priority, most - len(hints))

    async def _prove(self, hints: Sequence[Hint], versions: dict[str, Version]) -> list[int]:
        """The places of those hints whose documents say the same. The others are put right."""
        tasks = self._tasks
        now = tasks.clock.now()
        old = [
            h.task_id for h in hints if now - h.stored_at > FORGET_S and _is_early(h, versions.get(h.task_id))
        ]
        versions.update(await tasks.read(old))  # from the leader, before anything is given up
        good: list[int] = []
        ghosts: list[Hint] = []
        early: list[Hint] = []
        over: list[tuple[Document, int]] = []
        for index, hint in enumerate(hints):
            version = versions.get(hint.task_id)
            if version is None or _is_early(hint, version):
                # If the document never comes, the writer has died.
                (ghosts if now - hint.stored_at > FORGET_S else early).append(hint)
                continue
            seq, document = version
            if document.state != PENDING or document.hint != hint.seq:
                ghosts.append(hint)
            elif document.expires_at is not None and document.expires_at <= now:
                over.append((expired(document, now), seq))
                ghosts.append(hint)
            else:
                good.append(index)
        if over:
            await tasks.change(over, now)
        if ghosts:
            await tasks.lines.done(ghosts)
        if early:
            await tasks.lines.not_yet(early, now)
        return good

    async def _move(self, look: Look, due: Sequence[Bucket]) -> None:
        """Moves what has fallen due to the end of its line, and what is near to a finer bucket."""
        tasks = self._tasks
        now = tasks.clock.now()
        now_ms = int(now * 1000)
        for bucket in sorted(due, key=lambda bucket: bucket.start_ms):
            is_coarse = bucket.length_ms > 100
            hints = await tasks.lines.inside(bucket.subject, MOVED_AT_ONCE)
            moving = [hint for hint in hints if is_coarse or hint.due_ms <= now_ms]
            if not moving:
                continue
            versions = await tasks.read([hint.task_id for hint in moving])
            changes = []
            early: set[int] = set()
            for hint in moving:
                version = versions.get(hint.task_id)
                if version is None or _is_early(hint, version):
                    if now_ms - hint.due_ms < FORGET_S * 1000:
                        early.add(hint.seq)
                elif version[1].state == PENDING and version[1].hint == hint.seq:
                    changes.append((copy.copy(version[1]), version[0]))
            if changes:
                await tasks.make_pending(changes, now, returned=False, marked=True)
            await tasks.lines.drop([hint.seq for hint in moving if hint.seq not in early])
            for document, _ in changes:
                if document.run_at <= now:
                    look.lines.setdefault(document.priority, Line()).fresh += 1

    # --- the same claim again -----------------------------------------------------------------------------------

    async def _again(self, holding: Holding) -> list[Claim]:
        """What a claim took that is still open. What its first call did not get to, is done now."""
        tasks = self._tasks
        if holding.lease.taken_over:
            return []
        entries = await tasks.holdings.entries(holding.lease)
        found = await tasks.read([entry.task_id for entry in entries])
        claims: dict[int, Claim] = {}
        indexes, waiting, versions, others = [], [], [], []
        for index, entry in enumerate(entries):
            version = found.get(entry.task_id)
            if version is None:
                continue
            seq, document = version
            if _has_taken(document, holding.lease.claim_id, entry):
                claims[index] = _claim(holding, index, document, seq)
            elif document.state == PENDING and document.hint == entry.hint:
                indexes.append(index)
                waiting.append(entry)
                versions.append(version)
            else:
                others.append(index)
        more, lost = await self._take(holding, waiting, versions, indexes)
        places = {_fence(entry.hint): index for index, entry in enumerate(entries)}
        claims.update((places[claim.lease.fence], claim) for claim in more)
        # What is settled, or somebody else's. No write of the first call can take it any more: its document has changed.
        await tasks.holdings.close(holding, others + lost)
        # The first call may not have got to it.
        await tasks.lines.drop([entries[index].hint for index in claims])
        return [claims[index] for index in sorted(claims)]


def _fence(hint: int) -> int:
    """The fence of who claims a task by a hint. The sequence of its hint rises with each time that the task is put into line,
    and never comes again, not even after a purge. Twice that, so that a take-over, which adds one, stays below the next."""
    return 2 * hint


def _has_taken(document: Document, claim_id: str, entry: Entry) -> bool:
    """Whether a task runs under a claim, by this very entry: its claim may name a task twice, by hints of which one holds."""
    return document.state == RUNNING and document.claim == claim_id and document.fence == _fence(entry.hint)


def _is_early(hint: Hint, version: Version | None) -> bool:
    """Whether a hint's document is still on its way: the hint goes first. (A replica may lag behind as well.)"""
    return version is None or version[1].hint < hint.seq


def _running(
    todo: Sequence[tuple[int, Entry, Version]], claim_id: str, changes: list[tuple[Document, int]]
) -> Iterator[tuple[Document, int]]:
    """The documents of tasks that become running, one after the other; they are noted in ``changes``."""
    for _, entry, (seq, document) in todo:
        changed = msgspec.structs.replace(
            document,
            state=RUNNING,
            claim=claim_id,
            fence=_fence(entry.hint),
            attempt=document.attempt + 1,
        )
        change = changed, seq
        changes.append(change)
        yield change


def _claim(holding: Holding, index: int, document: Document, seq: int) -> Claim:
    return Claim(
        document.id, document.queue, document.name, document.body, document.attempt, document.crashes,
        document.max_attempts, document.max_crashes, document.enqueued_at,
        Owned(document.id, document.fence, holding.lease.ends_at, Held(holding, index, document, seq)),
    )  # fmt: skip


def expired(document: Document, now: float) -> Document:
    """The document of a task that was not claimed in time."""
    changed = copy.copy(document)
    changed.state, changed.finished_at, changed.reason = OVER, now, EXPIRED
    return changed
