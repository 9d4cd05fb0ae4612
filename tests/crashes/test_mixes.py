"""Queue, results and events, each on another backend: nothing is lost, whichever step a worker dies at.

A mix with memory in it lives in one process, so there the worker is a process pool of this very process, and it is a child
of the pool that is killed. The other mixes have real worker processes, and it is one of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.crashes.program import facade
from tests.crashes.workers import Crew

from omniq import AsyncOmniQ
from omniq.models import EventType
from omniq_core import TaskState

pytestmark = pytest.mark.slow  # every mix has servers and workers of its own

STORES = ["memory", "sqlite", "file", "postgres", "valkey", "nats", "s3"]
MIXES = [
    (STORES[queue], STORES[results], STORES[(queue + results) % len(STORES)])
    for queue in range(len(STORES))
    for results in range(len(STORES))
]
"""A Latin square: each pair of stores meets in each pair of roles."""
BESIDE_STEPS = [
    "before settle",
    "after the result was put",
    "after settle",
    "after the result was made final",
]


def double_or_die(number: int, folder: str) -> int:
    if number == 7:
        try:
            os.close(os.open(Path(folder) / "died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


async def check_results(oq: AsyncOmniQ, ids: list[str]) -> None:
    results = await oq.get_results(ids, timeout=60)
    assert [result and result.result for result in results] == [2 * number for number in range(len(ids))]
    assert {info and info.state for info in [await oq.get_task(task_id) for task_id in ids]} == {
        TaskState.SUCCEEDED
    }


@pytest.mark.parametrize(("queue", "results", "events"), MIXES)
def test_twenty_tasks_and_one_kill_lose_nothing(
    queue: str, results: str, events: str, place_on: Callable[..., str], tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "queue": place_on(queue),
        "results": place_on(results),
        "events_at": place_on(events),
        "events": True,
        "folder": str(tmp_path),
        "lease": 1.0,
        "step": "before settle",
        "fatal": [7],
    }

    async def in_processes() -> None:
        async with facade(config) as oq:
            ids = await oq.enqueue_many(
                {
                    "func": "effect",
                    "func_args": [number],
                    "headers": {"number": str(number)},
                    "max_retries": 0,
                }
                for number in range(20)
            )
            with Crew(config, 2) as crew:
                await check_results(oq, ids)
                assert crew.deaths == 1
            await check_events(oq, ids)

    async def in_this_process() -> None:
        oq = AsyncOmniQ.from_backend(
            config["queue"],
            config["results"],
            config["events_at"],
            worker_type="process_pool",
            worker_config={"max_workers": 2},
        )
        async with oq:
            ids = await oq.enqueue_many(
                {"func": double_or_die, "func_args": [number, str(tmp_path)], "max_retries": 0}
                for number in range(20)
            )
            await check_results(oq, ids)
            await oq.stop_worker()
            await check_events(oq, ids)

    asyncio.run(in_this_process() if "memory" in (queue, results, events) else in_processes())


async def check_events(oq: AsyncOmniQ, ids: list[str]) -> None:
    enqueued = {event.task_id for event in await oq.get_events(event_type=EventType.ENQUEUED)}
    assert enqueued == set(ids)


@pytest.mark.parametrize("step", BESIDE_STEPS)
@pytest.mark.parametrize(
    ("queue", "results"),
    [
        ("sqlite", "postgres"),
        ("postgres", "valkey"),
        ("valkey", "nats"),
        ("nats", "file"),
        ("file", "sqlite"),
    ],
)
def test_a_worker_killed_between_two_writes_of_one_settlement_loses_no_result(
    queue: str, results: str, step: str, place_on: Callable[..., str], tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "queue": place_on(queue),
        "results": place_on(results),
        "folder": str(tmp_path),
        "lease": 1.0,
        "step": step,
        "fatal": [3, 37],
    }

    async def run() -> None:
        async with facade(config) as oq:
            ids = await oq.enqueue_many(
                {
                    "func": "effect",
                    "func_args": [number],
                    "headers": {"number": str(number)},
                    "max_retries": 0,
                }
                for number in range(50)
            )
            with Crew(config, 2) as crew:
                await check_results(oq, ids)
            assert 1 <= crew.deaths <= 2  # two of the fatal ones may have been written in one batch

    asyncio.run(run())
