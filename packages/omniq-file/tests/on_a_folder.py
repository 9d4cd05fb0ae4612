"""Another process on a folder of tasks, which can be told to die or to stand still at any step of what it writes.

Reads one command a line, as JSON, and answers each with a line. Ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import uuid
from typing import Any

from omniq_conformance.nursery_main import ready
from omniq_core import Lease, Outcome, Settlement, TaskRecord, Verb
from omniq_file import FileBackend, tidying
from omniq_file.shelves import local

Point = tuple[str, str, int, str]
"""A step, which file, how often it is let pass, and what to do there: ``kill`` or ``stop``."""


def say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Spy:
    """Sees each step, and stops at one."""

    def __init__(self) -> None:
        self.point: Point | None = None
        self._current = ""

    def reached(self, step: str, name: str) -> None:
        if self.point is None or self.point[0] != step or self.point[1] not in name:
            return
        step, of, passes, what = self.point
        if passes > 0:
            self.point = step, of, passes - 1, what
            return
        self.point = None
        say("there")
        # To this very thread: sent to the process, it would let this thread go on for some steps.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP if what == "stop" else signal.SIGKILL)

    def install(self) -> None:
        create, link, unlink = local.LocalShelf._create, os.link, os.unlink

        def spied_create(shelf: local.LocalShelf, name: str, data: bytes) -> Any:
            self._current = name
            return create(shelf, name, data)

        def spied_link(*args: Any, **more: Any) -> None:
            self.reached("before", self._current)
            link(*args, **more)
            self.reached("after", self._current)

        def spied_unlink(name: Any, *args: Any, **more: Any) -> None:
            self.reached("unlink", str(name))
            unlink(name, *args, **more)

        local.LocalShelf._create = spied_create  # type: ignore[method-assign]
        os.link, os.unlink = spied_link, spied_unlink


class Actor:
    """What it can do. Each public method is a command."""

    def __init__(self, backend: FileBackend, spy: Spy) -> None:
        self._queue = backend.queue()
        self._spy = spy
        self._leases: dict[str, Lease] = {}

    async def stop_at(self, step: str, name: str, passes: int, what: str) -> None:
        self._spy.point = step, name, passes, what

    async def enqueue(self, *ids: str) -> list[Outcome]:
        return [a.outcome for a in await self._queue.enqueue([TaskRecord(i, "q", "n", b"b") for i in ids])]

    async def claim(self, most: int, lease_s: float) -> list[str]:
        claims = await self._queue.claim(
            ["q"], max_tasks=most, lease_s=lease_s, worker_id="child", claim_id=uuid.uuid4().hex
        )
        self._leases.update((c.task_id, c.lease) for c in claims)
        return [c.task_id for c in claims]

    async def settle(self, *ids: str) -> list[Outcome]:
        ends = [Settlement(self._leases[i], Verb.SUCCEED, result=b"child") for i in ids]
        return list(await self._queue.settle(ends))

    async def states(self, *ids: str) -> list[Any]:
        return [found and found.state for found in await self._queue.get(ids)]

    async def churn(self, name: str, rounds: int) -> str:
        """Enqueues, claims and settles, and tells what was acknowledged."""
        for number in range(rounds):
            task_id = f"{name}-{number}"
            await self.enqueue(task_id)
            say(["enqueued", task_id])
            for claimed in await self.claim(1, 60.0):
                outcome = (await self.settle(claimed))[0]
                say(["settled", claimed, outcome])
        return "done"


async def serve(folder: str, spy: Spy) -> None:
    async with FileBackend(base_dir=folder) as backend:
        actor = Actor(backend, spy)
        ready()
        say("open")
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, *arguments = json.loads(line)
            say(await getattr(actor, verb)(*arguments))


def main(folder: str, due_bytes: int) -> None:
    """
    Args:
        folder: of the tasks.
        due_bytes: after how many of them the log is tidied up.
    """
    tidying.SMALLEST_BYTES = tidying.Tidying.due_bytes = due_bytes
    spy = Spy()
    spy.install()
    asyncio.run(serve(folder, spy))
