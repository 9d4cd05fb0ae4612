"""Waking a worker that has nothing to do: a plain message on ``w.<queue>``, sent when something can be claimed there.

Such messages are not stored: who listens hears them. So who is about to wait listens first and looks then; and it goes on
listening to that queue afterwards, as in a cluster it takes a moment until every server knows that somebody listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omniq_core import Closed
from omniq_nats.connection import Message
from omniq_nats.tasks import Tasks

__all__ = ["Wakeup"]

REST_S = 0.05
"""How soon a look alone wakes again: what it counts may just have been dealt to another, or its document be on its way."""
LOOK_AGAIN_S = 5.0
"""A message may have been lost with a connection; then a look finds what it told of."""


class Wakeup:
    """The waits of one backend."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._waiting: dict[asyncio.Future[bool], frozenset[str]] = {}
        self._listening: dict[str, int] = {}
        self._woke_at = -REST_S
        self._is_closed = False

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """See :meth:`omniq_core.Queue.wait`."""
        if self._is_closed:
            raise Closed("nats")
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        woken: asyncio.Future[bool] = loop.create_future()
        self._waiting[woken] = frozenset(queues)
        try:
            await self._listen(queues)
            while True:
                due_s = await self._due(queues)
                now = loop.time()
                if due_s == 0:
                    due_s = max(0.0, self._woke_at + REST_S - now)
                    if due_s == 0:
                        self._woke_at = now
                        return True
                until = min(end, now + LOOK_AGAIN_S, end if due_s is None else now + due_s)
                if until > now:
                    await asyncio.wait({woken}, timeout=until - now)
                if woken.done():
                    return woken.result()
                if loop.time() >= end:
                    return False
        finally:
            del self._waiting[woken]
            if not woken.cancel():
                woken.exception()  # asked for, should something else have been raised first

    async def _due(self, queues: Sequence[str]) -> float | None:
        """In how many seconds there is something to claim; 0: now."""
        tasks = self._tasks
        soonest: float | None = None
        for look in await tasks.lines.look(queues):
            if look.is_paused:
                continue
            if any(line.fresh or line.returned for line in look.lines.values()):
                return 0
            due_ms = await tasks.lines.due_in(look, int(tasks.clock.now() * 1000))
            if due_ms == 0:
                return 0
            if due_ms is not None:
                # A hair later, so that a claim finds it due by any reading of the clock.
                soonest = min(due_ms / 1000 + 0.001, soonest if soonest is not None else 1e9)
        return soonest

    async def _listen(self, queues: Sequence[str]) -> None:
        for queue in queues:
            if queue not in self._listening:

                def heard(_: Message, queue: str = queue) -> None:
                    self._heard(queue)

                self._listening[queue] = 0
                subject = self._tasks.subjects.wake(queue).encode()
                self._listening[queue] = await self._tasks.client.subscribe(subject, heard)

    def _heard(self, queue: str) -> None:
        for woken, queues in self._waiting.items():
            if queue in queues and not woken.done():
                woken.set_result(True)

    def lost(self) -> None:
        """The connection broke. Whoever waits claims: a message may have been on its way to us."""
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(True)

    def close(self) -> None:
        """Ends all waits."""
        self._is_closed = True
        for woken in self._waiting:
            if not woken.done():
                woken.set_exception(Closed("nats"))
