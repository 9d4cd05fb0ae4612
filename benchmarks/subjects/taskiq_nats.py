"""taskiq on NATS, with taskiq-nats.

* ``PullBasedJetStreamBroker``, its broker for tasks that must not get lost: a JetStream stream of files, acknowledged. It
  fetches up to 100 messages at once (its default is 1, a row of its own), and gives up a fetch that found
  nothing after 50 ms. Results in ``NATSObjectStoreResultBackend``, the only one that it has.
* One worker process (``--workers 1``) with its default of 100 tasks at once, on uvloop. Log level WARNING. ``--ack-type`` is
  its default, when the result is saved.
* A client that waits for a result polls; it is told to every 2 ms (its default is 200 ms).
* No bulk enqueue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from taskiq import TaskiqResultTimeoutError
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, OPTIONS, RESULTS, URL, AsyncSubject
from benchmarks.tally import tick


def make_broker() -> Any:
    made: Any = PullBasedJetStreamBroker(
        URL, pull_consume_batch=1 if "batch1" in OPTIONS else 100, pull_consume_timeout=0.05
    )
    if RESULTS:
        made = made.with_result_backend(NATSObjectStoreResultBackend(servers=URL))
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


class TaskiqNats(AsyncSubject):
    distributions = ("taskiq", "taskiq-nats", "nats-py", "uvloop")
    imports = "import taskiq; from taskiq_nats import PullBasedJetStreamBroker"
    stores = ("nats",)
    pace = {"noop": 1000 if RESULTS else 4000, "sleep1": 1000}  # noqa: RUF012

    async def open(self) -> None:
        self.broker = make_broker()
        for task in TASKS.values():
            task.broker = self.broker
        await self.broker.startup()

    async def close(self) -> None:
        await self.broker.shutdown()
        if RESULTS:
            await self.broker.result_backend.shutdown()

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

    async def pending(self) -> int | None:
        return int((await self.broker.js.stream_info("taskiq_jetstream")).state.messages)

    def worker_command(self) -> Sequence[str]:
        options = ["--workers", "1", "--log-level", "WARNING", "--max-async-tasks", "100"]
        return python("-m", "taskiq", "worker", "benchmarks.subjects.taskiq_nats:broker", *options)


SUBJECT = TaskiqNats
