"""What the file system and the SQLite in use mean for tasks."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import sys

from omniq_core import Durability, Finding, Health, Loss, Severity

__all__ = ["file_system", "is_network", "look_at"]

NETWORK = {
    0x6969: "nfs", 0x517B: "smb", 0xFE534D42: "smb2", 0xFF534D42: "cifs", 0x5346414F: "afs", 0x73757245: "coda",
    0x00C36400: "ceph", 0x01021997: "9p", 0x0BD00BD0: "lustre",
}  # fmt: skip
"""``f_type`` of statfs(2) -> name. Their locks or shared memory do not reach across machines as SQLite needs it."""
MEMORY = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}
OTHERS = {
    0xEF53: "ext",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x794C7630: "overlay",
    0x2FC12FC1: "zfs",
    0x65735546: "fuse",
}
_NAMES = {**NETWORK, **MEMORY, **OTHERS}

FIRST_FIXED = (3, 51, 3)
BACKPORTS = ((3, 44, 6), (3, 50, 7))


def statfs_type(path: str) -> int | None:
    """The magic number of the file system of a path, where the system tells it."""
    if not sys.platform.startswith("linux"):
        return None
    buffer = ctypes.create_string_buffer(512)  # struct statfs is shorter, and begins with f_type, a long
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer):
        return None
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def file_system(directory: str) -> str:
    """Its name, its number in hexadecimal digits if we have no name for it, or ``"unknown"``."""
    number = statfs_type(directory)
    return "unknown" if number is None else _NAMES.get(number, hex(number))


def is_network(name: str) -> bool:
    """Whether :func:`file_system` named one that other machines may have mounted."""
    return name in NETWORK.values()


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether a SQLite may corrupt a WAL file when one connection checkpoints while another one commits.

    3.7.0 to 3.51.2; fixed in 3.51.3, 3.50.7 and 3.44.6 (https://sqlite.org/wal.html#walresetbug).
    """
    return version < FIRST_FIXED and not any(
        version[:2] == fixed[:2] and version >= fixed for fixed in BACKPORTS
    )


def look_at(connection: sqlite3.Connection, path: str, now: float) -> Health:
    """Reads the settings as they are, on this connection and in this file."""

    def pragma(name: str) -> str:
        return str(connection.execute(f"pragma {name}").fetchall()[0][0])

    synchronous = ("OFF", "NORMAL", "FULL", "EXTRA")[int(pragma("synchronous"))]
    journal_mode = pragma("journal_mode")
    system = file_system(os.path.dirname(path))
    log_bytes = os.path.getsize(path + "-wal") if os.path.exists(path + "-wal") else 0
    findings = []
    power_cut = Loss.NONE
    if synchronous == "NORMAL":
        power_cut = Loss.WINDOW
        findings.append(
            Finding(
                Severity.WARNING,
                "synchronous=NORMAL: acknowledged tasks since the last checkpoint are lost when the power is cut",
                "set synchronous=FULL, unless tasks can be enqueued again",
            )
        )
    elif synchronous == "OFF":
        power_cut = Loss.ALL
        findings.append(
            Finding(
                Severity.ERROR,
                "synchronous=OFF: a power cut may lose or destroy the whole file",
                "set synchronous=FULL",
            )
        )
    if system in MEMORY.values():
        power_cut = Loss.ALL
        findings.append(
            Finding(
                Severity.WARNING, f"the file is on {system}, in memory: a restart of the machine loses it", ""
            )
        )
    if is_network(system) or system == "fuse":
        power_cut = Loss.UNKNOWN
        findings.append(
            Finding(
                Severity.ERROR if is_network(system) else Severity.WARNING,
                f"the file is on {system}; SQLite's locks and shared memory may not hold there",
                "use a local disk, or a backend with a server",
            )
        )
    if journal_mode != "wal":
        findings.append(
            Finding(
                Severity.ERROR, f"journal_mode is {journal_mode!r}, set by another program", "open it again"
            )
        )
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        findings.append(
            Finding(
                Severity.WARNING,
                f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug (3.7.0 to 3.51.2): when several processes share "
                "a file, a checkpoint beside a commit can, very rarely, corrupt it. OmniQ's processes do both only under "
                "one lock, which keeps that from happening among them; programs that write to this file otherwise "
                "(enqueue_within, the sqlite3 shell) are not held off",
                "use a Python that is linked with SQLite 3.51.3 or later",
            )
        )
    if log_bytes > 64 * 1024 * 1024:
        findings.append(
            Finding(
                Severity.WARNING,
                f"the write-ahead log has {log_bytes >> 20} MiB: a reader may be holding up its checkpoint",
                "end long read transactions of other programs on this file; workers then cut it",
            )
        )
    return Health(
        server=f"SQLite {sqlite3.sqlite_version}",
        now=now,
        durability=Durability(server_killed=Loss.NONE, power_cut=power_cut),
        findings=findings,
        settings={"synchronous": synchronous, "journal_mode": journal_mode, "file_system": system},
    )
