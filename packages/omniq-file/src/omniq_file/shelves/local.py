"""A shelf in a folder of a local disk.

**Exclusive, whole, durable.** A file is written without a name (``O_TMPFILE``, or under a name in ``tmp`` where the file
system has no such thing), synced, and then given its name by ``link``, which fails if the name is taken: the one exclusive
operation that every POSIX file system has, and that leaves no moment in which a half-written file could be seen. Then the
folder is synced. With ``fsync=False`` both syncs are left out: nothing is lost when processes are killed, but a power cut may
take what was acknowledged in the last half minute, or leave a file that is empty, and so a log that cannot be read.

Every step into a folder is taken by :mod:`omniq_file.shelves.folders`, and follows no symbolic link. Turns, and the news that
something was created, go through one file (:mod:`omniq_file.shelves.turn`); where the system tells no news, others look every
50 ms.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import time
import weakref
from collections.abc import Callable, Sequence

from omniq_core import Durability, ErrorCode, Finding, Loss, OptionError, Severity
from omniq_file.shelves.folders import Folders
from omniq_file.shelves.mounts import IN_MEMORY, NETWORKS, file_system_of
from omniq_file.shelves.shelf import Shelf, ShelfFacts
from omniq_file.shelves.turn import Turn

__all__ = ["LocalShelf"]

IS_POSIX = sys.platform != "win32" and os.link in os.supports_dir_fd
POLL_S = 0.05
OLD_TMP_S = 3600.0
"""A file in ``tmp`` that is older was left by a process that is gone."""
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)

CODES = {
    errno.ENOSPC: ErrorCode.EXHAUSTED,
    errno.EDQUOT: ErrorCode.EXHAUSTED,
    errno.EMFILE: ErrorCode.EXHAUSTED,
    errno.ENFILE: ErrorCode.EXHAUSTED,
    errno.ENOMEM: ErrorCode.EXHAUSTED,
    errno.EACCES: ErrorCode.PERMISSION,
    errno.EPERM: ErrorCode.PERMISSION,
    errno.EROFS: ErrorCode.PERMISSION,
    errno.EFBIG: ErrorCode.TOO_LARGE,
    errno.ENOENT: ErrorCode.UNAVAILABLE,
    errno.ELOOP: ErrorCode.CORRUPT,
    errno.ENOTDIR: ErrorCode.CORRUPT,
}

_Names = list[str]
"""Said here, since ``list`` means something else in a shelf."""
_open: weakref.WeakSet[LocalShelf] = weakref.WeakSet()


class LocalShelf(Shelf):
    """A shelf in a folder.

    Args:
        path: of the folder, absolute. It may lie behind symbolic links; what is in it may not.
        fsync: whether ``create`` waits for the disk.
        allow_network_fs: whether NFS, SMB and the like are taken.
    """

    def __init__(self, path: str, *, fsync: bool = True, allow_network_fs: bool = False) -> None:
        self._path = path
        self._fsync = fsync
        self._allow_network_fs = allow_network_fs
        self._system = ""
        self._folders = Folders()
        self._turn = Turn()
        self._tmpfile = hasattr(os, "O_TMPFILE")
        self.facts = ShelfFacts(
            product="local disk", multi_process=True, multi_host=False, durable=fsync, wake_up=False,
            poll_interval_s=POLL_S, quick=True,
        )  # fmt: skip

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self, *, create: bool) -> None:
        if not IS_POSIX:
            raise OptionError("file: local folders need a POSIX system; use sqlite:/// here")
        try:
            self._folders.open(self._path, create=create, fsync=self._fsync)
            system = self._system = file_system_of(self._path)
            if system in NETWORKS and not self._allow_network_fs:
                raise OptionError(
                    f"file: {self._path} is on a network file system ({system}), which may show one process an old view of "
                    "what another has written; use a local disk or an object store, or set allow_network_fs=True if only "
                    "this machine opens it"
                )
            self._turn.open(self._folders.root, self._path)
            _open.add(self)
            await self._prove()
            self._sweep()
            self._turn.listen()
            self.facts = ShelfFacts(
                product=f"local disk ({system})", multi_process=True, multi_host=False, durable=self._fsync,
                wake_up=self._turn.is_heard, poll_interval_s=POLL_S, quick=True,
            )  # fmt: skip
        except BaseException:
            await self.close()
            raise

    async def _prove(self) -> None:
        """That ``link`` is there and exclusive: some file systems have no hard links."""
        name = f"probe/{secrets.token_hex(8)}"
        fsync, self._fsync = self._fsync, False
        try:
            if not await self.create(name, b"") or await self.create(name, b""):
                raise OSError(errno.EOPNOTSUPP, "links are not exclusive here")
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise OptionError(
                    f"file: the file system at {self._path} has no hard links ({error}), by which a file is created by one "
                    "process only; use another disk, or sqlite:///"
                ) from error
            raise
        finally:
            self._fsync = fsync
        await self.delete([name])

    def _sweep(self) -> None:
        """Deletes what killed processes left."""
        for folder in ("tmp", "probe"):
            fd = self._folders.at(folder)
            if fd is None:
                continue
            for leaf in os.listdir(fd):
                try:
                    if time.time() - os.stat(leaf, dir_fd=fd, follow_symlinks=False).st_mtime > OLD_TMP_S:
                        os.unlink(leaf, dir_fd=fd)
                except OSError:  # gone, or not ours to delete
                    continue

    async def close(self) -> None:
        _open.discard(self)
        self._turn.close()
        self._folders.close()

    # --- files -------------------------------------------------------------------------------------------------

    async def create(self, name: str, data: bytes, /) -> bool:
        try:
            return self._create(name, data)
        except (FileNotFoundError, PermissionError):
            # Perhaps the folder was empty, and somebody tidied it away after we had opened it.
            if not self._folders.forget_if_gone(name.rpartition("/")[0]):
                raise
            return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        folder_name, _, leaf = name.rpartition("/")
        folder = self._folders.make(folder_name)
        if self._fsync:
            self._folders.sync_way(folder_name)
        try:
            if self._tmpfile:
                made = self._create_unnamed(folder, leaf, data)
            else:
                made = self._create_named(folder, leaf, data)
        except FileExistsError:
            made = False
        if self._fsync:
            # Also if it was there already: who builds on it must not be more durable than it is.
            try:
                os.fsync(folder)
            except OSError as error:
                # It has its name, so others may have seen it.
                raise OSError(errno.EIO, f"the folder cannot be synced: {error}", name) from error
        return made

    def _create_unnamed(self, folder: int, leaf: str, data: bytes) -> bool:
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._tmpfile = False
            return self._create_named(folder, leaf, data)
        try:
            _write(fd, data)
            if self._fsync:
                os.fsync(fd)
            try:
                os.link(
                    f"/proc/self/fd/{fd}", leaf, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True
                )
            except OSError as error:
                if error.errno == errno.EEXIST or os.path.exists(f"/proc/self/fd/{fd}"):
                    raise
                self._tmpfile = False  # there is no /proc here
                return self._create_named(folder, leaf, data)
        finally:
            os.close(fd)
        return True

    def _create_named(self, folder: int, leaf: str, data: bytes) -> bool:
        tmp = self._folders.make("tmp")
        own = f"{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(
            own, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666, dir_fd=tmp
        )
        try:
            try:
                _write(fd, data)
                if self._fsync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.link(own, leaf, src_dir_fd=tmp, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.unlink(own, dir_fd=tmp)
        return True

    async def read(self, name: str, /, *, start: int = 0, length: int | None = None) -> bytes | None:
        folder_name, _, leaf = name.rpartition("/")
        folder = self._folders.at(folder_name)
        if folder is None:
            return None
        try:
            fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            self._folders.forget_if_gone(folder_name)  # perhaps it was made anew
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ENOTDIR, "is no regular file", f"{self._path}/{name}")
            left = max(0, status.st_size - start)
            left = left if length is None else min(left, length)
            parts = []
            while left > 0 and (part := os.pread(fd, left, start)):
                parts.append(part)
                start += len(part)
                left -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(fd)

    async def list(self, folder: str, /, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        found: _Names = []
        self._walk(folder, after, limit, found)
        return found

    def _walk(self, name: str, after: str, limit: int, found: _Names) -> None:
        fd = self._folders.at(name)
        if fd is None:
            return
        entries = []
        with os.scandir(fd) as scan:
            for entry in scan:
                # A symbolic link is neither: it was not made by us, and is not looked behind.
                if entry.is_dir(follow_symlinks=False):
                    entries.append(f"{name}/{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    entries.append(f"{name}/{entry.name}")
        entries.sort()
        for entry_name in entries:
            if len(found) >= limit:
                return
            if entry_name.endswith("/"):
                if entry_name > after or after.startswith(entry_name):
                    self._walk(entry_name[:-1], after, limit, found)
            elif entry_name > after:
                found.append(entry_name)

    async def delete(self, names: Sequence[str], /) -> None:
        folders: dict[str, list[str]] = {}
        for name in names:
            folder_name, _, leaf = name.rpartition("/")
            folders.setdefault(folder_name, []).append(leaf)
        for folder_name, leaves in folders.items():
            folder = self._folders.at(folder_name)
            if folder is None:
                continue
            for leaf in leaves:
                try:
                    os.unlink(leaf, dir_fd=folder)
                except FileNotFoundError:
                    continue
            if folder_name.count("/") >= 2:
                self._folders.remove_if_empty(folder_name)

    # --- turns and news ----------------------------------------------------------------------------------------

    async def take_turn(self) -> None:
        await self._turn.take()

    def end_turn(self) -> None:
        self._turn.end()

    def ring(self) -> None:
        self._turn.ring()

    def watch(self, notice: Callable[[], None], /) -> None:
        self._turn.watch(notice)

    # --- telling -----------------------------------------------------------------------------------------------

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, OSError) and error.errno is not None:
            return CODES.get(
                error.errno, ErrorCode.UNKNOWN_EFFECT if error.errno == errno.EIO else ErrorCode.UNKNOWN
            )
        return ErrorCode.EXHAUSTED if isinstance(error, MemoryError) else ErrorCode.UNKNOWN

    def durability(self) -> Durability:
        is_safe = self._fsync and self._system not in IN_MEMORY
        return Durability(server_killed=Loss.NONE, power_cut=Loss.NONE if is_safe else Loss.ALL)

    def findings(self) -> Sequence[Finding]:
        found = []
        if not self._fsync:
            found.append(
                Finding(
                    Severity.WARNING,
                    "fsync=False: a power cut may lose what was acknowledged, or leave a log that cannot be read",
                    "leave fsync on wherever tasks matter",
                )
            )
        if self._system in IN_MEMORY:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"the folder is on {self._system}, in memory: a restart of the machine loses it",
                )
            )
        if not self._turn.is_heard:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"there is no inotify, so other processes' tasks are looked for every {POLL_S * 1000:.0f} ms",
                    "raise fs.inotify.max_user_instances on Linux",
                )
            )
        return found

    def drop(self) -> None:
        """Closes the descriptors alone, in a child that was forked."""
        self._turn.drop()
        self._folders.close()


def _write(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _close_inherited() -> None:
    for shelf in list(_open):
        shelf.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
