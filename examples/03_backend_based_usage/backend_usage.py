"""Backends as factories: one storage for everything, or one for each component.

python examples/03_backend_based_usage/backend_usage.py
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import timedelta
from pathlib import Path

from omniq import AsyncOmniQ, OmniQ
from omniq.backend import FileBackend, MemoryBackend, SQLiteBackend
from omniq.events import EventStore
from omniq.queue import TaskQueue
from omniq.results import ResultStore
from omniq.workers import ThreadPoolWorker


def power(base: int, exponent: int) -> int:
    return int(base**exponent)


def one_backend(folder: Path) -> None:
    """All components on one backend: tasks, results and events in one file, and a task's end is one write."""
    backend = SQLiteBackend({"db_path": str(folder / "omniq.db")})
    with OmniQ.from_backend(backend, worker_type="thread_pool", worker_config={"max_workers": 2}) as oq:
        task_id = oq.enqueue(power, func_kwargs={"base": 2, "exponent": 10})
        result = oq.get_result(task_id, timeout=timedelta(seconds=10))
        print("one backend:", result.result if result else "None")
        print("queues:", oq.list_queues(), "waiting:", oq.get_queue_size())


def several_backends(folder: Path) -> None:
    """A backend for each component: here a fast queue that lives with the process, results in a folder, events in a file."""
    oq = OmniQ.from_backend(
        backend=MemoryBackend(),
        result_store_backend=FileBackend({"base_dir": str(folder / "results")}),
        event_store_backend=SQLiteBackend({"db_path": str(folder / "events.db")}),
        worker_type="async",
    )
    with oq:
        task_id = oq.enqueue(power, 3, 4, queue_name="high")
        print("several backends:", oq.get_result(task_id, timeout=10))
        oq.stop_worker()  # which writes its last events
        print("events:", [event.event_type for event in oq.get_events(task_id)])


def components_of_a_backend(folder: Path) -> None:
    """Components from one backend object share its connection."""
    backend = SQLiteBackend({"db_path": str(folder / "omniq.db")})
    task_queue = TaskQueue.from_backend(backend, queues=["high", "medium", "low"])
    result_store = ResultStore.from_backend(backend)
    event_store = EventStore.from_backend(backend)
    with task_queue, result_store, event_store, ThreadPoolWorker(task_queue, result_store, event_store):
        print("components:", result_store.get(task_queue.enqueue(power, 5, 2, queue_name="medium")))


async def asynchronous(folder: Path) -> None:
    backend = SQLiteBackend({"db_path": str(folder / "omniq.db")})
    async with AsyncOmniQ.from_backend(backend, worker_type="async") as oq:
        print("async:", await oq.get_result(await oq.enqueue(power, 7, 2), timeout=10))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        one_backend(Path(folder))
        several_backends(Path(folder))
        components_of_a_backend(Path(folder))
        asyncio.run(asynchronous(Path(folder)))


if __name__ == "__main__":
    main()
