"""Stopping: nothing is lost, nothing is charged, and nobody waits longer than they want."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from omniq.context import current_task
from omniq_core import TaskState


async def test_what_was_not_started_is_given_back_uncounted_and_what_runs_may_end(lab: Any) -> None:
    go, started = asyncio.Event(), asyncio.Event()

    async def func() -> str:
        started.set()
        await go.wait()
        return "done"

    ids = [await lab.enqueue(func) for _ in range(3)]
    engine = lab.engine(max_workers=1)
    run = asyncio.create_task(engine.run())
    await started.wait()
    # As if it had been claimed ahead.
    claimer = engine._parts.claimer
    claimer._take(await claimer._claim(2))
    stop = asyncio.create_task(engine.stop(grace_s=30))
    await lab.until(ids[1], TaskState.PENDING)
    assert not stop.done()
    go.set()
    await stop
    report = await run
    assert (report.succeeded, report.released) == (1, 2)
    assert [(await lab.task(one)).attempt for one in ids] == [1, 0, 0]
    assert await lab.value(ids[0]) == "done"


async def test_when_the_grace_is_over_what_runs_is_cancelled_and_given_back(lab: Any) -> None:
    lab.events = lab.backend
    started = asyncio.Event()

    async def func() -> None:
        started.set()
        await asyncio.sleep(30)

    task_id = await lab.enqueue(func)
    engine = lab.engine()
    run = asyncio.create_task(engine.run())
    await started.wait()
    await engine.stop(grace_s=0.05)
    assert (await run).released == 1
    task = await lab.task(task_id)
    assert (task.state, task.attempt, task.run_at <= time.time()) == (TaskState.PENDING, 0, True)
    assert await lab.event_types(task_id) == ["executing", "released"]


async def test_a_second_stop_cuts_the_grace_short(lab: Any) -> None:
    started = asyncio.Event()

    async def func() -> None:
        started.set()
        await asyncio.sleep(30)

    task_id = await lab.enqueue(func)
    engine = lab.engine(grace_s=1000)
    run = asyncio.create_task(engine.run())
    await started.wait()
    first = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    await engine.stop()
    await asyncio.gather(first, run)
    assert (await lab.task(task_id)).state is TaskState.PENDING


async def test_a_worker_that_is_told_to_stop_before_it_runs_takes_nothing(lab: Any) -> None:
    async def func() -> None: ...

    task_id = await lab.enqueue(func)
    engine = lab.engine()
    await engine.stop()
    assert (await engine.run()).claimed == 0
    assert (await lab.task(task_id)).state is TaskState.PENDING
    assert (await engine.run(burst=True)).claimed == 1, "it holds for one run"


async def test_stopping_works_from_another_thread(lab: Any) -> None:
    engine, started = lab.engine(), asyncio.Event()
    engine.on_started = started.set
    run = asyncio.create_task(engine.run())
    await started.wait()
    await asyncio.to_thread(engine.stop_threadsafe)
    assert (await run).claimed == 0


async def test_an_engine_may_run_again_after_it_has_stopped(lab: Any) -> None:
    async def func() -> int:
        return 1

    engine = lab.engine()
    for _ in range(2):
        task_id = await lab.enqueue(func)
        await engine.run(burst=True)
        assert await lab.value(task_id) == 1


async def test_an_engine_does_not_run_twice_at_once(lab: Any) -> None:
    engine = lab.engine()
    async with lab.running(engine):
        with pytest.raises(RuntimeError, match="runs already"):
            await engine.run()


async def test_cancelling_the_run_stops_it_without_grace_and_gives_back(lab: Any) -> None:
    started = asyncio.Event()

    async def func() -> None:
        started.set()
        await asyncio.sleep(30)

    task_id = await lab.enqueue(func)
    run = asyncio.create_task(lab.engine(grace_s=1000).run())
    await started.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    task = await lab.task(task_id)
    assert (task.state, task.attempt) == (TaskState.PENDING, 0)


async def test_a_claim_under_way_is_not_cancelled_and_what_it_brings_is_given_back(
    lab: Any, faulty: Any
) -> None:
    lab.backend = lab.results = faulty()
    go, asked = asyncio.Event(), asyncio.Event()

    async def func() -> None: ...

    task_id = await lab.enqueue(func)

    async def hold(*_: Any) -> None:
        asked.set()
        await go.wait()

    lab.backend.faults.after["claim"] = hold
    engine = lab.engine()
    run = asyncio.create_task(engine.run())
    await asked.wait()
    stop = asyncio.create_task(engine.stop())
    for _ in range(50):  # turns enough to cancel it, if that were done
        await asyncio.sleep(0)
    assert (await lab.task(task_id)).state is TaskState.RUNNING
    go.set()
    await asyncio.gather(stop, run)
    task = await lab.task(task_id)
    assert (task.state, task.attempt) == (TaskState.PENDING, 0)


async def test_a_thread_that_does_not_stop_keeps_its_lease(lab: Any, caplog: Any) -> None:
    started, go = threading.Event(), threading.Event()

    def func() -> None:
        started.set()
        go.wait(30)

    task_id = await lab.enqueue(func)
    engine = lab.engine("thread_pool")
    run = asyncio.create_task(engine.run())
    await asyncio.to_thread(started.wait)
    with caplog.at_level(logging.WARNING):
        await engine.stop(grace_s=0)
        await run
    go.set()
    assert (await lab.task(task_id)).state is TaskState.RUNNING, "nobody else may start it beside us"
    assert "still runs in a thread" in caplog.text


async def test_a_task_that_swallows_its_cancellation_is_named(
    lab: Any, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("omniq.engine.execute.STUBBORN_S", 0.05)
    go = asyncio.Event()

    async def stubborn() -> str:
        try:
            await go.wait()
        except asyncio.CancelledError:
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    pass
        return "in the end"

    async def other() -> str:
        return "too"

    task_id = await lab.enqueue(lab.define(stubborn, "app:stubborn"), timeout_s=0.02)
    async with lab.running(lab.engine(max_workers=2)):
        await lab.eventually(lambda: "app:stubborn" in caplog.text)
        second = await lab.enqueue(other)
        await lab.until(second)
        go.set()
        await lab.until(task_id)
    assert "goes on" in caplog.text
    assert await lab.value(task_id) == "in the end"


SCRIPT = """
    import asyncio, sys
    from omniq.engine import Engine, WorkerSettings
    from omniq.engine.signals import install
    from omniq.ids import new_id
    from omniq.runners.coroutine import CoroutineRunner
    from omniq.stores import Stores
    from omniq.task import TaskRegistry
    from omniq_memory import MemoryBackend

    async def stubborn():
        print("started", flush=True)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("cancelled", flush=True)

    async def main():
        backend, registry = MemoryBackend(), TaskRegistry()
        await backend.open()
        await backend.queue().enqueue([registry.adopt(stubborn).record(new_id(), (), {})])
        engine = Engine(Stores(backend, backend, None), registry, CoroutineRunner(), WorkerSettings(grace_s=60))
        install(asyncio.get_running_loop(), engine)
        await engine.run()

    asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_gives_back_and_the_third_leaves_at_once(tmp_path: Path, number: int) -> None:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.kill(process.pid, number)
    # The first signal must be taken before the second is sent, or the kernel makes one of them.
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    os.kill(process.pid, number)
    assert process.stdout.readline() == "cancelled\n"
    os.kill(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number


async def test_current_task_is_told_to_stop_when_the_worker_is(lab: Any) -> None:
    started, saw = threading.Event(), threading.Event()

    def func() -> None:
        started.set()
        while not current_task().cancelled:
            time.sleep(0.002)
        saw.set()

    await lab.enqueue(func)
    engine = lab.engine("thread_pool")
    run = asyncio.create_task(engine.run())
    await asyncio.to_thread(started.wait)
    await engine.stop(grace_s=0)
    await run
    assert saw.wait(10)
