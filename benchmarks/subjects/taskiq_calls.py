"""taskiq, whatever its broker: the two tasks, and what its client and its worker do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from taskiq import AsyncBroker, TaskiqResultTimeoutError

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, AsyncSubject
from benchmarks.tally import tick

__all__ = ["TaskiqSubject", "declare"]


def declare(broker: AsyncBroker) -> Mapping[str, Any]:
    """The tasks, by name."""

    async def noop(number: int) -> int:
        tick()
        return number

    async def sleep1(number: int) -> int:
        await asyncio.sleep(0.001)
        tick()
        return number

    return {name: broker.task(task_name=name)(task) for name, task in (("noop", noop), ("sleep1", sleep1))}


class TaskiqSubject(AsyncSubject):
    """One worker process (``--workers 1``) with its default of 100 tasks at once, on uvloop, which it takes where it
    is installed. Log level WARNING. ``--ack-type`` is its default, when the result is saved. Who waits for a result
    polls; it is told to every 2 ms (its default is 200 ms). No bulk enqueue."""

    tasks: ClassVar[Mapping[str, Any]]
    module: ClassVar[str]
    """Where the worker finds ``broker``."""

    async def send(self, task: str, number: int) -> Any:
        return await self.tasks[task].kiq(number)

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
        return python("-m", "taskiq", "worker", f"{self.module}:broker", *options)
