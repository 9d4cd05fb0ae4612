"""The SQLite backend: opening, closing, and what it can do."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self, cast

from omniq_core import (
    Backend,
    BackendError,
    BackendOptions,
    Capability,
    Closed,
    ErrorCode,
    EventStore,
    Health,
    Limits,
    OptionError,
    Queue,
    ResultStore,
    Unsupported,
)
from omniq_sqlite import health, schema
from omniq_sqlite.connection import Storage, make_ready
from omniq_sqlite.events import SQLiteEventStore
from omniq_sqlite.lockfile import LockFile
from omniq_sqlite.options import SQLiteOptions
from omniq_sqlite.queue import SQLiteQueue
from omniq_sqlite.results import SQLiteResultStore
from omniq_sqlite.wakeup import POLL_S

__all__ = ["SQLiteBackend"]

ABSENT: Mapping[Capability, str] = {
    Capability.MULTI_HOST: "SQLite's locks hold within one machine",
    Capability.SERVER_CLOCK: "there is no server; every process of the machine reads the same clock",
}
PUSHED = (Capability.WAKEUP, Capability.RESULT_WAIT, Capability.EVENT_TAIL)

# The primary result code of SQLite, the low byte of the extended one: https://sqlite.org/rescode.html
CODES: Mapping[int, ErrorCode] = {
    3: ErrorCode.PERMISSION,  # PERM
    5: ErrorCode.TIMEOUT,  # BUSY: from BEGIN IMMEDIATE, so nothing was done
    6: ErrorCode.TIMEOUT,  # LOCKED
    7: ErrorCode.EXHAUSTED,  # NOMEM
    8: ErrorCode.PERMISSION,  # READONLY
    10: ErrorCode.UNKNOWN_EFFECT,  # IOERR: perhaps at the commit
    11: ErrorCode.CORRUPT,  # CORRUPT
    13: ErrorCode.EXHAUSTED,  # FULL
    14: ErrorCode.UNAVAILABLE,  # CANTOPEN
    15: ErrorCode.TIMEOUT,  # PROTOCOL: the race for the log was lost too often
    18: ErrorCode.TOO_LARGE,  # TOOBIG
    19: ErrorCode.INVALID,  # CONSTRAINT
    20: ErrorCode.INVALID,  # MISMATCH
    23: ErrorCode.PERMISSION,  # AUTH
    25: ErrorCode.INVALID,  # RANGE
    26: ErrorCode.CORRUPT,  # NOTADB
}


class SQLiteBackend(Backend):
    """Tasks, results and events in one SQLite file, for any number of processes of one machine."""

    name: ClassVar[str] = "sqlite"
    spi_version: ClassVar[tuple[int, int]] = (0, 1)
    options_type: ClassVar[type[BackendOptions]] = SQLiteOptions

    absent = ABSENT
    _storage: Storage | None = None
    _path: str | None = None
    _opening: asyncio.Lock | None = None

    @property
    def path(self) -> str:
        """The absolute path of the file. It is settled when first asked for: a later ``chdir`` changes nothing."""
        if self._path is None:
            self._path = os.path.abspath(cast(SQLiteOptions, self.options).file)
        return self._path

    def twin(self) -> Self:
        twin = type(self).from_options(self.options, clock=self.clock)
        twin._path = self.path
        return twin

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._storage is not None:
                if self._storage.pid == os.getpid():
                    return
                self._storage = None  # inherited: its process closes it
            await asyncio.to_thread(self._prepare_place)
            storage = Storage(self.path, cast(SQLiteOptions, self.options), self.clock)
            await storage.open()
            self._declare(storage)
            self._queue = SQLiteQueue(storage, self.limits)
            self._results = SQLiteResultStore(storage)
            self._events = SQLiteEventStore(storage)
            self._storage = storage

    def _declare(self, storage: Storage) -> None:
        absent = dict(ABSENT)
        options = cast(SQLiteOptions, self.options)
        if options.synchronous.upper() == "OFF":
            absent[Capability.DURABLE] = (
                "synchronous=OFF waits for no disk, and a power cut may destroy the file"
            )
        if storage.watcher.why_not:
            absent.update(dict.fromkeys(PUSHED, storage.watcher.why_not))
        self.absent = absent
        self.capabilities = frozenset(Capability) - frozenset(absent)
        self.limits = Limits(poll_interval_s=POLL_S, time_resolution_s=0.001)

    def _prepare_place(self) -> None:
        """Checks what can be checked before the file exists."""
        if sqlite3.sqlite_version_info < schema.OLDEST_SQLITE:
            oldest = ".".join(map(str, schema.OLDEST_SQLITE))
            raise sqlite3.NotSupportedError(
                f"omniq-sqlite needs SQLite {oldest} or later, and this Python is linked with {sqlite3.sqlite_version}; "
                "use a newer Python"
            )
        options = cast(SQLiteOptions, self.options)
        directory = os.path.dirname(self.path)
        if options.create_dirs:
            os.makedirs(directory, exist_ok=True)
        if os.path.isdir(self.path):
            raise OptionError(f"sqlite: db_path must name a file, and {self.path} is a directory")
        system = health.file_system(directory)
        if health.is_network(system) and not options.allow_network_fs:
            raise OptionError(
                f"sqlite: {self.path} is on a network file system ({system}), whose locks cannot keep a SQLite file whole; "
                "use a local disk or a backend with a server, or set allow_network_fs=True if only this machine opens it"
            )

    async def close(self) -> None:
        storage, self._storage = self._storage, None
        if storage is not None:
            await storage.close()

    async def setup(self, *, dry_run: bool = False) -> Sequence[str]:
        return await asyncio.to_thread(self._set_up, dry_run)

    def _set_up(self, dry_run: bool) -> Sequence[str]:
        options = cast(SQLiteOptions, self.options)
        if dry_run:
            return schema.inspect(self.path, options.project_name)
        self._prepare_place()
        lock = LockFile(self.path + ".lock")
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=options.timeout)
            try:
                connection.execute(f"pragma synchronous = {options.synchronous.upper()}")
                return make_ready(connection, lock, self.path, options, True)
            finally:
                connection.close()
        finally:
            lock.close()

    # --- opened ------------------------------------------------------------------------------------------------

    def _opened(self) -> Storage:
        if self._storage is None:
            raise Closed(self.name)
        return self._storage

    def queue(self) -> Queue:
        self._opened()
        return self._queue

    def result_store(self) -> ResultStore:
        self._opened()
        return self._results

    def event_store(self) -> EventStore:
        self._opened()
        return self._events

    async def check(self) -> Health:
        storage = self._opened()
        return await storage.on_writer(health.look_at, self.path, self.clock.time())

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, BackendError):
            return error.error_code
        if isinstance(error, Unsupported):
            return ErrorCode.UNSUPPORTED
        if isinstance(error, sqlite3.Error):
            return _classify_sqlite(error)
        if isinstance(error, OSError):
            return _classify_os(error)
        if isinstance(error, ValueError) and ("onnection closed" in str(error) or "no active" in str(error)):
            return ErrorCode.CLOSED  # aiosqlite
        if isinstance(error, (OverflowError, UnicodeError, OptionError)):
            return ErrorCode.INVALID
        return ErrorCode.EXHAUSTED if isinstance(error, MemoryError) else ErrorCode.UNKNOWN


def _classify_sqlite(error: sqlite3.Error) -> ErrorCode:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in CODES:
        return CODES[code & 0xFF]
    message = str(error)
    if "closed database" in message:
        return ErrorCode.CLOSED
    if "no such table" in message or "no such column" in message or "has no column" in message:
        return ErrorCode.SCHEMA
    if isinstance(error, sqlite3.DataError):
        return ErrorCode.TOO_LARGE
    if isinstance(error, (sqlite3.InterfaceError, sqlite3.ProgrammingError)):
        return ErrorCode.INVALID
    return ErrorCode.UNSUPPORTED if isinstance(error, sqlite3.NotSupportedError) else ErrorCode.UNKNOWN


def _classify_os(error: OSError) -> ErrorCode:
    if isinstance(error, TimeoutError):
        return ErrorCode.TIMEOUT
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return ErrorCode.PERMISSION
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return ErrorCode.EXHAUSTED
    return (
        ErrorCode.UNAVAILABLE
        if isinstance(error, (FileNotFoundError, NotADirectoryError))
        else ErrorCode.UNKNOWN
    )
