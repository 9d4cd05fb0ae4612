"""Real servers for the tests that cross packages, and a place of its own on each for every test."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from omniq_conformance.servers import Server
from omniq_conformance.servers.fixtures import *  # noqa: F403

SERVER_FIXTURES = {
    "postgres": "postgres_server_durable",
    "valkey": "valkey_server_durable",
    "redis": "redis_server_durable",
}


@pytest.fixture
def server_of(request: pytest.FixtureRequest) -> Callable[[str], Server]:
    """The running server of a kind, with durable settings: ``server_of("postgres")``."""

    def find(kind: str) -> Server:
        server: Server = request.getfixturevalue(SERVER_FIXTURES[kind])
        return server

    return find


@pytest.fixture
def place_on(server_of: Callable[[str], Server], tmp_path: Path) -> Callable[..., str]:
    """The URL of a place that nobody else uses: ``place_on("sqlite")``; the same one each time within a test.

    Give ``url=`` to reach a server by another way, through a proxy.
    """
    project = f"t{uuid.uuid4().hex[:12]}"

    def place(kind: str, url: str | None = None) -> str:
        if kind == "memory":
            return f"memory://{project}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{project}.db?project_name={project}"
        url = url or server_of(kind).url
        return f"{url}{'&' if '?' in url else '?'}project_name={project}"

    return place
