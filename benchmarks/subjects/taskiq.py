"""taskiq on Redis, with taskiq-redis.

* ``RedisStreamBroker``, its recommended broker: a consumer group, acknowledged, up to 100 messages per read. Results in
  ``RedisAsyncResultBackend``.
* One worker process (``--workers 1``) with its default of 100 tasks at once, on uvloop, which it takes by itself where it
  is installed. Log level WARNING. ``--ack-type`` is its default, when the result is saved.
* A client that waits for a result polls; it is told to every 2 ms (its default is 200 ms).
* No bulk enqueue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from taskiq import TaskiqResultTimeoutError
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, RESULTS, URL, AsyncSubject
from benchmarks.tally import tick


def make_broker() -> RedisStreamBroker:
    # "0": a worker that starts after the tasks were sent takes them as well.
    made = RedisStreamBroker(url=URL, consumer_id="0", max_connection_pool_size=128)
    if RESULTS:
        made = made.with_result_backend(RedisAsyncResultBackend(redis_url=URL, max_connection_pool_size=128))
    return made


broker = make_broker()


@broker.task(task_name="noop")
async def noop(number: int) -> int:
    tick()
    return number


@broker.task(task_name="sleep1")
async def sleep1(number: int) -> int:
    await asyncio.sleep(0.001)
    tick()
    return number


TASKS = {"noop": noop, "sleep1": sleep1}


class Taskiq(AsyncSubject):
    distributions = ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop")
    imports = "import taskiq; from taskiq_redis import RedisStreamBroker"
    stores = ("redis",)
    pace = {"noop": 800 if RESULTS else 1600, "sleep1": 800}  # noqa: RUF012

    async def open(self) -> None:
        await broker.startup()

    async def close(self) -> None:
        await broker.connection_pool.disconnect()
        if RESULTS:
            await broker.result_backend.redis_pool.disconnect()

    async def send(self, task: str, number: int) -> Any:
        return await TASKS[task].kiq(number)

    async def peek(self, handle: Any) -> Any:
        if not await handle.is_ready():
            return MISSING
        return (await handle.get_result()).return_value

    async def wait(self, handle: Any, timeout_s: float) -> Any:
        try:
            return (await handle.wait_result(check_interval=0.002, timeout=timeout_s)).return_value
        except TaskiqResultTimeoutError:
            return MISSING

    def worker_command(self) -> Sequence[str]:
        options = ["--workers", "1", "--log-level", "WARNING", "--max-async-tasks", "100"]
        return python("-m", "taskiq", "worker", "benchmarks.subjects.taskiq:broker", *options)


SUBJECT = Taskiq
