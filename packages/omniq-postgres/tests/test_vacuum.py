"""The tables of the hot path are vacuumed for what was claimed: it happens, it harms nobody, and it ends with the backend."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from omniq_conformance.servers import PostgresServer
from omniq_core import Settlement, TaskRecord, Verb
from omniq_postgres import PostgresBackend
from omniq_postgres.vacuum import Vacuum


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq_postgres.vacuum.EVERY", 500)


async def work(backend: PostgresBackend, tasks: int) -> None:
    """Tasks from enqueue to settlement, by hundreds."""
    queue = backend.queue()
    for _ in range(0, tasks, 100):
        await queue.enqueue([TaskRecord(str(uuid.uuid4()), "q", "work", b"b") for _ in range(100)])
        claims = await queue.claim(
            ["q"], max_tasks=100, lease_s=60.0, worker_id="w", claim_id=str(uuid.uuid4())
        )
        assert len(claims) == 100
        await queue.settle([Settlement(claim.lease, Verb.SUCCEED, result=b"r") for claim in claims])


def run(
    server: PostgresServer, schema: str, body: Callable[[PostgresBackend], Awaitable[None]], **settings: Any
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(
            settings.pop("url", server.url), schema=schema, **settings
        ) as backend:
            await body(backend)

    asyncio.run(main())


async def ended(vacuum: Vacuum) -> None:
    """Waits for the one that is under way."""
    if vacuum._task is not None:
        await asyncio.wait([vacuum._task], timeout=10.0)


async def vacuums(server: PostgresServer, schema: str) -> dict[str, int]:
    rows = await asyncio.to_thread(
        server.execute,
        f"select relname, vacuum_count from pg_stat_user_tables where schemaname = '{schema}'",
    )
    return {table: int(count) for table, count in rows}


@pytest.mark.parametrize("settings", [{}, {"notify": False}])
def test_the_tables_are_vacuumed_for_what_was_claimed(
    postgres_server: PostgresServer, postgres_schema: str, settings: dict[str, Any]
) -> None:
    async def body(backend: PostgresBackend) -> None:
        await work(backend, 400)
        assert backend.vacuum._task is None, "too few were claimed"
        await work(backend, 100)
        await ended(backend.vacuum)
        counts = await vacuums(postgres_server, postgres_schema)
        assert {table for table, count in counts.items() if count == 1} == {
            "ready",
            "delayed",
            "claim",
            "delta",
        }

    run(postgres_server, postgres_schema, body, **settings)


def test_vacuums_follow_each_other_after_a_pause(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.vacuum.PAUSE_S", 0.0)
    monkeypatch.setattr("omniq_postgres.vacuum.SHARE", 0)

    async def body(backend: PostgresBackend) -> None:
        for number in range(1, 4):
            await work(backend, 500)
            await ended(backend.vacuum)
            assert (await vacuums(postgres_server, postgres_schema))["ready"] == number
        monkeypatch.setattr("omniq_postgres.vacuum.PAUSE_S", 60.0)
        await work(backend, 500)
        await ended(backend.vacuum)
        assert (await vacuums(postgres_server, postgres_schema))["ready"] == 3, "one was made just now"
        await work(backend, 2000)
        assert backend.vacuum._task is not None, "the next one is due, and waits"
        assert (await vacuums(postgres_server, postgres_schema))["ready"] == 3

    run(postgres_server, postgres_schema, body)


def test_a_role_that_may_not_vacuum_works_without(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    run(postgres_server, postgres_schema, lambda backend: work(backend, 100))
    role = f"w_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        name, schema = sql.Identifier(role), sql.Identifier(postgres_schema)
        admin.execute(sql.SQL("create role {} login").format(name))
        for what in ("usage on schema {}", "all on all sequences in schema {}"):
            admin.execute(sql.SQL("grant " + what + " to {}").format(schema, name))
        admin.execute(
            sql.SQL("grant select, insert, update, delete on all tables in schema {} to {}").format(
                schema, name
            )
        )

        async def body(backend: PostgresBackend) -> None:
            await work(backend, 500)
            await ended(backend.vacuum)
            await work(backend, 500)
            assert backend.vacuum._task is None, "it is not tried again"
            assert (await vacuums(postgres_server, postgres_schema))["ready"] == 0
            health = await backend.check()
            assert any("may not vacuum" in finding.message for finding in health.findings)

        try:
            run(postgres_server, postgres_schema, body, username=role, migrate=False)
        finally:
            admin.execute(sql.SQL("drop owned by {}").format(name))
            admin.execute(sql.SQL("drop role {}").format(name))


def test_a_table_that_is_locked_is_passed_over(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def body(backend: PostgresBackend) -> None:
        async with await psycopg.AsyncConnection.connect(postgres_server.url) as other:
            await other.execute(
                sql.SQL("lock table {}.ready in share update exclusive mode").format(
                    sql.Identifier(postgres_schema)
                )
            )
            await work(backend, 500)
            async with asyncio.timeout(10.0):
                await ended(backend.vacuum)
            counts = await vacuums(postgres_server, postgres_schema)
            assert counts["ready"] == 0
            assert counts["delta"] == 1
            await other.rollback()

    run(postgres_server, postgres_schema, body)


def test_a_vacuum_that_fails_is_nobodys_failure(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.vacuum.TABLES", ("ready", "no_such_table"))

    async def body(backend: PostgresBackend) -> None:
        await work(backend, 500)
        await ended(backend.vacuum)
        await work(backend, 1000)
        assert backend.vacuum._task is not None, "it is tried again, later"

    run(postgres_server, postgres_schema, body)


def test_closing_ends_a_vacuum_that_is_under_way(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        backend = PostgresBackend.from_url(postgres_server.url, schema=postgres_schema)
        await backend.open()
        await work(backend, 400)
        backend.vacuum.note(100)
        task = backend.vacuum._task
        assert task is not None
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done(), "it asks the server"
        async with asyncio.timeout(5.0):
            await backend.close()
        assert task.done()
        backend.vacuum.note(5000)
        assert backend.vacuum._task is None
        assert [other for other in asyncio.all_tasks() if other is not asyncio.current_task()] == []

    asyncio.run(main())
