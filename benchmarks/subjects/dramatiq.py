"""dramatiq on Redis.

* One worker process (``--processes 1``) with its default of 8 threads, since the tasks are sync functions.
* Results: its ``Results`` middleware with the Redis backend, waited for with its blocking pop.
* Its default middleware (retries, age limit, time limit, shutdown …) but for Prometheus, which is not installed.
* No bulk enqueue: a ``group`` sends one by one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import RedisBackend

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, RESULTS, URL, SyncSubject
from benchmarks.tally import tick

broker = RedisBroker(url=URL)
if RESULTS:
    broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)
STORED: dict[str, Any] = {"store_results": True} if RESULTS else {}


@dramatiq.actor(**STORED)
def noop(number: int) -> int | None:
    tick()
    return number if RESULTS else None


@dramatiq.actor(**STORED)
def sleep1(number: int) -> int | None:
    time.sleep(0.001)
    tick()
    return number if RESULTS else None


TASKS = {"noop": noop, "sleep1": sleep1}


class Dramatiq(SyncSubject):
    distributions = ("dramatiq", "redis", "hiredis")
    imports = "import dramatiq; from dramatiq.brokers.redis import RedisBroker"
    stores = ("redis",)
    pace = {"noop": 1000, "sleep1": 1000}  # noqa: RUF012

    async def close(self) -> None:
        broker.client.connection_pool.disconnect()

    def send_now(self, task: str, number: int) -> Any:
        return TASKS[task].send(number)

    def peek_now(self, handle: Any) -> Any:
        try:
            return handle.get_result()
        except ResultMissing:
            return MISSING

    def wait_now(self, handle: Any, timeout_s: float) -> Any:
        return handle.get_result(block=True, timeout=int(timeout_s * 1000))

    async def pending(self) -> int | None:
        return int(broker.client.llen("dramatiq:default"))

    def worker_command(self) -> Sequence[str]:
        return python("-m", "dramatiq", "benchmarks.subjects.dramatiq", "--processes", "1", "--threads", "8")


SUBJECT = Dramatiq
