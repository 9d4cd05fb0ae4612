"""Deleting many waiting tasks: a purge reads about as many as it deletes, and what it leaves behind is vacuumed."""

from __future__ import annotations

import asyncio
import re
import uuid

import pytest

from omniq_conformance.servers import PostgresServer
from omniq_core import TaskFilter, TaskRecord, TaskState
from omniq_postgres import PostgresBackend
from omniq_postgres.filters import candidates

PENDING = TaskFilter(states=[TaskState.PENDING])


async def fill(backend: PostgresBackend, count: int) -> None:
    for _ in range(0, count, 1000):
        await backend.queue().enqueue([TaskRecord(uuid.uuid4().hex, "q", "w", b"") for _ in range(1000)])


def test_a_purge_of_some_of_many_waiting_tasks_reads_no_more_than_those(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend:
            await fill(backend, 10_000)
            chosen, types, values = candidates(PENDING, 100, to_purge=True)
            rows = await backend.queue()._pool.query(
                f"explain (analyze, costs off, timing off, buffers off) {chosen}", types, values
            )
            plan = "\n".join(row[0] for row in rows)
            reads = re.findall(r"on (?:ready|task) .*rows=(\d+)", plan)
            assert len(reads) == 2, plan
            assert all(float(count) <= 100 for count in reads), plan

    asyncio.run(main())


def test_what_was_purged_counts_towards_the_next_vacuum(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.vacuum.EVERY", 2000)

    async def main() -> None:
        async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend:
            await fill(backend, 3000)
            vacuum = backend.queue()._backend.vacuum
            assert await backend.queue().purge(PENDING) == 1000
            assert vacuum._task is None
            assert await backend.queue().purge(PENDING) == 1000
            assert vacuum._task is not None
            await asyncio.wait([vacuum._task], timeout=10.0)
            [[count]] = postgres_server.execute(
                "select vacuum_count from pg_stat_user_tables "
                f"where schemaname = '{postgres_schema}' and relname = 'ready'"
            )
            assert int(count) == 1

    asyncio.run(main())
