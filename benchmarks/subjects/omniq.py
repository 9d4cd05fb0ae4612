"""OmniQ, on every storage.

* Its defaults, with ``events=False`` (a variant has them on), and 100 slots (``max_workers``), which is what arq, saq and
  taskiq are given too. The tasks are async functions, the worker is ``async``, on uvloop where that is installed (taskiq
  does the same).
* SQLite: the default ``synchronous=FULL``.
* Memory: producer and worker share one process and one event loop, since that process is the storage.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.process import python
from benchmarks.subjects.subject import MISSING, OPTIONS, RESULTS, STORE, URL, AsyncSubject
from benchmarks.tally import tick
from omniq import AsyncOmniQ
from omniq_core import Claim, Settlement, TaskRecord, Verb

oq = AsyncOmniQ(f"sqlite:///{URL}" if STORE == "sqlite" else URL, events="events" in OPTIONS)


@oq.task(store_result=RESULTS)
async def noop(number: int) -> int:
    tick()
    return number


@oq.task(store_result=RESULTS)
async def sleep1(number: int) -> int:
    await asyncio.sleep(0.001)
    tick()
    return number


@oq.task
async def nothing() -> None:
    pass


@oq.task(store_result=False)
async def nothing_kept() -> None:
    pass


TASKS = {"noop": noop, "sleep1": sleep1}
SLOTS = 100


class OmniQ(AsyncSubject):
    distributions = ("omniq", "uvloop", *(f"omniq-{STORE}" for _ in "x" if STORE))
    imports = "from omniq import AsyncOmniQ"
    bare_import = "import omniq"
    stores = ("memory", "sqlite", "file", "redis", "postgres", "nats")
    has_bulk = True
    pace = {"noop": 15_000, "sleep1": 8_000}  # noqa: RUF012
    worker_is_process = STORE != "memory"

    async def open(self) -> None:
        await oq.open()

    async def close(self) -> None:
        await oq.close()

    async def send(self, task: str, number: int) -> Any:
        return await TASKS[task].enqueue(number)

    async def send_many(self, task: str, numbers: Sequence[int]) -> Sequence[Any]:
        return await TASKS[task].enqueue_many([(number,) for number in numbers])

    async def peek(self, handle: Any) -> Any:
        ended = await oq.get_result(handle.id, timeout=0)
        return MISSING if ended is None else ended.unwrap()

    async def wait(self, handle: Any, timeout_s: float) -> Any:
        return await handle.result(timeout=timeout_s)

    async def pending(self) -> int | None:
        return await oq.get_queue_size()

    async def settled(self, handles: Sequence[Any]) -> bool:
        return not any(queue.ready + queue.delayed + queue.running for queue in await oq.stats())

    def worker_command(self) -> Sequence[str]:
        return python("-m", "benchmarks.subjects.omniq")

    async def start_local_worker(self) -> None:
        await oq.start_worker(max_workers=SLOTS)

    async def stop_local_worker(self) -> None:
        await oq.stop_worker()


# --- what is measured of ours alone ----------------------------------------------------------------------------------


class Line:
    """A queue for :func:`claim_cost`, on a storage (a file, a schema, a prefix) of its own."""

    def __init__(self, project: str) -> None:
        url = f"sqlite:///{URL.removesuffix('.db')}-{project}.db" if STORE == "sqlite" else URL
        self._backend = AsyncOmniQ(project, backend=url, events=False).backend
        self._numbers = itertools.count()
        self.took: dict[str, list[float]] = {"claim": [], "claim_cpu": [], "settle": [], "settle_cpu": []}
        """Microseconds per task."""

    async def open(self) -> None:
        await self._backend.open()
        self._queue = self._backend.queue()

    async def close(self) -> None:
        await self._backend.close()

    async def add(self, count: int) -> None:
        body = os.urandom(40)
        for start in range(0, count, 1000):
            ids = (f"{next(self._numbers):020d}" for _ in range(min(1000, count - start)))
            await self._queue.enqueue([TaskRecord(identity, "default", "n", body) for identity in ids])

    async def claim(self, size: int) -> Sequence[Claim]:
        identity = f"claim-{next(self._numbers)}"
        claims = await self._queue.claim(
            ["default"], max_tasks=size, lease_s=30.0, worker_id="bench", claim_id=identity
        )
        if len(claims) != size:
            raise RuntimeError(f"a claim of {size} gave {len(claims)}")
        return claims

    async def settle(self, claims: Sequence[Claim]) -> None:
        result = os.urandom(120)
        await self._queue.settle([Settlement(claim.lease, Verb.SUCCEED, result=result) for claim in claims])

    async def finish(self, count: int) -> None:
        for start in range(0, count, 1000):
            await self.settle(await self.claim(min(1000, count - start)))

    async def measure(self, size: int) -> None:
        """One claim and its settlement. What is taken out is put in again."""
        began, cpu_began = time.perf_counter(), time.process_time()
        claims = await self.claim(size)
        between, cpu_between = time.perf_counter(), time.process_time()
        await self.settle(claims)
        ended, cpu_ended = time.perf_counter(), time.process_time()
        for name, took in (
            ("claim", between - began),
            ("claim_cpu", cpu_between - cpu_began),
            ("settle", ended - between),
            ("settle_cpu", cpu_ended - cpu_between),
        ):
            self.took[name].append(took / size * 1e6)
        await self.add(size)


async def claim_cost(subject: OmniQ, *, few: int, many: int, rounds: int) -> dict[str, Any]:
    """What 100 claimed tasks cost with ``few`` tasks pending, with ``many``, and with ``few`` and ``many`` finished ones.

    Three storages, in turns, so that what else the machine does hits all of them.
    """
    if STORE == "memory":
        many = min(many, 200_000)  # of Python objects
    lines = {name: Line(name) for name in ("few", "many", "finished")}
    for line in lines.values():
        await line.open()
    try:
        await lines["few"].add(few)
        await lines["many"].add(many)
        await lines["finished"].add(many)
        await lines["finished"].finish(many)
        await lines["finished"].add(few)
        for line in lines.values():
            for _ in range(5):
                await line.measure(100)
            for values in line.took.values():
                values.clear()
        gc.collect()
        for _ in range(rounds):
            for line in lines.values():
                await line.measure(100)
    finally:
        for line in lines.values():
            await line.close()
    figures: dict[str, Any] = {"few": few, "many": many}
    for name in lines["few"].took:
        medians = {when: statistics.median(line.took[name]) for when, line in lines.items()}
        for when, value in medians.items():
            figures[f"{name}_{when}_us"] = value
        figures[f"{name}_ratio"] = medians["many"] / medians["few"]
        figures[f"{name}_ratio_finished"] = medians["finished"] / medians["few"]
    return figures


async def backlog(subject: OmniQ, *, few: int, many: int, seconds: float) -> dict[str, Any]:
    """The rate at which one worker drains while ``many`` tasks wait."""
    from benchmarks import tally
    from benchmarks.process import WorkerProcess

    tally.create()
    for start in range(0, many, 1000):
        await noop.enqueue_many([(number,) for number in range(start, start + 1000)])
    watch = tally.Watch()
    worker = WorkerProcess(subject.worker_command())
    try:
        while watch.read().ran < 2000:
            worker.check()
            await asyncio.sleep(0.005)
        before, cpu, began = watch.read().ran, worker.cpu_seconds(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, used, took = watch.read().ran, worker.cpu_seconds() - cpu, time.perf_counter() - began
    finally:
        worker.stop()
    return {"rate": (after - before) / took, "cpu_us": used / max(1, after - before) * 1e6, "waiting": many}


async def loop(subject: OmniQ, *, tasks: int) -> dict[str, Any]:
    """The worker's own loop: tasks that do nothing, not even count themselves, from storage to storage."""
    figures: dict[str, Any] = {"tasks": tasks}
    for name, task in (("rate", nothing), ("rate_no_results", nothing_kept)):
        for _ in range(0, tasks, 1000):
            await task.enqueue_many([()] * 1000)
        gc.collect()
        worker = oq.make_worker(max_workers=SLOTS)
        began = time.perf_counter()
        report = await worker.run(burst=True)
        took = time.perf_counter() - began
        if report.succeeded != tasks:
            raise RuntimeError(f"{tasks} tasks were enqueued, and {report.succeeded} succeeded")
        figures[name] = tasks / took
    return figures


SCENARIOS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "claim cost": claim_cost,
    "backlog": backlog,
    "loop": loop,
}
SUBJECT = OmniQ


def work() -> None:
    """The worker process."""
    import signal

    async def main() -> None:
        worker = task_owner.make_worker(max_workers=SLOTS)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: worker.stop())
        await worker.run()

    # This file runs as __main__; its tasks are those of the module that the messages name.
    from benchmarks.subjects.omniq import oq as task_owner

    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())


if __name__ == "__main__":
    work()
    sys.exit(0)
