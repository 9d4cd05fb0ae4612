"""Trouble: servers that are down, answers that are lost, results that live elsewhere."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from omniq.context import current_task
from omniq.models import TaskStatus
from omniq.retry import RetryPolicy
from omniq.stores import Stores
from omniq_core import Capability, TaskState
from omniq_memory import MemoryBackend


async def test_settling_goes_on_when_the_server_is_back_and_no_run_is_repeated(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()
    runs = []

    async def func() -> str:
        runs.append(1)
        return "done"

    task_id = await lab.enqueue(func)
    lab.backend.faults.down("settle")
    async with lab.running(lab.engine()):
        await lab.eventually(lambda: lab.backend.faults.count("settle") >= 3)
        assert (await lab.task(task_id)).state is TaskState.RUNNING
        lab.backend.faults.up()
        await lab.until(task_id)
    assert runs == [1]
    assert await lab.value(task_id) == "done"


async def test_a_settlement_whose_answer_was_lost_is_repeated_and_counts_once(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> str:
        return "done"

    def lose(*_: Any) -> None:
        if lab.backend.faults.count("settle") == 1:
            raise ConnectionError("no answer")

    task_id = await lab.enqueue(func)
    lab.backend.faults.after["settle"] = lose
    report = await lab.engine().run(burst=True)
    assert (report.succeeded, report.stale) == (1, 0)
    assert await lab.value(task_id) == "done"


async def test_a_claim_whose_answer_was_lost_is_asked_for_again_by_its_id(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> int:
        return current_task().attempt

    def lose(*_: Any) -> None:
        if lab.backend.faults.count("claim") == 1:
            raise ConnectionError("no answer")

    task_id = await lab.enqueue(func)
    lab.backend.faults.after["claim"] = lose
    await lab.engine().run(burst=True)
    assert await lab.value(task_id) == 1, "the same lease, not a second one"


async def test_a_server_that_is_down_is_not_asked_in_a_busy_loop_and_is_found_again(
    lab: Any, faulty: Any, caplog: Any
) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> str:
        return "done"

    await lab.backend.open()
    lab.backend.faults.down("claim", "wait", "maintain", "queue_names", "settle", "extend")
    async with lab.running(lab.engine(upkeep_s=0.05)):
        await lab.eventually(lambda: lab.backend.faults.count("claim"))
        begun = time.monotonic()
        await lab.eventually(lambda: lab.backend.faults.count("claim") >= 5)
        assert time.monotonic() - begun > 0.3
        lab.backend.faults.up()
        begun = time.monotonic()
        task_id = await lab.enqueue(func)
        await lab.until(task_id)
        assert time.monotonic() - begun < 5
    assert caplog.text.count("cannot claim tasks") == 1
    assert caplog.text.count("can claim tasks") == 1


async def test_a_call_that_is_never_answered_is_given_up_and_repeated(
    lab: Any, faulty: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("omniq.engine.parts.CALL_TIMEOUT_S", 0.1)
    lab.backend = lab.results = faulty()

    async def func() -> str:
        return "done"

    async def hang(*_: Any) -> None:
        if lab.backend.faults.count("settle") == 1:
            await asyncio.sleep(1000)

    task_id = await lab.enqueue(func)
    lab.backend.faults.before["settle"] = hang
    async with lab.running(lab.engine(lease_s=0.1)):
        await lab.until(task_id)
    assert await lab.value(task_id) == "done"


async def test_a_store_that_cries_wolf_does_not_make_a_busy_loop(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()
    await lab.backend.open()
    real = lab.backend._queue._real

    async def wolf(*_: Any, **__: Any) -> bool:
        return True

    real.wait = wolf
    async with lab.running(lab.engine()):
        await lab.eventually(lambda: lab.backend.faults.count("claim"))
        begun = time.monotonic()
        await lab.eventually(lambda: lab.backend.faults.count("claim") >= 15)
        assert time.monotonic() - begun > 0.2


async def test_claiming_stops_while_too_much_waits_to_be_settled(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    async def func() -> None: ...

    definition = lab.define(func)
    await lab.backend.open()
    records = [definition.record(f"t{x}", (), {}) for x in range(5000)]
    await lab.backend.queue().enqueue(records)
    lab.backend.faults.down("settle")
    engine = lab.engine(max_workers=10, max_prefetch=100)
    async with lab.running(engine):
        await lab.eventually(lambda: engine._parts.settler.is_behind)
        for _ in range(100):  # turns enough for many a claim
            await asyncio.sleep(0)
        held = len(engine._parts.desk.held)
        assert 1000 < held < 2500
        lab.backend.faults.up()
        await lab.eventually(lambda: lab.is_idle(engine))
        counts = engine._parts.desk.counts
        assert counts.succeeded == 5000


async def test_what_the_store_refuses_to_settle_does_not_hold_up_the_rest(lab: Any, faulty: Any) -> None:
    lab.backend = lab.results = faulty()

    class Refused(Exception):
        pass

    def refuse(settlements: Any) -> None:
        if any(one.result and b"poison" in one.result for one in settlements):
            raise Refused("value out of range")

    from omniq_core import ErrorCode

    lab.backend.classify = lambda error: (
        ErrorCode.INVALID if isinstance(error, Refused) else ErrorCode.UNKNOWN
    )

    async def func(x: str) -> str:
        return x

    await lab.backend.open()
    lab.backend.faults.before["settle"] = refuse
    ids = [await lab.enqueue(func, x) for x in ("a", "poison", "b", "c")]
    await lab.engine().run(burst=True)
    states = [(await lab.task(one)).state for one in ids]
    assert states == [TaskState.SUCCEEDED, TaskState.DEAD, TaskState.SUCCEEDED, TaskState.SUCCEEDED]
    assert "value out of range" in (await lab.task(ids[1])).reason


# --- results on another backend ----------------------------------------------------------------------------------


async def test_results_beside_the_queue_are_provisional_before_and_final_after_the_settlement(
    lab: Any, faulty: Any
) -> None:
    lab.backend, lab.results = faulty(), faulty()
    steps: list[Any] = []
    lab.results.faults.before["put"] = lambda records: steps.append(
        [("put", one.final, one.state) for one in records]
    )
    lab.backend.faults.before["settle"] = lambda settlements: steps.append(
        [("settle", one.verb, one.result) for one in settlements]
    )

    async def func() -> int:
        return 7

    task_id = await lab.enqueue(func)
    await lab.engine().run(burst=True)
    assert steps == [
        [("put", False, TaskState.SUCCEEDED)],
        [("settle", "succeed", None)],
        [("put", True, TaskState.SUCCEEDED)],
    ]
    assert await lab.value(task_id) == 7


async def test_a_failure_beside_the_queue_is_recorded_too(lab: Any) -> None:
    lab.results = MemoryBackend()

    async def func() -> None:
        raise ValueError("x")

    task_id = await lab.enqueue(func, retry=RetryPolicy(max_retries=1, delay_s=0))
    await lab.engine().run(burst=True)
    result = await lab.result(task_id)
    assert (result.status, result.attempts) == (TaskStatus.ERROR, 2)


async def test_a_store_that_cannot_settle_a_result_gets_it_by_itself(lab: Any) -> None:
    class Apart(MemoryBackend):
        async def open(self) -> None:
            await super().open()
            self.capabilities = self.capabilities - {Capability.ATOMIC_SETTLE}

    lab.backend = lab.results = Apart()

    async def func() -> int:
        return 7

    task_id = await lab.enqueue(func)
    await lab.engine().run(burst=True)
    assert await lab.value(task_id) == 7


@pytest.mark.parametrize(
    ("store", "when", "method", "call", "runs"),
    [
        ("results", "before", "put", 1, 2),  # before the provisional record
        ("results", "after", "put", 1, 2),  # after it
        ("queue", "before", "settle", 1, 2),  # before the commit
        ("queue", "after", "settle", 1, 1),  # after it: nothing is repeated, and the result is there
        ("results", "before", "put", 2, 1),  # before it is made final
        ("results", "after", "put", 2, 1),  # at the very end
    ],
)
async def test_a_worker_that_dies_between_the_steps_loses_no_result(
    lab: Any, faulty: Any, faults: Any, store: str, when: str, method: str, call: int, runs: int
) -> None:
    lab.backend, lab.results = faulty(), faulty()
    made: list[int] = []

    async def func() -> int:
        made.append(current_task().fence)
        return current_task().fence

    async def die(*_: Any) -> None:
        if faults.count(method) == call:
            await faults.die()

    getattr(faults, when)[method] = die
    task_id = await lab.enqueue(func)
    # A worker that goes no further than this point. Its stores are the same ones, seen through its own connections.
    first = lab.engine(lease_s=0.2)
    first.stores = Stores(lab.backend.twin(faults), lab.results.twin(faults), None)
    run = asyncio.create_task(first.run())
    await faults.is_dead.wait()
    async with lab.running(lab.engine(upkeep_s=0.05)):
        await lab.until(task_id)
    assert len(made) == runs
    await lab.results.open()
    (record,) = await lab.results.result_store().get([task_id])
    assert record is not None, (
        "there is a result, be it provisional: a reader asks the queue, and makes it final"
    )
    assert record.fence == made[-1]
    if runs == 2:
        assert await lab.value(task_id) == made[-1]
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_a_stale_settlement_never_makes_its_result_final(lab: Any, faulty: Any) -> None:
    lab.backend, lab.results = faulty(), faulty()

    async def func() -> str:
        return "stale"

    task_id = await lab.enqueue(func)

    def take_away(*_: Any) -> None:
        if lab.backend.faults.count("settle") == 1:
            store = lab.backend.store()
            with store.lock:
                store._reap(store._tasks[task_id], time.time())
                store._tasks[task_id].run_at = time.time() + 1000
                store._tasks[task_id].ticket += 1

    lab.backend.faults.before["settle"] = take_away
    report = await lab.engine().run(burst=True)
    assert (report.succeeded, report.stale) == (0, 1)
    await lab.results.open()
    (record,) = await lab.results.result_store().get([task_id])
    assert record is not None
    assert not record.final


async def test_while_the_result_store_is_down_tasks_wait_and_those_without_a_result_go_on(
    lab: Any, faulty: Any
) -> None:
    lab.results = faulty()
    runs = []

    async def func() -> str:
        runs.append(1)
        return "done"

    async def silent() -> None: ...

    with_result = await lab.enqueue(func)
    without = await lab.enqueue(silent, store_result=False)
    lab.results.faults.down("put")
    async with lab.running(lab.engine()):
        await lab.until(without)
        assert (await lab.task(with_result)).state is TaskState.RUNNING
        lab.results.faults.up()
        await lab.until(with_result)
    assert runs == [1]
    assert await lab.value(with_result) == "done"


async def test_a_result_that_cannot_be_stored_for_a_whole_lease_is_a_failure(lab: Any, faulty: Any) -> None:
    lab.results = faulty()

    async def func() -> str:
        return "done"

    task_id = await lab.enqueue(func, retry=RetryPolicy(max_retries=0))
    lab.results.faults.down("put")
    async with lab.running(lab.engine(lease_s=0.3)):
        task = await lab.until(task_id)
    assert task.state is TaskState.DEAD
    assert "could not be stored" in task.reason
    assert "the server is down" in task.reason


# --- events ------------------------------------------------------------------------------------------------------


async def test_an_event_store_that_is_down_slows_nothing_and_its_drops_are_counted(
    lab: Any, faulty: Any, caplog: Any
) -> None:
    lab.events = faulty()
    lab.events.faults.down("append")

    async def func(x: int) -> int:
        return x

    ids = [await lab.enqueue(func, x) for x in range(200)]
    begun = time.monotonic()
    report = await lab.engine().run(burst=True)
    assert report.succeeded == 200
    assert time.monotonic() - begun < 5
    assert await lab.value(ids[-1]) == 199
    assert "400 events were dropped" in caplog.text


async def test_an_event_store_that_hangs_holds_up_nothing(lab: Any, faulty: Any) -> None:
    lab.events = faulty()
    lab.events.faults.before["append"] = lambda *_: asyncio.sleep(1000)

    async def func() -> None: ...

    task_id = await lab.enqueue(func)
    await lab.engine().run(burst=True)
    assert (await lab.task(task_id)).state is TaskState.SUCCEEDED


async def test_the_buffer_of_events_is_bounded(lab: Any, faulty: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("omniq.engine.emit.MOST_WAITING", 10)
    lab.events = faulty()
    lab.events.faults.down("append")

    async def func() -> None: ...

    for _ in range(50):
        await lab.enqueue(func)
    engine = lab.engine()
    async with lab.running(engine):
        await lab.eventually(lambda: lab.is_idle(engine))
        emitter = engine._parts.emitter
        assert len(emitter._waiting) <= 10
        assert emitter.dropped > 0
