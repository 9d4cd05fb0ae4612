"""Leases: what a worker holds stays its own, whatever its tasks do; what it lost it lets go."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from omniq.context import current_task
from omniq.models import TaskStatus
from omniq_core import ManualClock, TaskState
from omniq_memory import MemoryBackend


async def test_a_task_that_blocks_the_event_loop_for_three_leases_keeps_its_own_and_runs_once(
    lab: Any,
) -> None:
    runs = []

    async def blocking() -> str:
        runs.append(current_task().attempt)
        time.sleep(3.1)  # noqa: ASYNC251 - that is the point
        return "done"

    async def bystander() -> str:
        runs.append(0)
        return "done"

    ids = [await lab.enqueue(blocking), await lab.enqueue(bystander)]
    stop = threading.Event()

    def rival() -> None:
        """Another worker, on a thread of its own, that would take over what it can."""

        async def reap() -> None:
            twin = lab.backend.twin()
            async with twin:
                while not stop.is_set():
                    await twin.queue().maintain()
                    await asyncio.sleep(0.01)

        asyncio.run(reap())

    thread = threading.Thread(target=rival)
    thread.start()
    try:
        report = await lab.engine(lease_s=1.0, max_workers=1, max_prefetch=0).run(burst=True)
    finally:
        stop.set()
        thread.join()
    assert runs == [1, 0]
    assert (report.succeeded, report.stale) == (2, 0)
    assert [await lab.value(one) for one in ids] == ["done", "done"]


async def test_a_run_whose_task_somebody_else_has_is_cancelled_and_its_outcome_dropped(lab: Any) -> None:
    lab.events = lab.backend
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def func() -> str:
        if current_task().attempt > 1:
            return "the second run"
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            return "the first run"  # even so
        return "not"

    task_id = await lab.enqueue(func)
    engine = lab.engine(lease_s=0.3, upkeep_s=30)
    async with lab.running(engine):
        await started.wait()
        # The store takes the task away as it does when a lease has ended.
        store = lab.backend.store()
        with store.lock:
            store._reap(store._tasks[task_id], time.time())
        await cancelled.wait()
        task = await lab.until(task_id)
    assert (task.state, task.crashes) == (TaskState.SUCCEEDED, 1)
    assert await lab.value(task_id) == "the second run"
    assert "fenced" in await lab.event_types(task_id)


async def test_a_lease_that_cannot_be_extended_is_given_up_before_it_ends(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()
    started = asyncio.Event()
    ended: list[float] = []

    async def func() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(time.time())

    task_id = await lab.enqueue(func)
    lab.backend.faults.down("extend")
    async with lab.running(lab.engine(lease_s=1.2, upkeep_s=30, queues=("default",), max_workers=1)):
        await started.wait()
        task = await lab.task(task_id)
        lab.backend.faults.down("extend", "claim")
        await lab.eventually(lambda: ended)
        assert ended[0] < task.lease_expires_at
    task = await lab.task(task_id)
    assert (task.state, task.attempt) == (TaskState.RUNNING, 1), "nothing was written about it"


async def test_a_run_that_had_ended_is_settled_however_late(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> str:
        return "done"

    task_id = await lab.enqueue(func)
    lab.backend.faults.down("settle", "extend")
    engine = lab.engine(lease_s=0.2, upkeep_s=30)
    async with lab.running(engine):
        await lab.eventually(lambda: lab.backend.faults.count("settle") >= 5)
        lab.backend.faults.up()
        await lab.until(task_id)
    assert await lab.value(task_id) == "done"


async def test_nothing_is_started_whose_lease_is_not_trusted_any_more(lab: Any, faulty: Any) -> None:
    clock = ManualClock()
    lab.backend = lab.results = faulty(clock=MemoryBackend().clock)
    ran = []

    async def func() -> None:
        ran.append(1)

    task_id = await lab.enqueue(func)

    async def slow(*_: Any) -> None:
        clock.advance(40)  # the answer takes longer than the lease

    lab.backend.faults.after["claim"] = lambda *_: slow() if lab.backend.faults.count("claim") == 1 else None
    async with lab.running(lab.engine(clock=clock, lease_s=30)):
        await lab.eventually(lambda: lab.backend.faults.count("claim") >= 3)
    assert not ran
    assert (await lab.task(task_id)).state is TaskState.RUNNING


async def test_a_run_past_its_time_out_in_a_blocked_loop_is_not_extended_for_ever(
    lab: Any, faulty: Any
) -> None:
    lab.backend = lab.results = faulty()
    extended: list[float] = []
    lab.backend.faults.before["extend"] = lambda leases: extended.append(time.monotonic())

    async def func() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point

    await lab.enqueue(func, timeout_s=0.1)
    begun = time.monotonic()
    await lab.engine(lease_s=0.3).run(burst=True)
    assert extended, "it was extended at first"
    assert max(extended) - begun < 1.0


async def test_the_lease_thread_ends_with_the_worker(lab: Any) -> None:
    async def func() -> None:
        await asyncio.sleep(0.2)

    await lab.enqueue(func)
    await lab.engine(lease_s=0.2).run(burst=True)
    assert not [thread for thread in threading.enumerate() if thread.name == "omniq-leases"]


async def test_a_task_of_a_worker_that_died_is_run_again_and_its_story_told(lab: Any) -> None:
    lab.events = lab.backend

    async def func() -> int:
        return current_task().attempt

    task_id = await lab.enqueue(func)
    await lab.backend.queue().claim(
        ["default"], max_tasks=1, lease_s=0.1, worker_id="the dead", claim_id="c1"
    )
    async with lab.running(lab.engine(upkeep_s=0.05)):
        await lab.until(task_id)
    assert await lab.value(task_id) == 2
    assert await lab.event_types(task_id) == ["worker_lost", "executing", "completed"]
    assert (await lab.all_events(task_id))[0].data["lost_worker_id"] == "the dead"


@pytest.mark.parametrize("apart", [False, True])
async def test_who_waits_for_a_task_whose_workers_all_died_learns_of_it(lab: Any, apart: bool) -> None:
    if apart:
        lab.results = MemoryBackend()

    async def func() -> None: ...

    task_id = await lab.enqueue(func, max_crashes=1)
    await lab.backend.queue().claim(
        ["default"], max_tasks=1, lease_s=0.05, worker_id="the dead", claim_id="c1"
    )
    async with lab.running(lab.engine(upkeep_s=0.05)):
        await lab.results.open()
        (record,) = await lab.results.result_store().wait([task_id], timeout_s=10)
    assert record is not None
    result = await lab.result(task_id)
    assert result.status is TaskStatus.ERROR
    assert result.failure.type_name == "omniq.errors.WorkerLost"
    assert result.worker_id == "the dead"


async def test_an_expired_task_ends_the_waiting_too(lab: Any) -> None:
    lab.events = lab.backend
    clock = ManualClock()
    lab.backend = lab.results = lab.events = MemoryBackend(clock=clock)

    async def func() -> None: ...

    task_id = await lab.enqueue(func, ttl_s=10)
    clock.advance(11)
    async with lab.running(lab.engine(queues=("another",), upkeep_s=0.05)):
        await lab.until(task_id)
        await lab.eventually(lambda: lab.result(task_id))
    assert (await lab.result(task_id)).status is TaskStatus.EXPIRED
    assert await lab.event_types(task_id) == ["expired"]


async def test_a_suspect_runs_only_where_no_other_suspect_is_held(lab: Any) -> None:
    clock = ManualClock()
    lab.backend = lab.results = MemoryBackend(clock=clock)
    running, most = [0], [0]
    go = asyncio.Event()

    async def suspect() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await go.wait()
        running[0] -= 1

    async def innocent() -> str:
        return "done"

    suspects = [await lab.enqueue(suspect, max_crashes=3) for _ in range(3)]
    for claim_id in ("c1", "c2"):  # two workers died with all three
        await lab.backend.queue().claim(
            ["default"], max_tasks=10, lease_s=1, worker_id="the dead", claim_id=claim_id
        )
        clock.advance(2)
        await lab.backend.queue().maintain()
    bystander = await lab.enqueue(innocent)
    async with lab.running(lab.engine()):
        await lab.until(bystander)
        held = [await lab.task(one) for one in suspects]
        assert sorted(task.state for task in held) == [
            TaskState.PENDING,
            TaskState.PENDING,
            TaskState.RUNNING,
        ]
        assert {task.attempt for task in held if task.state is TaskState.PENDING} == {2}
        go.set()
        for one in suspects:
            while not (await lab.task(one)).state.is_final:
                clock.advance(1)
                await asyncio.sleep(0.01)
    assert most[0] == 1
