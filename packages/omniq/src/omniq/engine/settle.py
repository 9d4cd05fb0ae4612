"""Writing what became of tasks: in batches, for ever, and never twice.

Slots append to ``desk.finished`` and go on. One coroutine writes; while a write is under way the next batch gathers by
itself, so there is no timer and no waiting for company. Settling is idempotent, so a write that failed is simply repeated,
for as long as the worker lives; what it holds meanwhile stays leased, and the claimer stops when too much has gathered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from omniq.engine.beside import Beside
from omniq.engine.emit import Emitter
from omniq.engine.held import Desk, Held
from omniq.engine.rest import Rest
from omniq.engine.trouble import Trouble
from omniq.models import EventType
from omniq.plugins import Hooks
from omniq_core import Backend, Capability, Clock, Outcome, Settlement, Verb

__all__ = ["Settler"]

log = logging.getLogger("omniq.worker")

LARGEST_BATCH = 1000


class Settler:
    """Settles what a worker has finished.

    Args:
        desk: what the worker holds.
        backend: the queue's.
        beside: where results go that the settlement cannot carry.
        emitter: for the events.
        hooks: for ``omniq_task_finished``.
        clock: measures patience.
        call_timeout_s: a call that is not answered by then is repeated.
        most_unsettled: from how many on nothing more should be claimed.
        on_progress: called after each write.
    """

    def __init__(
        self,
        desk: Desk,
        backend: Backend,
        *,
        beside: Beside | None,
        emitter: Emitter,
        hooks: Hooks,
        clock: Clock,
        call_timeout_s: float,
        most_unsettled: int,
        on_progress: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._queue = backend.queue()
        self._beside = beside
        self._emitter = emitter
        self._on_finished = hooks.caller("omniq_task_finished")
        self._clock = clock
        self._call_timeout_s = call_timeout_s
        self._most_unsettled = most_unsettled
        self._on_progress = on_progress
        self._trouble = Trouble("settle tasks", backend, clock)
        self._largest = min(LARGEST_BATCH, backend.limits.max_batch)
        self._can_delay = Capability.DELAYED in backend.capabilities
        self._delayed: dict[Held, asyncio.TimerHandle] = {}
        self._in_flight = 0
        self._closing = False
        self._give_up_at: float | None = None
        self.rest = Rest()
        """Where the writer rests. Whoever appends to ``desk.finished`` pokes here."""

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be written that nothing more should be claimed."""
        beside = self._beside
        return (
            len(self._desk.finished) + self._in_flight > self._most_unsettled
            or self._emitter.is_behind
            or (beside is not None and (beside.is_down or beside.waiting > self._most_unsettled))
        )

    @property
    def is_writing(self) -> bool:
        """Whether a settlement is under way. ``on_progress`` tells when it is done."""
        return self._in_flight > 0

    def add(self, held: Held) -> None:
        """Takes what has a settlement."""
        settlement = held.settlement
        if settlement is not None and settlement.delay_s and not self._can_delay:
            # The store has no due times, so the task waits here, leased.
            held.settlement = msgspec.structs.replace(settlement, delay_s=0.0)
            if not self._closing:
                loop = asyncio.get_running_loop()
                self._delayed[held] = loop.call_later(settlement.delay_s, self._add_delayed, held)
                return
        self._desk.finished.append(held)
        if self.rest.is_on:
            self.rest.poke()

    def _add_delayed(self, held: Held) -> None:
        del self._delayed[held]
        self.add(held)

    # --- writing ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes until :meth:`close`."""
        finished = self._desk.finished
        while True:
            batch = finished[: self._largest]
            del finished[: self._largest]
            if self._beside is not None and not batch:
                await self._beside.finish_rest()
                batch = self._beside.due(self._largest)
            if not batch:
                left_s = None if self._beside is None else self._beside.retry_in_s()
                if self._closing and (left_s is None or self._is_out_of_time()):
                    return
                await self.rest.until_poked(left_s)
                continue
            self._in_flight = len(batch)
            try:
                await self._write(batch)
            finally:
                self._in_flight = 0
            self._on_progress()

    async def _write(self, batch: list[Held]) -> None:
        if self._beside is not None:
            batch = await self._beside.put(batch)
        if not batch:
            return
        answers = await self._settle(batch)
        self._desk.held.difference_update(batch)
        if self._beside is not None:
            await self._beside.finish(batch, answers)
        self._count(batch, answers)

    async def _settle(self, batch: list[Held]) -> Sequence[Outcome]:
        settlements = [held.settlement for held in batch if held.settlement is not None]
        while True:
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    answers = await self._queue.settle(settlements)
            except Exception as error:
                if self._trouble.is_lasting(error):
                    return await self._settle_apart(batch, error)
                pause_s = self._trouble.failed(error)
                if self._is_out_of_time():
                    log.error(
                        "%d finished tasks could not be settled before the worker stopped; they will be run again",
                        len(batch),
                    )
                    return [Outcome.STALE] * len(batch)
                await asyncio.sleep(pause_s)
            else:
                self._trouble.worked()
                return answers

    async def _settle_apart(self, batch: list[Held], error: Exception) -> Sequence[Outcome]:
        """The store refuses something in this batch, and would again: finds out what, so that the rest gets through."""
        if len(batch) > 1:
            half = len(batch) // 2
            return [*await self._settle(batch[:half]), *await self._settle(batch[half:])]
        (held,) = batch
        if held.refused:
            log.error("the store refuses to settle task %s: %s", held.claim.task_id, error)
            return [Outcome.STALE]  # the reaper will deal with it
        held.refused = True
        told = f"its outcome was refused by the store ({type(error).__name__}: {error})"[:200]
        held.settlement = Settlement(held.claim.lease, Verb.DEAD, reason=told)
        held.result = held.result_state = None
        return await self._settle(batch)

    def _is_out_of_time(self) -> bool:
        return self._give_up_at is not None and self._clock.monotonic() >= self._give_up_at

    # --- telling ------------------------------------------------------------------------------------------------

    def _count(self, batch: list[Held], answers: Sequence[Outcome]) -> None:
        counts = self._desk.counts
        ok = Outcome.OK
        if self._emitter.is_on or self._on_finished is not None:
            for held, answer in zip(batch, answers, strict=True):
                self._tell(held, answer)
        for held, answer in zip(batch, answers, strict=True):
            if answer is not ok and answer != Outcome.DUPLICATE:
                counts.stale += 1
                continue
            settlement = held.settlement
            assert settlement is not None
            verb = settlement.verb
            if verb is Verb.SUCCEED:
                counts.succeeded += 1
            elif verb is Verb.RETRY:
                counts.retried += 1
            elif verb is Verb.RELEASE:
                counts.released += 1
            elif verb is Verb.DEAD:
                counts.dead += 1
            else:
                counts.cancelled += 1

    def _tell(self, held: Held, answer: Outcome) -> None:
        settlement = held.settlement
        assert settlement is not None
        took_s = held.ended_at - held.started_at if held.started_at else None
        stale = answer is not Outcome.OK and answer != Outcome.DUPLICATE
        kind = EventType.FENCED if stale else _EVENTS[settlement.verb]
        reason = settlement.reason
        failed = settlement.verb in (Verb.RETRY, Verb.DEAD)
        self._emitter.note(
            kind,
            held.claim,
            held.ended_at or None,
            took_s,
            reason if failed else None,
            None if failed else reason,
            None if held.options is None else held.options.schedule_id,
        )
        if self._on_finished is not None and held.started_at and not stale:
            self._on_finished(
                claim=held.claim, verb=settlement.verb, error=held.error, duration_s=took_s or 0.0
            )
        held.error = None

    # --- the end ------------------------------------------------------------------------------------------------

    async def close(self, running: asyncio.Task[None], within_s: float) -> None:
        """Writes what is left, and ends ``running`` (the task of :meth:`run`)."""
        self._closing = True
        self._give_up_at = self._clock.monotonic() + within_s
        for held, timer in list(self._delayed.items()):
            timer.cancel()
            self._add_delayed(held)
        self.rest.poke()
        await asyncio.wait([running], timeout=within_s + self._call_timeout_s)
        if not running.done():
            running.cancel()
            await asyncio.wait([running])


_EVENTS = {
    Verb.SUCCEED: EventType.COMPLETED,
    Verb.RETRY: EventType.RETRY,
    Verb.DEAD: EventType.ERROR,
    Verb.RELEASE: EventType.RELEASED,
    Verb.CANCEL: EventType.CANCELLED,
}
