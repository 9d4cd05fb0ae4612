"""pgqueuer on PostgreSQL, with asyncpg.

* One worker process with a batch size of 100, ten times its default (a variant has that), which suits short tasks: what
  it dequeues and what it reports as done then shares ten times fewer round trips. (The batch size does not bound how many
  run at once.) It is run as its command line runs it, on uvloop; the command line itself fails with the current typer.
* Its tables are logged ones, its default (``durable``). It logs how each job ended, but keeps no value: there is no result
  to wait for, and its latency is to execution.
* Bulk enqueue: lists. Its connection takes one query at a time; 64 coroutines share a pool of 16.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.process import python
from benchmarks.subjects.subject import OPTIONS, URL, AsyncSubject
from benchmarks.tally import tick


@asynccontextmanager
async def main() -> AsyncGenerator[PgQueuer, None]:
    """What the worker runs."""
    connection = await asyncpg.connect(URL)
    pgq = PgQueuer.from_asyncpg_connection(connection)

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        assert job.payload is not None
        int(job.payload)
        tick()

    @pgq.entrypoint("sleep1")
    async def sleep1(job: Job) -> None:
        assert job.payload is not None
        int(job.payload)
        await asyncio.sleep(0.001)
        tick()

    try:
        yield pgq
    finally:
        await connection.close()


class PgQueuerSubject(AsyncSubject):
    distributions = ("pgqueuer", "asyncpg", "uvloop")
    imports = "import pgqueuer"
    stores = ("postgres",)
    keeps_results = False
    has_bulk = True
    pace = {"noop": 2000 if "batch10" in OPTIONS else 10_000, "sleep1": 8_000}  # noqa: RUF012

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(URL, min_size=16, max_size=16)
        self.connection = await asyncpg.connect(URL)
        self.single = Queries(AsyncpgDriver(self.connection))
        self.shared = Queries(AsyncpgPoolDriver(self.pool))
        await self.single.install()
        self.flying = 0

    async def close(self) -> None:
        await self.connection.close()
        await self.pool.close()

    async def send(self, task: str, number: int) -> Any:
        # The pool costs one producer something and helps many.
        queries = self.shared if self.flying else self.single
        self.flying += 1
        try:
            return await queries.enqueue(task, b"%d" % number)
        finally:
            self.flying -= 1

    async def send_many(self, task: str, numbers: Sequence[int]) -> Sequence[Any]:
        payloads: list[bytes | None] = [b"%d" % number for number in numbers]
        return await self.single.enqueue([task] * len(payloads), payloads, [0] * len(payloads))

    async def pending(self) -> int | None:
        return sum(row.count for row in await self.single.queue_size())

    async def settled(self, handles: Sequence[Any]) -> bool:
        return not await self.single.queue_size()

    def worker_command(self) -> Sequence[str]:
        return python("-m", "benchmarks.subjects.pgqueuer")


SUBJECT = PgQueuerSubject

if __name__ == "__main__":
    from datetime import timedelta

    import uvloop
    from pgqueuer import types
    from pgqueuer.adapters.cli import supervisor

    uvloop.run(
        supervisor.run(
            main,
            dequeue_timeout=timedelta(seconds=30),
            batch_size=10 if "batch10" in OPTIONS else 100,
            restart_delay=timedelta(seconds=5),
            restart_on_failure=False,
            shutdown=asyncio.Event(),
            mode=types.QueueExecutionMode.continuous,
            max_concurrent_tasks=None,
            shutdown_on_listener_failure=False,
        )
    )
