"""The log of what happened to tasks."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from omniq_core.capabilities import Capability
from omniq_core.errors import Unsupported
from omniq_core.records import Event, EventFilter, Outcome, Page

__all__ = ["EventStore"]


class EventStore(Protocol):
    """An append-only log. The rules in :mod:`omniq_core.backend` hold for every method."""

    @abstractmethod
    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        """Adds events in the order given: ``OK``, or ``DUPLICATE`` for an id that is there (or came earlier in the
        batch), which changes nothing."""
        ...

    @abstractmethod
    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        """Events in the order of the log, oldest first.

        ``Page.cursor`` marks the place after the last item; it is given also when nothing follows *yet*, so that a
        reader can come back with it. An event that was appended later, by any process, is never placed before a
        cursor that was handed out: a reader that follows the cursors sees everything once.

        Args:
            which: see :class:`~omniq_core.records.EventFilter`.
            after: a cursor of an earlier page with the same filter; ``None``: from the beginning.
            limit: most items, at least 1.
        """
        ...

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        """Follows the log for ever. Ends when the caller closes the iterator; raises ``Closed`` once the backend is
        closed.

        The default reads every 200 ms; declare ``EVENT_TAIL`` where it is better.
        """
        cursor = after
        while True:
            page = await self.read(which, after=cursor)
            for event in page.items:
                yield event
            cursor = page.cursor or cursor
            if not page.items:
                await asyncio.sleep(0.2)

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        """Deletes events with ``at < before`` from the beginning of the log, at most ``limit``; how many
        (``EVENT_TRUNCATE``). One that stands behind a younger one (clocks differ) may stay until that has gone."""
        raise Unsupported(Capability.EVENT_TRUNCATE)
