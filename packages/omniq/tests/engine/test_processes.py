"""The process pool: functions run in children, a child's death is a task's crash and nothing more, and no child is left."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from omniq.context import current_task
from omniq.engine import Engine
from omniq.models import TaskStatus
from omniq.outcome import Reject, Retry, Snooze
from omniq.retry import RetryPolicy
from omniq_core import TaskState

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="the process pool needs POSIX")

MODULE = """
    import asyncio, os, signal, subprocess, sys, time
    from dataclasses import dataclass

    from omniq.context import current_task

    @dataclass
    class Point:
        x: int
        y: int

    def add(a: int, b: int) -> int:
        return a + b

    async def add_async(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    def mirrored(point: Point) -> Point:
        return Point(point.y, point.x)

    def where() -> list:
        task = current_task()
        return [os.getpid(), task.attempt, task.crashes, task.task_id, task.queue]

    def die(how: str, path: str) -> str:
        with open(path, "a") as file:
            file.write("x")
        if len(open(path).read()) > 1:
            return "survived"
        if how == "segfault":
            import ctypes
            ctypes.string_at(0)
        elif how == "_exit":
            os._exit(3)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return "not"

    def always_die() -> None:
        os._exit(9)

    def hang(path: str, with_grandchild: bool = False) -> None:
        pids = [os.getpid()]
        if with_grandchild:
            pids.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
        with open(path + ".new", "w") as file:
            file.write(" ".join(map(str, pids)))
        os.rename(path + ".new", path)
        while True:
            time.sleep(0.01)

    def deaf(path: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang(path)

    def leave() -> None:
        sys.exit("of its own will")
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with functions that a child can import."""
    (tmp_path / "pool_functions.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("pool_functions")
    sys.modules.pop("pool_functions", None)


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
    assert [child for child in left if child not in before] == []


def pool(lab: Any, **settings: Any) -> Engine:
    settings.setdefault("max_workers", 1)  # each child is an interpreter that has to start
    engine: Engine = lab.engine("process_pool", **settings)
    return engine


async def pids_in(lab: Any, path: Path) -> list[int]:
    await lab.eventually(path.exists)
    return [int(pid) for pid in path.read_text().split()]  # noqa: ASYNC240 - a line


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_functions_run_in_children_that_import_them(lab: Any, functions: Any) -> None:
    ids = [
        await lab.enqueue(functions.add, 1, 2),
        await lab.enqueue(functions.add_async, 3, 4),
        await lab.enqueue(functions.mirrored, functions.Point(1, 2)),
    ]
    who = await lab.enqueue(functions.where, queue_name="q")
    await pool(lab).run(burst=True)
    assert [await lab.value(one) for one in ids] == [3, 7, {"x": 2, "y": 1}]
    pid, *rest = await lab.value(who)
    assert pid != os.getpid()
    assert rest == [1, 0, who, "q"]


async def test_lambdas_local_functions_and_async_ones_are_handed_over_by_value(lab: Any) -> None:
    factor = 3

    def local(x: int) -> int:
        return factor * x

    async def local_async(x: int) -> list[int]:
        await asyncio.sleep(0)
        return [factor * x, current_task().attempt]

    ids = [
        await lab.enqueue(local, 2),
        await lab.enqueue(local_async, 3),
        await lab.enqueue(lambda x: x + factor, 4),
    ]
    await pool(lab).run(burst=True)
    assert [await lab.value(one) for one in ids] == [6, [9, 1], 7]


async def test_without_cloudpickle_a_local_function_fails_with_what_to_do(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local() -> None: ...

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "cloudpickle" else real(name, *rest)
    )
    task_id = await lab.enqueue(lab.define(local, "app:local"), retry=RetryPolicy(max_retries=0))
    await pool(lab).run(burst=True)
    result = await lab.result(task_id)
    assert result.status is TaskStatus.ERROR
    assert 'pip install "omniq[cloudpickle]"' in result.error
    assert "test_processes.py" in result.error


async def test_a_function_that_cannot_be_handed_over_says_why(lab: Any) -> None:
    lock = threading.Lock()

    def local() -> bool:
        return lock.locked()

    task_id = await lab.enqueue(local, retry=RetryPolicy(max_retries=0))
    await pool(lab).run(burst=True)
    assert "cannot be handed to a child process" in (await lab.result(task_id)).error


@pytest.mark.parametrize(
    ("how", "reason"),
    [("segfault", "SIGSEGV"), ("_exit", "ended with status 3"), ("kill", "SIGKILL")],
)
async def test_a_child_that_dies_is_a_crash_its_task_is_retried_and_the_pool_is_whole_again(
    lab: Any, functions: Any, tmp_path: Path, how: str, reason: str
) -> None:
    lab.events = lab.backend
    definition = lab.define(functions.die, "die", retry=RetryPolicy(max_retries=0, delay_s=0))
    task_id = await lab.enqueue(definition, how, str(tmp_path / "runs"))
    engine = pool(lab, max_workers=2)
    async with lab.running(engine):
        task = await lab.until(task_id)
        await lab.eventually(lambda: len(engine.runner.pids) == 2)
    assert (task.state, task.crashes) == (TaskState.SUCCEEDED, 1)
    assert await lab.value(task_id) == "survived"
    retry = next(event for event in await lab.all_events(task_id) if event.event_type == "retry")
    assert reason in retry.error


async def test_a_task_whose_children_always_die_is_dead_after_its_crashes_and_harms_no_other(
    lab: Any, functions: Any
) -> None:
    retry = RetryPolicy(max_retries=10, delay_s=0)
    task_id = await lab.enqueue(lab.define(functions.always_die, retry=retry, max_crashes=3))
    others = [await lab.enqueue(functions.add, x, 1) for x in range(20)]
    async with lab.running(pool(lab, max_workers=2)):
        task = await lab.until(task_id)
        for one in others:
            await lab.until(one)
    assert (task.state, task.crashes, task.reason) == (TaskState.DEAD, 3, "its process ended with status 9")
    assert [await lab.value(one) for one in others] == list(range(1, 21))


@pytest.mark.parametrize("function", ["hang", "deaf"])
async def test_a_run_that_takes_too_long_is_killed(
    lab: Any, functions: Any, tmp_path: Path, function: str
) -> None:
    path = tmp_path / "pids"
    task_id = await lab.enqueue(
        getattr(functions, function), str(path), timeout_s=2.0, retry=RetryPolicy(max_retries=0)
    )
    engine = pool(lab)
    async with lab.running(engine):
        (pid,) = await pids_in(lab, path)
        task = await lab.until(task_id)
        assert is_gone(pid)
    assert (task.state, task.crashes, task.reason) == (TaskState.DEAD, 0, "it ran longer than 2 s")


async def test_the_time_that_a_child_takes_to_start_is_not_the_tasks(lab: Any, functions: Any) -> None:
    task_id = await lab.enqueue(functions.add, 1, 2, timeout_s=0.05, retry=RetryPolicy(max_retries=0))
    await pool(lab).run(burst=True)
    assert (await lab.result(task_id)).error is None


async def test_a_running_task_that_is_cancelled_is_killed_with_all_that_it_started(
    lab: Any, functions: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pids"
    task_id = await lab.enqueue(functions.hang, str(path), True)
    engine = pool(lab)
    async with lab.running(engine):
        pids = await pids_in(lab, path)
        assert len(pids) == 2
        await lab.backend.queue().cancel([task_id])
        engine.cancel_soon(task_id)
        assert (await lab.until(task_id)).state is TaskState.CANCELLED
        await lab.eventually(lambda: all(map(is_gone, pids)))


async def test_stopping_without_grace_kills_and_gives_back(lab: Any, functions: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    task_id = await lab.enqueue(functions.hang, str(path))
    engine = pool(lab)
    run = asyncio.create_task(engine.run())
    (pid,) = await pids_in(lab, path)
    await engine.stop(grace_s=0)
    await run
    assert is_gone(pid)
    task = await lab.task(task_id)
    assert (task.state, task.attempt, task.crashes) == (TaskState.PENDING, 0, 0)


async def test_an_idle_child_that_dies_is_replaced(lab: Any) -> None:
    engine = pool(lab, max_workers=2)
    await lab.backend.open()
    async with lab.running(engine):
        await lab.eventually(lambda: len(engine.runner.pids) == 2)
        victim = engine.runner.pids[0]
        os.kill(victim, signal.SIGKILL)
        await lab.eventually(lambda: victim not in engine.runner.pids and len(engine.runner.pids) == 2)


async def test_signals_of_a_task_and_its_exceptions_come_back(lab: Any, functions: Any) -> None:
    def retry() -> None:
        raise Retry(100, reason="later")

    def reject() -> None:
        raise Reject("never")

    def snooze() -> None:
        raise Snooze(100, reason="tired")

    def fail() -> None:
        raise KeyError("missing")

    once = RetryPolicy(max_retries=0)
    ids = [await lab.enqueue(one) for one in (retry, reject, snooze)]
    failed = await lab.enqueue(fail, retry=once)
    left = await lab.enqueue(functions.leave, retry=once)
    await pool(lab).run(burst=True)
    retried, rejected, snoozed = [await lab.task(one) for one in ids]
    assert (retried.state, retried.attempt, retried.reason) == (TaskState.PENDING, 1, "later")
    assert (rejected.state, rejected.reason) == (TaskState.DEAD, "never")
    assert (snoozed.state, snoozed.attempt, snoozed.reason) == (TaskState.PENDING, 0, "tired")
    result = await lab.result(failed)
    assert "in fail" in result.error_traceback
    assert "omniq/runners" not in result.error_traceback
    with pytest.raises(KeyError, match="missing"):
        result.unwrap()
    assert (await lab.task(left)).reason == "SystemExit: of its own will"


async def test_children_are_new_interpreters_and_ignore_control_c(lab: Any, functions: Any) -> None:
    engine = pool(lab)
    await lab.backend.open()
    async with lab.running(engine):
        await lab.eventually(lambda: engine.runner.pids)
        (pid,) = engine.runner.pids
        process = psutil.Process(pid)
        assert process.cmdline()[0] == sys.executable
        assert "omniq.runners.child" in " ".join(process.cmdline())
        assert os.getsid(pid) == pid != os.getsid(0)
        os.kill(pid, signal.SIGINT)
        assert await lab.value((await lab.until(await lab.enqueue(functions.add, 1, 1))).id) == 2
        assert engine.runner.pids == [pid]


def test_no_start_method_is_fork() -> None:
    import omniq.runners

    paths = list(Path(omniq.runners.__file__).parent.glob("*.py"))
    assert len(paths) > 3
    for path in paths:
        text = path.read_text()
        assert "os.fork" not in text
        assert "multiprocessing" not in text


PARENT = """
    import asyncio, sys
    from omniq.runners.process import ProcessRunner

    async def main():
        runner = ProcessRunner()
        await runner.start(concurrency=2)
        while len(runner.pids) < 2:
            await asyncio.sleep(0.01)
        print(*runner.pids, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while not all(map(is_gone, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)


MAIN = """
    import asyncio, sys
    from omniq.engine import Engine, WorkerSettings
    from omniq.ids import new_id
    from omniq.runners.process import ProcessRunner
    from omniq.stores import Stores
    from omniq.task import TaskRegistry
    from omniq_memory import MemoryBackend

    def double(x):
        return helper(x)

    def helper(x):
        return 2 * x

    async def main():
        backend, registry = MemoryBackend(), TaskRegistry()
        await backend.open()
        record = registry.adopt(double).record(new_id(), (4,), {})
        await backend.queue().enqueue([record])
        report = await Engine(
            Stores(backend, backend, None), registry, ProcessRunner(), WorkerSettings(max_workers=1)
        ).run(burst=True)
        await backend.open()
        (task,) = await backend.queue().get([record.id])
        print(record.name, task.state, task.reason)

    GUARD
        asyncio.run(main())
"""


@pytest.mark.parametrize("guard", ["if __name__ == '__main__':", "if True:"])
def test_a_function_of_the_script_itself_runs_in_a_pool_guarded_or_not(tmp_path: Path, guard: str) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(textwrap.dedent(MAIN).replace("GUARD", guard))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "my_script:double succeeded None\n", done.stderr
