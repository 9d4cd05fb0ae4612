"""Group commit: small calls of many coroutines share a round trip, and on the server a transaction.

There is no timer. The first call is sent at once; what comes while it is under way goes out together when it returns. So
one coroutine alone waits for nothing, and 64 that enqueue one task each make some calls of about 64.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batcher"]

HEAVY = 4 * 1024 * 1024
"""Bytes after which a call takes nobody else on board: what is gained by sharing a round trip is small beside them."""

T = TypeVar("T")
A = TypeVar("A")


class Batcher(Generic[T, A]):
    """Joins calls that take and give sequences.

    A joined call fails for all whom it carried. If it failed because of what was in it, each is sent again alone, so that
    one caller's bad item is not another's failure; ``send`` is idempotent.

    Args:
        send: the call; its answer has one item for each of its argument.
        largest: most items of one call; also of one that is handed in.
        at_fault: whether an exception was about the items rather than the connection.
        weigh: the bytes of an item, where that may be much: joined calls stay below a few megabytes.
        goes_alone: whether a caller who had no company last time makes the call itself, which is quicker. If it is cancelled
            its connection is closed, so not where callers are often cancelled.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[A]]],
        *,
        largest: int,
        at_fault: Callable[[BaseException], bool],
        weigh: Callable[[T], int] | None = None,
        goes_alone: bool = False,
    ) -> None:
        self._send = send
        self._largest = largest
        self._at_fault = at_fault
        self._weigh = weigh
        self._is_flying = False
        self._goes_alone = goes_alone
        self._is_lonely = False  # the last flight had one passenger
        self._tasks: set[asyncio.Task[None]] = set()  # kept: the loop itself holds tasks weakly
        self._queued: deque[tuple[Sequence[T], asyncio.Future[Sequence[A]]]] = deque()

    async def __call__(self, items: Sequence[T]) -> Sequence[A]:
        if not items:
            return []
        if len(items) * 4 >= self._largest:  # large enough by itself
            return await self._send(items)
        if self._goes_alone and self._is_lonely and not self._is_flying:
            return await self._go_alone(items)
        answer: asyncio.Future[Sequence[A]] = asyncio.get_running_loop().create_future()
        self._queued.append((items, answer))
        if not self._is_flying:
            self._take_off()
        return await answer

    async def _go_alone(self, items: Sequence[T]) -> Sequence[A]:
        """Without a task and a future in between. Who comes meanwhile waits, and goes together."""
        self._is_flying = True
        try:
            return await self._send(items)
        finally:
            self._is_flying = False
            if self._queued:
                self._take_off()

    def _take_off(self) -> None:
        self._is_flying = True
        flight = asyncio.create_task(self._fly())
        self._tasks.add(flight)
        flight.add_done_callback(self._tasks.discard)

    async def _fly(self) -> None:
        try:
            while self._queued:
                callers: list[tuple[Sequence[T], asyncio.Future[Sequence[A]]]] = []
                count = weight = 0
                while self._queued and count + len(self._queued[0][0]) <= self._largest and weight < HEAVY:
                    items, answer = self._queued.popleft()
                    if not answer.done():  # else its caller left before anything was sent
                        callers.append((items, answer))
                        count += len(items)
                        if self._weigh is not None:
                            weight += sum(map(self._weigh, items))
                self._is_lonely = len(callers) == 1
                if callers:
                    await self._carry(callers)
        finally:
            # In the same step as the last look at the queue: who comes next must see that nobody is on the way.
            self._is_flying = False

    async def _carry(self, callers: list[tuple[Sequence[T], asyncio.Future[Sequence[A]]]]) -> None:
        joined = [item for items, _ in callers for item in items]
        try:
            answers = await self._send(joined)
        except Exception as error:
            if len(callers) > 1 and self._at_fault(error):
                for caller in callers:
                    await self._carry([caller])
                return
            for _, answer in callers:
                if not answer.done():
                    answer.set_exception(error)
            return
        except asyncio.CancelledError:  # the loop is ending
            for _, answer in callers:
                answer.cancel()
            raise
        start = 0
        for items, answer in callers:
            if not answer.done():
                answer.set_result(answers[start : start + len(items)])
            start += len(items)
