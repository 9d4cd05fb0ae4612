"""The log of events: noted while the work goes on, written behind it.

Events come after the fact, in the order in which things happened here. A store that is slow or down slows nothing: the
buffer is bounded, and what does not fit is dropped and counted. A store that works gets every event: while much is to be
written, the worker claims nothing new.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from omniq.engine.rest import Rest
from omniq.engine.trouble import Trouble
from omniq.ids import new_id
from omniq.models import EventType
from omniq_core import Backend, Claim, Clock, Event, EventStore, Moved

__all__ = ["Emitter"]

log = logging.getLogger("omniq.worker")

MOST_WAITING = 20_000
COMFORTABLE = 5_000
"""Nothing new is claimed while more than this is to be written to a store that works."""
PATIENCE_S = 1.0
"""A store that has not answered for so long is not waited for."""
LARGEST_BATCH = 1000
CALL_TIMEOUT_S = 10.0


class _Data(msgspec.Struct, omit_defaults=True, gc=False):
    """What an event says, as :class:`omniq.models.TaskEvent` reads it."""

    attempt: int
    execution_time: float | None = None
    error: str | None = None
    message: str | None = None
    schedule_id: str | None = None


class _Noted(msgspec.Struct, gc=False):
    """What happened, until it is written. Thousands of them may wait, and the garbage collector need not look at them."""

    kind: EventType
    about: Claim | Moved
    at: float
    data: _Data
    more: dict[str, Any]


class Emitter:
    """Writes the events of one worker.

    Args:
        store: the event store; ``None``: nothing is noted at all.
        backend: whose store it is.
        worker_id: this worker.
        clock: for ``Event.at``.
    """

    def __init__(
        self, store: EventStore | None, backend: Backend | None, *, worker_id: str, clock: Clock
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._clock = clock
        self._waiting: list[_Noted] = []
        self._rest = Rest()
        self._closing = False
        self.is_on = store is not None
        """Look here before gathering what an event would say."""
        self.dropped = 0
        self._sent_at: float | None = None
        self.on_progress: Callable[[], None] = lambda: None
        """Called after each write."""
        if store is not None and backend is not None:
            self._trouble = Trouble("append events", backend, clock)
            self._largest = min(LARGEST_BATCH, backend.limits.max_batch)

    def note(
        self,
        kind: EventType,
        about: Claim | Moved,
        at: float | None = None,
        execution_time: float | None = None,
        error: str | None = None,
        message: str | None = None,
        schedule_id: str | None = None,
        **more: Any,
    ) -> None:
        """Notes that something happened.

        Args:
            kind: what.
            about: the task.
            at: when, by the wall clock; now by default.
            execution_time: how long its run took, in seconds.
            error: what went wrong.
            message: what else there is to say.
            schedule_id: the schedule that it came from.
            more: anything else.
        """
        if not self.is_on:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        data = _Data(about.attempt, execution_time, error, message, schedule_id)
        self._waiting.append(_Noted(kind, about, at or self._clock.time(), data, more))
        if self._rest.is_on:
            self._rest.poke()

    @property
    def is_behind(self) -> bool:
        """Whether a store that works has so much to be written that nothing more should be claimed."""
        if len(self._waiting) <= COMFORTABLE or self._trouble.is_on:
            return False
        return self._sent_at is None or self._clock.monotonic() < self._sent_at + PATIENCE_S

    async def run(self) -> None:
        """Writes until :meth:`close`."""
        store = self._store
        if store is None:
            return
        while True:
            if not self._waiting:
                if self._closing:
                    return
                await self._rest.until_poked()
                await asyncio.sleep(0)  # let what happens in this turn of the loop come along
                continue
            batch = [self._event(noted) for noted in self._waiting[: self._largest]]
            del self._waiting[: self._largest]
            while True:
                self._sent_at = self._clock.monotonic()
                try:
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await store.append(batch)
                except Exception as error:
                    pause_s = self._trouble.failed(error)
                    if self._closing or self._trouble.is_lasting(error):
                        self.dropped += len(batch)
                        break
                    await asyncio.sleep(pause_s)
                else:
                    self._trouble.worked()
                    self._sent_at = None
                    self.on_progress()
                    break

    def _event(self, noted: _Noted) -> Event:
        about, encoded = noted.about, _encode(noted.data)
        if noted.more:
            encoded = encoded[:-1] + b"," + _encode(noted.more)[1:]  # two objects, neither empty, become one
        return Event(
            new_id(),
            about.task_id,
            noted.kind._value_,
            noted.at,
            about.queue,
            about.name,
            self._worker_id,
            encoded,
        )

    async def close(self, running: asyncio.Task[None], within_s: float) -> None:
        """Lets ``running`` (the task of :meth:`run`) write what is waiting, and ends it."""
        self._closing = True
        self._rest.poke()
        await asyncio.wait([running], timeout=within_s)
        if not running.done():
            running.cancel()
            await asyncio.wait([running])
        self.dropped += len(self._waiting)
        self._waiting.clear()
        if self.dropped:
            log.warning("%d events were dropped, as the event store did not take them in time", self.dropped)


_encoder = msgspec.json.Encoder(enc_hook=str)
_encode: Callable[[object], bytes] = _encoder.encode
