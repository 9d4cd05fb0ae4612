"""Workers that are killed, frozen or blocked, as real processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.crashes.program import facade
from tests.crashes.workers import Crew, worker_process

from omniq import AsyncOmniQ
from omniq.models import TaskStatus
from omniq_core import TaskState

pytestmark = pytest.mark.slow  # leases have to end

LEASE_S = 1.0
STEPS = ["before start", "mid-task", "after the effect", "before settle"]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {"queue": f"sqlite:///{tmp_path}/tasks.db", "folder": str(tmp_path), "lease": LEASE_S}


async def enqueue_effects(oq: AsyncOmniQ, count: int, task: str = "effect") -> list[str]:
    calls = [
        {"func": task, "func_args": [number], "headers": {"number": str(number)}, "max_retries": 0}
        for number in range(count)
    ]
    return await oq.enqueue_many(calls)


def effects(config: dict[str, Any]) -> Counter[int]:
    """How often each task had its effect."""
    path = Path(config["folder"]) / "ledger"
    return Counter(int(line.split()[0]) for line in path.read_text().splitlines())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("task", ["effect", "sync_effect"])
def test_workers_killed_at_a_step_lose_none_of_200_tasks(
    config: dict[str, Any], step: str, task: str
) -> None:
    fatal = [20, 160]  # one less than a task survives, whoever is hit
    config |= {"step": step, "fatal": fatal}

    async def run() -> None:
        async with facade(config) as oq:
            ids = await enqueue_effects(oq, 200, task)
            with Crew(config, 2) as crew:
                results = await oq.get_results(ids, timeout=90)
            assert crew.deaths == len(fatal)
            # Retries are forbidden here (max_retries=0): that a worker died is charged to no task.
            assert [result and result.result for result in results] == [2 * number for number in range(200)]
            again = [await oq.get_task(task_id) for task_id in ids]
            assert {info and info.state for info in again} == {TaskState.SUCCEEDED}

    asyncio.run(run())
    done = effects(config)
    assert set(done) == set(range(200))
    if step in ("after the effect", "before settle"):
        assert all(done[number] > 1 for number in fatal)  # the effect came before the end: at least once


def test_a_worker_that_was_frozen_past_its_lease_changes_nothing(
    config: dict[str, Any], tmp_path: Path
) -> None:
    async def run() -> None:
        async with facade(config) as oq:
            task_id = await oq.enqueue("slow_once", str(tmp_path))
            with worker_process(config) as zombie, worker_process(config) as other:
                # Whoever has it becomes the zombie.
                first = await asyncio.to_thread(_first_to_start, zombie, other)
                first.freeze()
                result = await oq.get_result(task_id, timeout=60)
                assert result is not None
                assert result.result == "by attempt 2"
                (tmp_path / "go").touch()
                first.thaw()
                assert (await asyncio.to_thread(first.stop))["succeeded"] == 0
                after = await oq.get_result(task_id, timeout=0)
                assert after is not None
                assert (after.result, after.attempts) == ("by attempt 2", 2)
                info = await oq.get_task(task_id)
                assert info is not None
                assert info.state is TaskState.SUCCEEDED

    asyncio.run(run())


def _first_to_start(*workers: Any) -> Any:
    import threading

    started: list[Any] = []
    one_has = threading.Event()

    def watch(worker: Any) -> None:
        try:
            worker.wait_for("started", 60)
        except AssertionError:
            return
        started.append(worker)
        one_has.set()

    for worker in workers:
        threading.Thread(target=watch, args=(worker,), daemon=True).start()
    assert one_has.wait(60)
    return started[0]


def test_a_task_that_blocks_the_loop_for_three_leases_runs_once(config: dict[str, Any]) -> None:
    async def run() -> None:
        async with facade(config) as oq:
            task_id = await oq.enqueue("block_the_loop", 3.5 * LEASE_S)
            with Crew(config, 2):
                result = await oq.get_result(task_id, timeout=60)
            assert result is not None
            assert (result.status, result.result) == (TaskStatus.SUCCESS, 1)

    asyncio.run(run())
    assert len((Path(config["folder"]) / "ledger").read_text().splitlines()) == 1


def test_three_workers_run_5000_tasks_exactly_once_each(config: dict[str, Any]) -> None:
    config |= {"lease": 30.0}

    async def run() -> None:
        async with facade(config) as oq:
            with Crew(config, 3) as crew:
                await asyncio.to_thread(crew.until_ready)
                ids = await enqueue_effects(oq, 5000)
                results = await oq.get_results(ids, timeout=120)
        assert [result and result.result for result in results] == [2 * number for number in range(5000)]
        assert len({result and result.worker_id for result in results}) == 3

    asyncio.run(run())
    assert effects(config) == Counter(range(5000))
