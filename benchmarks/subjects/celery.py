"""Celery on Redis, for the queue and for the results.

* One worker with the ``threads`` pool of 8: the tasks are short and the comparison is between single processes. (Its
  default, ``prefork``, is a parent and children; with one child it measured about the same and takes 2.7 times the memory.)
* ``--prefetch-multiplier 16``: its documentation asks for more than the default 4 where tasks are short. No gossip,
  mingle or heartbeat; task events are off, as they are by default; log level WARNING.
* JSON. Without results, ``ignore_result``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from celery import Celery

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, RESULTS, URL, SyncSubject
from benchmarks.tally import tick

app = Celery("benchmarks.subjects.celery", broker=URL, backend=URL if RESULTS else None)
app.conf.update(
    task_ignore_result=not RESULTS,
    worker_prefetch_multiplier=16,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=64,
    worker_send_task_events=False,
)


@app.task(name="noop")
def noop(number: int) -> int:
    tick()
    return number


@app.task(name="sleep1")
def sleep1(number: int) -> int:
    time.sleep(0.001)
    tick()
    return number


TASKS = {"noop": noop, "sleep1": sleep1}


class CelerySubject(SyncSubject):
    distributions = ("celery", "kombu", "redis", "hiredis")
    imports = "from celery import Celery; Celery()"
    stores = ("redis",)
    pace = {"noop": 400, "sleep1": 400}  # noqa: RUF012

    def send_now(self, task: str, number: int) -> Any:
        return TASKS[task].delay(number)

    def peek_now(self, handle: Any) -> Any:
        return handle.result if handle.ready() else MISSING

    def wait_now(self, handle: Any, timeout_s: float) -> Any:
        return handle.get(timeout=timeout_s)

    async def pending(self) -> int | None:
        with app.connection_for_read() as connection:
            return int(connection.default_channel.client.llen("celery"))

    def worker_command(self) -> Sequence[str]:
        options = ["--pool", "threads", "--concurrency", "8", "--loglevel", "WARNING"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return python("-m", "celery", "-A", "benchmarks.subjects.celery", "worker", *options, *quiet)


SUBJECT = CelerySubject
