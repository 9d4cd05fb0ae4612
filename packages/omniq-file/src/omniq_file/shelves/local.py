"""A shelf in a folder of a local disk.

**Exclusive, whole, durable.** A file is written without a name (``O_TMPFILE``, or under a name in ``tmp`` where the file
system has no such thing), synced, and then given its name by ``link``, which fails if the name is taken: the one exclusive
operation that every POSIX file system has, and that leaves no moment in which a half-written file could be seen. Then the
folder is synced. With ``fsync=False`` both syncs are left out: nothing is lost when processes are killed, but a power cut may
take what was acknowledged in the last half minute, or leave a file that is empty, and so a log that cannot be read.

**Inside, and nowhere else.** Below the opened folder every step is taken from the descriptor of the folder before it, and
none follows a symbolic link. So nobody who can write into the folder can make us write, read or delete elsewhere.

**Manners.** Before creating, a process waits for its turn at a ``flock`` on the file ``turn``: that spares lost races. It
waits for some milliseconds at most, as the holder may be frozen, and nothing depends on it.

**Waking up.** After creating, the file ``turn`` is touched, and inotify tells the others. Where there is no inotify, they
look every 50 ms.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import secrets
import stat
import struct
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

if sys.platform != "win32":
    import fcntl

from omniq_core import Durability, ErrorCode, Finding, Loss, OptionError, Severity
from omniq_file.shelves.shelf import Shelf, ShelfFacts

__all__ = ["LocalShelf"]

IS_POSIX = sys.platform != "win32" and os.link in os.supports_dir_fd
FOLDERS_KEPT = 16
"""Descriptors of folders that are kept open."""
TURN_S = 0.02
"""How long a turn is waited for, in seconds."""
POLL_S = 0.05
OLD_TMP_S = 3600.0
"""A file in ``tmp`` that is older was left by a process that is gone."""
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_EVENT = struct.Struct("iIII")
_IN_ATTRIB = 0x4
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_NETWORKS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "fuse.sshfs",
        "lustre",
        "ncpfs",
    }
)

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
        self._root = -1
        self._turn = -1
        self._has_turn = False
        self._folders: OrderedDict[str, int] = OrderedDict()
        self._synced: set[str] = set()
        """Folders whose neighbours were synced before the first file of ours came into them."""
        self._tmpfile = hasattr(os, "O_TMPFILE")
        self._inotify = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._notice: Callable[[], None] | None = None
        self.facts = ShelfFacts(
            product="local disk", multi_process=True, multi_host=False, durable=fsync, wake_up=False,
            poll_interval_s=POLL_S, quick=True,
        )  # fmt: skip

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self, *, create: bool) -> None:
        if not IS_POSIX:
            raise OptionError("file: local folders need a POSIX system; use sqlite:/// here")
        try:
            self._open_root(create)
            system = self._system = _file_system(self._path)
            if system in _NETWORKS and not self._allow_network_fs:
                raise OptionError(
                    f"file: {self._path} is on a network file system ({system}), which may show one process an old view of "
                    "what another has written; use a local disk or an object store, or set allow_network_fs=True if only "
                    "this machine opens it"
                )
            self._turn = os.open(
                "turn",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
                0o666,
                dir_fd=self._root,
            )
            if not stat.S_ISREG(os.fstat(self._turn).st_mode):
                raise OSError(errno.ENOTDIR, "is no regular file", f"{self._path}/turn")
            _open.add(self)
            await self._prove()
            self._sweep()
            self._start_watching()
            self.facts = ShelfFacts(
                product=f"local disk ({system})", multi_process=True, multi_host=False, durable=self._fsync,
                wake_up=self._inotify >= 0, poll_interval_s=POLL_S, quick=True,
            )  # fmt: skip
        except BaseException:
            await self.close()
            raise

    def _open_root(self, create: bool) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if create:
            parent = os.path.dirname(self._path)
            os.makedirs(parent, exist_ok=True)
            try:
                # Nobody else's, until the operator says so: what is in it is protected by this folder.
                os.mkdir(self._path, 0o700)
            except FileExistsError:
                pass
            else:
                if self._fsync:
                    _sync_folder(parent)
        self._root = os.open(self._path, flags | os.O_NOFOLLOW)

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
            fd = self._folder(folder, make=False)
            if fd is None:
                continue
            for leaf in os.listdir(fd):
                try:
                    if time.time() - os.stat(leaf, dir_fd=fd, follow_symlinks=False).st_mtime > OLD_TMP_S:
                        os.unlink(leaf, dir_fd=fd)
                except OSError:  # gone, or not ours to delete
                    continue

    async def close(self) -> None:
        self._notice = None
        _open.discard(self)
        if self._inotify >= 0 and self._loop is not None:
            self._loop.remove_reader(self._inotify)
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for fd in (*self._folders.values(), self._inotify, self._turn, self._root):
            if fd >= 0:
                os.close(fd)
        self._folders.clear()
        self._inotify = self._turn = self._root = -1

    # --- folders -----------------------------------------------------------------------------------------------

    def _folder(self, name: str, *, make: bool) -> int | None:
        """The descriptor of a folder below the root; None: there is none."""
        if not name:
            return self._root
        fd = self._folders.get(name)
        if fd is not None:
            self._folders.move_to_end(name)
            return fd
        parent_name, _, leaf = name.rpartition("/")
        parent = self._folder(parent_name, make=make)
        if parent is None:
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(leaf, flags, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                return None
            try:
                os.mkdir(leaf, 0o777, dir_fd=parent)
            except FileExistsError:
                pass
            fd = os.open(leaf, flags, dir_fd=parent)
        self._folders[name] = fd
        if len(self._folders) > FOLDERS_KEPT:
            os.close(self._folders.popitem(last=False)[1])
        return fd

    def _forget_folder(self, name: str) -> None:
        fd = self._folders.pop(name, None)
        if fd is not None:
            os.close(fd)
        self._synced.discard(name)

    def _sync_way(self, name: str) -> None:
        """Before the first file of ours in a folder: makes the folder itself durable, and its elder neighbour.

        A commit must not be more durable than the one before it; the writer of the last one of the elder folder may have
        been killed before it synced that.
        """
        if not name or name in self._synced:
            return
        parent_name, _, leaf = name.rpartition("/")
        parent = self._folder(parent_name, make=True)
        assert parent is not None
        os.fsync(parent)
        if parent_name:
            self._sync_way(parent_name)
            with os.scandir(parent) as scan:
                elders = [e.name for e in scan if e.name < leaf and e.is_dir(follow_symlinks=False)]
            elder = max(elders, default=None)
            fd = None if elder is None else self._folder(f"{parent_name}/{elder}", make=False)
            if fd is not None:
                os.fsync(fd)
        if len(self._synced) > 1000:
            self._synced.clear()
        self._synced.add(name)

    # --- files -------------------------------------------------------------------------------------------------

    async def create(self, name: str, data: bytes, /) -> bool:
        try:
            return self._create(name, data)
        except (FileNotFoundError, PermissionError):
            folder_name = name.rpartition("/")[0]
            folder = self._folders.get(folder_name)
            if folder is None or os.fstat(folder).st_nlink:
                raise
            # The folder was empty and somebody tidied it away, after we had opened it.
            self._forget_folder(folder_name)
            return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        folder_name, _, leaf = name.rpartition("/")
        folder = self._folder(folder_name, make=True)
        assert folder is not None
        if self._fsync:
            self._sync_way(folder_name)
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
        tmp = self._folder("tmp", make=True)
        assert tmp is not None
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
        folder = self._folder(folder_name, make=False)
        if folder is None:
            return None
        try:
            fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            if os.fstat(folder).st_nlink == 0:  # tidied away after we had opened it, and perhaps made anew
                self._forget_folder(folder_name)
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
        fd = self._folder(name, make=False)
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
            folder = self._folder(folder_name, make=False)
            if folder is None:
                continue
            for leaf in leaves:
                try:
                    os.unlink(leaf, dir_fd=folder)
                except FileNotFoundError:
                    continue
            if folder_name.count("/") >= 2:
                self._remove_if_empty(folder_name)

    def _remove_if_empty(self, folder_name: str) -> None:
        parent_name, _, leaf = folder_name.rpartition("/")
        parent = self._folder(parent_name, make=False)
        if parent is not None:
            try:
                os.rmdir(leaf, dir_fd=parent)
            except OSError:  # something is in it
                return
            self._forget_folder(folder_name)

    # --- turns and news ----------------------------------------------------------------------------------------

    async def take_turn(self) -> None:
        if self._has_turn:
            return
        end = time.monotonic() + TURN_S
        while True:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    return
                await asyncio.sleep(random.uniform(0.0002, 0.001))
            else:
                self._has_turn = True
                return

    def end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def ring(self) -> None:
        os.utime(self._turn)

    def _start_watching(self) -> None:
        """Of the file itself, whatever its name leads to later."""
        if not sys.platform.startswith("linux"):
            return
        library = ctypes.CDLL(None, use_errno=True)
        fd = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:  # no more of them allowed: we look now and then instead
            return
        if library.inotify_add_watch(fd, f"/proc/self/fd/{self._turn}".encode(), _IN_ATTRIB) < 0:
            os.close(fd)
            return
        self._inotify = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._hear)

    def watch(self, notice: Callable[[], None], /) -> None:
        self._notice = notice

    def _hear(self) -> None:
        try:
            os.read(self._inotify, 16_384)
        except (BlockingIOError, InterruptedError):
            return
        if self._notice is not None:
            self._notice()

    # --- telling -----------------------------------------------------------------------------------------------

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, OSError) and error.errno is not None:
            return CODES.get(
                error.errno, ErrorCode.UNKNOWN_EFFECT if error.errno == errno.EIO else ErrorCode.UNKNOWN
            )
        return ErrorCode.EXHAUSTED if isinstance(error, MemoryError) else ErrorCode.UNKNOWN

    def durability(self) -> Durability:
        is_safe = self._fsync and self._system not in _IN_MEMORY
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
        if self._system in _IN_MEMORY:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"the folder is on {self._system}, in memory: a restart of the machine loses it",
                )
            )
        if self._inotify < 0:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"there is no inotify, so other processes' tasks are looked for every {POLL_S * 1000:.0f} ms",
                    "raise fs.inotify.max_user_instances on Linux",
                )
            )
        return found

    def _after_fork(self) -> None:
        # The child shares the open file of its parent, and with it the lock: it would keep the turn of a dead parent.
        self._close_descriptors()


def _write(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _file_system(path: str) -> str:
    """The type of the file system of a folder; empty if the system does not say."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = [line.split() for line in mounts]
    except OSError:
        return ""
    path = os.path.realpath(path)
    best, kind = -1, ""
    for fields in lines:
        point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, kind = len(point), fields[fields.index("-") + 1]
    return kind


def _close_inherited() -> None:
    for shelf in list(_open):
        shelf._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
