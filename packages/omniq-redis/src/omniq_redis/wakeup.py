"""Waking a worker that has nothing to do: no polling, one connection per backend whatever the number of queues.

A marker stands in ``w:<queue>`` while something can be claimed there. Waiting is blocking on the markers of all queues that
anybody here waits for, with one ``BZPOPMIN``. The server gives a marker to one client, so one worker wakes; its claim sets
the marker again if it leaves anything, which wakes the next. A marker is a hint and no token: whoever starts to wait looks
first (``peek``), so a worker that dies between its wake-up and its claim delays others by one round of waiting at most.

One task (the pump) blocks for all who wait. It is interrupted through a key of its own, ``k:<client>``, which is always
among those that it blocks on: when somebody waits for a queue that is not covered. That needs no right to administer
clients. A marker that comes when nobody waits any more is put back at once, for another process. Whoever was woken waits no
more: the pump does not block again for those, as that would go before the claim that they are about to make.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from omniq_core import Closed
from omniq_redis.connection import Client

__all__ = ["Wakeup"]

BLOCK_S = 5.0
"""How long one command blocks. Only bounds how long a broken connection can go unnoticed."""


class Wakeup:
    """The waits of one backend.

    Args:
        client: the backend's common connection, to look and to interrupt.
        blocked: a connection of its own, to block on.
    """

    def __init__(self, client: Client, blocked: Client) -> None:
        self._client = client
        self._blocked = blocked
        self._waiting: dict[asyncio.Future[bool], Sequence[str]] = {}
        self._covered: set[str] = set()
        self._pump_task: asyncio.Task[None] | None = None
        self._own = client.key(f"k:{secrets.token_hex(8)}")
        self._marker = client.key("w:")
        self._is_closed = False

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """See :meth:`omniq_core.Queue.wait`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        # Registered before looking: what comes in between is either seen or wakes.
        woken: asyncio.Future[bool] = loop.create_future()
        self._waiting[woken] = queues
        try:
            in_ms = await self._client.script("peek", *queues)
            if in_ms == 0:
                return True
            due = loop.time() + in_ms / 1000 if in_ms > 0 else end
            left_s = min(end, due) - loop.time()
            if woken.done():
                return woken.result()
            if left_s <= 0:
                return due < end
            await self._cover(queues)
            timer = loop.call_later(left_s, _answer, woken, due < end)
            try:
                return await woken
            finally:
                timer.cancel()
        finally:
            self._waiting.pop(woken, None)
            if not woken.cancel() and not woken.cancelled():
                woken.exception()  # asked for, should something else have been raised first

    async def _cover(self, queues: Sequence[str]) -> None:
        if self._is_closed:
            raise Closed("redis")
        if self._pump_task is None or self._pump_task.done():
            self._covered = set()
            self._pump_task = asyncio.get_running_loop().create_task(self._pump())
        elif self._covered and not self._covered.issuperset(queues):
            await self._client.call("ZADD", self._own, "0", "0")
            # It would be popped at once; if the pump just left, it must not wait for the next one for ever.
            await self._client.call("PEXPIRE", self._own, "5000")

    async def _pump(self) -> None:
        try:
            while self._waiting:
                queues = list(dict.fromkeys(queue for waiting in self._waiting.values() for queue in waiting))
                self._covered = set(queues)
                found = await self._blocked.call(
                    "BZPOPMIN",
                    self._own,
                    *(self._marker + queue for queue in queues),
                    BLOCK_S,
                    extra_s=BLOCK_S,
                )
                if found is not None:
                    await self._wake(found)
        except Exception as error:
            self._end_all(error)
        finally:
            self._covered = set()

    async def _wake(self, found: list[Any]) -> None:
        key: bytes = found[0]
        if key == self._own.encode():
            return
        queue = key[len(self._marker.encode()) :].decode()
        woken = [future for future, queues in self._waiting.items() if queue in queues and not future.done()]
        for future in woken:
            del self._waiting[future]
            future.set_result(True)
        if not woken:
            await self._client.call("ZADD", key, "0", "0")
        else:
            # Let them claim before we block again; who waits anew by then is covered.
            await asyncio.sleep(0)

    def lost(self, _: Exception) -> None:
        """The blocking connection broke. Whoever waits looks again: a marker may have been on its way to us."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(True)

    def _end_all(self, error: Exception) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Ends all waits."""
        self._is_closed = True
        self._end_all(Closed("redis"))
        if self._pump_task is not None:
            self._pump_task.cancel()
            await asyncio.wait({self._pump_task})


def _answer(woken: asyncio.Future[bool], answer: bool) -> None:
    if not woken.done():
        woken.set_result(answer)
