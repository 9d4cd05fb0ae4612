"""SAQ on Redis.

* One worker with ``concurrency=100`` and a blocking pop (its ``poll_interval`` is 0, the default).
* Results are always stored, with the job (``ttl`` at its default of 600 s). A client is told of the end by pub/sub
  (``job.refresh(until_complete=…)``), which it subscribes to after the job was sent; a job that ended before that is
  found by the look that ``refresh`` begins with. No bulk enqueue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from saq import Queue

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, URL, AsyncSubject
from benchmarks.tally import tick

queue = Queue.from_url(URL or "redis://localhost")


async def noop(ctx: dict[str, Any], *, number: int) -> int:
    tick()
    return number


async def sleep1(ctx: dict[str, Any], *, number: int) -> int:
    await asyncio.sleep(0.001)
    tick()
    return number


settings = {"queue": queue, "functions": [noop, sleep1], "concurrency": 100}


class Saq(AsyncSubject):
    distributions = ("saq", "redis", "hiredis")
    imports = "import saq"
    stores = ("redis",)
    pace = {"noop": 700, "sleep1": 600}  # noqa: RUF012

    async def open(self) -> None:
        self.queue = Queue.from_url(URL)
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def send(self, task: str, number: int) -> Any:
        return await self.queue.enqueue(task, number=number)

    async def peek(self, handle: Any) -> Any:
        await handle.refresh()
        return handle.result if handle.completed else MISSING

    async def wait(self, handle: Any, timeout_s: float) -> Any:
        # In small steps: what ends between the first look and the subscription is not told again.
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            try:
                await handle.refresh(until_complete=0.05)
            except TimeoutError:
                continue
            if handle.completed:
                return handle.result
        return MISSING

    async def pending(self) -> int | None:
        return int(await self.queue.count("queued"))

    def worker_command(self) -> Sequence[str]:
        return python("-m", "saq", "benchmarks.subjects.saq.settings")


SUBJECT = Saq
