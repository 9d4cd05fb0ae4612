"""The parts of a worker, and how they are made for one run of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from omniq.engine.beside import Beside
from omniq.engine.claim import Claimer
from omniq.engine.emit import Emitter
from omniq.engine.ending import Endings
from omniq.engine.execute import Slots
from omniq.engine.held import Desk, Held
from omniq.engine.lease import LeaseKeeper
from omniq.engine.settings import WorkerSettings
from omniq.engine.settle import Settler
from omniq.engine.upkeep import Upkeep
from omniq.middleware import Middleware
from omniq.plugins import Hooks
from omniq.runners.runner import Runner
from omniq.stores import OpenStores
from omniq.task import TaskRegistry
from omniq_core import Clock

__all__ = ["Parts", "make_parts"]

CALL_TIMEOUT_S = 10.0
"""A call to a store that is not answered by then (or within a lease) is given up and repeated: a driver that hangs must not
make a worker stand still in silence."""


class Parts:
    """The parts of a running worker."""

    desk: Desk
    emitter: Emitter
    settler: Settler
    claimer: Claimer
    slots: Slots
    upkeep: Upkeep
    leases: LeaseKeeper
    claiming: asyncio.Task[None]
    settling: asyncio.Task[None]
    emitting: asyncio.Task[None]
    keeping_up: asyncio.Task[None]

    def start(self, count: int, *, burst: bool) -> None:
        """Sets everything going.

        Args:
            count: how many slots to open.
            burst: let the claimer end when there is nothing to do.
        """
        loop = asyncio.get_running_loop()
        self.leases.start()
        self.emitting = loop.create_task(self.emitter.run(), name="omniq-emit")
        self.settling = loop.create_task(self.settler.run(), name="omniq-settle")
        self.keeping_up = loop.create_task(self.upkeep.run(), name="omniq-upkeep")
        self.claiming = loop.create_task(self.claimer.run(burst=burst), name="omniq-claim")
        self.slots.start(count, self.claimer)


def make_parts(
    opened: OpenStores,
    registry: TaskRegistry,
    runner: Runner,
    settings: WorkerSettings,
    *,
    middleware: Sequence[Middleware],
    worker_id: str,
    clock: Clock,
    hooks: Hooks,
    on_lost: Callable[[Held, str], None],
    on_cancel: Callable[[Held], None],
) -> Parts:
    """The parts of a worker, connected, at rest.

    Args:
        opened: the stores.
        registry: the functions.
        runner: where they run.
        settings: the knobs.
        middleware: what surrounds each run.
        worker_id: the worker.
        clock: read for records and for trust in leases.
        hooks: the plugins' hooks.
        on_lost: what to do about a task whose lease is lost, and why.
        on_cancel: what to do about a task whose cancellation was requested.
    """
    backend = opened.queue_backend
    call_timeout_s = max(CALL_TIMEOUT_S, settings.lease_s)
    parts = Parts()
    desk = parts.desk = Desk()
    result_backend = opened.result_backend if opened.results is not None else None
    parts.emitter = Emitter(opened.events, opened.event_backend, worker_id=worker_id, clock=clock)
    endings = Endings(
        worker_id=worker_id,
        clock=clock,
        keeps_results=result_backend is not None,
        settles_results=opened.settles_results,
        max_result_bytes=(result_backend or backend).limits.max_result_bytes,
    )
    beside = None
    if opened.results is not None and result_backend is not None and not opened.settles_results:
        beside = Beside(opened.results, result_backend, endings, clock=clock, patience_s=settings.lease_s)
    parts.settler = Settler(
        desk,
        backend,
        beside=beside,
        emitter=parts.emitter,
        hooks=hooks,
        clock=clock,
        call_timeout_s=call_timeout_s,
        most_unsettled=2 * (settings.max_prefetch + settings.max_workers) + 1000,
        on_progress=lambda: parts.claimer.progress(),
    )
    parts.emitter.on_progress = lambda: parts.claimer.progress()
    parts.slots = Slots(
        desk,
        registry,
        runner,
        endings,
        parts.settler,
        parts.emitter,
        middleware=middleware,
        worker_id=worker_id,
        clock=clock,
        task_timeout_s=settings.task_timeout_s,
        keeps_error=hooks.caller("omniq_task_finished") is not None,
    )
    parts.claimer = Claimer(
        desk,
        backend,
        settings,
        parts.settler,
        endings,
        hooks=hooks,
        worker_id=worker_id,
        clock=clock,
        call_timeout_s=call_timeout_s,
        idle_slots=parts.slots.idle_count,
        on_claimed=parts.slots.wake,
    )
    parts.upkeep = Upkeep(
        opened,
        parts.emitter,
        every_s=settings.upkeep_s,
        clock=clock,
        call_timeout_s=call_timeout_s,
    )
    parts.leases = LeaseKeeper(
        opened.stores.queue,
        desk,
        lease_s=settings.lease_s,
        margin_s=settings.trust_margin_s,
        clock=clock,
        on_lost=on_lost,
        on_cancel=on_cancel,
    )
    return parts
