"""What clients note in the event log: enqueued, cancelled, requeued. Behind the call, never in its way.

(The worker's own log is :mod:`omniq.engine.emit`: it lives as long as the worker and knows claims. This one has nothing
to start: a writer exists only while something is waiting to be written.)

A producer that is faster than its event store waits for it, so that a store that works gets every event. One that is down
slows nothing but for that one second: the buffer is bounded, and what does not fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from omniq.ids import new_id
from omniq.models import EventType
from omniq_core import Backend, Event, EventStore, redact

__all__ = ["Journal"]

log = logging.getLogger("omniq")

MOST_WAITING = 20_000
COMFORTABLE = 5_000
"""A producer waits while more than this is to be written."""
PATIENCE_S = 1.0
"""How long a producer waits for the store, and how long a store that let it wait in vain is not waited for."""
LARGEST_BATCH = 500
TRIES = 4
FIRST_PAUSE_S = 0.1

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Journal:
    """Writes events on the loop that it was made on.

    Args:
        store: the event store, opened.
        backend: whose it is.
    """

    def __init__(self, store: EventStore, backend: Backend) -> None:
        self._store = store
        self._backend = backend
        self._waiting: list[Event] = []
        self._writing: asyncio.Task[None] | None = None
        self._hopeless_until = float("-inf")
        self.dropped = 0

    def note(self, kind: EventType, task_id: str, *, queue: str = "", name: str = "", **data: Any) -> None:
        """Notes that something happened now. Returns at once.

        Args:
            kind: what.
            task_id: the task.
            queue: its queue.
            name: its name.
            data: more about it, as JSON.
        """
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        at = self._backend.clock.time()
        self._waiting.append(
            Event(new_id(), task_id, kind.value, at, queue, name, None, _encode(data) if data else b"{}")
        )
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def catch_up(self) -> None:
        """Waits until little enough is to be written, for a while, unless waiting was in vain just before."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        while (
            len(self._waiting) > COMFORTABLE
            and self._writing is not None
            and loop.time() > self._hopeless_until
        ):
            before = len(self._waiting)
            await asyncio.wait([self._writing], timeout=0.02)
            if loop.time() >= end and len(self._waiting) >= before:
                self._hopeless_until = loop.time() + PATIENCE_S

    async def _write(self) -> None:
        largest = min(LARGEST_BATCH, self._backend.limits.max_batch)
        try:
            while self._waiting:
                batch = self._waiting[:largest]
                del self._waiting[:largest]
                await self._append(batch)
        finally:
            self._writing = None

    async def _append(self, batch: list[Event]) -> None:
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                await self._store.append(batch)
                return
            except Exception as error:
                if not left or not self._backend.classify(error).is_retryable:
                    self.dropped += len(batch)
                    text = redact(f"{type(error).__name__}: {error}")
                    log.warning(
                        "%d events were dropped; %r does not take them: %s", len(batch), self._backend, text
                    )
                    return
                await asyncio.sleep(pause_s)
                pause_s *= 2

    async def flush(self, within_s: float = 5.0) -> None:
        """Waits until everything noted so far is written or dropped, at most so long."""
        writing = self._writing
        if writing is not None:
            await asyncio.wait([writing], timeout=within_s)
            if not writing.done():
                writing.cancel()
                await asyncio.wait([writing])
        self.dropped += len(self._waiting)
        self._waiting.clear()
