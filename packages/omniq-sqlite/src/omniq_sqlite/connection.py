"""The connections of an opened backend: one that writes (:mod:`omniq_sqlite.writer`), one that reads, and their settings.

**Reading** goes to the second connection. In WAL mode it sees the last commit and waits for no writer.

**Settings.** ``journal_mode=WAL`` belongs to the file; ``synchronous`` belongs to each connection and is set on each. The log
is checkpointed into the file every 4,000 pages (16 MiB), by the commit that gets there, and cut to 64 MiB; a checkpoint
that readers hold up is made good by :meth:`Storage.truncate_log`. Temporary tables stay in memory; the schema is not
trusted to call functions. ``mmap`` is not used: a read error would kill the process instead of raising.

**Threads and forks.** Both threads are daemons: a program that forgot to close the backend, or whose writer waits for the
turn of a stopped process, can still end. A connection must not be used, nor closed, by a fork of its process: closing it
would run a checkpoint under locks that the fork does not hold. The fork keeps the objects alive, unused, and every call in
it raises ``UsedAfterFork``.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import aiosqlite

from omniq_core import BackendError, Clock, Closed, ErrorCode
from omniq_core.native import SimpleQueue, make_thread
from omniq_sqlite import schema
from omniq_sqlite.lockfile import LockFile
from omniq_sqlite.options import SQLiteOptions
from omniq_sqlite.statements import Transaction, micro
from omniq_sqlite.wakeup import Watcher
from omniq_sqlite.writer import Writer, run_in_thread

__all__ = ["Storage", "UsedAfterFork"]

A = TypeVar("A")
I = TypeVar("I")  # noqa: E741 - an item, as A is an answer

LOG_BYTES = 64 * 1024 * 1024


class UsedAfterFork(Closed):
    """An opened backend was used in a fork of the process that opened it."""

    def __init__(self, opener: int) -> None:
        BackendError.__init__(
            self,
            f"this sqlite backend was opened in process {opener}, and this is its fork {os.getpid()}; a connection to "
            "SQLite must not cross a fork, nor may its file be opened on both sides. Close it before forking, or start "
            "processes with 'spawn' or 'forkserver'",
            ErrorCode.CLOSED,
            "sqlite",
        )


async def connect(path: str, options: SQLiteOptions, *, only_reads: bool) -> aiosqlite.Connection:
    """A connection with its settings, but for ``journal_mode``, which needs the turn."""
    connection = aiosqlite.connect(path, isolation_level=None, timeout=options.timeout, cached_statements=256)
    _own_thread(connection)
    connection = await connection
    _inherited.add(connection)
    try:
        await run_in_thread(connection, _set_up, connection._conn, options, only_reads)
    except BaseException:
        await connection.close()
        raise
    return connection


def _own_thread(connection: aiosqlite.Connection) -> None:
    """Gives it a thread of the system and a queue that wakes one: waiting in SQLite must not stop gevent's hub."""
    private = cast(Any, connection)
    private._tx = SimpleQueue()
    private._thread = make_thread(aiosqlite.core._connection_worker_thread, private._tx, name="omniq-sqlite")


def _set_up(connection: sqlite3.Connection, options: SQLiteOptions, only_reads: bool) -> None:
    kibibytes = options.cache_mb * 1024 // (4 if only_reads else 1)
    for setting in (
        f"synchronous = {options.synchronous.upper()}",
        f"cache_size = -{kibibytes}",
        "temp_store = memory",
        "trusted_schema = off",
        "wal_autocheckpoint = 4000",
        f"journal_size_limit = {LOG_BYTES}",
        *(["query_only = on"] if only_reads else []),
    ):
        connection.execute(f"pragma {setting}").fetchall()


def make_ready(
    connection: sqlite3.Connection, lock: LockFile, path: str, options: SQLiteOptions, migrate: bool
) -> list[str]:
    """Puts the file into WAL mode and brings its layout up to date; the statements that did it."""
    deadline = time.monotonic() + options.timeout
    while not lock.try_acquire():  # not acquire(): opening must not hang behind a stopped process
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {options.timeout:g} s for another process to let go of {lock.path}")
        time.sleep(0.005)
    try:
        mode = connection.execute("pragma journal_mode = wal").fetchall()[0][0]
        if mode != "wal":
            raise sqlite3.NotSupportedError(
                f"{path} cannot be put into WAL mode (its journal_mode stays {mode!r})"
            )
        return schema.ensure(connection, path, options.project_name, may_change=migrate)
    finally:
        lock.release()


class Storage:
    """Everything that ``SQLiteBackend.open`` takes and ``close`` gives back."""

    def __init__(self, path: str, options: SQLiteOptions, clock: Clock) -> None:
        self.path = path
        self.options = options
        self.clock = clock
        self.retention = micro(options.retention_s)
        self.pid = os.getpid()
        self._is_open = False

    async def open(self) -> None:
        """Raises what cannot be done; then nothing stays open."""
        self.lock = LockFile(self.path + ".lock")
        self._connections: list[aiosqlite.Connection] = []
        try:
            writing = await connect(self.path, self.options, only_reads=False)
            self._connections.append(writing)
            await run_in_thread(
                writing, make_ready, writing._conn, self.lock, self.path, self.options, self.options.migrate
            )
            self._reading = await connect(self.path, self.options, only_reads=True)
            self._connections.append(self._reading)
            self.writer = Writer(writing, self.lock, self.clock, self.options, self.path)
            self.watcher = Watcher(self.lock, self.path + "-wal", self._data_version)
        except BaseException:
            for connection in self._connections:
                await connection.close()
            self.lock.close()
            raise
        self._is_open = True

    async def close(self) -> None:
        """Ends what is under way, then closes. In a fork it only lets go."""
        was_open, self._is_open = self._is_open, False
        if not was_open or os.getpid() != self.pid:
            return
        self.watcher.close()
        is_idle = await self.writer.finish()
        self.writer.stop()
        for connection in self._connections:
            if is_idle or connection is self._reading:
                await connection.close()
            else:
                connection.stop()  # closes itself once the thread gets its turn at last
        if is_idle:
            self.lock.close()

    def check(self) -> None:
        """Raises unless the storage is open, here."""
        if not self._is_open:
            raise Closed("sqlite")
        if os.getpid() != self.pid:
            raise UsedAfterFork(self.pid)

    def write(self, work: Callable[[Transaction], A]) -> Awaitable[A]:
        """Makes one call within the next transaction."""
        self.check()
        return self.writer.submit(work)

    def write_joined(
        self, work: Callable[[Transaction, Sequence[I]], list[A]], items: Sequence[I]
    ) -> Awaitable[list[A]]:
        """The same for work on a list, which is joined with other calls of the same work."""
        self.check()
        return self.writer.submit(work, items)

    def read(self, look: Callable[..., A], *values: Any) -> Awaitable[A]:
        """Runs ``look(connection, *values)`` in one read transaction."""
        self.check()
        return run_in_thread(self._reading, _read, self._reading._conn, look, values)

    def on_writer(self, look: Callable[..., A], *values: Any) -> Awaitable[A]:
        """Runs ``look(connection, *values)`` on the writing connection, between two transactions."""
        self.check()
        return run_in_thread(self._connections[0], look, self._connections[0]._conn, *values)

    async def _data_version(self) -> int:
        return await self.read(
            lambda connection: cast(int, connection.execute("pragma data_version").fetchall()[0][0])
        )

    async def truncate_log(self) -> bool:
        """Checkpoints and empties a log that has grown beyond its limit, if readers let it within 100 ms."""
        self.check()
        if not await run_in_thread(self._reading, self._log_is_long):
            return False
        return await run_in_thread(self._connections[0], self._truncate_log)

    def _log_is_long(self) -> bool:
        try:
            return os.path.getsize(self.path + "-wal") > LOG_BYTES
        except OSError:
            return False

    def _truncate_log(self) -> bool:
        connection = self._connections[0]._conn
        if not self.lock.try_acquire():
            return False  # the next round of upkeep, here or elsewhere
        try:
            connection.execute("pragma busy_timeout = 100").fetchall()
            busy = connection.execute("pragma wal_checkpoint(truncate)").fetchall()[0][0]
            return not busy
        finally:
            connection.execute(f"pragma busy_timeout = {int(self.options.timeout * 1000)}").fetchall()
            self.lock.release()


def _read(connection: sqlite3.Connection, look: Callable[..., A], values: Sequence[Any]) -> A:
    connection.execute("begin")
    try:
        return look(connection, *values)
    finally:
        connection.execute("rollback")


# --- forks -----------------------------------------------------------------------------------------------------------

_inherited: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()


def _keep_inherited() -> None:
    for connection in list(_inherited):
        for kept in (connection, connection._connection):
            if kept is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)
