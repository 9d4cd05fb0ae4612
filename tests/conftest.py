"""Real servers for the tests that cross packages, and a place of its own on each for every test."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from omniq_conformance.servers import Server
from omniq_conformance.servers.fixtures import *  # noqa: F403
from omniq_conformance.servers.object_store import ObjectStore

SERVER_FIXTURES = {
    "postgres": "postgres_server_durable",
    "valkey": "valkey_server_durable",
    "redis": "redis_server_durable",
    "nats": "nats_server_durable",
    "s3": "s3_server",
    "gcs": "gcs_server",
}


@pytest.fixture
def server_of(request: pytest.FixtureRequest) -> Callable[[str], Server]:
    """The running server of a kind, with durable settings: ``server_of("postgres")``."""

    def find(kind: str) -> Server:
        server: Server = request.getfixturevalue(SERVER_FIXTURES[kind])
        return server

    return find


@pytest.fixture
def bucket_on(request: pytest.FixtureRequest, server_of: Callable[[str], Server]) -> Callable[[str], str]:
    """The URL of a bucket of this test alone, without the project: ``bucket_on("s3")``."""

    def find(kind: str) -> str:
        server = server_of(kind)
        assert isinstance(server, ObjectStore)
        key, secret = server.login
        settings = {"endpoint_url": server.endpoint, "poll_interval_s": "0.25"}
        settings |= {"key": key, "secret": secret} if kind == "s3" else {}
        bucket = request.getfixturevalue(f"{kind}_bucket")
        return f"{'gs' if kind == 'gcs' else kind}://{bucket}/tasks?{urlencode(settings)}"

    return find


@pytest.fixture
def place_on(
    server_of: Callable[[str], Server], bucket_on: Callable[[str], str], tmp_path: Path
) -> Callable[..., str]:
    """The URL of a place that nobody else uses: ``place_on("sqlite")``; the same one each time within a test.

    Give ``url=`` to reach a server by another way, through a proxy.
    """
    project = f"t{uuid.uuid4().hex[:12]}"

    def place(kind: str, url: str | None = None) -> str:
        if kind == "memory":
            return f"memory://{project}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/{project}.db?project_name={project}"
        if kind == "file":
            return f"file://{tmp_path}/tasks?project_name={project}"
        url = url or (bucket_on(kind) if kind in ("s3", "gcs") else server_of(kind).url)
        return f"{url}{'&' if '?' in url else '?'}project_name={project}"

    return place
