"""The log of events: one stream, one entry per event, so a cursor is simply an entry's id."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from omniq_core import Event, EventFilter, EventStore, Outcome, Page
from omniq_redis.connection import Client
from omniq_redis.options import RedisOptions

__all__ = ["RedisEventStore"]

APPENDED = {"o": Outcome.OK, "d": Outcome.DUPLICATE}
WINDOW_MS = 600_000
"""An event that is appended again within this time (up to twice it) is known to be the same. Remembering the ids of the whole
log would double it; those who append again after a lost reply do it within seconds."""
PAGE = 1000
BLOCK_S = 5.0
_AT = struct.Struct(">d")
_FIELDS = tuple[str, str, str, str, str, str | None, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_FIELDS).decode


def _pack(event: Event) -> bytes:
    # The time stands apart, for the script that truncates.
    return _AT.pack(event.at) + _encode(
        (event.id, event.task_id, event.type, event.queue, event.name, event.worker_id, event.data)
    )


def _event(raw: bytes) -> Event:
    (at,) = _AT.unpack_from(raw)
    id_, task_id, type_, queue, name, worker_id, data = _decode(memoryview(raw)[8:])
    return Event(id_, task_id, type_, at, queue, name, worker_id, data)


class RedisEventStore(EventStore):
    """See :class:`omniq_core.EventStore`.

    Args:
        client: the backend's common connection.
        options: the settings.
        new_client: makes a connection that the backend closes; a tail blocks on one of its own.
        drop_client: closes such a connection earlier.
    """

    def __init__(
        self,
        client: Client,
        options: RedisOptions,
        new_client: Callable[[], Client],
        drop_client: Callable[[Client], Any],
    ) -> None:
        self._client = client
        self._max_events = options.max_events
        self._new_client, self._drop_client = new_client, drop_client
        self._stream = client.key("ev")

    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        if not events:
            return []
        words: list[Any] = [self._max_events, WINDOW_MS]
        for event in events:
            words += (event.id, _pack(event))
        return [APPENDED[letter] for letter in (await self._client.script("append", *words)).decode()]

    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        found: list[Event] = []
        cursor = after or "0-0"
        count = min(limit, PAGE)
        while len(found) < limit:
            entries = await self._client.call("XRANGE", self._stream, f"({cursor}", "+", "COUNT", count)
            for entry_id, fields in entries:
                cursor = entry_id.decode()
                event = _event(fields[1])
                if _matches(event, which):
                    found.append(event)
                    if len(found) == limit:
                        break
            if len(entries) < count:
                break
            count = PAGE
        return Page(found, cursor)

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        cursor = after or "0-0"
        blocked: Client | None = None
        try:
            while True:
                page = await self.read(which, after=cursor, limit=PAGE)
                for event in page.items:
                    yield event
                cursor = page.cursor or cursor
                if page.items:
                    continue
                if blocked is None:
                    blocked = self._new_client()
                # Only waits; what came is read above, so that there is one way of reading.
                await blocked.call(
                    "XREAD",
                    "COUNT",
                    "1",
                    "BLOCK",
                    int(BLOCK_S * 1000),
                    "STREAMS",
                    self._stream,
                    cursor,
                    extra_s=BLOCK_S,
                )
        finally:
            if blocked is not None:
                await self._drop_client(blocked)

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        count: int = await self._client.script("truncate", repr(before), limit)
        return count


def _matches(event: Event, which: EventFilter) -> bool:
    return (
        (not which.task_ids or event.task_id in which.task_ids)
        and (not which.types or event.type in which.types)
        and (not which.queues or event.queue in which.queues)
        and (which.since is None or event.at >= which.since)
        and (which.until is None or event.at < which.until)
    )
