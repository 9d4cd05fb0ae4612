"""Real servers, shared by all tests of this package, and a few things that several files need."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import pytest

from omniq_conformance.load import until
from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name
from omniq_conformance.servers.redis import SpeaksRedis
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


@pytest.fixture(params=["valkey_server", "redis_server"])
def server(request: pytest.FixtureRequest) -> SpeaksRedis:
    """Each of the two servers."""
    found: SpeaksRedis = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def blocked() -> Callable[..., Awaitable[None]]:
    """Waits until so many clients of a server block in a command."""

    async def wait(server: SpeaksRedis, count: int = 1, command: str = "bzpopmin") -> None:
        def enough() -> bool:
            clients = server.command("CLIENT", "LIST")
            assert isinstance(clients, bytes)
            return clients.count(f"cmd={command} ".encode()) >= count

        await until(enough)

    return wait
