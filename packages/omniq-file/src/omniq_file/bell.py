"""Waking the coroutines that wait for a task, a result or an event, on whatever thread's loop they are.

A waiter that looks, finds nothing and then waits must not sleep through what came in between. So every queue has a
count of rings: who looks remembers the count from before its look, and does not sleep if it has changed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from omniq_core.native import RLock

__all__ = ["EVENTS", "Bell", "Key", "queue_key", "result_key"]

Key = tuple[str, str]
EVENTS: Key = ("events", "")


def queue_key(name: str) -> Key:
    return ("queue", name)


def result_key(task_id: str) -> Key:
    return ("result", task_id)


class Bell:
    """Rung by the clerk's thread, waited at by any."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._rings: dict[Key, int] = {}
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}
        self._everything = 0

    @property
    def is_waited_at(self) -> bool:
        return bool(self._waiting)

    def ring(self, key: Key, *, count: bool = True) -> None:
        """Wakes who waits for ``key``. Results are looked for after joining, so they need no count (which would never be
        forgotten)."""
        if count:
            self._rings[key] = self._rings.get(key, 0) + 1
        if key in self._waiting:
            with self._lock:
                waiting = self._waiting.pop(key, set())
            for future in waiting:
                _wake(future)

    def ring_all(self) -> None:
        """Wakes everybody: what has changed is not known."""
        self._everything += 1
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            for future in futures:
                _wake(future)

    def rings(self, keys: Iterable[Key]) -> list[int]:
        return [self._everything + self._rings.get(key, 0) for key in keys]

    def join(self, keys: Iterable[Key]) -> asyncio.Future[None]:
        """A future of the running loop that is set by the next ring of one of ``keys``. Give it back with ``leave``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            for key in keys:
                self._waiting.setdefault(key, set()).add(future)
        return future

    def leave(self, future: asyncio.Future[None], keys: Iterable[Key]) -> None:
        with self._lock:
            for key in keys:
                waiting = self._waiting.get(key)
                if waiting is not None:
                    waiting.discard(future)
                    if not waiting:
                        del self._waiting[key]


def _wake(future: asyncio.Future[None]) -> None:
    try:
        future.get_loop().call_soon_threadsafe(_set, future)
    except RuntimeError:  # its loop was closed meanwhile: nobody waits there any more
        return


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
