"""The other process of the process checks: :func:`main` in a child of the nursery, or, on Windows,
``python -m omniq_conformance.remote_main URL``.

Reads one command a line, as JSON, and answers each with one line. Ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from omniq_conformance.nursery_main import ready
from omniq_core import (
    Backend,
    Event,
    EventFilter,
    Lease,
    Outcome,
    Settlement,
    TaskRecord,
    Url,
    Verb,
    backend_class,
)


class Actor:
    """What the other process can do. Each public method is a command."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._leases: dict[str, Lease] = {}

    async def claim(self, queues: Sequence[str], max_tasks: int, lease_s: float) -> list[str]:
        claims = await self.backend.queue().claim(
            queues, max_tasks=max_tasks, lease_s=lease_s, worker_id="other", claim_id=str(uuid.uuid4())
        )
        self._leases.update((claim.task_id, claim.lease) for claim in claims)
        return [claim.task_id for claim in claims]

    async def settle(self, task_ids: Sequence[str], verb: str) -> list[Outcome]:
        items = [
            Settlement(self._leases[task_id], Verb(verb), reason="settled elsewhere") for task_id in task_ids
        ]
        return list(await self.backend.queue().settle(items))

    async def extend(self, task_ids: Sequence[str], lease_s: float) -> list[Outcome]:
        leases = [self._leases[task_id] for task_id in task_ids]
        return [answer.outcome for answer in await self.backend.queue().extend(leases, lease_s=lease_s)]

    async def enqueue(self, task_ids: Sequence[str], queue: str) -> list[Outcome]:
        records = [TaskRecord(task_id, queue, "work", b"from elsewhere") for task_id in task_ids]
        return [answer.outcome for answer in await self.backend.queue().enqueue(records)]

    async def cancel(self, task_ids: Sequence[str]) -> list[Outcome]:
        return list(await self.backend.queue().cancel(task_ids))

    async def wait(self, queues: Sequence[str], timeout_s: float) -> float:
        """Claims nothing, then waits; how long that took, in seconds."""
        await self.claim(queues, 1, 60.0)
        say({"ok": "waiting"})
        started = time.monotonic()
        await self.backend.queue().wait(queues, timeout_s=timeout_s)
        return time.monotonic() - started

    async def wait_result(self, task_id: str, timeout_s: float) -> float:
        say({"ok": "waiting"})
        started = time.monotonic()
        await self.backend.result_store().wait([task_id], timeout_s=timeout_s)
        return time.monotonic() - started

    async def work(self, queue: str, max_tasks: int) -> list[str]:
        """Claims and succeeds until nothing more comes; the ids that were settled ``OK``."""
        done: list[str] = []
        while task_ids := await self.claim([queue], max_tasks, 60.0):
            outcomes = await self.settle(task_ids, Verb.SUCCEED)
            done += [t for t, outcome in zip(task_ids, outcomes, strict=True) if outcome is Outcome.OK]
        return done

    async def stream(self, queue: str, batch: int) -> None:
        """Enqueues for ever, and tells each batch before it is sent and after it was acknowledged."""
        while True:
            task_ids = [f"s-{uuid.uuid4().hex}" for _ in range(batch)]
            say({"ok": {"sent": task_ids}})
            await self.enqueue(task_ids, queue)
            say({"ok": {"stored": task_ids}})

    async def append(self, count: int, task_id: str) -> list[str]:
        """Appends events one call at a time; their ids in order."""
        events = [Event(uuid.uuid4().hex, task_id, "tick", time.time()) for _ in range(count)]
        for event in events:
            await self.backend.event_store().append([event])
        return [event.id for event in events]

    async def count_events(self, task_id: str) -> int:
        return len((await self.backend.event_store().read(EventFilter(task_ids=[task_id]))).items)


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def serve(url: str) -> None:
    async with backend_class(Url.parse(url).scheme).from_url(url) as backend:
        actor = Actor(backend)
        ready()
        say({"ok": "open"})
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            try:
                say({"ok": await getattr(actor, command.pop("op"))(**command)})
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})


def main(url: str) -> None:
    asyncio.run(serve(url))


if __name__ == "__main__":
    main(sys.argv[1])
