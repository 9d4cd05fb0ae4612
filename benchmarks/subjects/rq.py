"""RQ on Redis.

* ``SimpleWorker``, which runs jobs in the worker itself. RQ's default, a fork for each job, isolates them at 20 to 30 ms
  each (about 40 a second in our earlier runs); the quicker one is the one to be measured against.
* Results are always stored (``result_ttl`` at its default of 500 s), and waited for with its blocking read of the result
  stream. Bulk enqueue: ``enqueue_many`` in one pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq import Queue

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, URL, SyncSubject
from benchmarks.tally import tick


def noop(number: int) -> int:
    tick()
    return number


def sleep1(number: int) -> int:
    time.sleep(0.001)
    tick()
    return number


TASKS = {"noop": noop, "sleep1": sleep1}


class Rq(SyncSubject):
    distributions = ("rq", "redis", "hiredis")
    imports = "import rq"
    stores = ("redis",)
    has_bulk = True
    pace = {"noop": 170, "sleep1": 150}  # noqa: RUF012

    async def open(self) -> None:
        self.redis = Redis.from_url(URL)
        self.queue = Queue(connection=self.redis)

    async def close(self) -> None:
        self.redis.close()

    def send_now(self, task: str, number: int) -> Any:
        return self.queue.enqueue(TASKS[task], number)

    async def send_many(self, task: str, numbers: Sequence[int]) -> Sequence[Any]:
        return self.queue.enqueue_many([Queue.prepare_data(TASKS[task], (number,)) for number in numbers])

    def peek_now(self, handle: Any) -> Any:
        value = handle.return_value(refresh=True)
        return MISSING if value is None else value

    def wait_now(self, handle: Any, timeout_s: float) -> Any:
        found = handle.latest_result(timeout=int(timeout_s))
        return MISSING if found is None else found.return_value

    async def pending(self) -> int | None:
        return int(self.queue.count)

    def worker_command(self) -> Sequence[str]:
        return python("-m", "rq.cli", "worker", "--url", URL, "--quiet", "--worker-class", "rq.SimpleWorker")


SUBJECT = Rq
