"""What a folder lies on: the type of its file system, and what some of these types mean."""

from __future__ import annotations

import os

__all__ = ["IN_MEMORY", "NETWORKS", "file_system_of"]

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
NETWORKS = frozenset(
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


def file_system_of(path: str) -> str:
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
