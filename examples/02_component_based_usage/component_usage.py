"""Each component by itself: a task queue, a result store, an event store, a worker.

python examples/02_component_based_usage/component_usage.py
"""

from __future__ import annotations

import tempfile

from omniq.events import SQLiteEventStorage
from omniq.queue import FileTaskQueue
from omniq.results import SQLiteResultStorage
from omniq.workers import AsyncWorker, ThreadPoolWorker


def describe(name: str, level: str = "low") -> str:
    return f"{name} is {level}"


async def describe_async(name: str, level: str = "low") -> str:
    return f"{name} is {level}, async"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(folder)


def run(folder: str) -> None:
    # Each component has a storage of its own; here a folder and two SQLite files. Nothing is opened yet.
    task_queue = FileTaskQueue(project_name="tasks", base_dir=folder, queues=["high", "medium", "low"])
    result_store = SQLiteResultStorage(project_name="results", base_dir=folder)
    event_store = SQLiteEventStorage(project_name="events", base_dir=folder)

    # Workers take from the queues in the order of the list: "medium" only when "high" has nothing due. With one thread the
    # order in which the tasks are started can be seen.
    ids = {
        level: task_queue.enqueue(describe, "the priority", func_kwargs={"level": level}, queue_name=level)
        for level in ("low", "high", "medium")
    }
    worker = ThreadPoolWorker(task_queue, result_store, event_store, max_workers=1, max_prefetch=0)
    with task_queue, result_store, event_store, worker:
        for level in ("high", "medium", "low"):
            print(result_store.get(ids[level]))

    names = {task_id: level for level, task_id in ids.items()}
    with event_store:
        started = [names[event.task_id] for event in event_store.get_events(event_type="executing")]
        print("started in this order:", ", ".join(started))
    assert started == ["high", "medium", "low"]

    # Another worker on the same storage, of another kind: it may as well be in another process.
    with task_queue, result_store:
        worker = AsyncWorker(task_queue, result_store)
        worker.start()
        for function in (describe, describe_async):
            print(
                result_store.get(
                    task_queue.enqueue(function, "it", func_kwargs={"level": "fine"}), timeout=10
                )
            )
        worker.stop()


if __name__ == "__main__":
    main()
