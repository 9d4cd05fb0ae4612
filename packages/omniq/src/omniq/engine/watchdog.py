"""Ending runs that take too long. One timer for all of them; a run without a time-out costs nothing."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from omniq.engine.held import Held

__all__ = ["Watchdog"]

COMPACT_AT = 1000


class Watchdog:
    """Calls back when a run's time is up.

    Args:
        on_timeout: called with a run that has not ended by its time.
    """

    def __init__(self, on_timeout: Callable[[Held], None]) -> None:
        self._on_timeout = on_timeout
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Held]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._compact_at = COMPACT_AT

    def watch(self, held: Held, timeout_s: float) -> None:
        """Watches a run that starts now, in a slot."""
        if len(self._heap) >= self._compact_at:
            # Long time-outs of short runs: most of these have ended long ago.
            self._heap = [entry for entry in self._heap if entry[2].slot is not None]
            heapq.heapify(self._heap)
            self._compact_at = max(COMPACT_AT, 2 * len(self._heap))
        at = self._loop.time() + timeout_s
        heapq.heappush(self._heap, (at, next(self._numbers), held))
        if self._heap[0][2] is held:
            self._set_timer()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Runs that have ended are thrown out when they come to the top.
        while self._heap and self._heap[0][2].slot is None:
            heapq.heappop(self._heap)
        if self._heap:
            self._timer = self._loop.call_at(self._heap[0][0], self._ring)

    def _ring(self) -> None:
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            _, _, held = heapq.heappop(self._heap)
            if held.slot is not None:
                self._on_timeout(held)
        self._timer = None
        self._set_timer()
