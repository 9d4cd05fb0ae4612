"""Through PgBouncer in transaction mode: no session, no prepared statement; and with a direct line for LISTEN beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from typing import Any

import psycopg
import pytest

from omniq_conformance.servers import PgBouncer, PostgresServer
from omniq_core import Capability, Outcome, Settlement, TaskRecord, Verb
from omniq_postgres import PostgresBackend

has_pgbouncer = bool(
    os.environ.get(PgBouncer.variable)
    or shutil.which("pgbouncer")
    or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
)


@pytest.fixture
def pooled_url(request: pytest.FixtureRequest) -> str:
    """PgBouncer's, where it is; else the server's own: then the mode is tested, and not the pooler."""
    if has_pgbouncer:
        bouncer: PgBouncer = request.getfixturevalue("pgbouncer_server")
        return bouncer.url
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url


async def listening(worker: PostgresBackend) -> None:
    """Returns when it hears, once it has begun to wait."""
    await asyncio.sleep(0)
    assert worker._listener is not None
    await worker._listener.listening.wait()


async def life(backend: PostgresBackend, rounds: int = 20) -> int:
    """Tasks from enqueue to result, by several coroutines at once; how many."""
    queue = backend.queue()

    async def one(number: int) -> None:
        for _ in range(rounds):
            ids = [str(uuid.uuid4()) for _ in range(number + 1)]
            await queue.enqueue([TaskRecord(task_id, f"q{number}", "work", b"\x00b") for task_id in ids])
            claims = await queue.claim(
                [f"q{number}"], max_tasks=20, lease_s=60.0, worker_id="w", claim_id=str(uuid.uuid4())
            )
            assert sorted(claim.task_id for claim in claims) == sorted(ids)
            await queue.extend([claim.lease for claim in claims], lease_s=60.0)
            outcomes = await queue.settle([Settlement(c.lease, Verb.SUCCEED, result=b"r") for c in claims])
            assert set(outcomes) == {Outcome.OK}
            found = await backend.result_store().get(ids)
            assert all(record is not None and record.body == b"r" for record in found)

    await asyncio.gather(*(one(number) for number in range(6)))
    return sum(rounds * (number + 1) for number in range(6))


def test_everything_works_without_sessions(
    postgres_server: PostgresServer, postgres_schema: str, pooled_url: str
) -> None:
    async def main() -> None:
        backend = PostgresBackend.from_url(pooled_url, schema=postgres_schema, notify=False)
        async with backend:
            for pushed in (Capability.WAKEUP, Capability.RESULT_WAIT, Capability.EVENT_TAIL):
                assert pushed not in backend.capabilities
                assert "notify" in backend.absent[pushed]
            count = await life(backend)
            [[found]] = await asyncio.to_thread(
                postgres_server.execute, f"select count(*) from {postgres_schema}.task where state = 2"
            )
            assert int(found) == count
            moved = await backend.queue().maintain()
            assert moved.moved == []

    asyncio.run(main())


def test_nothing_is_prepared_or_set_on_a_pooled_session(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        # The server itself, as its sessions can be looked at from inside.
        async with PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, notify=False
        ) as backend:
            await life(backend, rounds=1)
            link = await backend.pool.take()
            try:
                rows = await link.script(
                    "select count(*) from pg_prepared_statements union all "
                    "select count(*) from pg_settings where source = 'session' and name like 'sync%'",
                    timeout_s=5.0,
                )
                assert rows == [(0,), (0,)]
            finally:
                backend.pool.give_back(link)

    asyncio.run(main())


@pytest.mark.parametrize("settings", [{"notify": False}, {"notify": True}], ids=["pooled", "direct"])
def test_a_role_that_has_synchronous_commit_off_does_not_lose_tasks(
    postgres_server: PostgresServer, postgres_schema: str, settings: dict[str, Any]
) -> None:
    postgres_server.execute(f"create role {postgres_schema} superuser login")
    postgres_server.execute(f"alter role {postgres_schema} set synchronous_commit = off")

    async def main() -> None:
        url = postgres_server.url.replace("postgres@", f"{postgres_schema}@")
        async with (
            PostgresBackend.from_url(url, schema=postgres_schema, **settings) as backend,
            await psycopg.AsyncConnection.connect(postgres_server.url, autocommit=True) as other,
        ):
            assert Capability.DURABLE in backend.capabilities
            for _ in range(20):
                cursor = await other.execute("select pg_current_wal_insert_lsn()")
                [before] = await cursor.fetchone() or [None]
                await backend.queue().enqueue([TaskRecord(str(uuid.uuid4()), "q", "work", b"")])
                cursor = await other.execute("select pg_current_wal_flush_lsn() > %s::pg_lsn", [before])
                assert await cursor.fetchone() == (True,), "a task was acknowledged before it was on disk"

    try:
        asyncio.run(main())
    finally:
        postgres_server.execute(
            f"drop schema if exists {postgres_schema} cascade; drop role {postgres_schema}"
        )


@pytest.mark.skipif(
    not has_pgbouncer, reason="PgBouncer is not installed, and OMNIQ_TEST_PGBOUNCER_URL not set"
)
def test_a_pooler_that_nobody_was_told_of_is_found(
    postgres_server: PostgresServer, postgres_schema: str, pooled_url: str
) -> None:
    async def main() -> None:
        for url, settings, warned in (
            (postgres_server.url, {}, False),
            (pooled_url, {"notify": False}, False),
            (pooled_url, {}, True),
        ):
            async with PostgresBackend.from_url(
                url, schema=postgres_schema, pool_size=1, **settings
            ) as backend:
                health = await backend.check()
                assert any("pooler" in finding.message for finding in health.findings) is warned

    asyncio.run(main())


def test_wakeups_work_with_a_direct_line_beside_the_pooler(
    postgres_server: PostgresServer, postgres_schema: str, pooled_url: str
) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {
            "schema": postgres_schema,
            "listen_url": postgres_server.url,
            "poll_interval_s": 30.0,
        }
        async with (
            PostgresBackend.from_url(pooled_url, **settings) as worker,
            PostgresBackend.from_url(pooled_url, **settings) as producer,
        ):
            assert Capability.WAKEUP in worker.capabilities
            assert (
                await worker.queue().claim(["q"], max_tasks=1, lease_s=9.0, worker_id="w", claim_id="a") == []
            )
            waiting = asyncio.ensure_future(worker.queue().wait(["q"], timeout_s=20.0))
            await listening(worker)
            await producer.queue().enqueue([TaskRecord("t", "q", "work", b"")])
            async with asyncio.timeout(5.0):
                assert await waiting
            assert await worker.queue().claim(["q"], max_tasks=1, lease_s=9.0, worker_id="w", claim_id="b")
            await life(producer, rounds=2)

    asyncio.run(main())


def test_waiting_without_wakeups_polls(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, notify=False, poll_interval_s=0.02
        ) as backend:
            assert backend.limits.poll_interval_s == 0.02
            async with asyncio.timeout(2.0):
                assert await backend.queue().wait(["q"], timeout_s=60.0)

    asyncio.run(main())


def test_the_tables_are_vacuumed_through_the_pooler(
    pooled_url: str, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.vacuum.EVERY", 200)

    async def main() -> None:
        async with PostgresBackend.from_url(pooled_url, schema=postgres_schema, notify=False) as backend:
            assert await life(backend, rounds=10) == 210
            if backend.vacuum._task is not None:
                await asyncio.wait([backend.vacuum._task], timeout=10.0)
            [(count,)] = await backend.pool.query(
                "select vacuum_count from pg_stat_user_tables where schemaname = {} and relname = 'ready'",
                ("text",),
                (postgres_schema,),
            )
            assert count == 1

    asyncio.run(main())
