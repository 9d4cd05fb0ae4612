"""The event store: a log of its own, whose commits are read where they lie.

A cursor is ``<commit>:<index>``, the place before the event of that index among the commit's events. It stays true when
what is before it is deleted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from omniq_core import BackendError, ErrorCode, Event, EventFilter, EventStore, Outcome, Page
from omniq_file.bell import EVENTS
from omniq_file.call import Call
from omniq_file.commit import COMMIT, CRC_BYTES, piece, unpack
from omniq_file.event_machine import APPEND, TRUNCATE, Batch, EventMachine, digest_of
from omniq_file.opened import Opened

__all__ = ["FileEventStore"]

BATCHES_AT_ONCE = 64
"""Commits that are looked up at a time."""
TRIES = 4


class FileEventStore(EventStore):
    """Events of one opened backend."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        if not events:
            self._opened.clerk()
            return []
        rows = [
            (e.id, e.task_id, e.type, float(e.at), e.queue, e.name, e.worker_id, len(e.data)) for e in events
        ]
        call = Call((APPEND, rows), _as_it_is, [event.data for event in events], len(rows))
        outcomes: Sequence[Outcome] = await self._opened.do(call, events=True)
        return outcomes

    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        number, index = _parse(after)
        found: list[Event] = []
        while True:
            batches = await self._batches_from(number)
            width = max(self._opened.clerk().shelf.facts.parallel_reads, 1)
            for first in range(0, len(batches), width):
                for batch, skip, events in await self._events_of(batches[first : first + width]):
                    start = max(skip, index if batch.number == number else 0)
                    for place in range(start, len(events)):
                        if len(found) == limit:
                            return Page(found, f"{batch.number}:{place}")
                        if _matches(events[place], which):
                            found.append(events[place])
                    number, index = batch.number, len(batch.digests)
            if len(batches) < BATCHES_AT_ONCE:
                return Page(found, f"{number}:{index}")

    async def _batches_from(self, number: int) -> list[tuple[Batch, int]]:
        """The next batches, and how many events of each are truncated."""

        def look(machine: EventMachine, _: Any, __: float) -> list[tuple[Batch, int]]:
            first = machine.place_of(number)
            chosen = machine.batches[first : first + BATCHES_AT_ONCE]
            return [(batch, machine.skip if batch is machine.batches[0] else 0) for batch in chosen]

        batches: list[tuple[Batch, int]] = await self._opened.do(Call(None, look), events=True)
        return batches

    async def _events_of(self, batches: Sequence[tuple[Batch, int]]) -> list[tuple[Batch, int, list[Event]]]:
        """With the events of each; without those batches that were truncated meanwhile."""
        for _ in range(TRIES):
            datas = await self._opened.clerk().event_commits([batch.number for batch, _ in batches])
            if None not in datas:
                return [
                    (b, skip, _unpack_events(b, data))
                    for (b, skip), data in zip(batches, datas, strict=True)
                    if data
                ]
            there = {batch.number for batch, _ in await self._batches_from(batches[0][0].number)}
            batches = [pair for pair in batches if pair[0].number in there]
        raise BackendError(
            f"one of the commits {[batch.number for batch, _ in batches]} of the events is missing: its file was deleted. "
            "Restore it from a copy",
            ErrorCode.CORRUPT, "file",
        )  # fmt: skip

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        cursor = after
        while True:
            bell = self._opened.bell()
            rings = bell.rings([EVENTS])
            page = await self.read(which, after=cursor)
            for event in page.items:
                yield event
            cursor = page.cursor
            if not page.items:
                await self._opened.wait([EVENTS], 60.0, lambda: bell.rings([EVENTS]) != rings)  # noqa: B023 - used in this turn

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        number, index, left = 0, 0, limit
        while left > 0:
            batches = await self._batches_from(number + 1)
            for batch, skip in batches:
                count = len(batch.digests) - skip
                if batch.youngest < before and count <= left:
                    number, index, left = batch.number, len(batch.digests), left - count
                    continue
                for _, _, events in await self._events_of([(batch, skip)]):
                    events = events[skip : skip + left]
                    old = next((i for i, event in enumerate(events) if event.at >= before), len(events))
                    if old:
                        number, index = batch.number, skip + old
                left = 0
                break
            if len(batches) < BATCHES_AT_ONCE:
                break
        deleted: int = await self._opened.do(Call((TRUNCATE, number, index), _as_it_is), events=True)
        return deleted


def _as_it_is(_machine: Any, answer: Any, _now: float) -> Any:
    return answer


def _parse(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    number, _, index = cursor.partition(":")
    return int(number), int(index)


def _unpack_events(batch: Batch, data: bytes) -> list[Event]:
    """What counted of a commit when it was made: an id that was known already, or came twice in it, did not."""
    name = f"commit {batch.number} of the events"
    index, at = unpack(name, COMMIT, data)
    events: list[Event] = []
    for operation in index[4]:
        if operation[0] != APPEND:
            continue
        for event_id, task_id, type_, when, queue, task_name, worker_id, length in operation[1]:
            at += CRC_BYTES
            place, at = at, at + length
            if len(events) < len(batch.digests) and digest_of(event_id) == batch.digests[len(events)]:
                body = piece(data, place, length) or b""
                events.append(Event(event_id, task_id, type_, when, queue, task_name, worker_id, body))
    return events


def _matches(event: Event, which: EventFilter) -> bool:
    return (
        (not which.task_ids or event.task_id in which.task_ids)
        and (not which.types or event.type in which.types)
        and (not which.queues or event.queue in which.queues)
        and (which.since is None or event.at >= which.since)
        and (which.until is None or event.at < which.until)
    )
