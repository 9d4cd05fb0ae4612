"""Real servers, shared by all tests of this package, and a few things that several files need."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import pytest

from omniq_conformance.servers import Server
from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name
from omniq_core import Backend, Claim, Outcome, Queue, Settlement, TaskRecord, TaskState, Verb
from omniq_nats import NatsBackend, lines

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
    """Producers and workers, and what they were told. However long a server is away, no more than so much is enqueued."""

    MOST = 300
    """How many tasks are enqueued after a server was killed until another is."""

    def __init__(self, backend: NatsBackend, tasks: Callable[..., list[TaskRecord]]) -> None:
        self.backend = backend
        self.queue = backend.queue()
        self.tasks = tasks
        self.acknowledged: list[str] = []
        self.done: list[str] = []
        self._stopped = False
        self._most = float("inf")
        self._under_way = {"enqueue": 0, "work": 0}
        self._changed = asyncio.Condition()
        self._jobs: list[asyncio.Future[None]] = []

    def start(self, *sizes: int, workers: int) -> None:
        """Starts producers that enqueue so many tasks at a time, and workers."""
        self._jobs += [asyncio.ensure_future(self._produce(size)) for size in sizes]
        self._jobs += [asyncio.ensure_future(self._work()) for _ in range(workers)]

    async def stop(self) -> None:
        """Returns when every call that was begun has succeeded."""
        self._stopped = True
        await self._tell()
        await asyncio.gather(*self._jobs)

    async def kill(self, server: Server) -> None:
        """Kills a server after some more tasks, and while one is being enqueued and another claimed or settled."""
        goal = len(self.acknowledged) + 60
        self._most = float("inf")
        await self._tell()
        await self._until(lambda: len(self.acknowledged) >= goal and all(self._under_way.values()))
        server.kill()  # not from a thread: what is under way would have ended by then
        self._most = len(self.acknowledged) + self.MOST

    async def goes_on(self) -> None:
        """Returns when more has been enqueued, and more been done."""
        acknowledged, done = len(self.acknowledged) + 60, len(self.done) + 20
        await self._until(lambda: len(self.acknowledged) >= acknowledged and len(self.done) >= done)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _insist(self, kind: str, call: Callable[[], Awaitable[object]]) -> object:
        async def counted() -> object:
            self._under_way[kind] += 1
            await self._tell()
            try:
                return await call()
            finally:
                self._under_way[kind] -= 1

        return await insist(self.backend, counted)

    async def _produce(self, size: int) -> None:
        while not self._stopped:
            records = self.tasks(size, max_crashes=100)
            await self._insist("enqueue", lambda records=records: self.queue.enqueue(records))
            self.acknowledged.extend(record.id for record in records)
            await self._tell()
            await asyncio.sleep(0.02)  # a pace, so that the workers keep up
            await self._until(lambda: self._stopped or len(self.acknowledged) < self._most)

    async def _work(self) -> None:
        while not self._stopped:
            claim_id = str(uuid.uuid4())
            found = await self._insist("work", lambda claim_id=claim_id: claim(self.queue, 5, claim_id))
            claims: list[Claim] = found  # type: ignore[assignment]
            ends = [Settlement(c.lease, Verb.SUCCEED, result=b"done") for c in claims]
            outcomes = await self._insist("work", lambda ends=ends: self.queue.settle(ends))
            assert set(outcomes) <= {OK, DUPLICATE}  # type: ignore[call-overload]
            self.done.extend(c.task_id for c in claims)
            await self._tell()
            if not claims:
                await asyncio.sleep(0.02)

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
            await asyncio.sleep(0.05)  # looking without a pause would take the core that the servers need

    return wait


@pytest.fixture
def load_on(
    tasks: Callable[..., list[TaskRecord]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[NatsBackend], Load]:
    """Makes a load on a backend."""
    monkeypatch.setattr(
        lines, "DEAL_S", 2
    )  # nothing else is different then, and its check need not wait for ten
    return lambda backend: Load(backend, tasks)
