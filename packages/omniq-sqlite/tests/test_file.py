"""The file: its layout, its settings, and whom it belongs to."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from omniq_core import Capability, Loss, OptionError, SchemaOutOfDate, Severity, TaskRecord
from omniq_sqlite import SQLiteBackend, connection, health, schema

Tasks = Callable[..., list[TaskRecord]]


def one(path: str, statement: str) -> object:
    database = sqlite3.connect(path)
    try:
        return database.execute(statement).fetchone()[0]
    finally:
        database.close()


def size_of(path: str) -> int:
    """In bytes; -1 if there is none."""
    return os.path.getsize(path) if os.path.exists(path) else -1


NEXT_STEP = ("alter table omniq_queue add column note text",)


def test_a_file_of_an_older_layout_is_migrated_and_keeps_its_tasks(
    path: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as older:
            await older.queue().enqueue(records := tasks(3))
        monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, NEXT_STEP])
        assert await SQLiteBackend(db_path=path).setup(dry_run=True) == list(NEXT_STEP)
        with pytest.raises(SchemaOutOfDate, match="migrate=False"):
            await SQLiteBackend(db_path=path, migrate=False).open()
        assert one(path, "select value from omniq_meta where key = 'version'") == 1
        async with SQLiteBackend(db_path=path) as newer:
            assert await newer.setup() == []
            assert [task is not None for task in await newer.queue().get([r.id for r in records])] == [
                True
            ] * 3
        assert one(path, "select value from omniq_meta where key = 'version'") == 2
        assert one(path, "select count(note) from omniq_queue") == 0

    asyncio.run(main())


def test_a_file_of_a_newer_layout_is_left_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with monkeypatch.context() as future:
            future.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, NEXT_STEP])
            await SQLiteBackend(db_path=path).setup()
        for act in (SQLiteBackend(db_path=path).open, SQLiteBackend(db_path=path).setup):
            with pytest.raises(SchemaOutOfDate, match="layout 2"):
                await act()

    asyncio.run(main())


def test_a_failed_migration_changes_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await SQLiteBackend(db_path=path).setup()
        monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, (*NEXT_STEP, "nonsense")])
        with pytest.raises(sqlite3.OperationalError, match="nonsense"):
            await SQLiteBackend(db_path=path).open()
        assert one(path, "select count(*) from pragma_table_info('omniq_queue') where name = 'note'") == 0

    asyncio.run(main())


def test_asking_what_setup_would_do_creates_nothing(path: str) -> None:
    async def main() -> None:
        backend = SQLiteBackend(db_path=path)
        steps = await backend.setup(dry_run=True)
        assert any("create table omniq_task" in step for step in steps)
        assert size_of(path) == -1
        assert await backend.setup() == steps
        assert await backend.setup() == []

    asyncio.run(main())


def test_the_tables_stand_beside_those_of_your_own_program(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        database = sqlite3.connect(path)
        database.executescript("create table task(id); create table meta(x); pragma user_version = 7")
        database.close()
        async with SQLiteBackend(db_path=path) as backend:
            await backend.queue().enqueue(tasks(1))
        assert one(path, "pragma user_version") == 7

    asyncio.run(main())


def test_a_file_of_another_project_is_refused_by_name(path: str) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path, project_name="shop"):
            pass
        with pytest.raises(
            OptionError, match=r"belongs to the project 'shop', not to 'blog'.*project_name='shop'"
        ):
            await SQLiteBackend(db_path=path, project_name="blog").open()

    asyncio.run(main())


def test_what_is_no_database_is_reported_as_corrupt(path: str) -> None:
    Path(path).write_bytes(b"this is a text, and a long one at that. " * 200)

    async def main() -> None:
        backend = SQLiteBackend(db_path=path)
        with pytest.raises(sqlite3.DatabaseError) as caught:
            await backend.open()
        assert backend.classify(caught.value) == "corrupt"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("synchronous", "level", "loss"),
    [("FULL", 2, Loss.NONE), ("normal", 1, Loss.WINDOW), ("OFF", 0, Loss.ALL), ("EXTRA", 3, Loss.NONE)],
)
def test_every_connection_has_the_settings_that_durability_is_read_from(
    path: str, synchronous: str, level: int, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "file_system", lambda directory: "ext")  # also where tests run on tmpfs

    def settings(database: sqlite3.Connection) -> list[object]:
        names = ("synchronous", "journal_mode", "wal_autocheckpoint", "journal_size_limit")
        return [database.execute(f"pragma {name}").fetchone()[0] for name in names]

    async def main() -> None:
        async with SQLiteBackend(db_path=path, synchronous=synchronous) as backend:
            storage = backend._storage
            assert storage is not None
            expected = [level, "wal", 4000, connection.LOG_BYTES]
            assert await storage.on_writer(settings) == expected
            assert await storage.read(settings) == expected
            found = await backend.check()
            assert (found.durability.server_killed, found.durability.power_cut) == (Loss.NONE, loss)
            assert (Capability.DURABLE in backend.capabilities) == (level > 0)
            assert (Capability.DURABLE in backend.absent) == (level == 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("version", "is_affected"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 54, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_bug_are_known(version: tuple[int, ...], is_affected: bool) -> None:
    assert health.has_wal_reset_bug(version) is is_affected


def test_the_check_warns_of_a_sqlite_with_the_wal_reset_bug(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            for affected in (True, False):
                monkeypatch.setattr(health, "has_wal_reset_bug", lambda version, answer=affected: answer)
                findings = (await backend.check()).findings
                assert any("WAL-reset" in finding.message for finding in findings) is affected

    asyncio.run(main())


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "nfs"), (0xFE534D42, "smb2"), (0xFF534D42, "cifs")])
def test_a_network_file_system_is_refused_unless_it_is_allowed(
    path: str, magic: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "statfs_type", lambda directory: magic)

    async def main() -> None:
        with pytest.raises(OptionError, match=rf"network file system \({name}\).*allow_network_fs=True"):
            await SQLiteBackend(db_path=path).open()
        assert size_of(path) == -1
        async with SQLiteBackend(db_path=path, allow_network_fs=True) as backend:
            found = await backend.check()
            assert found.durability.power_cut is Loss.UNKNOWN
            assert [finding.severity for finding in found.findings if name in finding.message] == [
                Severity.ERROR
            ]

    asyncio.run(main())


def test_the_log_stays_bounded_while_tasks_stream_in(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path, synchronous="OFF") as backend:
            for _ in range(50):
                await backend.queue().enqueue(tasks(1000, body=b"x" * 1000))
            assert size_of(path) > 30_000_000
            # 4,000 pages until a checkpoint, and what the transaction that reaches them adds
            assert size_of(path + "-wal") < 24_000_000

    asyncio.run(main())


def test_upkeep_cuts_a_log_that_a_reader_had_held_up(
    path: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LOG_BYTES", 1_000_000)

    async def main() -> None:
        async with SQLiteBackend(db_path=path, synchronous="OFF") as backend:
            reader = sqlite3.connect(path, isolation_level=None)
            reader.execute("begin")
            reader.execute("select * from omniq_meta").fetchall()
            for _ in range(30):
                await backend.queue().enqueue(tasks(1000, body=b"x" * 1000))
            await backend.queue().maintain()
            assert size_of(path + "-wal") > 20_000_000
            reader.close()
            await backend.queue().maintain()
            assert size_of(path + "-wal") == 0

    asyncio.run(main())
