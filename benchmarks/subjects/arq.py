"""arq on Redis.

* One worker with ``max_jobs=100`` and ``poll_delay=0.005``: at its defaults (10 and 500 ms) it drains less than half as
  much, and latency is that of the poll. A client that waits for a result polls as well, every 2 ms here.
* Results are always stored (``keep_result`` at its default of an hour). No bulk enqueue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, URL, AsyncSubject
from benchmarks.tally import tick


async def noop(ctx: dict[str, Any], number: int) -> int:
    tick()
    return number


async def sleep1(ctx: dict[str, Any], number: int) -> int:
    await asyncio.sleep(0.001)
    tick()
    return number


class WorkerSettings:
    functions: ClassVar[list[Any]] = [noop, sleep1]
    redis_settings = RedisSettings.from_dsn(URL or "redis://localhost")
    max_jobs = 100
    poll_delay = 0.005


class Arq(AsyncSubject):
    distributions = ("arq", "redis", "hiredis")
    imports = "import arq"
    stores = ("redis",)
    pace = {"noop": 450, "sleep1": 400}  # noqa: RUF012

    async def open(self) -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(URL))

    async def close(self) -> None:
        await self.pool.aclose(close_connection_pool=True)

    async def send(self, task: str, number: int) -> Any:
        return await self.pool.enqueue_job(task, number)

    async def peek(self, handle: Any) -> Any:
        found = await handle.result_info()
        return MISSING if found is None else found.result

    async def wait(self, handle: Any, timeout_s: float) -> Any:
        return await handle.result(timeout=timeout_s, poll_delay=0.002)

    async def pending(self) -> int | None:
        return int(await self.pool.zcard("arq:queue"))

    def worker_command(self) -> Sequence[str]:
        return python("-m", "benchmarks.subjects.arq")


SUBJECT = Arq

if __name__ == "__main__":
    import logging

    from arq.worker import run_worker

    from benchmarks.subjects import arq as settings

    # What `arq benchmarks.subjects.arq.WorkerSettings` does, but for a log line for each job.
    logging.basicConfig(level=logging.WARNING)
    run_worker(settings.WorkerSettings)
