"""Real servers, shared by all tests of this package, and a few things that several files need."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import pytest

from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name
from omniq_conformance.servers.redis import SpeaksRedis
from omniq_core import TaskRecord
from omniq_redis import RedisBackend


@pytest.fixture
def project() -> str:
    """A project that no other test has."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def backend_at(project: str) -> Callable[..., RedisBackend]:
    """Makes backends of this test's project at a URL."""

    def make(url: str, **settings: object) -> RedisBackend:
        return RedisBackend.from_url(url, project_name=project, **settings)

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
        end = time.monotonic() + 20
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < end, "waited for twenty seconds"
            await asyncio.sleep(0.02)  # looking without a pause would take the core that the servers need

    return wait


@pytest.fixture
def blocked(until: Callable[[Callable[[], object]], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Waits until so many clients of a server block in a command."""

    async def wait(server: SpeaksRedis, count: int = 1, command: str = "bzpopmin") -> None:
        def enough() -> bool:
            clients = server.command("CLIENT", "LIST")
            assert isinstance(clients, bytes)
            return clients.count(f"cmd={command} ".encode()) >= count

        await until(enough)

    return wait
