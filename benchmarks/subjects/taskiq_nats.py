"""taskiq on NATS, with taskiq-nats.

``PullBasedJetStreamBroker``, its broker for tasks that must not get lost: a JetStream stream of files, acknowledged. It
fetches up to 100 messages at once (its default is 1, a row of its own), and gives up a fetch that found nothing after 50 ms.
Results in ``NATSObjectStoreResultBackend``, the only one that it has. The rest is told in ``taskiq_calls.py``.
"""

from __future__ import annotations

from typing import Any

from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from benchmarks.subjects.subject import OPTIONS, RESULTS, URL
from benchmarks.subjects.taskiq_calls import TaskiqSubject, declare


def make_broker() -> Any:
    made: Any = PullBasedJetStreamBroker(
        URL, pull_consume_batch=1 if "batch1" in OPTIONS else 100, pull_consume_timeout=0.05
    )
    if RESULTS:
        made = made.with_result_backend(NATSObjectStoreResultBackend(servers=URL))
    return made


broker = make_broker()


class TaskiqNats(TaskiqSubject):
    distributions = ("taskiq", "taskiq-nats", "nats-py", "uvloop")
    imports = "import taskiq; from taskiq_nats import PullBasedJetStreamBroker"
    stores = ("nats",)
    pace = {"noop": 1000 if RESULTS else 4000, "sleep1": 1000}  # noqa: RUF012
    tasks = declare(broker)
    module = __name__

    async def open(self) -> None:
        self.broker = make_broker()
        for task in self.tasks.values():
            task.broker = self.broker
        await self.broker.startup()

    async def close(self) -> None:
        await self.broker.shutdown()
        if RESULTS:
            await self.broker.result_backend.shutdown()

    async def pending(self) -> int | None:
        return int((await self.broker.js.stream_info("taskiq_jetstream")).state.messages)


SUBJECT = TaskiqNats
