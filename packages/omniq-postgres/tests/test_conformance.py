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

pytestmark = pytest.mark.slow  # on a real server


class TestPostgres(BackendSuite):
    server: ClassVar[PostgresServer]
    settings: ClassVar[Mapping[str, Any]] = {}
    used: ClassVar[Counter[str]] = Counter()
    spare: ClassVar[list[str]] = []
    places: ClassVar[dict[str, str]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, postgres_server_durable: PostgresServer) -> None:
        cls.server = postgres_server_durable

    @asynccontextmanager
    async def backend(self, env: Env, /) -> AsyncIterator[Backend]:
        schema = self.schema_of(env)
        backend = PostgresBackend.from_url(self.server.url, schema=schema, clock=env.clock, **self.settings)
        self.used[schema] += 1
        try:
            yield backend
        finally:
            await backend.close()
            self.used[schema] -= 1
            if not self.used[schema]:  # a test may have several backends on its schema
                async with await psycopg.AsyncConnection.connect(
                    self.server.url, autocommit=True
                ) as connection:
                    await self.leave(connection, schema)

    def schema_of(self, env: Env, /) -> str:
        """A schema that an earlier test has left, emptied, since making the tables is most of what a test costs. A second
        storage of one test gets a new one: there checks try what is not set up."""
        if env.namespace not in self.places:
            is_second = self.used.total() > 0
            self.places[env.namespace] = self.spare.pop() if self.spare and not is_second else env.namespace
        return self.places[env.namespace]

    async def leave(self, connection: psycopg.AsyncConnection[Any], schema: str) -> None:
        """Nobody of the test uses the schema any more."""
        if self.spare or self.used.total() or not await self.empty(connection, schema):
            await connection.execute("set client_min_messages = error")
            await connection.execute(f"drop schema if exists {schema} cascade")
        else:
            self.spare.append(schema)

    async def empty(self, connection: psycopg.AsyncConnection[Any], schema: str) -> bool:
        """Makes a schema as good as new, after the last session that could still write to it was ended; if it was one."""
        await self.end_sessions(connection)
        rows = await connection.execute("select tablename from pg_tables where schemaname = %s", [schema])
        tables = {name for (name,) in await rows.fetchall()}
        if "meta" not in tables:
            return False
        # Deleted rows would slow the tests that follow, and so would statistics of a table that was empty.
        await connection.execute(f"truncate {', '.join(f'{schema}.{name}' for name in tables - {'meta'})}")
        return True

    def url_for(self, env: Env, /) -> str:
        return f"{self.server.url}?schema={self.schema_of(env)}"

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
            await self.end_sessions(connection)

    @staticmethod
    async def end_sessions(connection: psycopg.AsyncConnection[Any]) -> None:
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
