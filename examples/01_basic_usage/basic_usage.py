"""OmniQ in its simplest form: one object, blocking or async.

python examples/01_basic_usage/basic_usage.py
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import timedelta
from pathlib import Path

from omniq import AsyncOmniQ, OmniQ


def multiply(a: int, b: int) -> int:
    return a * b


async def fetch(name: str) -> str:
    await asyncio.sleep(0.05)
    return f"<{name}>"


def blocking(folder: Path) -> None:
    oq = OmniQ(db_path=str(folder / "tasks.db"), worker_type="thread_pool", worker_config={"max_workers": 4})

    @oq.task(max_retries=2, retry_delay=0.1)
    def divide(a: float, b: float) -> float:
        return a / b

    with oq:  # starts the worker, and stops it in the end
        # Any function may be enqueued as it is. What it returns comes back.
        task_id = oq.enqueue(multiply, 6, 7)
        print("multiply:", oq.get_result(task_id))

        # Its arguments may also be given by name, and a task may be for later, or only for a while.
        task_id = oq.enqueue(
            multiply,
            func_args={"a": 3, "b": 4},
            run_in=timedelta(milliseconds=200),
            ttl=timedelta(hours=1),
            result_ttl=timedelta(minutes=5),
        )
        print("not yet:", oq.get_result(task_id, timeout=0))
        print("later:", oq.get_result(task_id, timeout=timedelta(seconds=10)))

        # A decorated task knows its options, and checks its arguments where it is enqueued.
        handle = divide.enqueue(1, b=4)
        print("divide:", handle.result(timeout=10))
        try:
            divide.enqueue(1, 0).result(timeout=10)
        except ZeroDivisionError as error:
            print("failed after three tries:", error)


async def asynchronous(folder: Path) -> None:
    async with AsyncOmniQ(db_path=str(folder / "async.db"), worker_type="async") as oq:
        ids = await oq.enqueue_many([(fetch, [name]) for name in ("a", "b", "c")])
        print("fetched:", [str(result) for result in await oq.get_results(ids, timeout=10)])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        blocking(Path(folder))
        asyncio.run(asynchronous(Path(folder)))


if __name__ == "__main__":
    main()
