"""What SQLite's errors mean."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable

import pytest

from omniq_core import Closed, ErrorCode, TaskRecord
from omniq_sqlite import SQLiteBackend

Tasks = Callable[..., list[TaskRecord]]


def error_of(number: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("said SQLite")
    error.sqlite_errorcode = number
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (error_of(5), ErrorCode.TIMEOUT),
        (error_of(5 | 2 << 8), ErrorCode.TIMEOUT),  # BUSY_SNAPSHOT: the extended codes mean the same
        (error_of(10), ErrorCode.UNKNOWN_EFFECT),
        (error_of(10 | 4 << 8), ErrorCode.UNKNOWN_EFFECT),
        (error_of(11), ErrorCode.CORRUPT),
        (error_of(13), ErrorCode.EXHAUSTED),
        (error_of(14), ErrorCode.UNAVAILABLE),
        (error_of(8), ErrorCode.PERMISSION),
        (error_of(19), ErrorCode.INVALID),
        (sqlite3.OperationalError("no such table: omniq_task"), ErrorCode.SCHEMA),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), ErrorCode.CLOSED),
        (sqlite3.ProgrammingError("Error binding parameter 3"), ErrorCode.INVALID),
        (ValueError("Connection closed"), ErrorCode.CLOSED),
        (OverflowError("Python int too large"), ErrorCode.INVALID),
        (TimeoutError(), ErrorCode.TIMEOUT),
        (PermissionError(), ErrorCode.PERMISSION),
        (OSError(28, "No space left on device"), ErrorCode.EXHAUSTED),
        (MemoryError(), ErrorCode.EXHAUSTED),
        (Closed("sqlite"), ErrorCode.CLOSED),
        (RuntimeError("?"), ErrorCode.UNKNOWN),
        (sqlite3.OperationalError("never seen"), ErrorCode.UNKNOWN),
    ],
)
def test_each_error_has_its_meaning(error: BaseException, code: ErrorCode) -> None:
    assert SQLiteBackend().classify(error) is code


def test_a_write_lock_of_another_program_makes_a_call_time_out_without_an_effect(
    path: str, tasks: Tasks
) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path, timeout=0.1) as backend:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("begin immediate")
            with pytest.raises(sqlite3.OperationalError) as caught:
                await backend.queue().enqueue(tasks(1))
            assert backend.classify(caught.value) is ErrorCode.TIMEOUT
            other.close()
            await backend.queue().enqueue(tasks(1))
            assert (await backend.queue().stats(["q"]))[0].ready == 1

    asyncio.run(main())


def test_a_full_disk_fails_the_call_and_spares_what_is_there(path: str, tasks: Tasks) -> None:
    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue, storage = backend.queue(), backend._storage
            assert storage is not None
            await queue.enqueue(tasks(1))

            def pages(database: sqlite3.Connection, most: int) -> None:
                database.execute(f"pragma max_page_count = {most}").fetchall()

            await storage.on_writer(pages, 1)  # SQLite takes the present size: there is no room for more
            answers = await asyncio.gather(
                *[queue.enqueue(tasks(500)) for _ in range(3)], return_exceptions=True
            )
            for answer in answers:
                assert isinstance(answer, sqlite3.OperationalError)
                assert backend.classify(answer) is ErrorCode.EXHAUSTED
            await storage.on_writer(pages, 2**30)
            await queue.enqueue(tasks(1))
            assert (await queue.stats(["q"]))[0].ready == 2

    asyncio.run(main())


def test_a_directory_that_may_not_be_written_is_a_matter_of_permission(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything is allowed to root, so the refusal itself is made here.
    def refuse(path: str, *_: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    async def main() -> None:
        backend = SQLiteBackend(db_path=os.path.join(tmp_path, "a.db"))
        monkeypatch.setattr("omniq_sqlite.lockfile.os.open", refuse)
        with pytest.raises(OSError, match="denied") as caught:
            await backend.open()
        assert backend.classify(caught.value) is ErrorCode.PERMISSION

    asyncio.run(main())
