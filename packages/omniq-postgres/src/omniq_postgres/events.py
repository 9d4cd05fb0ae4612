"""The event log.

Its order is that of the commits: ``append`` takes a lock, so that no position becomes visible after a higher one. The other
way (reading only below the oldest transaction that is still running) would let one long transaction of any program on the
server hold up every reader. The lock is held for one batch; batches of a process are joined before they wait for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from omniq_core import Event, EventFilter, EventStore, Outcome, Page
from omniq_postgres.batching import Batcher
from omniq_postgres.filters import event_conditions
from omniq_postgres.notify import ANY_EVENT
from omniq_postgres.statements import APPEND, TRUNCATE

if TYPE_CHECKING:
    from omniq_postgres.backend import PostgresBackend

__all__ = ["PostgresEventStore"]


class PostgresEventStore(EventStore):
    """The event log of an opened backend."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._options = backend.options
        self._pool = backend.pool
        self._ringer = backend.ringer
        self._bell = backend.bell
        self._append = Batcher(
            self._send_append, largest=backend.limits.max_batch, at_fault=backend.is_about_items
        )

    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        self._backend.check_open()
        return await self._append(events)

    async def _send_append(self, events: Sequence[Event]) -> Sequence[Outcome]:
        first: dict[str, int] = {}
        for number, event in enumerate(events):
            first.setdefault(event.id, number)
        numbers = list(first.values())
        repeats = len(numbers) < len(events)
        chosen = [events[number] for number in numbers] if repeats else events
        kinds: dict[tuple[str, str, str, str | None], int] = {}
        kind_of = [
            kinds.setdefault((event.type, event.queue, event.name, event.worker_id), len(kinds) + 1)
            for event in chosen
        ]
        types, queues, names, workers = zip(*kinds, strict=True)
        parameters = (
            list(first),
            [event.task_id for event in chosen],
            [float(event.at) for event in chosen],
            [event.data for event in chosen],
            None if len(kinds) == 1 else kind_of,
            types,
            queues,
            names,
            workers,
        )
        if self._ringer is None:
            [(known,)] = await self._pool.run(APPEND, *parameters)
        else:
            [(known,)] = await self._ringer.run(APPEND, parameters, [ANY_EVENT])
        if not repeats and not known:
            return [Outcome.OK] * len(events)
        outcomes = [Outcome.DUPLICATE] * len(events)
        for number in numbers:
            outcomes[number] = Outcome.OK
        for place in known:
            outcomes[numbers[place - 1]] = Outcome.DUPLICATE
        return outcomes

    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        self._backend.check_open()
        start = int(after or 0)
        where, types, values = event_conditions(which, start)
        # The end of the log in the same snapshot: where a page that is not full has looked up to.
        rows = await self._pool.query(
            f"""select e.pos, e.id, e.task_id, e.type, e.at, e.queue, e.name, e.worker_id, e.data, x.last
                  from (select max(m.pos) as last from @schema.event m) x
                  left join lateral (
                    select * from @schema.event e where {where} order by e.pos limit {{}}) e on true order by e.pos""",
            [*types, "integer"],
            [*values, limit],
        )
        items = [
            Event(id_, task_id, type_, at, queue, name, worker_id, data)
            for pos, id_, task_id, type_, at, queue, name, worker_id, data, _ in rows
            if pos is not None
        ]
        last = rows[-1][0] if len(items) >= limit else rows[0][9]
        return Page(items, str(max(start, last or 0)))

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        cursor = after
        if self._options.notify:
            self._backend.listen()
        while True:
            waiter = self._bell.waiter([ANY_EVENT])
            try:
                page = await self.read(which, after=cursor)
                for event in page.items:
                    yield event
                cursor = page.cursor
                if page.items:
                    continue
                if self._options.notify:
                    await self._bell.sleep(waiter, self._options.poll_s)
                else:
                    await self._backend.pause_for(0.2)
            finally:
                self._bell.forget(waiter, [ANY_EVENT])

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        self._backend.check_open()
        [(count,)] = await self._pool.run(TRUNCATE, before, limit)
        return int(count)
