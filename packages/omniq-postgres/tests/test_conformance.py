"""The whole conformance suite on a real server: with wake-ups, and in polling mode."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import psycopg
import pytest

from omniq_conformance import BackendSuite, Env
from omniq_conformance.servers import PostgresServer
from omniq_core import Backend
from omniq_postgres import PostgresBackend


class TestPostgres(BackendSuite):
    server: ClassVar[PostgresServer]
    settings: ClassVar[Mapping[str, Any]] = {}
    used: ClassVar[Counter[str]] = Counter()

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, postgres_server_durable: PostgresServer) -> None:
        cls.server = postgres_server_durable

    @asynccontextmanager
    async def backend(self, env: Env, /) -> AsyncIterator[Backend]:
        backend = PostgresBackend.from_url(
            self.server.url, schema=env.namespace, clock=env.clock, **self.settings
        )
        self.used[env.namespace] += 1
        try:
            yield backend
        finally:
            await backend.close()
            self.used[env.namespace] -= 1
            if not self.used[env.namespace]:  # a test may have several backends on its schema
                async with await psycopg.AsyncConnection.connect(
                    self.server.url, autocommit=True
                ) as connection:
                    await connection.execute("set client_min_messages = error")
                    await connection.execute(f"drop schema if exists {env.namespace} cascade")

    def url_for(self, env: Env, /) -> str:
        return f"{self.server.url}?schema={env.namespace}"

    @asynccontextmanager
    async def transaction(self, env: Env, /) -> AsyncIterator[object]:
        async with await psycopg.AsyncConnection.connect(self.server.url) as connection:
            yield connection

    async def restart(self, env: Env, /) -> None:
        def kill_and_start() -> None:
            self.server.kill()
            self.server.start()

        await asyncio.to_thread(kill_and_start)

    async def drop_connections(self, env: Env, /) -> None:
        async with await psycopg.AsyncConnection.connect(self.server.url, autocommit=True) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )


@pytest.mark.slow  # the same suite once more
class TestPollingPostgres(TestPostgres):
    settings = {"notify": False}  # noqa: RUF012
    histories = 5  # the same statements have thirty above; in a history nobody waits

    def url_for(self, env: Env, /) -> str:
        return super().url_for(env) + "&notify=false"
