"""procrastinate on PostgreSQL, with psycopg 3.

* One worker process with ``--concurrency 10`` for its async tasks (with 1, its default, it drains no faster), woken by
  LISTEN/NOTIFY. Finished jobs stay in the table, its default; log level WARNING.
* It keeps how a job ended, but no value: there is no result to wait for, and its latency is to execution.
* Bulk enqueue: ``batch_defer_async``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from procrastinate import App, PsycopgConnector

from benchmarks.process import python
from benchmarks.subjects.subject import URL, AsyncSubject
from benchmarks.tally import tick

app = App(connector=PsycopgConnector(conninfo=URL, min_size=4, max_size=16))


@app.task(name="noop")
async def noop(number: int) -> int:
    tick()
    return number


@app.task(name="sleep1")
async def sleep1(number: int) -> int:
    await asyncio.sleep(0.001)
    tick()
    return number


TASKS = {"noop": noop, "sleep1": sleep1}


class Procrastinate(AsyncSubject):
    distributions = ("procrastinate", "psycopg", "psycopg-binary", "psycopg-pool")
    imports = "import procrastinate"
    stores = ("postgres",)
    keeps_results = False
    has_bulk = True
    pace = {"noop": 180, "sleep1": 180}  # noqa: RUF012

    async def open(self) -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    async def close(self) -> None:
        await app.close_async()

    async def send(self, task: str, number: int) -> Any:
        return await TASKS[task].defer_async(number=number)

    async def send_many(self, task: str, numbers: Sequence[int]) -> Sequence[Any]:
        return await TASKS[task].batch_defer_async(*({"number": number} for number in numbers))

    async def _count(self, *states: str) -> int:
        queues = await app.job_manager.list_queues_async()
        return sum(queue[state] for queue in queues for state in states)

    async def pending(self) -> int | None:
        return await self._count("todo")

    async def settled(self, handles: Sequence[Any]) -> bool:
        return await self._count("todo", "doing") == 0

    def worker_command(self) -> Sequence[str]:
        options = ["--log-level", "warning", "--app", "benchmarks.subjects.procrastinate.app"]
        return python("-m", "procrastinate", *options, "worker", "--concurrency", "10")


SUBJECT = Procrastinate
