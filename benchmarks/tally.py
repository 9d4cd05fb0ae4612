"""Counts the tasks that ran, over all processes of a worker, at about half a microsecond per task.

A file is mapped into memory by everyone; each process that runs tasks takes a slot of its own in it and writes there
how many it ran, and when it ran the first and the last one. Linux' monotonic clock is one for all processes, so the
measuring process can subtract its own times from theirs. A task calls :func:`tick`, for every subject the same.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass

__all__ = ["Reading", "Watch", "create", "path", "read", "tick"]

_SLOT = struct.Struct("Qdd")  # ran, first, last
_SLOTS = 16384  # a peer that forks for each task needs one for each

_lock = threading.Lock()
_map: mmap.mmap | None = None
_offset = 0
_count = 0


@dataclass(frozen=True)
class Reading:
    """What was counted so far."""

    ran: int
    first: float
    """When the first task ran, on the monotonic clock."""
    last: float


def path() -> str:
    return os.environ["BENCH_TALLY"]


def create() -> None:
    """Starts from zero. No process may hold the file of before."""
    global _map
    _map = None
    with open(path(), "wb") as file:
        file.write(bytes(_SLOT.size * (_SLOTS + 1)))


def _open(*, take_slot: bool) -> mmap.mmap:
    global _offset, _count
    with open(path(), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # slots are taken one at a time
        mapped = mmap.mmap(file.fileno(), 0)
        if take_slot:
            number = int.from_bytes(mapped[:8], "little") + 1
            if number > _SLOTS:
                raise RuntimeError("more processes ran tasks than the tally has room for")
            mapped[:8] = number.to_bytes(8, "little")
            _offset, _count = number * _SLOT.size, 0
            struct.pack_into("d", mapped, _offset + 8, time.monotonic())
        fcntl.flock(file, fcntl.LOCK_UN)  # the mapping keeps a duplicate of the descriptor, and so the lock
    return mapped


def tick() -> None:
    """A task of this process runs now."""
    global _map, _count
    with _lock:
        if _map is None:
            _map = _open(take_slot=True)
        _count += 1
        struct.pack_into("Q", _map, _offset, _count)
        struct.pack_into("d", _map, _offset + 16, time.monotonic())


def _after_fork() -> None:
    global _map, _lock
    _map, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Watch:
    """Reads the tally again and again."""

    def __init__(self) -> None:
        self._map = _open(take_slot=False)

    def read(self) -> Reading:
        used = int.from_bytes(self._map[:8], "little")
        ran, first, last = 0, float("inf"), 0.0
        for number in range(1, used + 1):
            count, began, ended = _SLOT.unpack_from(self._map, number * _SLOT.size)
            if count:
                ran, first, last = ran + count, min(first, began), max(last, ended)
        return Reading(ran, first, last)


def read() -> Reading:
    """What was counted so far."""
    return Watch().read()
