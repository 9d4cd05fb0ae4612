"""A worker that dies where it is told to. ``workers.py`` runs it, each in a process of its own.

It tells what it does by lines on its standard output, so that a test waits for a line and never for a time. What its tasks
*did* is in the ledger, a file outside every store: one line for each effect, appended in one write.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from omniq import AsyncOmniQ
from omniq.context import TaskContext, current_task
from omniq.engine.signals import install
from omniq.middleware import CallNext
from omniq.workers import worker_class
from omniq_conformance.nursery_main import ready

CONFIG: dict[str, Any] = {}


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def first_time(what: str) -> bool:
    """Whether no process has asked this before."""
    try:
        os.close(os.open(Path(CONFIG["folder"]) / what, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def die_at(step: str, number: int) -> None:
    if CONFIG.get("step") == step and number in CONFIG["fatal"] and first_time(f"died-{number}"):
        os.kill(os.getpid(), signal.SIGKILL)


def ledger(*words: object) -> None:
    line = " ".join(map(str, words)) + "\n"
    file = os.open(Path(CONFIG["folder"]) / "ledger", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, line.encode())
    os.close(file)


async def effect(number: int) -> int:
    die_at("mid-task", number)
    await asyncio.sleep(0)
    ledger(number, current_task().fence, os.getpid())
    die_at("after the effect", number)
    return number * 2


def sync_effect(number: int) -> int:
    die_at("mid-task", number)
    ledger(number, current_task().fence, os.getpid())
    die_at("after the effect", number)
    return number * 2


async def block_the_loop(seconds: float) -> int:
    say("started", current_task().attempt)
    ledger("blocked", current_task().fence, os.getpid())
    time.sleep(seconds)  # noqa: ASYNC251 - blocking the loop is the point
    return current_task().attempt


async def slow_once(folder: str) -> str:
    """The first run waits until it is told to go on, the others return at once."""
    if current_task().attempt > 1:
        return f"by attempt {current_task().attempt}"
    say("started")
    # Another process says when: it leaves a file, and there is nothing here to wait on.
    while not (Path(folder) / "go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return "by the zombie"


async def surround(task: TaskContext, call: Any, call_next: CallNext) -> Any:
    number = int(task.headers.get("number", -1))
    die_at("before start", number)
    value = await call_next()
    die_at("before settle", number)
    return value


def facade(config: dict[str, Any]) -> AsyncOmniQ:
    """The program's queue; the tests make the same one."""
    oq = AsyncOmniQ.from_backend(
        config["queue"], config.get("results"), config.get("events_at"), events=bool(config.get("events"))
    )
    for function in (effect, sync_effect, block_the_loop, slow_once):
        oq.task(name=function.__name__)(function)
    return oq


def break_beside(step: str) -> None:
    """Kills between the steps of a settlement whose results are on another backend."""
    from omniq.engine.beside import Beside

    put, finish = Beside.put, Beside.finish

    def numbers(batch: Any) -> list[int]:
        return [int(held.context.headers.get("number", -1)) for held in batch if held.context is not None]

    async def put_and_die(self: Any, batch: Any) -> Any:
        ready = await put(self, batch)
        for number in numbers(batch):
            die_at("after the result was put", number)
        return ready

    async def finish_or_die(self: Any, batch: Any, answers: Any) -> None:
        for number in numbers(batch):
            die_at("after settle", number)
        await finish(self, batch, answers)
        for number in numbers(batch):
            die_at("after the result was made final", number)

    Beside.put, Beside.finish = put_and_die, finish_or_die  # type: ignore[method-assign]


async def main() -> None:
    oq = facade(CONFIG)
    break_beside(CONFIG.get("step", ""))
    worker = worker_class(CONFIG.get("worker_type", "async"))(
        oq.task_queue,
        oq.result_store,
        oq.event_store,
        max_workers=CONFIG.get("max_workers", 10),
        lease=CONFIG["lease"],
        upkeep_s=CONFIG["lease"] / 4,
        poll_interval=CONFIG["lease"] / 2,
        middleware=[surround] if "step" in CONFIG else [],
    )
    worker.engine.on_started = ready  # its stores are open
    running = asyncio.ensure_future(worker.run())
    install(asyncio.get_running_loop(), worker.engine)
    say("ready")
    report = await running
    say(
        "report",
        json.dumps({"succeeded": report.succeeded, "stale": report.stale, "claimed": report.claimed}),
    )
    await oq.close()


def run(config: dict[str, Any]) -> None:
    """What a worker process does, until it is told to stop."""
    CONFIG.update(config)
    asyncio.run(main())
