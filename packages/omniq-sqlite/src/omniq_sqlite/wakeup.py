"""Knowing at once that another process has committed something, without asking again and again.

On Linux, inotify tells of changes to two files. A change of ``<db>.lock`` is the doorbell of one of our own commits: it comes
*after* the commit, and its counts say what kind of thing came (:mod:`omniq_sqlite.lockfile`). A change of ``<db>-wal``
comes *before* a commit can be seen: it matters only for programs that write without our lock (``enqueue_within``, the
``sqlite3`` shell). So unless the doorbell follows, we look 3 ms, 30 ms and 300 ms after the last one.

Nobody waits: nothing is watched, and commits cost nothing here. Where there is no inotify (macOS, Windows, no more watches
allowed), ``PRAGMA data_version`` is asked every 20 ms while somebody waits (4 µs each), and ``WAKEUP`` is not declared.

Who waits takes a :class:`Ticket` *before* looking. What is committed after the look rings the ticket, so nothing can fall
between looking and waiting.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Awaitable, Callable

from omniq_sqlite.lockfile import EVENT, QUEUE, RESULT, LockFile

__all__ = ["POLL_S", "Ticket", "Watcher"]

POLL_S = 0.02
_LOOK_AGAIN_S = (0.003, 0.03, 0.3)
_EVENT = struct.Struct("iIII")
_IN_MODIFY, _IN_Q_OVERFLOW = 0x2, 0x4000


class Ticket:
    """One who waits. Give it back with :meth:`Watcher.leave`."""

    __slots__ = ("_future", "_rung", "what")

    def __init__(self, what: int) -> None:
        self.what = what
        self._rung = False
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Waits until something came since the last call; false: nothing did in that time."""
        if not self._rung and timeout_s > 0:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait([self._future], timeout=timeout_s)
            finally:
                self._future = None
        rung, self._rung = self._rung, False
        return rung


class Watcher:
    """Rings the tickets of one opened backend. Used from its event loop only.

    Args:
        lock: the doorbell.
        wal_path: of the write-ahead log; it exists as long as a connection is open.
        data_version: asks the reading connection; used only without inotify.
    """

    def __init__(self, lock: LockFile, wal_path: str, data_version: Callable[[], Awaitable[int]]) -> None:
        self._lock = lock
        self._wal_path = wal_path
        self._data_version = data_version
        self.loop = asyncio.get_running_loop()
        self._tickets: set[Ticket] = set()
        self._counts = (0, 0, 0)
        self._watches: dict[int, str] = {}
        self._later: list[asyncio.TimerHandle] = []
        self._poller: asyncio.Task[None] | None = None
        self._fd = -1
        self.why_not = ""
        """Why there is no inotify; empty if there is."""
        try:
            self._inotify = _Inotify()
            self._fd = self._inotify.open()
            self.loop.add_reader(self._fd, self._read)
        except (OSError, NotImplementedError, AttributeError) as error:
            self.why_not = (
                f"this system tells nobody about changes of files ({error}), so the file is asked every 20 ms"
            )
            self._drop_fd()

    def _drop_fd(self) -> None:
        if self._fd >= 0:
            try:
                self.loop.remove_reader(self._fd)
            except RuntimeError:  # the loop was closed meanwhile
                pass
            os.close(self._fd)
            self._fd = -1

    def join(self, what: int) -> Ticket:
        """A ticket for things of this kind (``QUEUE``, ``RESULT``, ``EVENT``)."""
        ticket = Ticket(what)
        if not self._tickets:
            self._start()
        self._tickets.add(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Gives a ticket back. Idempotent."""
        self._tickets.discard(ticket)
        if not self._tickets:
            self._stop()

    def ring_all(self) -> None:
        for ticket in self._tickets:
            ticket.ring()

    def close(self) -> None:
        """Wakes everybody. Idempotent."""
        self.ring_all()
        self._tickets.clear()
        self._stop()
        self._drop_fd()

    def _start(self) -> None:
        if self._fd < 0:
            self._poller = self.loop.create_task(self._poll())
            return
        for path in (self._lock.path, self._wal_path):
            try:
                self._watches[self._inotify.watch(self._fd, path)] = path
            except OSError:
                # Without the log only the commits of others go unnoticed; without the doorbell it is replaced by the log.
                continue
        self._counts = self._lock.counts()

    def _stop(self) -> None:
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        for watch in self._watches:
            self._inotify.unwatch(self._fd, watch)
        self._watches.clear()

    def _read(self) -> None:
        try:
            told = os.read(self._fd, 16_384)
        except (BlockingIOError, InterruptedError):
            return
        place, last, was_rung = 0, "", False
        while place < len(told):
            watch, mask, _, name_bytes = _EVENT.unpack_from(told, place)
            place += _EVENT.size + name_bytes
            path = self._watches.get(watch, "")
            if mask & _IN_Q_OVERFLOW:
                self.ring_all()
            if path:
                last = path
                was_rung = was_rung or path == self._lock.path
        if was_rung:
            before, self._counts = self._counts, self._lock.counts()
            came = sum(
                bit
                for bit, old, new in zip((QUEUE, RESULT, EVENT), before, self._counts, strict=True)
                if old != new
            )
            for ticket in self._tickets:
                if ticket.what & came:
                    ticket.ring()
        if last:
            for timer in self._later:
                timer.cancel()
            self._later = (
                [self.loop.call_later(after_s, self.ring_all) for after_s in _LOOK_AGAIN_S]
                if last == self._wal_path
                else []
            )

    async def _poll(self) -> None:
        seen = await self._data_version()
        self.ring_all()  # what came between their look and this
        while True:
            await asyncio.sleep(POLL_S)
            now = await self._data_version()
            if now != seen:
                seen = now
                self.ring_all()


class _Inotify:
    """The three calls, by way of the C library that Python is linked with."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("no inotify")
        self._c = ctypes.CDLL(None, use_errno=True)

    def open(self) -> int:
        return self._checked(self._c.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def watch(self, fd: int, path: str) -> int:
        return self._checked(self._c.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY))

    def unwatch(self, fd: int, watch: int) -> None:
        self._c.inotify_rm_watch(fd, watch)

    @staticmethod
    def _checked(answer: int) -> int:
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return answer
