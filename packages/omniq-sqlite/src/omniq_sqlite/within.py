"""Writing within the caller's own transaction.

The caller's connection is to the same file, so tasks and the caller's own rows are committed together or not at all. A
``sqlite3.Connection`` is used in the calling thread, where it belongs, and blocks the loop for as long as the statements
take; an ``aiosqlite.Connection`` is used in its own thread. The commit is the caller's, without our turn and without our
doorbell: those who wait notice it by the change of the log.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar

import aiosqlite

from omniq_core import BackendError, ErrorCode
from omniq_sqlite.connection import Storage
from omniq_sqlite.statements import Transaction, micro
from omniq_sqlite.writer import run_in_thread

__all__ = ["run"]

A = TypeVar("A")


async def run(storage: Storage, transaction: object, work: Callable[[Transaction], A]) -> A:
    """Does ``work`` within ``transaction``, wholly or, if it raises, not at all."""
    storage.check()
    if isinstance(transaction, aiosqlite.Connection):
        return await run_in_thread(transaction, _run, storage, transaction._conn, work)
    if isinstance(transaction, sqlite3.Connection):
        return _run(storage, transaction, work)
    raise _refusal(
        "a transaction on SQLite is a sqlite3.Connection or an aiosqlite.Connection with a transaction open, "
        f"got {type(transaction).__name__}"
    )


def _run(storage: Storage, connection: sqlite3.Connection, work: Callable[[Transaction], A]) -> A:
    if not connection.in_transaction:
        raise _refusal("the connection has no transaction open; begin one first, best with BEGIN IMMEDIATE")
    text_factory, connection.text_factory = connection.text_factory, str
    try:
        _check_file(storage, connection)
        # No cache of queue numbers: the caller may roll back, which we would not hear of.
        tx = Transaction(connection, now=micro(storage.clock.time()), retention=storage.retention)
        connection.execute("savepoint omniq")
        try:
            answer = work(tx)
            tx.write_counts()
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback to omniq")
                connection.execute("release omniq")
            raise
        connection.execute("release omniq")
        return answer
    finally:
        connection.text_factory = text_factory


def _check_file(storage: Storage, connection: sqlite3.Connection) -> None:
    cursor = connection.cursor()
    cursor.row_factory = None
    theirs = next(
        path for _, name, path in cursor.execute("pragma database_list").fetchall() if name == "main"
    )
    if not theirs or not os.path.samefile(theirs, storage.path):
        raise _refusal(
            f"the transaction is on {theirs or 'a database in memory'}, and this backend on {storage.path}; only a "
            "transaction on the same file can hold both"
        )


def _refusal(message: str) -> BackendError:
    return BackendError(message, ErrorCode.INVALID, "sqlite")
