"""Sleeping until somebody pokes: what the engine's own coroutines do when there is nothing to do."""

from __future__ import annotations

import asyncio

__all__ = ["Rest"]


class Rest:
    """A place for one coroutine to rest.

    A poke while nobody rests is not remembered: who rests looks at its work first, and both happen on one loop.
    """

    __slots__ = ("_future", "is_on")

    def __init__(self) -> None:
        self._future: asyncio.Future[bool] | None = None
        self.is_on = False
        """Whether somebody rests. Callers on the hot path look here before they poke."""

    async def until_poked(self, timeout_s: float | None = None) -> bool:
        """Rests; whether it was poked, rather than out of time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._future = future
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake, future, False)
        self.is_on = True
        try:
            return await future
        finally:
            if self._future is future:
                self._future, self.is_on = None, False
            if timer is not None:
                timer.cancel()

    def poke(self) -> None:
        """Wakes who rests here, if anybody does."""
        if self._future is not None:
            self._wake(self._future, True)

    def _wake(self, future: asyncio.Future[bool], poked: bool) -> None:
        if self._future is future:
            self._future, self.is_on = None, False
        if not future.done():
            future.set_result(poked)
