"""Taking turns on the event loop: slots that find much to do must not keep it for themselves."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Turn", "calm"]

TURN_S = 0.001
"""How long the slots may go on, all of them together, before the event loop gets its turn."""


class Turn:
    """The slots' turn. Who runs past ``ends_at`` awaits :meth:`end`."""

    __slots__ = ("_is_over", "_loop", "ends_at")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_over = False
        self.ends_at = 0.0
        """By ``time.monotonic()``, whatever clock the worker has."""

    async def end(self) -> None:
        """Lets everything else on the loop run once. The next turn begins when the loop comes round, for all slots at once:
        those that are resumed before find the old one over, and end it again after one task."""
        if not self._is_over:
            self._is_over = True
            self._loop.call_soon(self._begin)
        await asyncio.sleep(0)

    def _begin(self) -> None:
        self._is_over = False
        self.ends_at = time.monotonic() + TURN_S


async def calm(task: asyncio.Task[None]) -> None:
    """Takes back every cancellation of a slot's task, so that none reaches its next run."""
    while task.cancelling():
        task.uncancel()
    try:
        await asyncio.sleep(0)  # one may be on its way still
    except asyncio.CancelledError:
        pass
