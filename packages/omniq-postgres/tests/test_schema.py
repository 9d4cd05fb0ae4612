"""Making the layout, and meeting one that is not ours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from omniq_conformance.servers import PostgresServer
from omniq_core import SchemaOutOfDate, TaskRecord
from omniq_postgres import PostgresBackend


def at(server: PostgresServer, schema: str, **settings: Any) -> PostgresBackend:
    return PostgresBackend.from_url(server.url, schema=schema, **settings)


def test_many_may_make_the_schema_at_once(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def main() -> None:
        backends = [at(postgres_server, postgres_schema) for _ in range(8)]
        try:
            await asyncio.gather(*(backend.open() for backend in backends))
            for number, backend in enumerate(backends):
                [answer] = await backend.queue().enqueue([TaskRecord(str(number), "q", "work", b"")])
                assert answer.outcome.value == "ok"
        finally:
            for backend in backends:
                await backend.close()

    asyncio.run(main())
    assert postgres_server.execute(f"select count(*), max(version) from {postgres_schema}.meta") == [
        ["1", "1"]
    ]


def test_two_processes_may_make_the_schema_at_once(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    program = (
        "import asyncio, sys\nfrom omniq_postgres import PostgresBackend\n"
        "print(len(asyncio.run(PostgresBackend.from_url(sys.argv[1]).setup())))"
    )
    command = [sys.executable, "-c", program, f"{postgres_server.url}?schema={postgres_schema}"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    steps = sorted(int(process.communicate(timeout=30)[0]) for process in started)
    assert steps[:2] == [0, 0], "one made it, the others found nothing to do"
    assert steps[2] > 20


def test_a_dry_run_tells_and_does_nothing(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def main() -> None:
        backend = at(postgres_server, postgres_schema)
        told = await backend.setup(dry_run=True)
        assert any(step.startswith(f'create table "{postgres_schema}".task') for step in told)
        assert list(await backend.setup(dry_run=True)) == list(told), "the first dry run did something"
        assert list(await backend.setup()) == list(told)
        assert list(await backend.setup()) == []
        assert list(await backend.setup(dry_run=True)) == []

    asyncio.run(main())


def test_a_newer_schema_is_refused(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def main() -> None:
        await at(postgres_server, postgres_schema).setup()
        postgres_server.execute(f"update {postgres_schema}.meta set version = 99")
        for backend in (
            at(postgres_server, postgres_schema),
            at(postgres_server, postgres_schema, migrate=False),
        ):
            with pytest.raises(SchemaOutOfDate, match="newer"):
                await backend.open()
            assert backend.capabilities == frozenset()

    asyncio.run(main())


def test_a_missing_schema_is_not_made_without_leave(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        with pytest.raises(SchemaOutOfDate, match=r"setup\(\)"):
            await at(postgres_server, postgres_schema, migrate=False).open()
        await at(postgres_server, postgres_schema).setup()
        async with at(postgres_server, postgres_schema, migrate=False) as backend:
            assert await backend.queue().get(["nothing"]) == [None]

    asyncio.run(main())


def test_an_empty_schema_made_by_an_administrator_is_filled(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    postgres_server.execute(f"create schema {postgres_schema}")

    async def main() -> None:
        async with at(postgres_server, postgres_schema) as backend:
            assert await backend.queue().get(["nothing"]) == [None]

    asyncio.run(main())


def test_projects_with_odd_names_do_not_meet(postgres_server: PostgresServer, postgres_schema: str) -> None:
    names = [f"{postgres_schema} Shop%s {{x}}", f"{postgres_schema} shop%s {{x}}"]

    async def main() -> None:
        for name in names:
            async with PostgresBackend.from_url(postgres_server.url, project_name=name) as backend:
                [answer] = await backend.queue().enqueue([TaskRecord("same", "q", "work", b"")])
                assert answer.outcome.value == "ok", "the other project's task was seen"

    try:
        asyncio.run(main())
    finally:
        for name in names:
            postgres_server.execute(
                f'set client_min_messages = error; drop schema if exists "{name}" cascade'
            )


def test_a_migration_that_is_cancelled_leaves_nothing(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        backend = at(postgres_server, postgres_schema)
        for yields in range(1, 40, 3):
            opening = asyncio.ensure_future(backend.open())
            for _ in range(yields):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            await backend.close()
        async with backend:
            await backend.queue().enqueue([TaskRecord("1", "q", "work", b"")])

    asyncio.run(main())
