"""The log of events, where it is PostgreSQL's own matter; the rest is in the conformance suite."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from omniq_conformance.servers import PostgresServer
from omniq_core import Event, EventFilter, EventStore, Outcome
from omniq_postgres import PostgresBackend


def event(at: float, **fields: str | None) -> Event:
    return Event(str(uuid.uuid4()), "t", "x", at, **fields)  # type: ignore[arg-type]


def run(server: PostgresServer, schema: str, body: Callable[[EventStore], Awaitable[None]]) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(server.url, schema=schema) as backend:
            await body(backend.event_store())

    asyncio.run(main())


def test_events_of_many_kinds_come_back_as_they_were(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(store: EventStore) -> None:
        kinds = [
            {"queue": f"q{number % 3}", "name": f"n{number % 7}", "worker_id": None if number % 2 else "w"}
            for number in range(300)
        ]
        events = [event(float(number), **kind) for number, kind in enumerate(kinds)]
        assert set(await store.append(events[:200])) == {Outcome.OK}
        mixed = [*events[200:], *events[100:150], events[200]]
        assert await store.append(mixed) == [Outcome.OK] * 100 + [Outcome.DUPLICATE] * 51
        assert await store.append(events[:3]) == [Outcome.DUPLICATE] * 3
        assert (await store.read(EventFilter())).items == events
        assert (await store.read(EventFilter(since=100.0, until=103.0))).items == events[100:103]

    run(postgres_server, postgres_schema, body)


def test_an_event_of_the_future_does_not_keep_the_log_from_being_truncated(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(store: EventStore) -> None:
        wrong = [event(4e9) for _ in range(20)]
        events = [event(float(number)) for number in range(1500)]
        await store.append([*wrong, *events[:900]])
        await store.append(events[900:])
        assert await store.truncate(before=1400.0, limit=1000) == 1000
        assert await store.truncate(before=1400.0, limit=1000) == 400
        assert await store.truncate(before=1400.0, limit=1000) == 0
        left = (await store.read(EventFilter())).items
        assert left == [*wrong, *events[1400:]]

    run(postgres_server, postgres_schema, body)
