"""What the raw clients are measured with: the storage work of a task queue at its least, in the same steps for each.

*One*: a step per task, as a queue that takes tasks one by one must do. *Batch*: as many at once as the client can. *From 64*:
64 coroutines, each waiting for its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.subjects.subject import Subject

__all__ = ["RESULT", "SCENARIOS", "RawSubject"]

RESULT = os.urandom(120)
AHEAD = 500
"""How many tasks are put at once for the cycles that are measured."""


class RawSubject(Subject):
    """A client with nothing around it."""

    async def put(self, count: int) -> None:
        """Stores some tasks and makes them ready, at once."""
        raise NotImplementedError

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[Callable[[], Awaitable[object]]]:
        """How each coroutine of a crowd stores one task."""
        yield lambda: self.put(1)

    async def cycle(self, count: int) -> int:
        """Claims up to so many and settles them with results; how many there were."""
        raise NotImplementedError


async def _repeat(step: Callable[[], Awaitable[object]], size: int, seconds: float) -> dict[str, Any]:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        await step()
        count += size
    return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def enqueue_one(raw: RawSubject, *, seconds: float, most: int) -> dict[str, Any]:
    return await _repeat(lambda: raw.put(1), 1, seconds)


async def enqueue_batch(raw: RawSubject, *, seconds: float, most: int, size: int) -> dict[str, Any]:
    return await _repeat(lambda: raw.put(size), size, seconds)


async def enqueue_64(raw: RawSubject, *, seconds: float, most: int) -> dict[str, Any]:
    async with raw.crowd() as put_one:
        end = time.perf_counter() + seconds

        async def produce() -> int:
            mine = 0
            while time.perf_counter() < end:
                await put_one()
                mine += 1
            return mine

        began = time.perf_counter()
        count = sum(await asyncio.gather(*(produce() for _ in range(64))))
        return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def _cycle(raw: RawSubject, size: int, seconds: float) -> dict[str, Any]:
    """Only the cycles count, not the tasks that are put before."""
    rounds = 10 if size > 1 else AHEAD
    count, took = 0, 0.0
    while took < seconds:
        for _ in range(0, rounds * size, AHEAD):
            await raw.put(AHEAD)
        began = time.perf_counter()
        for _ in range(rounds):
            count += await raw.cycle(size)
        took += time.perf_counter() - began
    return {"rate": count / took, "tasks": count, "size": size}


async def cycle_one(raw: RawSubject, *, seconds: float) -> dict[str, Any]:
    return await _cycle(raw, 1, seconds)


async def cycle_batch(raw: RawSubject, *, seconds: float, size: int) -> dict[str, Any]:
    return await _cycle(raw, size, seconds)


SCENARIOS: Mapping[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "enqueue one": enqueue_one,
    "enqueue 64": enqueue_64,
    "enqueue batch": enqueue_batch,
    "cycle one": cycle_one,
    "cycle batch": cycle_batch,
}
