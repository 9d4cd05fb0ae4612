"""A user's program that both type checkers must accept, with the types that they must see."""

from __future__ import annotations

import datetime
from collections.abc import Coroutine
from typing import Any, assert_type

from omniq import (
    AsyncOmniQ,
    AsyncTask,
    AsyncTaskHandle,
    OmniQ,
    Task,
    TaskHandle,
    TaskInfo,
    TaskResult,
    TaskStatus,
    current_task,
)
from omniq.backend import SQLiteBackend
from omniq.events import EventStore, PostgresEventStorage
from omniq.queue import AsyncPostgresTaskQueue, FileTaskQueue, TaskQueue
from omniq.results import ResultStore, SQLiteResultStorage
from omniq.testing import run_until_idle
from omniq.workers import AsyncWorker, ThreadPoolWorker
from omniq_core import WorkerReport

oq = OmniQ("sqlite:///tasks.db")
aq = AsyncOmniQ(backend="sqlite", db_path="tasks.db", worker_type="async")


@oq.task
def add(a: int, b: int = 1) -> int:
    return a + b


@oq.task(queue_name="mail", max_retries=3, timeout=datetime.timedelta(minutes=1), retry_delay=2.5)
async def send(to: str, *, urgent: bool = False) -> bool:
    return current_task().attempt == 1 or urgent


@aq.task
async def fetch(url: str) -> bytes:
    return url.encode()


@aq.task(name="measure", priority=5, ttl=60)
def measure(text: str) -> int:
    return len(text)


def blocking() -> None:
    assert_type(add(1, b=2), int)
    coroutine: Coroutine[Any, Any, bool] = send("a")
    coroutine.close()
    handle = add.enqueue(1, b=2)
    assert_type(handle, TaskHandle[int])
    assert_type(handle.result(timeout=5), int)
    assert_type(handle.get(), TaskResult | None)
    assert_type(handle.status(), TaskStatus | None)
    assert_type(send.enqueue("a", urgent=True).result(), bool)
    assert_type(send.with_options(run_in=datetime.timedelta(hours=1)).enqueue("a"), TaskHandle[bool])
    assert_type(add.options(priority=3, unique_key="k").enqueue(1), TaskHandle[int])
    assert_type(add.enqueue_many([(1, 2), {"a": 3}]), list[TaskHandle[int]])
    task: Task[..., int, int] = add
    task.enqueue(1)

    task_id = oq.enqueue(
        add, 1, func_kwargs={"b": 2}, queue_name="low", run_in=5, ttl=datetime.timedelta(days=1)
    )
    assert_type(task_id, str)
    assert_type(oq.enqueue(lambda: 1), str)
    assert_type(oq.enqueue_many([add, (add, [1]), {"func": add, "func_args": [1]}], priority=1), list[str])
    result = oq.get_result(task_id, timeout=datetime.timedelta(seconds=10))
    assert_type(result, TaskResult | None)
    assert_type(oq.get_task(task_id), TaskInfo | None)
    assert_type(run_until_idle(oq), WorkerReport)
    with oq as opened:
        assert_type(opened, OmniQ)
        opened.start_worker(worker_type="thread_pool", max_workers=4)


async def waiting() -> None:
    handle = await fetch.enqueue("x")
    assert_type(handle, AsyncTaskHandle[bytes])
    assert_type(await handle, bytes)
    assert_type(await handle.result(timeout=3), bytes)
    assert_type(await fetch("x"), bytes)
    assert_type(measure("x"), int)
    assert_type(await (await measure.enqueue("x")), int)
    assert_type(await (await measure.with_options(run_in=1).enqueue(text="x")), int)
    task: AsyncTask[..., int, int] = measure
    await task.enqueue("x")
    assert_type(await aq.enqueue(fetch, "x", max_crashes=1), str)
    assert_type(await run_until_idle(aq), WorkerReport)
    async with await AsyncOmniQ.from_backend("memory") as opened:
        assert_type(opened, AsyncOmniQ)


def components() -> None:
    backend = SQLiteBackend({"db_path": "omniq.db"})
    queue = TaskQueue.from_backend(backend, queues=["high", "medium", "low"])
    results = ResultStore.from_backend(backend)
    events = EventStore.from_backend(backend)
    ThreadPoolWorker(queue, results, events, max_workers=2).start()
    files = FileTaskQueue(project_name="shop", base_dir="data", queues=["low"])
    AsyncWorker(files, SQLiteResultStorage(base_dir="data"), PostgresEventStorage(host="localhost"))
    AsyncWorker(AsyncPostgresTaskQueue("shop", host="localhost"))
    OmniQ(task_queue=files, result_store=SQLiteResultStorage(db_path="r.db"))
    OmniQ.from_backend(backend=backend, result_store_backend="memory://", worker_type="thread_pool")
