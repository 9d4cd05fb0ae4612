"""``<db>.lock``: whose turn it is to write, and a doorbell.

**Turn.** SQLite's own waiting for a lock is unfair: who has just written writes again, while others sleep for longer and
longer (two processes: worst wait 947 ms; behind a ``flock`` 18 ms, with the same number of transactions in total). So
every writing transaction is made under an exclusive ``flock`` on this file. It is released by the kernel when its process
dies, however it dies. It is not what keeps the data safe: SQLite's locks do, and programs that ignore this file stay
correct, but unfair. As checkpoints, too, happen only under it, two processes of ours never meet in SQLite's WAL-reset race
(see :mod:`omniq_sqlite.health`).

**Doorbell.** The file holds three 64-bit counts: of commits that made tasks claimable, that stored final results, that
appended events. They are raised after the commit and before the turn ends, so who is told by inotify of a change to this
file and looks finds what was committed. The counts only say where to look; losing them loses a hint.

A fork shares the *open file* of its parent, and with it the lock: it would keep the lock of a dead parent. So the child
closes its copy at once.
"""

from __future__ import annotations

import os
import struct
import weakref

try:
    import fcntl
except ImportError:  # Windows: SQLite's own locks must do
    fcntl = None  # type: ignore[assignment]

from omniq_core import BackendError, ErrorCode

__all__ = ["EVENT", "QUEUE", "RESULT", "LockFile"]

QUEUE, RESULT, EVENT = 1, 2, 4
"""What a commit brought, as bits."""

_COUNTS = struct.Struct("<3Q")
_EMPTY = _COUNTS.pack(0, 0, 0)

_open: weakref.WeakSet[LockFile] = weakref.WeakSet()
_inherited: set[str] = set()
"""Files that were open when this process was forked. SQLite keeps its locks in the process's memory, so the library in a
fork believes to hold what its parent holds: another connection to the same file may hang, or write without a lock
("How To Corrupt An SQLite Database File", section 2.6). So no file is opened on both sides of a fork."""


class LockFile:
    """An open ``<db>.lock``.

    Args:
        path: of the lock file; it is created.
    """

    def __init__(self, path: str) -> None:
        if os.path.realpath(path) in _inherited:
            raise BackendError(
                f"{path.removesuffix('.lock')} was open when this process was forked, and SQLite must not use a file on "
                "both sides of a fork. Close the backend before forking, open it first in the child, or start processes "
                "with 'spawn' or 'forkserver'",
                ErrorCode.INVALID,
                "sqlite",
            )
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _open.add(self)

    def acquire(self) -> None:
        """Waits for the turn, without a limit: the caller's :class:`~omniq_sqlite.connection.Writer` keeps the time."""
        if fcntl is not None:
            fcntl.flock(self.fd, fcntl.LOCK_EX)

    def try_acquire(self) -> bool:
        """Takes the turn if nobody has it."""
        if fcntl is not None:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def release(self) -> None:
        if fcntl is not None:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def counts(self) -> tuple[int, int, int]:
        """How often each of ``QUEUE``, ``RESULT`` and ``EVENT`` was rung."""
        held = os.pread(self.fd, _COUNTS.size, 0)
        return _COUNTS.unpack(held if len(held) == _COUNTS.size else _EMPTY)

    def ring(self, what: int) -> None:
        """Raises the counts. Call it with the turn."""
        queue, result, event = self.counts()
        os.pwrite(
            self.fd, _COUNTS.pack(queue + (what & 1), result + (what >> 1 & 1), event + (what >> 2 & 1)), 0
        )

    def close(self) -> None:
        """Idempotent. Gives the turn back as well."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _close_inherited() -> None:
    for lock in list(_open):
        if lock.fd >= 0:
            _inherited.add(os.path.realpath(lock.path))
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
