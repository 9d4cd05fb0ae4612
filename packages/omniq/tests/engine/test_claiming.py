"""Claiming: enough to keep busy, never more than will soon be started; the right queues, at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from omniq.engine import WorkerSettings
from omniq_core import TaskRecord, TaskState


async def test_slow_tasks_are_not_hoarded(lab: Any) -> None:
    go, started = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> None:
        started.release()
        await go.wait()

    for _ in range(50):
        await lab.enqueue(slow)
    engine = lab.engine(max_workers=4)
    async with lab.running(engine):
        for _ in range(4):
            await started.acquire()
        for _ in range(100):  # turns enough for many a claim
            await asyncio.sleep(0)
        (stats,) = await lab.backend.queue().stats(["default"])
        assert (stats.running, stats.ready) == (4, 46)
        go.set()


async def test_quick_tasks_are_claimed_by_the_hundred(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def quick() -> None: ...

    definition = lab.define(quick)
    await lab.backend.open()
    await lab.backend.queue().enqueue([definition.record(f"t{x}", (), {}) for x in range(20_000)])
    report = await lab.engine(max_workers=10).run(burst=True)
    assert report.succeeded == 20_000
    assert lab.backend.faults.count("claim") < 20_000 / 20


async def test_what_was_claimed_ahead_and_waits_is_given_back_uncounted(lab: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("omniq.engine.claim.UNSTARTED_S", 0.1)
    go, started = asyncio.Event(), asyncio.Event()

    async def func() -> None:
        started.set()
        await go.wait()

    ids = [await lab.enqueue(func) for _ in range(5)]
    engine = lab.engine(max_workers=1)
    async with lab.running(engine):
        await started.wait()
        claimer = engine._parts.claimer
        claimer._take(await claimer._claim(4))
        assert (await lab.task(ids[4])).state is TaskState.RUNNING
        back = await lab.until(ids[4], TaskState.PENDING)
        assert back.attempt == 0
        assert claimer.prefetch == 0
        go.set()


async def test_no_more_than_the_stores_largest_batch_is_asked_for(lab: Any, faulty: Any) -> None:
    import msgspec

    lab.backend = lab.results = faulty()
    await lab.backend.open()
    lab.backend.limits = msgspec.structs.replace(lab.backend.limits, max_batch=7)
    asked: list[int] = []
    real = lab.backend._queue._real.claim

    async def claim(queues: Any, *, max_tasks: int, **rest: Any) -> Any:
        asked.append(max_tasks)
        return await real(queues, max_tasks=max_tasks, **rest)

    lab.backend._queue._real.claim = claim
    lab.backend.faults.before["settle"] = lambda settlements: asked.append(len(settlements))

    async def func() -> None: ...

    for _ in range(200):
        await lab.enqueue(func)
    await lab.engine(max_workers=50).run(burst=True)
    assert max(asked) == 7


async def test_a_waiting_worker_takes_a_new_task_at_once(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> None: ...

    async with lab.running(lab.engine(poll_s=30)):
        await lab.eventually(lambda: lab.backend.faults.count("wait"))
        begun = time.monotonic()
        await lab.until(await lab.enqueue(func))
        assert time.monotonic() - begun < 1


async def test_queues_are_worked_on_in_the_given_order(lab: Any) -> None:
    order: list[str] = []

    async def func(x: str) -> None:
        order.append(x)

    for queue in ("low", "high", "other"):
        for _ in range(3):
            await lab.enqueue(func, queue, queue_name=queue)
    await lab.engine(max_workers=1, queues=("high", "low")).run(burst=True)
    assert order == ["high"] * 3 + ["low"] * 3


async def test_without_a_list_all_queues_are_worked_on_default_first(lab: Any) -> None:
    order: list[str] = []

    async def func(x: str) -> None:
        order.append(x)

    for queue in ("b", "default", "a"):
        await lab.enqueue(func, queue, queue_name=queue)
    await lab.engine(max_workers=1).run(burst=True)
    assert order == ["default", "a", "b"]


async def test_a_new_queue_is_found_and_found_at_once_if_the_worker_is_told(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> None: ...

    await lab.backend.open()
    async with lab.running(lab.engine(poll_s=30)) as engine:
        await lab.eventually(lambda: lab.backend.faults.count("wait"))
        engine.learn_queue("new")
        begun = time.monotonic()
        await lab.until(await lab.enqueue(func, queue_name="new"))
        assert time.monotonic() - begun < 1
    async with lab.running(lab.engine(poll_s=0.05)):
        await lab.until(await lab.enqueue(func, queue_name="newer"))


async def test_a_burst_ends_when_nothing_is_due_and_nothing_runs(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def child(x: int) -> int:
        return x

    definition = lab.define(child)

    async def parent() -> None:
        await lab.eventually(lambda: lab.backend.faults.count("wait"))
        await lab.backend.queue().enqueue([definition.record("child", (1,), {})])

    await lab.enqueue(parent)
    later = await lab.enqueue(child, 2, delay_s=100)
    begun = time.monotonic()
    report = await lab.engine(poll_s=30).run(burst=True)
    assert report.succeeded == 2
    assert (await lab.task(later)).state is TaskState.PENDING
    assert time.monotonic() - begun < 5


async def test_a_burst_on_an_empty_queue_ends_at_once(lab: Any) -> None:
    begun = time.monotonic()
    assert (await lab.engine(poll_s=30).run(burst=True)).claimed == 0
    assert time.monotonic() - begun < 1


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> None: ...

    task_id = await lab.enqueue(func)
    await lab.backend.queue().pause(["default"])
    async with lab.running(lab.engine(poll_s=30)):
        await lab.eventually(lambda: lab.backend.faults.count("wait"))
        assert (await lab.task(task_id)).state is TaskState.PENDING
        await lab.backend.queue().resume(["default"])
        await lab.until(task_id)


async def test_two_workers_share_a_queue_and_run_each_task_once(lab: Any) -> None:
    runs: list[int] = []

    async def func(x: int) -> None:
        runs.append(x)
        await asyncio.sleep(0.001)

    definition = lab.define(func)
    await lab.backend.open()
    await lab.backend.queue().enqueue([definition.record(f"t{x}", (x,), {}) for x in range(500)])
    reports = await asyncio.gather(*(lab.engine().run(burst=True) for _ in range(2)))
    assert sorted(runs) == list(range(500))
    assert sum(report.succeeded for report in reports) == 500
    assert all(report.succeeded for report in reports)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_workers": 0}, "max_workers"),
        ({"lease_s": 0}, "lease_s"),
        ({"grace_s": -1}, "grace_s"),
        ({"max_prefetch": -1}, "max_prefetch"),
        ({"queues": "default"}, "sequence"),
        ({"queues": ("a", "a")}, "repeat"),
        ({"queues": ("",)}, "empty"),
        ({"task_timeout_s": 0}, "task_timeout_s"),
        ({"name": "a\nb"}, "control"),
    ],
)
def test_a_setting_out_of_range_is_refused_when_it_is_made(bad: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        WorkerSettings(**bad)


async def test_a_lease_shorter_than_the_store_can_is_refused(lab: Any) -> None:
    with pytest.raises(ValueError, match="lease_s must be at least"):
        await lab.engine(lease_s=0.001).run(burst=True)


async def test_messages_of_all_sorts_never_end_a_worker(lab: Any) -> None:
    async def func(x: int) -> int:
        return x

    name = lab.define(func).name
    await lab.backend.open()
    bodies = [bytes([first, second]) * 3 for first in range(0, 256, 5) for second in range(0, 256, 51)]
    await lab.backend.queue().enqueue(
        [TaskRecord(f"t{i}", "default", name if i % 2 else f"no:{i}", body) for i, body in enumerate(bodies)]
    )
    good = await lab.enqueue(func, 1)
    report = await lab.engine().run(burst=True)
    assert await lab.value(good) == 1
    assert report.dead + report.released == len(bodies)
