"""The engine of a worker: wires its parts together, watches over them, and stops them in order.

Everything but the leases lives on one event loop::

    claimer ──▶ desk.ready ──▶ slots ──▶ desk.finished ──▶ settler ──▶ the stores
                                  ▲                                        ▲
        lease thread ─── lost, cancel requested            upkeep, emitter ┘

A part that fails by a mistake of ours stops the worker, gracefully: what it holds is given back, and the error is raised.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

from omniq.engine.drain import Grace, drain
from omniq.engine.held import Held
from omniq.engine.parts import Parts, make_parts
from omniq.engine.settings import WorkerSettings
from omniq.middleware import Middleware
from omniq.outcome import Ending
from omniq.plugins import Hooks, hooks
from omniq.runners.runner import Runner
from omniq.stores import OpenStores, Stores
from omniq.task import TaskRegistry
from omniq_core import SYSTEM_CLOCK, Capability, Clock, WorkerReport

__all__ = ["Engine", "make_worker_id"]

log = logging.getLogger("omniq.worker")


def make_worker_id() -> str:
    """A worker id that nobody else has: ``host:pid:chance``."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(4)}"


class Engine:
    """Takes tasks and runs them, until it is stopped. It may run again afterwards.

    Args:
        stores: where tasks, results and events are kept.
        registry: the functions that it knows; looked at for each task, so it may grow.
        runner: where functions run.
        settings: the knobs.
        middleware: what surrounds each run, from the outside in.
        clock: read for records and for trust in leases.
        hooks: the plugins' hooks; those of this process by default.
    """

    def __init__(
        self,
        stores: Stores,
        registry: TaskRegistry,
        runner: Runner,
        settings: WorkerSettings | None = None,
        *,
        middleware: Sequence[Middleware] = (),
        clock: Clock = SYSTEM_CLOCK,
        hooks: Hooks = hooks(),  # noqa: B008 - one per process
    ) -> None:
        self.stores = stores
        self.registry = registry
        self.runner = runner
        self.settings = settings or WorkerSettings()
        self.middleware = tuple(middleware)
        self.worker_id = self.settings.name or make_worker_id()
        self._clock = clock
        self._hooks = hooks
        self._loop: asyncio.AbstractEventLoop | None = None
        self._grace: Grace | None = None
        self._parts: Parts | None = None
        self._stop_wanted: asyncio.Event | None = None
        self._stopped: asyncio.Event | None = None
        self._stop_before_start: float | None = None
        self.on_started: Callable[[], None] = lambda: None
        """Called on the worker's loop once it is about to claim its first task."""

    def __repr__(self) -> str:
        return f"<Engine {self.worker_id} on {self.stores.queue!r}>"

    @property
    def is_running(self) -> bool:
        """Between the start of :meth:`run` and its end."""
        return self._stopped is not None

    # --- run ----------------------------------------------------------------------------------------------------

    async def run(self, *, burst: bool = False) -> WorkerReport:
        """Works until :meth:`stop`, or until its asyncio task is cancelled, which stops it without grace.

        Args:
            burst: stop by itself when nothing is due and nothing runs.

        Raises:
            MissingCapability: the backend lacks what a worker needs; nothing was taken.
            Unreachable, SchemaOutOfDate, BackendError: a backend cannot be opened.
            RuntimeError: it runs already.
        """
        if self._stopped is not None:
            raise RuntimeError("this worker runs already; make another one to run two")
        self._loop = asyncio.get_running_loop()
        self._grace = Grace()
        self._stop_wanted, self._stopped = asyncio.Event(), asyncio.Event()
        if self._stop_before_start is not None:
            self._grace.allow(self._stop_before_start)
            self._stop_wanted.set()
            self._stop_before_start = None
        stopped = self._stopped
        try:
            opened = await self.stores.open()
            try:
                self._check(opened)
                return await self._run_on(opened, burst)
            finally:
                await opened.close()
        finally:
            self._stopped = self._stop_wanted = self._grace = self._parts = self._loop = None
            stopped.set()

    def _check(self, opened: OpenStores) -> None:
        if not self.settings.allow_unfenced:
            opened.need(
                Capability.FENCED_SETTLE, "a worker (or allow_unfenced=True, for tasks that may end twice)"
            )
        least_s = opened.queue_backend.limits.min_lease_s
        if self.settings.lease_s < least_s:
            raise ValueError(
                f"lease_s must be at least {least_s} on {opened.queue_backend!r}, got {self.settings.lease_s}"
            )

    async def _run_on(self, opened: OpenStores, burst: bool) -> WorkerReport:
        assert self._stop_wanted is not None
        assert self._grace is not None
        started_at = self._clock.time()
        parts = self._parts = make_parts(
            opened,
            self.registry,
            self.runner,
            self.settings,
            middleware=self.middleware,
            worker_id=self.worker_id,
            clock=self._clock,
            hooks=self._hooks,
            on_lost=self._lost,
            on_cancel=self._cancel,
        )
        if self._stop_wanted.is_set():  # before it took anything
            return self._report(parts, started_at)
        try:
            await self.runner.start(concurrency=self.settings.max_workers)
        except BaseException:
            await self.runner.stop()
            raise
        self._hooks.call("omniq_worker_started", worker=self)
        self.on_started()
        log.info("worker %s starts on %r", self.worker_id, opened.queue_backend)
        loop = asyncio.get_running_loop()
        parts.start(self.settings.max_workers, burst=burst)
        failure: BaseException | None = None
        try:
            failure = await self._until_stop(parts)
        except asyncio.CancelledError as cancelled:
            failure = cancelled
            self._grace.cut()
        finally:
            # In a task of its own, so that whoever cancels us (once more) does not cancel the stopping.
            ending = loop.create_task(self._wind_up(parts), name="omniq-drain")
            while not ending.done():
                try:
                    await asyncio.shield(ending)
                except asyncio.CancelledError as cancelled:
                    failure = failure or cancelled
                    if self._grace is not None:
                        self._grace.cut()
        ending.result()
        report = self._report(parts, started_at)
        self._hooks.call("omniq_worker_stopped", report=report)
        log.info("worker %s has stopped: %r", self.worker_id, report)
        if failure is not None:
            raise failure
        return report

    async def _until_stop(self, parts: Parts) -> BaseException | None:
        """Waits for a reason to stop: a call, the end of a burst, or a part that has failed (which is returned)."""
        assert self._stop_wanted is not None
        wanted = asyncio.ensure_future(self._stop_wanted.wait())
        watched: list[asyncio.Task[Any]] = [parts.claiming, parts.settling, parts.keeping_up, parts.emitting]
        if not parts.emitter.is_on:
            watched.remove(parts.emitting)
        try:
            done, _ = await asyncio.wait(
                [wanted, *watched, *parts.slots.tasks], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            wanted.cancel()
        for task in done:
            if task is not wanted and not task.cancelled() and (error := task.exception()) is not None:
                log.error("worker %s stops, as a part of it has failed", self.worker_id, exc_info=error)
                return error
        return None

    async def _wind_up(self, parts: Parts) -> None:
        assert self._grace is not None
        try:
            await drain(parts, self._grace)
        finally:
            parts.keeping_up.cancel()
            await asyncio.wait([parts.keeping_up])
            await parts.leases.stop()
            await self.runner.stop()

    def _report(self, parts: Parts, started_at: float) -> WorkerReport:
        counts = parts.desk.counts
        return WorkerReport(
            self.worker_id,
            started_at,
            self._clock.time(),
            claimed=counts.claimed,
            succeeded=counts.succeeded,
            retried=counts.retried,
            dead=counts.dead,
            cancelled=counts.cancelled,
            released=counts.released,
            stale=counts.stale,
        )

    # --- stop ---------------------------------------------------------------------------------------------------

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Claims nothing more, gives back what was claimed and not started, and lets running tasks end. Returns when the
        worker has stopped. A second call cuts the grace short. Before :meth:`run`, makes it stop at once.

        Args:
            grace_s: how long running tasks may go on; ``None``: the setting, on a second call 0.
        """
        stopped = self._stopped
        self.stop_soon(grace_s=grace_s)
        if stopped is not None:
            await stopped.wait()

    def stop_soon(self, *, grace_s: float | None = None) -> None:
        """:meth:`stop` without waiting, for code on the worker's loop that cannot await."""
        wanted, grace = self._stop_wanted, self._grace
        if wanted is None or grace is None:
            self._stop_before_start = self.settings.grace_s if grace_s is None else grace_s
            return
        if wanted.is_set() and grace_s is None:
            grace.cut()
        else:
            grace.allow(self.settings.grace_s if grace_s is None else grace_s)
        wanted.set()

    def stop_threadsafe(self, *, grace_s: float | None = None) -> None:
        """:meth:`stop` without waiting, from any thread, before :meth:`run` too."""
        if self._loop is None:
            self._stop_before_start = self.settings.grace_s if grace_s is None else grace_s
        self._from_any_thread(lambda: self.stop_soon(grace_s=grace_s))  # it may have begun in between

    # --- what others tell it ------------------------------------------------------------------------------------

    def learn_queue(self, name: str) -> None:
        """Works on that queue too, if it works on all there are. From any thread; spares a producer in this process the
        second until the worker would find the queue by itself."""
        self._from_any_thread(lambda: self._learn_queue(name))

    def cancel_soon(self, task_id: str) -> None:
        """The task's cancellation was requested in the store: stops its run without waiting until the next extension
        tells. From any thread; does nothing for a task that is not here."""
        self._from_any_thread(lambda: self._cancel_all(task_id))

    def _from_any_thread(self, function: Callable[[], None]) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(function)
        except RuntimeError:  # its loop is closed
            pass

    def _learn_queue(self, name: str) -> None:
        if self._parts is not None:
            self._parts.claimer.learn_queue(name)

    def _cancel_all(self, task_id: str) -> None:
        if self._parts is not None:
            for held in self._parts.desk.find(task_id):
                self._cancel(held)

    def _cancel(self, held: Held) -> None:
        held.cancel_requested = True
        if self._parts is not None:
            self._parts.slots.interrupt(held, Ending.CANCELLED)

    def _lost(self, held: Held, why: str) -> None:
        if held.settlement is not None or held.lost:
            return
        held.lost = True
        log.warning("lost task %s (%s): %s", held.claim.task_id, held.claim.name, why)
        if self._parts is not None:
            self._parts.slots.interrupt(held, Ending.STOPPED)
