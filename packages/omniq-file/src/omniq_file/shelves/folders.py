"""The folders below one folder of a disk, each reached from the descriptor of the one before it.

No step follows a symbolic link, so nobody who can write in there can make us write, read or delete elsewhere. The folder
itself may lie behind links.
"""

from __future__ import annotations

import os
from collections import OrderedDict

__all__ = ["Folders"]

KEPT = 16
"""Descriptors that are kept open."""


class Folders:
    """Descriptors by name; ``""`` is the folder that all others are in."""

    def __init__(self) -> None:
        self.root = -1
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._synced: set[str] = set()
        """Folders whose neighbours were synced before the first file of ours came into them."""

    def open(self, path: str, *, create: bool, fsync: bool) -> None:
        """Opens the folder that all others are in.

        Args:
            path: absolute.
            create: make it, for its owner only, if it is missing.
            fsync: so that it is there after a power cut.
        """
        if create:
            parent = os.path.dirname(path)
            os.makedirs(parent, exist_ok=True)
            try:
                # Nobody else's, until the operator says so: what is in it is protected by this folder.
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            else:
                if fsync:
                    _sync(parent)
        self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        """Idempotent."""
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
        if self.root >= 0:
            os.close(self.root)
        self.root = -1

    def at(self, name: str) -> int | None:
        """The descriptor of a folder, good until the next call here; None: there is none."""
        return self._enter(name, make=False)

    def make(self, name: str) -> int:
        """The same, made if it is missing."""
        fd = self._enter(name, make=True)
        assert fd is not None
        return fd

    def _enter(self, name: str, *, make: bool) -> int | None:
        if not name:
            return self.root
        fd = self._kept.get(name)
        if fd is not None:
            self._kept.move_to_end(name)
            return fd
        parent_name, _, leaf = name.rpartition("/")
        parent = self._enter(parent_name, make=make)
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
        self._kept[name] = fd
        if len(self._kept) > KEPT:
            os.close(self._kept.popitem(last=False)[1])
        return fd

    def forget_if_gone(self, name: str) -> bool:
        """Whether a folder was tidied away after we had opened it. It is then opened, or made, anew when asked for."""
        fd = self._kept.get(name)
        if fd is None or os.fstat(fd).st_nlink:
            return False
        self._forget(name)
        return True

    def _forget(self, name: str) -> None:
        fd = self._kept.pop(name, None)
        if fd is not None:
            os.close(fd)
        self._synced.discard(name)

    def remove_if_empty(self, name: str) -> None:
        parent_name, _, leaf = name.rpartition("/")
        parent = self.at(parent_name)
        if parent is not None:
            try:
                os.rmdir(leaf, dir_fd=parent)
            except OSError:  # something is in it
                return
            self._forget(name)

    def sync_way(self, name: str) -> None:
        """Before the first file of ours in a folder: makes the folder itself durable, and its elder neighbour.

        A commit must not be more durable than the one before it; the writer of the last one of the elder folder may have
        been killed before it synced that.
        """
        if not name or name in self._synced:
            return
        parent_name, _, leaf = name.rpartition("/")
        parent = self.make(parent_name)
        os.fsync(parent)
        if parent_name:
            self.sync_way(parent_name)
            with os.scandir(parent) as scan:
                elders = [e.name for e in scan if e.name < leaf and e.is_dir(follow_symlinks=False)]
            elder = max(elders, default=None)
            fd = None if elder is None else self.at(f"{parent_name}/{elder}")
            if fd is not None:
                os.fsync(fd)
        if len(self._synced) > 1000:
            self._synced.clear()
        self._synced.add(name)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
