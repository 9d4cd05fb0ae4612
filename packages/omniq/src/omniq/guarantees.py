"""What a program's mix of backends promises: computed from the opened backends' declarations and their own settings.

A promise is the weakest of its parts. So for each accident there is a line: what becomes of tasks that were acknowledged, of
results that were stored, and of events; ``omniq check`` prints the lines, and a worker that starts warns about those that
may surprise.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from omniq.stores import OpenStores
from omniq_core import Backend, Capability, Health, Loss

__all__ = ["Accident", "Guarantees", "guarantees", "warnings"]


class Accident(msgspec.Struct, frozen=True):
    """What one accident costs."""

    name: str
    tasks: Loss
    """Of the tasks whose enqueuing was acknowledged, those that are never run (to their end)."""
    results: Loss
    """Of the results of tasks that have succeeded, those that cannot be read any more."""
    events: Loss
    window_s: float | None = None
    """How much a ``window`` is at most, in seconds, where it is known."""
    note: str = ""
    """What happens, for people."""


class Guarantees(msgspec.Struct, frozen=True):
    """What a mix promises."""

    delivery: str
    stale_writes_refused: bool
    accidents: Sequence[Accident]
    queue: str
    results: str | None
    events: str | None


async def guarantees(opened: OpenStores) -> Guarantees:
    """Asks each opened backend, and puts the answers together."""
    queue = await opened.queue_backend.check()
    results = None if opened.result_backend is None else await opened.result_backend.check()
    events = (
        None if opened.event_backend is None or opened.events is None else await opened.event_backend.check()
    )
    return combine(
        opened.queue_backend,
        queue,
        results,
        events,
        settles_results=opened.settles_results,
        keeps_results=opened.results is not None,
        results_in_process=_is_in_process(opened.result_backend),
        events_in_process=_is_in_process(opened.event_backend),
    )


def combine(
    queue_backend: Backend,
    queue: Health,
    results: Health | None,
    events: Health | None,
    *,
    settles_results: bool,
    keeps_results: bool = True,
    results_in_process: bool = False,
    events_in_process: bool = False,
) -> Guarantees:
    """The promise of the parts. Pure.

    Args:
        queue_backend: for its declarations.
        queue: what the queue's backend found out about itself.
        results: the same of the result store's; ``None``: there is none.
        events: the same of the event store's; ``None``: there is none.
        settles_results: a task's end and its result are one atomic write.
        keeps_results: whether results are kept at all.
        results_in_process: the result store dies with its process.
        events_in_process: the event store does.
    """
    in_process = Capability.MULTI_PROCESS not in queue_backend.capabilities
    fenced = Capability.FENCED_SETTLE in queue_backend.capabilities
    kept = results if keeps_results else None

    def of(health: Health | None, accident: str) -> Loss:
        return Loss.NONE if health is None else getattr(health.durability, accident)

    def window(*parts: Health | None) -> float | None:
        known = [
            part.durability.window_s
            for part in parts
            if part is not None and part.durability.window_s is not None
        ]
        return max(known, default=None)

    accidents = [
        Accident(
            "a worker is killed",
            Loss.ALL if in_process else Loss.NONE,
            Loss.ALL if results_in_process and kept is not None else Loss.NONE,
            Loss.NONE if events is None else Loss.ALL if events_in_process else Loss.WINDOW,
            note=(
                "the queue is in the worker's own process and dies with it"
                if in_process
                else "what it held is handed out again when its lease has ended; events that it had not written are gone"
            ),
        ),
        Accident(
            "a stale worker comes back",
            Loss.NONE if fenced else Loss.UNKNOWN,
            Loss.NONE if fenced else Loss.UNKNOWN,
            Loss.NONE,
            note=(
                "its writes are refused"
                if fenced
                else "its writes are NOT refused: it may overwrite the end that another worker gave the task"
            ),
        ),
        Accident(
            "a server is killed",
            of(queue, "server_killed"),
            _worst(of(kept, "server_killed"), Loss.NONE),
            of(events, "server_killed"),
            window(queue, kept, events),
            "by the settings of each server now",
        ),
        Accident(
            "the power is cut",
            of(queue, "power_cut"),
            of(kept, "power_cut"),
            of(events, "power_cut"),
            window(queue, kept, events),
            "by the settings of each server now",
        ),
    ]
    if kept is not None and not settles_results:
        accidents.append(
            Accident(
                "the result store is down",
                Loss.NONE,
                Loss.NONE,
                Loss.NONE,
                note="no task is settled without its result: workers wait a lease, then let the task be tried again",
            )
        )
    if events is not None:
        accidents.append(
            Accident(
                "the event store is down",
                Loss.NONE,
                Loss.NONE,
                Loss.WINDOW,
                note="tasks go on; events beyond a buffer are dropped and counted",
            )
        )
    return Guarantees(
        delivery="at least once"
        if fenced
        else "at least once, and an end may be overwritten by a stale worker",
        stale_writes_refused=fenced,
        accidents=accidents,
        queue=queue.server,
        results=None if results is None else results.server,
        events=None if events is None else events.server,
    )


def _is_in_process(backend: Backend | None) -> bool:
    return backend is not None and Capability.MULTI_PROCESS not in backend.capabilities


_ORDER = (Loss.NONE, Loss.WINDOW, Loss.UNKNOWN, Loss.ALL)


def _worst(*losses: Loss) -> Loss:
    return max(losses, key=_ORDER.index)


def warnings(promise: Guarantees) -> list[str]:
    """The lines that a starting worker shows: every accident after which acknowledged tasks or results are gone."""
    lines = []
    for accident in promise.accidents:
        for what, loss in (("acknowledged tasks", accident.tasks), ("results", accident.results)):
            if loss is Loss.NONE:
                continue
            amount = {
                Loss.ALL: "all " + what + " are lost",
                Loss.UNKNOWN: what + " may be lost (the settings cannot be seen, or do not tell)",
                Loss.WINDOW: f"the last {what} are lost"
                + ("" if accident.window_s is None else f" (up to {accident.window_s:g} s)"),
            }[loss]
            lines.append(f"if {accident.name}, {amount}")
    return lines
