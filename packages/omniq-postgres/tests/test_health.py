"""What the server's settings mean, what should worry somebody, and what an error is called."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from omniq_conformance.servers import PostgresServer
from omniq_core import Capability, Closed, ErrorCode, Loss, Severity, Unsupported
from omniq_postgres import PostgresBackend
from omniq_postgres.connection import NoReply, NotConnected, ReplyLost
from omniq_postgres.errors import classify
from omniq_postgres.health import durability_of
from omniq_postgres.pool import NoFreeConnection

SAFE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "wal_writer_delay": "200ms"}


@pytest.mark.parametrize(
    ("changed", "killed", "cut"),
    [
        ({}, Loss.NONE, Loss.NONE),
        ({"synchronous_commit": "remote_apply"}, Loss.NONE, Loss.NONE),
        ({"synchronous_commit": "off"}, Loss.WINDOW, Loss.WINDOW),
        ({"full_page_writes": "off"}, Loss.NONE, Loss.UNKNOWN),
        ({"fsync": "off"}, Loss.NONE, Loss.ALL),
    ],
)
def test_durability_is_read_from_the_settings(changed: dict[str, str], killed: Loss, cut: Loss) -> None:
    found = durability_of(SAFE | changed)
    assert (found.server_killed, found.power_cut) == (killed, cut)
    assert found.window_s == (pytest.approx(0.6) if cut is Loss.WINDOW else None)


def test_an_asynchronous_commit_is_not_declared_durable(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(
            postgres_server.url, schema=postgres_schema, synchronous_commit="off"
        ) as backend:
            assert Capability.DURABLE not in backend.capabilities
            assert "synchronous_commit" in backend.absent[Capability.DURABLE]
            health = await backend.check()
            assert health.durability.server_killed is Loss.WINDOW
            assert any("synchronous_commit" in finding.message for finding in health.findings)

    asyncio.run(main())


def test_a_check_of_a_sound_server_finds_nothing(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend:
            health = await backend.check()
            assert health.server.startswith("PostgreSQL ")
            assert health.settings["fsync"] == "on"
            assert [f for f in health.findings if f.severity is Severity.ERROR] == []
            assert backend.capabilities == frozenset(Capability)

    asyncio.run(main())


def test_an_old_transaction_is_told(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq_postgres.health.OLD_SNAPSHOT_S", 0.0)

    async def main() -> None:
        async with (
            PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend,
            await psycopg.AsyncConnection.connect(postgres_server.url) as other,
        ):
            await other.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await other.execute("select 1 from pg_class")
            health = await backend.check()
            assert any("has been open" in finding.message for finding in health.findings), health

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotConnected(), ErrorCode.UNAVAILABLE),
        (ReplyLost(), ErrorCode.UNKNOWN_EFFECT),
        (NoReply(), ErrorCode.UNKNOWN_EFFECT),
        (NoFreeConnection(), ErrorCode.TIMEOUT),
        (Closed(), ErrorCode.CLOSED),
        (Unsupported(Capability.WAKEUP), ErrorCode.UNSUPPORTED),
        (psycopg.errors.DeadlockDetected(), ErrorCode.TIMEOUT),
        (psycopg.errors.SerializationFailure(), ErrorCode.TIMEOUT),
        (psycopg.errors.QueryCanceled(), ErrorCode.TIMEOUT),
        (psycopg.errors.AdminShutdown(), ErrorCode.UNKNOWN_EFFECT),
        (psycopg.errors.CannotConnectNow(), ErrorCode.UNAVAILABLE),
        (psycopg.errors.ReadOnlySqlTransaction(), ErrorCode.UNAVAILABLE),
        (psycopg.errors.TooManyConnections(), ErrorCode.EXHAUSTED),
        (psycopg.errors.DiskFull(), ErrorCode.EXHAUSTED),
        (psycopg.errors.InsufficientPrivilege(), ErrorCode.PERMISSION),
        (psycopg.errors.InvalidPassword(), ErrorCode.PERMISSION),
        (psycopg.errors.UndefinedFunction(), ErrorCode.SCHEMA),
        (psycopg.errors.InvalidSchemaName(), ErrorCode.SCHEMA),
        (psycopg.errors.DataCorrupted(), ErrorCode.CORRUPT),
        (psycopg.errors.NumericValueOutOfRange(), ErrorCode.INVALID),
        (psycopg.errors.ProgramLimitExceeded(), ErrorCode.TOO_LARGE),
        (KeyError(), ErrorCode.UNKNOWN),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_an_error_is_called_by_what_it_means(error: BaseException, code: ErrorCode) -> None:
    assert classify(error) is code


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"username": "nobody_here"}, ErrorCode.PERMISSION),
        ({"database": "no_such_database"}, ErrorCode.INVALID),
        ({"port": 1}, ErrorCode.UNAVAILABLE),
        ({"host": "no-such-host.invalid"}, ErrorCode.UNAVAILABLE),
    ],
)
def test_a_failed_login_is_called_by_what_it_means(
    postgres_server: PostgresServer, changed: dict[str, Any], code: ErrorCode
) -> None:
    async def main() -> None:
        backend = PostgresBackend.from_url(postgres_server.url, **changed)
        with pytest.raises(psycopg.Error) as caught:
            await backend.open()
        assert backend.classify(caught.value) is code, caught.value

    asyncio.run(main())
