"""The slots in which tasks run, and how a run is interrupted.

A slot is one long-lived coroutine that takes what is ready, one after the other; there is no asyncio task per run, which
would halve the rate. What follows from that, and is kept here:

* A run is interrupted by cancelling its *slot*. That is done only while the slot is suspended in that very run
  (``Slot.held``), and every cancellation that is left over when a run ends is taken back, so that none hits the next one.
* Slots that find much to do give the event loop back after a millisecond, all of them together.
* Nothing that a message holds, and nothing that a function raises, ends a slot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from omniq.codec import Envelope, decode_arguments, decode_call
from omniq.context import TaskContext, running_task
from omniq.engine.claim import Claimer
from omniq.engine.emit import Emitter
from omniq.engine.ending import Endings
from omniq.engine.held import Desk, Held, Slot
from omniq.engine.settle import Settler
from omniq.engine.turn import Turn, calm
from omniq.engine.watchdog import Watchdog
from omniq.middleware import Middleware, surround
from omniq.models import EventType
from omniq.outcome import Ending
from omniq.runners.coroutine import drive, run_in
from omniq.runners.runner import Call, Runner
from omniq.task import TaskDefinition, TaskRegistry
from omniq_core import SYSTEM_CLOCK, Clock, Settlement, Verb

__all__ = ["Slots"]

log = logging.getLogger("omniq.worker")

STUBBORN_S = 5.0
"""A run that has not ended so long after it was cancelled is named in the log, and cancelled once more."""


class Slots:
    """Runs what is ready.

    Args:
        desk: what the worker holds.
        registry: the functions that it knows.
        runner: where functions run.
        endings: turns ends into settlements.
        settler: takes them.
        emitter: for the ``executing`` events.
        middleware: what surrounds each run.
        worker_id: this worker.
        clock: wall time for the records, monotonic time for trust.
        task_timeout_s: for tasks that have no time-out of their own.
        keeps_error: a hook wants to see exceptions.
    """

    def __init__(
        self,
        desk: Desk,
        registry: TaskRegistry,
        runner: Runner,
        endings: Endings,
        settler: Settler,
        emitter: Emitter,
        *,
        middleware: Sequence[Middleware],
        worker_id: str,
        clock: Clock,
        task_timeout_s: float | None,
        keeps_error: bool,
    ) -> None:
        self._desk = desk
        self._registry = registry
        self._runner = runner
        self._endings = endings
        self._settler = settler
        self._emitter = emitter
        self._surrounded = surround(middleware, runner.run) if middleware else None
        self._calls_wait = getattr(runner, "calls_wait", False)
        self._runs_here = not middleware and getattr(runner, "runs_coroutines_here", False)
        self._worker_id = worker_id
        self._monotonic, self._wall = clock.monotonic, clock.time
        if clock is SYSTEM_CLOCK:  # two calls saved for each run
            self._monotonic, self._wall = time.monotonic, time.time
        self._task_timeout_s = task_timeout_s
        self._keeps_error = keeps_error
        self._watchdog = Watchdog(self._time_is_up)
        self._loop = asyncio.get_running_loop()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._slots: list[Slot] = []
        self._unknown_names: set[str] = set()
        self._closing = False
        self._turn = Turn()

    # --- the slots as a whole -----------------------------------------------------------------------------------

    def start(self, count: int, claimer: Claimer) -> None:
        """Opens the slots."""
        for number in range(count):
            slot = Slot(number)
            slot.task = self._loop.create_task(self._work(slot, claimer), name=f"omniq-slot-{number}")
            self._slots.append(slot)

    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [slot.task for slot in self._slots if slot.task is not None]

    def idle_count(self) -> int:
        """How many slots have nothing to run."""
        return len(self._idle)

    def running(self) -> list[Held]:
        """The runs that are suspended at the moment."""
        return [slot.held for slot in self._slots if slot.held is not None]

    def wake(self, count: int) -> None:
        """Wakes idle slots: so many tasks became ready."""
        idle = self._idle
        while count and idle:
            future = idle.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1

    def close(self) -> None:
        """Lets the slots end, each after its run."""
        self._closing = True
        self.wake(len(self._idle))

    async def end(self, within_s: float) -> list[Held]:
        """Waits for the slots to end; the runs that did not."""
        if self._slots:
            await asyncio.wait(self.tasks, timeout=within_s)
        self._watchdog.close()
        left = self.running()
        for slot in self._slots:
            if slot.task is not None and not slot.task.done():
                slot.task.cancel()
        return left

    # --- interrupting -------------------------------------------------------------------------------------------

    def interrupt(self, held: Held, why: Ending) -> None:
        """Cancels a run, if it is suspended. Harmless for one that has ended, or was interrupted before."""
        slot = held.slot
        if slot is None or slot.held is not held or slot.task is None:
            return
        if held.context is not None:
            held.context.ask_to_stop()
        if held.interrupted is None:
            held.interrupted = why
            self._loop.call_later(STUBBORN_S, self._insist, held)
            slot.task.cancel()

    def _insist(self, held: Held) -> None:
        slot = held.slot
        if slot is not None and slot.held is held and slot.task is not None:
            log.warning(
                "task %s (%s) goes on %.0f s after it was cancelled (%s); its slot is free when it ends",
                held.claim.task_id,
                held.claim.name,
                STUBBORN_S,
                held.interrupted,
            )
            slot.task.cancel()

    def _time_is_up(self, held: Held) -> None:
        self.interrupt(held, Ending.TIMED_OUT)

    # --- one slot -----------------------------------------------------------------------------------------------

    async def _work(self, slot: Slot, claimer: Claimer) -> None:
        """One slot, until :meth:`close`."""
        task = slot.task
        assert task is not None
        while True:
            if self._desk.ready:
                # A call of its own, so that what it ran last is not kept alive while the slot rests.
                await self._run_ready(slot, task, claimer)
            elif self.is_closed():
                return
            else:
                if claimer.rest.is_on:
                    claimer.rest.poke()
                await self._until_ready(task)

    async def _run_ready(self, slot: Slot, task: asyncio.Task[None], claimer: Claimer) -> None:
        """Takes and runs, one after the other, while there is something. The path of an async function that runs here and
        succeeds is inlined: it is what most workers spend their time on."""
        desk, ready, finished = self._desk, self._desk.ready, self._desk.finished
        endings, settler, emitter = self._endings, self._settler, self._emitter
        find, monotonic, wall = self._registry.get, self._monotonic, self._wall
        runs_here, worker_id, default_timeout_s = self._runs_here, self._worker_id, self._task_timeout_s
        claimer_rest, settler_rest = claimer.rest, settler.rest
        cancelling, real_time = task.cancelling, time.monotonic
        turn = self._turn
        while ready:
            held = ready.popleft()
            if claimer_rest.is_on and len(ready) <= claimer.low_water:
                claimer_rest.poke()
            now = monotonic()
            if held.lost or held.cancel_requested or now >= held.trusted_until:
                self._not_started(held)
                continue
            claim = held.claim
            definition = find(claim.name)
            if definition is None:
                self._unknown(held)
                continue
            try:
                try:
                    envelope = decode_call(claim.body)
                    options = envelope.options
                    timeout_s = default_timeout_s
                    if options is not None:
                        held.options = options
                        if options.timeout_s is not None:
                            timeout_s = options.timeout_s
                    held.started_at = wall()
                    if timeout_s is not None:
                        held.timeout_s, held.deadline = timeout_s, now + timeout_s
                    if emitter.is_on:
                        emitter.note(EventType.EXECUTING, claim, held.started_at)
                    if runs_here and definition.is_async:
                        args, kwargs = definition.convert(*decode_arguments(envelope))
                        context = copy_context()
                        about = TaskContext(claim, worker_id, envelope.headers)
                        context.run(running_task.set, about)
                        coroutine = definition.func(*args, **kwargs)
                        try:
                            awaited = context.run(coroutine.send, None)
                        except StopIteration as stop:
                            value = stop.value
                        else:
                            held.context = about
                            value = await self._suspended(slot, held, drive(coroutine, context, awaited))
                    else:
                        value = await self._elsewhere(slot, held, definition, envelope)
                    held.ended_at = wall()
                    endings.returned(held, value)
                    finished.append(held)
                    if settler_rest.is_on:
                        settler_rest.poke()
                except GeneratorExit as error:
                    if not self._loop.is_running():  # it is closed under us
                        raise
                    held.ended_at = wall()
                    self._raised(held, error)
                except KeyboardInterrupt:  # meant for the program, not for the task
                    raise
                except BaseException as error:
                    held.ended_at = wall()
                    self._raised(held, error)
            except Exception:
                log.exception("the end of task %s could not be written down", claim.task_id)
                self._broken(held)
            desk.ended += 1
            if cancelling():
                await calm(task)
            if real_time() >= turn.ends_at:
                try:
                    await turn.end()
                except asyncio.CancelledError:  # see _until_ready
                    if self._closing:
                        raise
                    await calm(task)

    async def _suspended(self, slot: Slot, held: Held, run: Any) -> Any:
        """Awaits a run, which can be interrupted until it ends."""
        slot.held, held.slot = held, slot
        if held.timeout_s is not None and held.deadline is not None:
            self._watchdog.watch(held, held.timeout_s)
        try:
            value = await run
        finally:
            slot.held = held.slot = None
        # Only here: who is told of a loss (on this loop) finds a run suspended, or finished and then the fence decides.
        if held.lost:
            raise asyncio.CancelledError
        return value

    async def _elsewhere(
        self, slot: Slot, held: Held, definition: TaskDefinition[Any, Any], envelope: Envelope
    ) -> Any:
        """Runs a call in the runner, within middleware."""
        about = held.context = TaskContext(held.claim, self._worker_id, envelope.headers)
        call = Call(definition, envelope, about, held.timeout_s)
        if self._calls_wait and held.timeout_s is not None:
            held.deadline = None
            call.begin = partial(self._begin, held, held.timeout_s)
        if self._surrounded is None:
            run: Coroutine[Any, Any, Any] = self._runner.run(call)
        else:
            context = copy_context()
            context.run(running_task.set, about)
            run = run_in(context, self._surrounded(about, call))
        try:
            return await self._suspended(slot, held, run)
        finally:
            held.left_running = call.left_running

    def _begin(self, held: Held, timeout_s: float) -> None:
        """A call that waited for its place is about to run: its time counts from here."""
        held.deadline = self._monotonic() + timeout_s
        self._watchdog.watch(held, timeout_s)

    # --- what can come of a task besides success ----------------------------------------------------------------

    def _raised(self, held: Held, error: BaseException) -> None:
        if held.lost:
            self._drop(held)
            return
        if held.left_running and held.interrupted is Ending.STOPPED:
            # Giving it back would let another worker start it beside us. Its lease ends by itself once this process does.
            log.warning(
                "task %s (%s) still runs in a thread; it is not given back, and will be run again when its lease ends",
                held.claim.task_id,
                held.claim.name,
            )
            self._desk.held.discard(held)
            return
        self._endings.raised(held, error)
        if self._keeps_error:
            held.error = error
        self._settler.add(held)

    def _not_started(self, held: Held) -> None:
        if held.cancel_requested and not held.lost:
            self._endings.never_started(held, Ending.CANCELLED, "cancelled on request")
            self._settler.add(held)
        else:
            self._drop(held)

    def _unknown(self, held: Held) -> None:
        name, known = held.claim.name, len(self._registry)
        reason = (
            f"no task named {name[:100]!r} is registered in worker {self._worker_id}, which knows {known}; it waits for "
            "one that does"
        )
        if name not in self._unknown_names and len(self._unknown_names) < 1000:
            self._unknown_names.add(name)  # said once: it is offered again and again
            log.warning("task %s: %s", held.claim.task_id, reason)
        self._endings.never_started(held, Ending.UNKNOWN_TASK, reason)
        self._settler.add(held)

    def _drop(self, held: Held) -> None:
        """The lease was lost: somebody else has the task, and nothing is written about our run."""
        held.lost = True
        self._desk.held.discard(held)
        if held.started_at:
            self._desk.counts.stale += 1
            self._emitter.note(
                EventType.FENCED,
                held.claim,
                message="its lease was lost while it ran; the outcome was dropped",
            )

    def _broken(self, held: Held) -> None:
        """A mistake of ours must not lose a slot, nor a task."""
        held.settlement = Settlement(
            held.claim.lease, Verb.RETRY, reason="the worker failed to write down how it ended"
        )
        self._settler.add(held)

    # --- waiting ------------------------------------------------------------------------------------------------

    async def _until_ready(self, task: asyncio.Task[None]) -> None:
        future = self._loop.create_future()
        self._idle.append(future)
        try:
            await future
        except asyncio.CancelledError:
            # What a function asked for of its own asyncio task, from outside and late. Ours come in runs only.
            if self._closing:
                raise
            if future in self._idle:
                self._idle.remove(future)
            await calm(task)
