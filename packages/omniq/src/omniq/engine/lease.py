"""Keeping what the worker holds: one thread that extends every lease, whatever the tasks do to the event loop.

A lease says until when nobody else is given a task. Time makes a take-over *possible*; who may still write is decided by
the fence alone, in the store. So this file cannot make anything correct that the fence does not already; it keeps work from
being done twice, and stops work that is no longer ours.

**Why a thread.** A task that computes for a minute on the event loop, or calls something that blocks, must not lose its
lease, and with it those of all its neighbours. So extending happens on a thread of its own, with an event loop and a
connection of its own (a *twin* of the queue's backend), and needs nothing of the worker's loop.

**How often.** Every third of a lease, give or take a tenth so that a fleet does not beat in step: two beats may fail before
anything is lost. One call carries everything that is held, ready and finished tasks included. When a beat fails, the next
ones follow five times as fast.

**How far a lease is trusted.** Until ``sent + lease - margin`` on this machine's monotonic clock, where *sent* is read
before the call goes out: the store's clock starts the lease later than that, so a slow answer never stretches it, and a
change of wall time means nothing. When trust ends without an answer, or the store answers ``STALE``, the run is cancelled
and whatever comes of it is dropped. A run that had *finished* is settled all the same, however late: the fence decides.

**What is not extended.** A run past its time-out by a whole lease: its worker's loop is blocked, or it does not let itself
be cancelled. Somebody else may have it then.

**What it shares.** It reads snapshots of the desk, and writes ``Held.trusted_until``, one float. Everything else (a lost
lease, a request to cancel, which travels in the answers) is handed to the worker's loop. The thread is a daemon: a worker
that is killed leaves nothing that would go on extending.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from omniq.engine.held import Desk, Held
from omniq.engine.trouble import Trouble
from omniq.stores import acquire, release
from omniq_core import Backend, Clock, Outcome
from omniq_core.native import Thread, make_thread

__all__ = ["LeaseKeeper"]

log = logging.getLogger("omniq.worker")


class LeaseKeeper:
    """Extends the leases of one worker.

    Args:
        backend: the queue's, as the program made it; the thread opens a twin.
        desk: what is held.
        lease_s: the length of a lease.
        margin_s: how long before its end it is no longer trusted.
        clock: read for ``monotonic()``.
        on_lost: called on the worker's loop with a task that is lost, and why.
        on_cancel: called on the worker's loop with a task whose cancellation was requested.
    """

    def __init__(
        self,
        backend: Backend,
        desk: Desk,
        *,
        lease_s: float,
        margin_s: float,
        clock: Clock,
        on_lost: Callable[[Held, str], None],
        on_cancel: Callable[[Held], None],
    ) -> None:
        self._backend = backend
        self._desk = desk
        self._lease_s = lease_s
        self._margin_s = margin_s
        self._clock = clock
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._trouble = Trouble("extend leases", backend, clock)
        self._thread: Thread | None = None
        self._worker_loop: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._is_stopping = False
        self._ended: asyncio.Future[None] | None = None
        self._pulse_sent_at: float | None = None

    # --- on the worker's loop -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread."""
        self._worker_loop = asyncio.get_running_loop()
        self._ended = self._worker_loop.create_future()
        self._thread = make_thread(self._run, name="omniq-leases")
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread, or leaves it behind should its backend hang."""
        self._is_stopping = True
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:  # it has ended already
                pass
        if self._ended is not None:
            await asyncio.wait([self._ended], timeout=5.0)
            if self._ended.done() and self._thread is not None:
                self._thread.join(timeout=1.0)  # it has nothing left to do

    def trust_after(self, sent_at: float) -> float:
        """Until when a lease that was asked for at ``sent_at`` is trusted."""
        return sent_at + self._lease_s - self._margin_s

    # --- on the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except Exception:
            log.exception("the thread that extends leases has failed; this worker will lose what it runs")
        finally:
            self._tell(self._set_ended)

    def _set_ended(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        loop = self._worker_loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the worker's loop is closed: nobody is interested any more
            self._is_stopping = True

    async def _keep(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        twin: Backend | None = None
        beat_s = self._lease_s / 3
        pause_s = beat_s * random.uniform(0.9, 1.1)
        try:
            while not await self._sleep(pause_s):
                self._watch_worker(beat_s)
                held = self._worth_extending()
                pause_s = beat_s * random.uniform(0.9, 1.1)
                try:
                    if twin is None and held:
                        # Opened when it is first needed: a worker that runs for a moment pays no connection for it.
                        async with asyncio.timeout(beat_s):
                            twin = await acquire(self._backend)
                    if twin is not None and held:
                        await self._extend(twin, held, beat_s)
                except Exception as error:
                    self._trouble.failed(error)
                    pause_s = beat_s / 5
                else:
                    self._trouble.worked()
                self._drop_untrusted()
                if self._trouble.is_on:
                    pause_s = beat_s / 5
        finally:
            if twin is not None:
                await release(self._backend)

    async def _sleep(self, pause_s: float) -> bool:
        """Sleeps in real time; whether the thread should end."""
        assert self._wake is not None
        if not self._is_stopping:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
        return self._is_stopping

    def _worth_extending(self) -> list[Held]:
        now = self._clock.monotonic()
        return [
            held
            for held in self._desk.snapshot()
            if not held.lost and (held.deadline is None or now < held.deadline + self._lease_s)
        ]

    async def _extend(self, backend: Backend, held: Sequence[Held], timeout_s: float) -> None:
        queue, most = backend.queue(), backend.limits.max_batch
        for start in range(0, len(held), most):
            chunk = held[start : start + most]
            sent_at = self._clock.monotonic()
            async with asyncio.timeout(timeout_s):
                answers = await queue.extend([one.claim.lease for one in chunk], lease_s=self._lease_s)
            trusted_until = self.trust_after(sent_at)
            for one, answer in zip(chunk, answers, strict=True):
                if answer.outcome is not Outcome.OK:
                    if one.settlement is None:  # a settled one is stale because it was settled meanwhile
                        self._tell(self._on_lost, one, "somebody else has it")
                    continue
                one.trusted_until = trusted_until
                if answer.cancel_requested and not one.cancel_requested:
                    self._tell(self._on_cancel, one)

    def _drop_untrusted(self) -> None:
        now = self._clock.monotonic()
        for held in self._desk.snapshot():
            if held.trusted_until <= now and not held.lost and held.settlement is None:
                self._tell(self._on_lost, held, "its lease could not be extended in time")

    def _watch_worker(self, beat_s: float) -> None:
        """Says so when the worker's loop did not come round for a whole beat."""
        now = self._clock.monotonic()
        if self._pulse_sent_at is None:
            self._pulse_sent_at = now
            self._tell(self._answer_pulse)
        elif now - self._pulse_sent_at > beat_s:
            names = sorted({held.claim.name for held in self._desk.snapshot() if held.started_at})
            log.warning(
                "the worker's event loop has been blocked for %.1f s; among %s is one that blocks: make it a plain "
                "function, or use a process pool",
                now - self._pulse_sent_at,
                ", ".join(names[:10]) or "no task",
            )

    def _answer_pulse(self) -> None:
        self._pulse_sent_at = None
