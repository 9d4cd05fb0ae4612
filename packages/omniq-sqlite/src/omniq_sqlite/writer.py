"""The thread that writes: one hop per transaction, group commit, and turns between processes.

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
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import aiosqlite

from omniq_core import Clock
from omniq_core.native import RLock
from omniq_sqlite.lockfile import LockFile
from omniq_sqlite.options import SQLiteOptions
from omniq_sqlite.statements import Transaction, micro

__all__ = ["Writer", "run_in_thread"]

A = TypeVar("A")

MOST_ITEMS = 5000
"""A group is closed once it holds this many items, so that the first of them does not wait for all that follow."""
_WAITING, _BEGUN, _WITHDRAWN = range(3)


def run_in_thread(connection: aiosqlite.Connection, work: Callable[..., A], *values: Any) -> Awaitable[A]:
    """Runs a function in the thread of a connection."""
    return cast("Awaitable[A]", cast(Any, connection)._execute(work, *values))


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
        self._mutex = RLock()
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
