"""The order of a graceful stop.

1. Nothing more is claimed. A claim that is under way is let finish, and what it brings is given back.
2. What was claimed and not started is given back at once, its attempt uncounted, so that others can run it.
3. What runs may go on for the grace period, which a second call to stop cuts short.
4. What still runs then is cancelled, and given back when it has stopped. A thread that does not stop keeps its lease until
   the process ends: giving its task back would have it run twice at once.
5. Everything that ended is settled, then the events are written. Leases are extended until the last of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from omniq.outcome import Ending

if TYPE_CHECKING:
    from omniq.engine.parts import Parts

__all__ = ["Grace", "drain"]

log = logging.getLogger("omniq.worker")

CANCEL_S = 6.0
"""How long cancelled runs have to stop: longer than a child process is given to die."""
SETTLE_S = 5.0
EVENTS_S = 1.0


class Grace:
    """How long running tasks may go on: set once, and cut short by whoever has less patience."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def allow(self, seconds: float) -> None:
        """Lets it end so many seconds from now, unless it ends earlier already."""
        at = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        if seconds <= 0:
            self._over.set()
            return
        self._timer = self._loop.call_at(at, self._over.set)

    def cut(self) -> None:
        """Ends it now."""
        if self._timer is not None:
            self._timer.cancel()
        self._over.set()

    async def is_over(self) -> None:
        await self._over.wait()


async def drain(parts: Parts, grace: Grace) -> None:
    """Stops a worker.

    Args:
        parts: the running worker.
        grace: for its running tasks.
    """
    desk, slots = parts.desk, parts.slots
    parts.claimer.close()
    parts.upkeep.close()
    await asyncio.wait([parts.claiming])
    unstarted = list(desk.ready)
    desk.ready.clear()
    parts.claimer.give_back(unstarted, "its worker stopped before it was started")
    slots.close()

    running = slots.running()
    if running:
        log.info("stopping: %d tasks were given back, %d still run", len(unstarted), len(running))
        over = asyncio.ensure_future(grace.is_over())
        ended = asyncio.ensure_future(asyncio.wait(slots.tasks))
        await asyncio.wait([over, ended], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        ended.cancel()
        for held in slots.running():
            slots.interrupt(held, Ending.STOPPED)
    for held in await slots.end(CANCEL_S):
        log.warning(
            "task %s (%s) did not stop; it will be run again when its lease ends",
            held.claim.task_id,
            held.claim.name,
        )
    await parts.settler.close(parts.settling, SETTLE_S)
    await parts.emitter.close(parts.emitting, EVENTS_S)
