"""The file by which the processes on a folder take turns, and hear of each other.

Before creating, a process waits for its turn at a ``flock`` on it: that spares lost races. It waits for some milliseconds
at most, as the holder may be frozen, and nothing depends on it. After creating, it touches the file, and inotify tells the
others.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import stat
import sys
import time
from collections.abc import Callable

if sys.platform != "win32":
    import fcntl

__all__ = ["Turn"]

TURN_S = 0.02
"""How long a turn is waited for, in seconds."""
_IN_ATTRIB = 0x4


class Turn:
    """One process's use of the file ``turn``."""

    def __init__(self) -> None:
        self._fd = -1
        self._is_ours = False
        self._inotify = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._notice: Callable[[], None] | None = None

    def open(self, folder: int, path: str) -> None:
        """Opens the file, and makes it if it is missing.

        Args:
            folder: the descriptor of its folder.
            path: of the folder, for messages.
        """
        self._fd = os.open(
            "turn",
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
            0o666,
            dir_fd=folder,
        )
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(errno.ENOTDIR, "is no regular file", f"{path}/turn")

    def close(self) -> None:
        """Idempotent. On the event loop."""
        self._notice = None
        if self._inotify >= 0 and self._loop is not None:
            self._loop.remove_reader(self._inotify)
        self.drop()

    def drop(self) -> None:
        """Closes the descriptors alone, as a child does that was forked. It shares the open file with its parent, and with
        it the lock: it would keep the turn of a dead parent."""
        for fd in (self._inotify, self._fd):
            if fd >= 0:
                os.close(fd)
        self._inotify = self._fd = -1

    # --- turns -------------------------------------------------------------------------------------------------

    async def take(self) -> None:
        """Waits for our turn, but not long."""
        if self._is_ours:
            return
        end = time.monotonic() + TURN_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    return
                await asyncio.sleep(random.uniform(0.0002, 0.001))
            else:
                self._is_ours = True
                return

    def end(self) -> None:
        if self._is_ours:
            self._is_ours = False
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    # --- news --------------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """Tells the others."""
        os.utime(self._fd)

    def watch(self, notice: Callable[[], None]) -> None:
        """Calls ``notice`` when it rings, if the system tells."""
        self._notice = notice

    @property
    def is_heard(self) -> bool:
        """Whether the system tells when it rings."""
        return self._inotify >= 0

    def listen(self) -> None:
        """Asks the system to tell: of the file itself, whatever its name leads to later."""
        if not sys.platform.startswith("linux"):
            return
        library = ctypes.CDLL(None, use_errno=True)
        fd = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:  # no more of them allowed: we look now and then instead
            return
        if library.inotify_add_watch(fd, f"/proc/self/fd/{self._fd}".encode(), _IN_ATTRIB) < 0:
            os.close(fd)
            return
        self._inotify = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._hear)

    def _hear(self) -> None:
        try:
            os.read(self._inotify, 16_384)
        except (BlockingIOError, InterruptedError):
            return
        if self._notice is not None:
            self._notice()
