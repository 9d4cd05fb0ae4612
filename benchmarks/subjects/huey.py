"""huey, on SQLite, on files and on Redis.

* SQLite: ``SqliteHuey(fsync=True)``, which is WAL with ``synchronous=FULL``: what OmniQ's default is. One worker thread:
  the writers of one file wait for each other, and more of them drain no faster.
* Redis: ``RedisHuey`` with its blocking pop and ``notify_result=True``, which makes waiting for a result a blocking pop as
  well (its default polls every 50 ms and more). Four worker threads.
* Files: ``FileHuey``, as it comes: a file for each task, under one lock, not synced. One worker thread.
* Results are stored (its default). No periodic tasks; quiet log. Its default poll of 100 ms is shortened to 5 ms, so that
  latency is not that of the poll; a client that waits for a result on SQLite polls, every 5 ms here.
* It has no bulk enqueue: ``task.map`` enqueues one by one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, RESULTS, STORE, URL, SyncSubject
from benchmarks.tally import tick

if STORE == "redis":
    from huey import RedisHuey

    huey = RedisHuey("bench", url=URL, results=RESULTS, notify_result=RESULTS)
elif STORE == "file":
    from huey import FileHuey

    huey = FileHuey("bench", path=URL.removeprefix("file://"), results=RESULTS)
else:
    from huey import SqliteHuey

    huey = SqliteHuey("bench", filename=URL, fsync=True, results=RESULTS)


@huey.task()
def noop(number: int) -> int:
    tick()
    return number


@huey.task()
def sleep1(number: int) -> int:
    time.sleep(0.001)
    tick()
    return number


TASKS = {"noop": noop, "sleep1": sleep1}


class Huey(SyncSubject):
    distributions = ("huey",)
    imports = "from huey import SqliteHuey"
    stores = ("sqlite", "file", "redis")
    stop_signal = signal.SIGINT
    pace = {"noop": 900, "sleep1": 500}  # noqa: RUF012

    async def open(self) -> None:
        if STORE == "sqlite":
            huey.storage.initialize_schema()

    async def close(self) -> None:
        huey.storage.close()

    def send_now(self, task: str, number: int) -> Any:
        return TASKS[task](number)

    def peek_now(self, handle: Any) -> Any:
        value = handle.get(preserve=True)
        return MISSING if value is None else value

    def wait_now(self, handle: Any, timeout_s: float) -> Any:
        return handle.get(blocking=True, timeout=timeout_s, backoff=1.0, max_delay=0.005)

    async def pending(self) -> int | None:
        return int(huey.pending_count())

    def worker_command(self) -> Sequence[str]:
        threads = "4" if STORE == "redis" else "1"
        options = ["-w", threads, "-k", "thread", "-d", "0.005", "-m", "0.005", "-n", "-q"]
        return python("-m", "huey.bin.huey_consumer", "benchmarks.subjects.huey.huey", *options)


SUBJECT = Huey
