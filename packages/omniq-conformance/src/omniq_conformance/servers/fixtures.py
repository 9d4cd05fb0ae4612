"""Pytest fixtures for the test servers.

A top-level ``conftest.py`` or a test module says ``pytest_plugins = ["omniq_conformance.servers.fixtures"]``; a
``conftest.py`` further down, where pytest forbids that, says ``from omniq_conformance.servers.fixtures import *``. However
many do, each server is started once in a session, by the first test that asks for it. Nothing is loaded unasked.

A test may kill, stop or freeze the server that it was given: it is up again before the next test. When a test fails, its
report ends with the logs of its servers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest

from omniq_conformance.servers.azure import AzureEndpoint
from omniq_conformance.servers.base import Profile, Server
from omniq_conformance.servers.gcs import GcsServer
from omniq_conformance.servers.isolation import fresh_bucket, fresh_prefix, fresh_schema
from omniq_conformance.servers.nats import NatsCluster, NatsServer
from omniq_conformance.servers.pgbouncer import PgBouncer
from omniq_conformance.servers.postgres import PostgresServer
from omniq_conformance.servers.proxy import Proxy
from omniq_conformance.servers.redis import RedisServer, ValkeyServer
from omniq_conformance.servers.s3 import S3Server

__all__ = [
    "azure_container",
    "azure_endpoint",
    "gcs_bucket",
    "gcs_server",
    "nats_cluster",
    "nats_server",
    "nats_server_durable",
    "pgbouncer_server",
    "postgres_schema",
    "postgres_server",
    "postgres_server_durable",
    "pytest_runtest_makereport",
    "pytest_runtest_teardown",
    "pytest_sessionfinish",
    "redis_prefix",
    "redis_server",
    "redis_server_durable",
    "s3_bucket",
    "s3_server",
    "server_proxy",
    "valkey_prefix",
    "valkey_server",
    "valkey_server_durable",
]

S = TypeVar("S", bound=Server)

_shared: dict[tuple[type[Server], Profile], Server] = {}


def _server(kind: type[S], profile: Profile) -> S:
    """The server that every module which imports these fixtures shares; a fixture alone would be one for each."""
    server = _shared.get((kind, profile))
    if isinstance(server, kind):
        return server
    server = kind.from_env(profile)
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    _shared[kind, profile] = server
    return server


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """PostgreSQL as it comes."""
    return _server(PostgresServer, "default")


@pytest.fixture(scope="session")
def postgres_server_durable() -> PostgresServer:
    """PostgreSQL with the durable settings said on its command line."""
    return _server(PostgresServer, "durable")


@pytest.fixture(scope="session")
def valkey_server() -> ValkeyServer:
    """Valkey as it comes: what it has acknowledged may be lost when it is killed."""
    return _server(ValkeyServer, "default")


@pytest.fixture(scope="session")
def valkey_server_durable() -> ValkeyServer:
    """Valkey that syncs each write before it acknowledges it, and evicts nothing."""
    return _server(ValkeyServer, "durable")


@pytest.fixture(scope="session")
def redis_server() -> RedisServer:
    """Redis as it comes: what it has acknowledged may be lost when it is killed."""
    return _server(RedisServer, "default")


@pytest.fixture(scope="session")
def redis_server_durable() -> RedisServer:
    """Redis that syncs each write before it acknowledges it, and evicts nothing."""
    return _server(RedisServer, "durable")


@pytest.fixture(scope="session")
def s3_server() -> S3Server:
    """An S3 server. When it is killed or stopped, all that was in it is gone."""
    return _server(S3Server, "default")


@pytest.fixture(scope="session")
def gcs_server() -> GcsServer:
    """A server of Google Cloud Storage. What it has acknowledged survives when it is killed."""
    return _server(GcsServer, "default")


@pytest.fixture(scope="session")
def azure_endpoint() -> AzureEndpoint:
    """The blob storage that `OMNIQ_TEST_AZURE_ENDPOINT` names. No wheel has one: without the variable the test is skipped."""
    if not AzureEndpoint.from_env().is_named:
        pytest.skip(f"{AzureEndpoint.variable} names no blob storage, and no wheel has one")
    return _server(AzureEndpoint, "default")


@pytest.fixture(scope="session")
def nats_server() -> NatsServer:
    """NATS with JetStream as it comes: it syncs its files every two minutes."""
    return _server(NatsServer, "default")


@pytest.fixture(scope="session")
def nats_server_durable() -> NatsServer:
    """NATS with JetStream that syncs each write before it acknowledges it."""
    return _server(NatsServer, "durable")


@pytest.fixture(scope="session")
def nats_cluster() -> Iterator[NatsCluster]:
    """Three NATS servers that replicate. A test that kills one starts it again."""
    with NatsCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def pgbouncer_server(request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode in front of `postgres_server`."""
    server = PgBouncer.from_env()
    if server.is_ours:
        server = PgBouncer(upstream=request.getfixturevalue("postgres_server"))
    with server:
        yield server


@pytest.fixture
def postgres_schema(postgres_server: PostgresServer) -> Iterator[str]:
    """A schema of this test alone, not yet made; dropped at the end."""
    with fresh_schema(postgres_server) as name:
        yield name


@pytest.fixture
def valkey_prefix(valkey_server: ValkeyServer) -> Iterator[str]:
    """A prefix of this test alone; its keys are removed at the end."""
    with fresh_prefix(valkey_server) as prefix:
        yield prefix


@pytest.fixture
def redis_prefix(redis_server: RedisServer) -> Iterator[str]:
    """A prefix of this test alone; its keys are removed at the end."""
    with fresh_prefix(redis_server) as prefix:
        yield prefix


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> Iterator[str]:
    """An empty bucket of this test alone; removed at the end."""
    with fresh_bucket(s3_server) as name:
        yield name


@pytest.fixture
def gcs_bucket(gcs_server: GcsServer) -> Iterator[str]:
    """An empty bucket of this test alone; removed at the end."""
    with fresh_bucket(gcs_server) as name:
        yield name


@pytest.fixture
def azure_container(azure_endpoint: AzureEndpoint) -> Iterator[str]:
    """An empty container of this test alone; removed at the end."""
    with fresh_bucket(azure_endpoint) as name:
        yield name


@pytest.fixture
def server_proxy() -> Iterator[Callable[[Server], Proxy]]:
    """Call it with a server to get a proxy in front of it; closed at the end."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(Proxy(server.url))


def _servers(item: pytest.Item) -> list[Server]:
    """Those of our own servers that a test was given."""
    values = getattr(item, "funcargs", {}).values()
    return [value for value in values if isinstance(value, Server) and value.is_ours]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Bring up again what the test has ended, before other fixtures clean up: they may need it."""
    for server in _servers(item):
        server.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of a failed test's servers."""
    report = yield
    if report.failed:
        names = {title for title, _ in report.sections}
        for server in _servers(item):
            title = f"log of {server.kind} ({server.profile})"
            if title not in names:
                report.sections.append((title, server.log_tail()))
    return report


def pytest_sessionfinish() -> None:
    """End the servers; whatever forgets this, the end of the process does it as well."""
    while _shared:
        _shared.popitem()[1].close()
