"""The connections of an opened backend: one thread that writes, one that reads.

**One hop per transaction.** aiosqlite gives each connection a thread and sends it one statement at a time, an await each.
Here a whole transaction is handed to the thread as one function, by ``Connection._execute``, the one funnel that all of its
public methods go through (private, so a test pins it): 75 times the rate of awaiting every statement.

**Group commit.** A commit waits for the disk, 0.3 ms to 10 ms, and a hundred tasks can share one. While the thread is busy,
calls gather; when it comes free, it takes them all into *one* transaction: calls of the same kind are even joined to one
list, so 64 coroutines that enqueue one task each write like one that enqueues 64. There is no timer: a lone call starts at
the end of the loop's current round. A call is answered after the commit. Should one call of a group fail (a value that
SQLite cannot store), the group is rolled back and made again in one transaction with a savepoint around each call, so the
failure stays with who caused it. The calls are functions of their arguments and the file, so doing them again is harmless.

**Whose turn.** Each transaction begins with the turn of :mod:`omniq_sqlite.lockfile` and ``BEGIN IMMEDIATE`` (a
transaction that begins reading and then writes fails at once when another one wrote in between, whatever the time-out).
Waiting for the turn cannot be interrupted, so time is kept on the loop's side: a call that has waited for
``timeout`` seconds is withdrawn and raises ``TimeoutError``; when the thread gets its turn at last, withdrawn and cancelled
calls are left out, so what was reported not to have happened does not happen. A call that has begun is finished even
if nobody waits for it any more: no transaction and no turn outlives it.

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

import asyncio
import ctypes
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import aiosqlite

from omniq_core import BackendError, Clock, Closed, ErrorCode
from omniq_sqlite import schema
from omniq_sqlite.lockfile import LockFile
from omniq_sqlite.options import SQLiteOptions
from omniq_sqlite.statements import Transaction, micro
from omniq_sqlite.wakeup import Watcher

__all__ = ["Storage", "UsedAfterFork", "Writer"]

A = TypeVar("A")
I = TypeVar("I")  # noqa: E741 - an item, as A is an answer

MOST_ITEMS = 5000
"""A group is closed once it holds this many items, so that the first of them does not wait for all that follow."""
LOG_BYTES = 64 * 1024 * 1024
_WAITING, _BEGUN, _WITHDRAWN = range(3)


class UsedAfterFork(Closed):
    """An opened backend was used in a fork of the process that opened it."""

    def __init__(self, opener: int) -> None:
        BackendError.__init__(
            self,
            f"this sqlite backend was opened in process {opener}, and this is its fork {os.getpid()}; a connection to "
            "SQLite must not cross a fork. Open another one here: backend.twin(), or make the backend after forking",
            ErrorCode.CLOSED,
            "sqlite",
        )


class Job:
    """One call, on its way to a transaction."""

    __slots__ = ("answer", "error", "future", "items", "since", "state", "work")

    def __init__(
        self, work: Callable[..., Any], items: Sequence[Any] | None, future: asyncio.Future[Any], since: float
    ):
        self.work = work
        self.items = items
        """What is joined with other calls of the same work; ``None``: nothing is, and ``work`` takes only the transaction."""
        self.future = future
        self.since = since
        self.state = _WAITING
        self.answer: Any = None
        self.error: BaseException | None = None


class Writer:
    """Gathers calls and makes transactions of them.

    ``submit`` is called on the loop, ``_serve`` and what it calls run in the connection's thread.
    """

    def __init__(
        self,
        connection: aiosqlite.Connection,
        lock: LockFile,
        clock: Clock,
        options: SQLiteOptions,
        path: str,
    ) -> None:
        self._connection = connection
        self._lock = lock
        self._clock = clock
        self._timeout_s = options.timeout
        self._retention = micro(options.retention_s)
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._mutex = threading.Lock()
        self._waiting: list[Job] = []
        self._current: list[Job] = []
        self._is_running = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._numbers: dict[str, int] = {}
        self.transactions = 0
        """How many transactions were begun."""

    # --- on the loop -----------------------------------------------------------------------------------------------

    def submit(self, work: Callable[..., Any], items: Sequence[Any] | None = None) -> asyncio.Future[Any]:
        """Adds a call to the next transaction; its answer comes after the commit."""
        job = Job(work, items, self._loop.create_future(), self._loop.time())
        with self._mutex:
            self._waiting.append(job)
            is_first = not self._is_running
            self._is_running = True
        if is_first:
            # At the end of this round, so that what the other coroutines of the round send goes along.
            self._loop.call_soon(self._start)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._withdraw_late)
        return job.future

    def _start(self) -> None:
        self._task = self._loop.create_task(self._hand_over())

    async def _hand_over(self) -> None:
        try:
            await run_in_thread(self._connection, self._serve)
        except Exception as error:
            # The thread could not be reached: the connection was closed under us.
            with self._mutex:
                jobs, self._waiting, self._is_running = self._waiting, [], False
            for job in jobs:
                job.error = error
            _deliver(jobs)

    def _withdraw_late(self) -> None:
        self._timer = None
        now = self._loop.time()
        with self._mutex:
            waiting = [job for job in (*self._current, *self._waiting) if job.state == _WAITING]
            late = [job for job in waiting if now - job.since >= self._timeout_s]
            for job in late:
                job.state = _WITHDRAWN
            self._waiting = [job for job in self._waiting if job.state == _WAITING]
            next_s = min(
                (self._timeout_s - (now - job.since) for job in waiting if job.state == _WAITING),
                default=None,
            )
            if next_s is None and self._is_running:
                next_s = self._timeout_s
        if next_s is not None:
            self._timer = self._loop.call_later(max(next_s, 0.001), self._withdraw_late)
        for job in late:
            job.error = TimeoutError(
                f"waited {self._timeout_s:g} s for the turn to write to {self._path}; another process holds "
                f"{self._lock.path}. The call had no effect. Is that process stopped, or its transaction very long?"
            )
        _deliver(late)

    async def finish(self) -> bool:
        """Waits until nothing is under way, at most for ``timeout``; whether that is so."""
        with self._mutex:
            jobs = [job for job in (*self._current, *self._waiting) if not job.future.done()]
        if jobs:
            await asyncio.wait([job.future for job in jobs])
        task = self._task
        if self._is_running and task is not None and not task.done():
            await asyncio.wait([task], timeout=self._timeout_s)
        return not self._is_running

    def stop(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._mutex:
                jobs = self._current = self._next_group()
                if not jobs:
                    self._is_running = False
                    return
            self._transact(jobs)
            try:
                self._loop.call_soon_threadsafe(_deliver, jobs)
            except RuntimeError:  # the loop was closed: nobody waits
                pass

    def _next_group(self) -> list[Job]:
        size = count = 0
        for job in self._waiting:
            count += 1
            size += 1 if job.items is None else len(job.items)
            if size >= MOST_ITEMS:
                break
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    def _transact(self, jobs: list[Job]) -> None:
        live = jobs
        try:
            self._lock.acquire()
            try:
                with self._mutex:
                    live = [job for job in jobs if job.state == _WAITING and not job.future.cancelled()]
                    for job in live:
                        job.state = _BEGUN
                if live:
                    self._commit(live)
            finally:
                self._lock.release()
        except Exception as error:
            for job in live:
                job.error = error

    def _begin(self) -> tuple[sqlite3.Connection, Transaction]:
        connection = self._connection._conn
        connection.execute("begin immediate")
        self.transactions += 1
        tx = Transaction(
            connection, now=micro(self._clock.time()), retention=self._retention, numbers=self._numbers
        )
        return connection, tx

    def _commit(self, jobs: list[Job]) -> None:
        in_a_call = False
        try:
            connection, tx = self._begin()
            in_a_call = True
            for work, members in _joined(jobs):
                if members[0].items is None:
                    members[0].answer = work(tx)
                elif len(members) == 1:
                    members[0].answer = work(tx, members[0].items)
                else:
                    answers = work(tx, [item for job in members for item in cast(Sequence[Any], job.items)])
                    start = 0
                    for job in members:
                        end = start + len(cast(Sequence[Any], job.items))
                        job.answer = answers[start:end]
                        start = end
            in_a_call = False
            self._end(connection, tx)
        except Exception:
            self._roll_back()
            if not in_a_call or len(jobs) == 1:
                raise
            self._commit_apart(jobs)

    def _commit_apart(self, jobs: list[Job]) -> None:
        try:
            connection, tx = self._begin()
            for job in jobs:
                connection.execute("savepoint call")
                try:
                    job.answer = job.work(tx) if job.items is None else job.work(tx, job.items)
                    tx.write_counts()
                except Exception as error:
                    if not connection.in_transaction:
                        raise  # SQLite rolled everything back: the disk is full, or broken
                    connection.execute("rollback to call")
                    tx.forget_counts()
                    self._numbers.clear()
                    job.error = error
                connection.execute("release call")
            self._end(connection, tx)
        except Exception as error:
            self._roll_back()
            for job in jobs:
                job.error = job.error or error

    def _end(self, connection: sqlite3.Connection, tx: Transaction) -> None:
        tx.write_counts()
        connection.execute("commit")
        if tx.rings:
            try:
                self._lock.ring(tx.rings)
            except OSError:  # the commit stands; who waits looks again after a while
                pass

    def _roll_back(self) -> None:
        self._numbers.clear()
        connection = self._connection._conn
        if connection.in_transaction:
            connection.execute("rollback")


def _joined(jobs: list[Job]) -> list[tuple[Callable[..., Any], list[Job]]]:
    """The calls of one transaction, those of the same work together, in the order of the first of each."""
    if len(jobs) == 1:
        return [(jobs[0].work, jobs)]
    groups: dict[object, tuple[Callable[..., Any], list[Job]]] = {}
    for job in jobs:
        groups.setdefault(job if job.items is None else job.work, (job.work, []))[1].append(job)
    return list(groups.values())


def _deliver(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.future.done():
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.answer)


# --- connections -----------------------------------------------------------------------------------------------------


def run_in_thread(connection: aiosqlite.Connection, work: Callable[..., A], *values: Any) -> Awaitable[A]:
    """Runs a function in the thread of a connection."""
    return cast("Awaitable[A]", cast(Any, connection)._execute(work, *values))


async def connect(path: str, options: SQLiteOptions, *, only_reads: bool) -> aiosqlite.Connection:
    """A connection with its settings, but for ``journal_mode``, which needs the turn."""
    connection = aiosqlite.connect(path, isolation_level=None, timeout=options.timeout, cached_statements=256)
    connection._thread.daemon = True
    connection = await connection
    _inherited.add(connection)
    try:
        await run_in_thread(connection, _set_up, connection._conn, options, only_reads)
    except BaseException:
        await connection.close()
        raise
    return connection


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
