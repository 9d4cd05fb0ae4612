"""The event store: a log in the order of commits.

The number of an event is drawn within the transaction that writes it, and SQLite has one writer at a time. So a lower number
is never committed after a higher one, and a cursor, which is the last number that was looked at, skips nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence

import msgspec

from omniq_core import Event, EventFilter, EventStore, Outcome, Page
from omniq_sqlite.connection import Storage
from omniq_sqlite.lockfile import EVENT
from omniq_sqlite.moves import IN
from omniq_sqlite.statements import Rows, Transaction, encode, hex_if_small, unpack

__all__ = ["SQLiteEventStore"]

SLICE = 10_000
"""Events that one look walks over."""
EVENTS = Rows(
    "insert into omniq_event(no, id, task_id, type, at, queue, name, worker_id, data)",
    "(@, @, @, @, @, @, @, @, @)",
    "on conflict(id) do nothing",
)
INSERTED = "select json_group_array(no) from omniq_event where no between ? and ?"
# quote() writes a float so that reading it gives the same float; JSON would have 15 digits of it.
READ = f"""select json_group_array(json_array(no, id, task_id, type, quote(at), queue, name, worker_id, size)),
  group_concat(digits, '') from (select e.*, length(e.data) as size, {hex_if_small("e.data")} as digits
  from omniq_event e where no > ? and no <= ?"""
LARGE = "select data from omniq_event where no = ?"
LAST = "select coalesce(max(no), 0) from omniq_event"
END_OF_SLICE = "select no from omniq_event where no > ? order by no limit 1 offset ?"
TRUNCATE = """delete from omniq_event where no in (select no from (select no, at from omniq_event order by no limit ?)
  where at < ? order by no limit ?)"""

_rows = msgspec.json.Decoder(list[tuple[int, str, str, str, str, str, str, str | None, int]])
_numbers = msgspec.json.Decoder(set[int])


def append(tx: Transaction, events: Sequence[Event]) -> list[Outcome]:
    """Adds the events that are new."""
    if not events:
        return []
    first = tx.take("event", len(events))
    values: list[object] = []
    for number, event in enumerate(events, first):
        values += (
            number, event.id, event.task_id, event.type, float(event.at), event.queue, event.name, event.worker_id,
            event.data,
        )  # fmt: skip
    inserted = EVENTS.run(tx, values)
    if inserted:
        tx.rings |= EVENT
    if inserted == len(events):
        return [Outcome.OK] * inserted
    stored = _numbers.decode(tx.row(INSERTED, (first, first + len(events) - 1))[0])
    return [Outcome.OK if first + index in stored else Outcome.DUPLICATE for index in range(len(events))]


def read_slice(
    connection: sqlite3.Connection, which: EventFilter, after: int, limit: int
) -> tuple[list[Event], int, bool]:
    """Some of the events after a place, the place that was reached, and whether the log ends there."""
    conditions: list[str] = []
    values: list[object] = []
    for column, wanted in (("task_id", which.task_ids), ("type", which.types), ("queue", which.queues)):
        if wanted:
            conditions.append(f"{column} {IN}")
            values.append(encode(wanted))
    for comparison, bound in (("at >= ?", which.since), ("at < ?", which.until)):
        if bound is not None:
            conditions.append(comparison)
            values.append(bound)
    last = connection.execute(LAST).fetchall()[0][0]
    if last <= after:
        return [], after, True
    if not which.task_ids:  # those of a task are found by its index, however long the log is
        end = connection.execute(END_OF_SLICE, (after, SLICE - 1)).fetchall()
        until = end[0][0] if end else last
    else:
        until = last
    also = "".join(f" and {condition}" for condition in conditions)
    statement = f"{READ}{also} order by no limit ?)"
    text, digits = connection.execute(statement, (after, until, *values, limit)).fetchall()[0]
    rows = _rows.decode(text)
    events = []
    for row, data in zip(rows, unpack([row[-1] for row in rows], digits), strict=True):
        number, event_id, task_id, kind, at, queue, name, worker_id, _ = row
        if data is None:
            data = connection.execute(LARGE, (number,)).fetchall()[0][0]
        events.append((number, Event(event_id, task_id, kind, float(at), queue, name, worker_id, data)))
    events.sort(key=lambda pair: pair[0])
    if len(events) == limit:
        until = events[-1][0]
    return [event for _, event in events], until, until >= last


class SQLiteEventStore(EventStore):
    """The log in the file."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        return await self._storage.write_joined(append, events)

    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        place = int(after or 0)
        found: list[Event] = []
        is_end = False
        while not is_end and len(found) < limit:
            some, place, is_end = await self._storage.read(read_slice, which, place, limit - len(found))
            found += some
        return Page(found, str(place))

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        watcher = self._storage.watcher
        cursor = after
        self._storage.check()
        ticket = watcher.join(EVENT)
        try:
            while True:
                page = await self.read(which, after=cursor)
                for event in page.items:
                    yield event
                cursor = page.cursor
                if not page.items:
                    await ticket.wait(60.0)
        finally:
            watcher.leave(ticket)

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        # Clocks of emitters differ a little, so a younger event may stand before an older one; a whole table is not
        # searched for such.
        return await self._storage.write(lambda tx: tx.run(TRUNCATE, (2 * limit + 1000, before, limit)))
