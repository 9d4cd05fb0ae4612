"""Real servers, shared by all tests of this package, and a few things that several files need."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import pytest

from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name
from omniq_core import Backend, Claim, Outcome, Queue, Settlement, TaskRecord, TaskState, Verb
from omniq_nats import NatsBackend

OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE


async def claim(queue: Queue, count: int = 10, claim_id: str = "", lease_s: float = 60.0) -> list[Claim]:
    claim_id = claim_id or str(uuid.uuid4())
    return list(await queue.claim(["q"], max_tasks=count, lease_s=lease_s, worker_id="w", claim_id=claim_id))


async def insist(backend: Backend, call: Callable[[], object]) -> object:
    """Repeats a call until it succeeds, as OmniQ does. Every failure must be one that may be repeated."""
    end = time.monotonic() + 30
    while True:
        try:
            return await call()  # type: ignore[misc]
        except Exception as error:
            if not backend.classify(error).is_retryable or time.monotonic() > end:
                raise
            await asyncio.sleep(0.02)  # a server that starts has no signal that we could wait for


class Load:
    """Producers and a worker, and what they were told."""

    def __init__(self, backend: NatsBackend, tasks: Callable[..., list[TaskRecord]]) -> None:
        self.backend = backend
        self.queue = backend.queue()
        self.tasks = tasks
        self.acknowledged: list[str] = []
        self.done: list[str] = []
        self.stopped = False

    async def produce(self, size: int) -> None:
        while not self.stopped:
            records = self.tasks(size, max_crashes=100)
            await insist(self.backend, lambda records=records: self.queue.enqueue(records))
            self.acknowledged.extend(record.id for record in records)
            await asyncio.sleep(0.02)  # a pace, so that the worker keeps up

    async def work(self) -> None:
        while not self.stopped:
            claim_id = str(uuid.uuid4())
            found = await insist(self.backend, lambda claim_id=claim_id: claim(self.queue, 5, claim_id))
            claims: list[Claim] = found  # type: ignore[assignment]
            ends = [Settlement(c.lease, Verb.SUCCEED, result=b"done") for c in claims]
            outcomes = await insist(self.backend, lambda ends=ends: self.queue.settle(ends))
            assert set(outcomes) <= {OK, DUPLICATE}  # type: ignore[call-overload]
            self.done.extend(c.task_id for c in claims)
            if not claims:
                await asyncio.sleep(0.005)

    async def check(self) -> None:
        """Nothing that was acknowledged is lost: tasks, settlements, results; and every task can still be run."""
        ids = self.acknowledged
        states: dict[str, TaskState | None] = {}
        for start in range(0, len(ids), 1000):
            some = ids[start : start + 1000]
            found = await insist(self.backend, lambda some=some: self.queue.get(some))
            states |= {i: None if t is None else t.state for i, t in zip(some, found, strict=True)}  # type: ignore[call-overload]
        assert None not in states.values(), "an acknowledged task is gone"
        ended = {states[task_id] for task_id in self.done}
        assert ended <= {TaskState.SUCCEEDED}, f"an acknowledged settlement is gone: {ended}"
        for start in range(0, len(self.done), 500):
            assert all(await self.backend.result_store().get(self.done[start : start + 500])), (
                "a result is gone"
            )
        # What a call took whose reply was lost comes back with its lease; hints that were just dealt, within seconds.
        left = {task_id for task_id, state in states.items() if state is not TaskState.SUCCEEDED}
        end = time.monotonic() + 30
        while left:
            assert time.monotonic() < end, f"{len(left)} of {len(ids)} acknowledged tasks cannot be claimed"
            claims = await claim(self.queue, 1000, lease_s=60)
            outcomes = await self.queue.settle([Settlement(c.lease, Verb.SUCCEED) for c in claims])
            assert set(outcomes) <= {OK}
            left -= {c.task_id for c in claims}
            if not claims:
                await asyncio.sleep(0.1)
                await self.queue.maintain()


@pytest.fixture
def project() -> str:
    """A project that no other test has."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def backend_at(project: str) -> Callable[..., NatsBackend]:
    """Makes backends of this test's project at a URL."""

    def make(url: str, **settings: object) -> NatsBackend:
        return NatsBackend.from_url(url, project_name=project, **settings)

    return make


@pytest.fixture
def tasks() -> Callable[..., list[TaskRecord]]:
    """Makes tasks of one queue."""

    def make(count: int, **fields: object) -> list[TaskRecord]:
        base = {"queue": "q", "name": "work", "body": b"body"}
        return [TaskRecord(id=str(uuid.uuid4()), **(base | fields)) for _ in range(count)]  # type: ignore[arg-type]

    return make


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Waits for something in another process. It has no signal for us, so we look again and again."""

    async def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < end, "waited for a minute"
            await asyncio.sleep(0.02)  # looking without a pause would take the core that the servers need

    return wait


@pytest.fixture
def load_on(tasks: Callable[..., list[TaskRecord]]) -> Callable[[NatsBackend], Load]:
    """Makes a load on a backend."""
    return lambda backend: Load(backend, tasks)
