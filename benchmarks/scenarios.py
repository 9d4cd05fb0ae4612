"""What is measured, in the same way for every subject.

Each function is one scenario: it gets an opened subject on an empty storage and returns figures. A rate is per second.
What must be true besides being fast (every task ran, once; every result can be read) is checked here and fails the run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks import tally
from benchmarks.process import LocalWorker, WorkerProcess
from benchmarks.subjects.subject import MISSING, RESULTS, Subject, SyncSubject

__all__ = ["SCENARIOS", "Skip", "Wrong"]

Figures = dict[str, Any]


class Skip(Exception):
    """The subject cannot do this; the message says why."""


class Wrong(Exception):
    """It was not done, or not right."""


async def _check_pending(subject: Subject, sent: int) -> None:
    pending = await subject.pending()
    if pending is not None and pending != sent:
        raise Wrong(f"{sent} tasks were enqueued, and {pending} wait")


async def enqueue_one(subject: Subject, *, seconds: float, most: int) -> Figures:
    """One producer, one task after another."""
    for number in range(20):
        await subject.send("noop", number)
    gc.collect()
    sent, began = 0, time.perf_counter()
    end = began + seconds
    while time.perf_counter() < end and sent < most:
        await subject.send("noop", sent)
        sent += 1
    took = time.perf_counter() - began
    await _check_pending(subject, sent + 20)
    return {"rate": sent / took, "tasks": sent}


async def enqueue_64(subject: Subject, *, seconds: float, most: int) -> Figures:
    """64 coroutines, or threads, that each enqueue one task after another."""
    await subject.send("noop", 0)
    gc.collect()
    began = time.perf_counter()
    end = began + seconds
    sent = 0

    if isinstance(subject, SyncSubject):

        def produce() -> int:
            mine = 0
            while time.perf_counter() < end and mine < most // 64:
                subject.send_now("noop", mine)
                mine += 1
            return mine

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            sent = sum(future.result() for future in [pool.submit(produce) for _ in range(64)])
    else:

        async def produce_async() -> int:
            mine = 0
            while time.perf_counter() < end and mine < most // 64:
                await subject.send("noop", mine)
                mine += 1
            return mine

        sent = sum(await asyncio.gather(*(produce_async() for _ in range(64))))
    took = time.perf_counter() - began
    await _check_pending(subject, sent + 1)
    return {"rate": sent / took, "tasks": sent}


async def enqueue_batch(subject: Subject, *, seconds: float, most: int, size: int) -> Figures:
    """One producer that enqueues many tasks per call."""
    if not subject.has_bulk:
        raise Skip("has no call that enqueues many")
    await subject.send_many("noop", range(10))
    numbers = range(size)
    gc.collect()
    sent, began = 0, time.perf_counter()
    end = began + seconds
    while time.perf_counter() < end and sent < most:
        await subject.send_many("noop", numbers)
        sent += size
    took = time.perf_counter() - began
    await _check_pending(subject, sent + 10)
    return {"rate": sent / took, "tasks": sent, "size": size}


async def _fill(subject: Subject, task: str, count: int) -> list[Any]:
    handles: list[Any] = []
    if subject.has_bulk:
        for start in range(0, count, 1000):
            handles += await subject.send_many(task, range(start, min(start + 1000, count)))
    elif subject.is_async:
        for start in range(0, count, 32):
            numbers = range(start, min(start + 32, count))
            handles += await asyncio.gather(*(subject.send(task, number) for number in numbers))
    else:
        for number in range(count):
            handles.append(await subject.send(task, number))
    return handles


async def _start(subject: Subject) -> WorkerProcess | LocalWorker:
    if subject.worker_is_process:
        return WorkerProcess(subject.worker_command(), stop_signal=subject.stop_signal)
    await subject.start_local_worker()
    return LocalWorker()


async def _stop(subject: Subject, worker: WorkerProcess | LocalWorker) -> None:
    if isinstance(worker, WorkerProcess):
        worker.stop()
    else:
        await subject.stop_local_worker()


async def _until(
    reached: Callable[[], bool | Awaitable[bool]],
    worker: WorkerProcess | LocalWorker,
    what: str,
    patience_s: float,
) -> None:
    """Looks every 2 ms; gives up when ``patience_s`` have passed without an end."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = reached()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        worker.check()
        if time.monotonic() > deadline:
            raise Wrong(f"{what} within {patience_s:.0f} s\n{worker.log_tail()}")
        await asyncio.sleep(0.002)


async def _verify(subject: Subject, handles: Sequence[Any], sample: int) -> int:
    """Results are there, and are those of their tasks."""
    if not RESULTS or not subject.keeps_results:
        return 0
    picked = (
        range(len(handles)) if len(handles) <= sample else sorted(random.sample(range(len(handles)), sample))
    )
    for index in picked:
        value = await subject.peek(handles[index])
        if value is MISSING:
            raise Wrong(f"the result of task {index} of {len(handles)} is not there")
        if value != index:
            raise Wrong(f"the result of task {index} is {value!r}")
    return len(picked)


async def drain(subject: Subject, *, task: str, tasks: int, sample: int) -> Figures:
    """One worker process gets through what is there.

    From its first task until the last one is done in the storage too; starting the process is not counted.
    """
    tally.create()
    handles = await _fill(subject, task, tasks)
    await _check_pending(subject, tasks)
    watch = tally.Watch()
    gc.collect()
    worker = await _start(subject)
    try:
        await _until(lambda: watch.read().ran >= 1, worker, "no task ran", 60)
        cpu_began = worker.cpu_seconds()
        await _until(lambda: watch.read().ran >= tasks, worker, "not every task ran", 180)
        await _until(lambda: subject.settled(handles), worker, "not every result came", 60)
        end = time.monotonic()
        cpu = worker.cpu_seconds() - cpu_began
        checked = await _verify(subject, handles, sample)
        reading = watch.read()
        if reading.ran != tasks:
            raise Wrong(f"{tasks} tasks were enqueued, and {reading.ran} ran")
        memory = worker.footprint()
    finally:
        await _stop(subject, worker)
    took = end - reading.first
    return {
        "rate": tasks / took,
        "tasks": tasks,
        "cpu_us": cpu / tasks * 1e6,
        "results_checked": checked,
        "busy_rss_mib": memory["rss"],
    }


async def idle(subject: Subject, *, rounds: int) -> Figures:
    """A worker that has nothing to do: its memory, and how long one task takes from enqueue to result."""
    tally.create()
    with_result = RESULTS and subject.keeps_results
    watch = tally.Watch()
    worker = await _start(subject)
    to_result: list[float] = []
    to_run: list[float] = []
    memory: dict[str, float] = {}
    try:
        for number in range(-10, rounds):
            if number == 0:
                await asyncio.sleep(1.5)
                memory = worker.footprint()
            ran = watch.read().ran
            began = time.monotonic()
            handle = await subject.send("noop", number)
            if with_result:
                value = await subject.wait(handle, 60.0 if number == -10 else 15.0)
                ended = time.monotonic()
                if value != number:
                    raise Wrong(f"the result of task {number} is {value!r}")
            await _until(lambda least=ran + 1: watch.read().ran >= least, worker, "the task did not run", 60)
            if number >= 0:
                to_run.append(watch.read().last - began)
                if with_result:
                    to_result.append(ended - began)
            # Not in step with anybody's polling, and long enough that the worker is idle again.
            await asyncio.sleep(random.uniform(0.003, 0.012))
    finally:
        await _stop(subject, worker)
    return {**_latency(to_run, to_result), **_memory(memory)}


def _latency(to_run: list[float], to_result: list[float]) -> Figures:
    figures: Figures = {}
    for name, values in (("run", to_run), ("result", to_result)):
        if len(values) >= 2:
            figures[f"{name}_p50_ms"] = statistics.median(values) * 1000
            figures[f"{name}_p99_ms"] = statistics.quantiles(values, n=100, method="inclusive")[98] * 1000
    return figures


def _memory(memory: dict[str, float]) -> Figures:
    return {f"idle_{key}_mib" if key != "processes" else "processes": value for key, value in memory.items()}


SCENARIOS: dict[str, Callable[..., Awaitable[Figures]]] = {
    "enqueue one": enqueue_one,
    "enqueue 64": enqueue_64,
    "enqueue batch": enqueue_batch,
    "drain": drain,
    "drain 1 ms": drain,
    "idle": idle,
}
