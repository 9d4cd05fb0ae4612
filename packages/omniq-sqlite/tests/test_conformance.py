"""The SQLite backend is held to the same suite as every other."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from omniq_conformance import BackendSuite, Env
from omniq_sqlite import SQLiteBackend


class TestSQLite(BackendSuite):
    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[SQLiteBackend]:
        yield SQLiteBackend(db_path=str(env.tmp_path / "q.db"), clock=env.clock)

    def url_for(self, env: Env) -> str:
        return f"sqlite:///{env.tmp_path}/q.db"

    @asynccontextmanager
    async def transaction(self, env: Env) -> AsyncIterator[sqlite3.Connection]:
        connection = sqlite3.connect(env.tmp_path / "q.db", isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        finally:
            connection.close()
