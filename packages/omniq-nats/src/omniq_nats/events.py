"""The log of events: one stream, one message per event, so a cursor is simply a sequence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from omniq_core import Closed, Event, EventFilter, EventStore, Outcome, Page
from omniq_nats.connection import Message
from omniq_nats.subjects import token
from omniq_nats.tasks import Tasks

__all__ = ["WINDOW_S", "NatsEventStore"]

WINDOW_S = 600
"""An event that is appended again within this time is known to be the same: the server keeps the ids of so long in memory.
Those who append again after a lost reply do it within seconds."""
PAGE = 1000
LOOK_AGAIN_S = 1.0

_FIELDS = tuple[str, str, str, float, str, str, str | None, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_FIELDS).decode


def _pack(event: Event) -> bytes:
    return _encode(
        (event.id, event.task_id, event.type, event.at, event.queue, event.name, event.worker_id, event.data)
    )


class NatsEventStore(EventStore):
    """See :class:`omniq_core.EventStore`."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._stream = tasks.subjects.events
        self._subject = tasks.subjects.root + "e"
        self._news = (tasks.subjects.root + "w").encode()
        self._tails: set[asyncio.Event] = set()
        self._listening = False
        self._is_closed = False

    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        if not events:
            return []
        window = []
        for event in events:
            header = b"NATS/1.0\r\nNats-Msg-Id: %s\r\n\r\n" % token(event.id).encode()
            window.append((self._subject, header, _pack(event)))
        told = await self._tasks.js.write_once(window)
        if not all(told):
            self._tasks.client.publish(self._news)
        return [Outcome.DUPLICATE if known else Outcome.OK for known in told]

    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        found: list[Event] = []
        place = int(after or 0)
        size = min(limit, PAGE)
        while len(found) < limit:
            page, more = await self._tasks.js.page(self._stream, self._subject, place, size)
            for stored in page:
                place = stored.seq
                event = Event(*_decode(stored.payload))
                if _matches(event, which):
                    found.append(event)
                    if len(found) == limit:
                        break
            if not more or not page:
                break
            size = PAGE
        return Page(found, str(place))

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        cursor = after
        news = asyncio.Event()
        self._tails.add(news)
        try:
            if not self._listening:
                self._listening = True
                await self._tasks.client.subscribe(self._news, self._heard)
            while True:
                if self._is_closed:
                    raise Closed("nats")
                news.clear()
                page = await self.read(which, after=cursor, limit=PAGE)
                for event in page.items:
                    yield event
                cursor = page.cursor or cursor
                if not page.items:
                    try:
                        async with asyncio.timeout(LOOK_AGAIN_S):
                            await news.wait()
                    except TimeoutError:
                        pass  # a message may have been lost with a connection
        finally:
            self._tails.discard(news)

    def _heard(self, _: Message) -> None:
        for news in self._tails:
            news.set()

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        doomed = place = 0
        while doomed < limit:
            page, more = await self._tasks.js.page(
                self._stream, self._subject, place, min(limit - doomed, PAGE)
            )
            old = 0
            for stored in page:
                if Event(*_decode(stored.payload)).at >= before:
                    break
                old += 1
                place = stored.seq
            doomed += old
            if old < len(page) or not more or not page:
                break
        if doomed:
            await self._tasks.js.purge(self._stream, self._subject, place + 1)
        return doomed

    def close(self) -> None:
        """Ends all tails."""
        self._is_closed = True
        for news in self._tails:
            news.set()


def _matches(event: Event, which: EventFilter) -> bool:
    return (
        (not which.task_ids or event.task_id in which.task_ids)
        and (not which.types or event.type in which.types)
        and (not which.queues or event.queue in which.queues)
        and (which.since is None or event.at >= which.since)
        and (which.until is None or event.at < which.until)
    )
