"""Waking the coroutines that wait for a task, a result or an event, on whatever thread's loop they are.

A waiter that looks, finds nothing and then waits must not sleep through what came in between. So every queue has a
count of rings: who looks remembers the count from before its look, and does not sleep if it has changed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from omniq_core.native import RLock

EVENTS = ("events", "")


class Bell:
    def __init__(self) -> None:
        self._lock = RLock()
        self._rings: dict[tuple[str, str], int] = {}
        self._waiting: dict[tuple[str, str], set[asyncio.Future[None]]] = {}

    def ring(self, queue: str) -> None:
        key = ("queue", queue)
        self._rings[key] = self._rings.get(key, 0) + 1
        if key in self._waiting:
            self._wake(key)

    def ring_result(self, task_id: str) -> None:
        # Results are looked up by id before each wait, so they need no count (which would never be forgotten).
        if not self._waiting:
            return
        key = ("result", task_id)
        if key in self._waiting:
            self._wake(key)

    def ring_events(self) -> None:
        self._rings[EVENTS] = self._rings.get(EVENTS, 0) + 1
        if EVENTS in self._waiting:
            self._wake(EVENTS)

    def _wake(self, key: tuple[str, str]) -> None:
        with self._lock:
            waiting = self._waiting.pop(key, set())
        for future in waiting:
            try:
                future.get_loop().call_soon_threadsafe(_set, future)
            except RuntimeError:  # its loop was closed meanwhile: nobody waits there any more
                continue

    def rings(self, keys: Iterable[tuple[str, str]]) -> list[int]:
        return [self._rings.get(key, 0) for key in keys]

    def waiter(self, keys: Iterable[tuple[str, str]]) -> asyncio.Future[None]:
        """A future of the running loop that is set by the next ring of one of ``keys``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            for key in keys:
                self._waiting.setdefault(key, set()).add(future)
        return future

    def forget(self, future: asyncio.Future[None], keys: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            for key in keys:
                waiting = self._waiting.get(key)
                if waiting is not None:
                    waiting.discard(future)
                    if not waiting:
                        del self._waiting[key]


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
