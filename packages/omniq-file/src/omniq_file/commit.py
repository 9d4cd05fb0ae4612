"""The files of a log: one commit each, checked and told apart from anything else.

::

    magic 6 | format 1 | kind 1 | index length 4 | blob length 8 | CRC-32 of what follows 4 | index | blob

The *index* is MessagePack and is all that a replay reads. The *blob* holds bodies, results and errors, one after the other
in the order in which the index mentions them, each behind its own CRC-32: they are read back one by one, long after
the commit, without the rest of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from omniq_core import BackendError, ErrorCode, SchemaOutOfDate

__all__ = [
    "CHECKPOINT",
    "COMMIT",
    "HEADER_BYTES",
    "PART",
    "Place",
    "corrupt",
    "pack",
    "piece",
    "unpack",
]

FORMAT = 1
MAGIC = b"OMNIQ\n"
COMMIT, CHECKPOINT, PART = 1, 2, 3
"""Kinds of files."""
_HEADER = struct.Struct("<6sBBIQI")
HEADER_BYTES = _HEADER.size
CRC_BYTES = 4

Place = tuple[int, int, int]
"""Where some bytes lie: the number of a commit, the offset in its file, the length."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def corrupt(name: str, what: str) -> BackendError:
    """The error for a file that is not what its name says."""
    return BackendError(
        f"{name} {what}: it was damaged, or is not a file of omniq-file. Restore it from a copy",
        ErrorCode.CORRUPT,
        "file",
    )


def pack(kind: int, index: Any, blobs: Sequence[bytes] = ()) -> tuple[bytes, int]:
    """A whole file, and where its blob begins."""
    head = _encode(index)
    crc = zlib.crc32(head)
    parts = [b"", head]
    for blob in blobs:
        check = zlib.crc32(blob).to_bytes(CRC_BYTES, "little")
        parts += (check, blob)
    tail = b"".join(parts[2:])
    crc = zlib.crc32(tail, crc)
    parts[0] = _HEADER.pack(MAGIC, FORMAT, kind, len(head), len(tail), crc)
    return b"".join((parts[0], head, tail)), HEADER_BYTES + len(head)


def unpack(name: str, kind: int, data: bytes) -> tuple[Any, int]:
    """The index of a file, and where its blob begins.

    Raises:
        SchemaOutOfDate: it is of a newer format.
        BackendError: ``CORRUPT``: it is torn, damaged, or something else.
    """
    if len(data) < HEADER_BYTES:
        raise corrupt(name, f"has only {len(data)} bytes")
    magic, form, found, index_bytes, blob_bytes, crc = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise corrupt(name, "does not begin as it should")
    if form != FORMAT:
        raise SchemaOutOfDate(
            f"{name} is of format {form}, and this omniq-file reads format {FORMAT}; install a newer omniq-file",
            "file",
        )
    if found != kind or len(data) != HEADER_BYTES + index_bytes + blob_bytes:
        raise corrupt(name, "is of another kind or length than it says")
    if zlib.crc32(memoryview(data)[HEADER_BYTES:]) != crc:
        raise corrupt(name, "does not match its checksum")
    blob_at = HEADER_BYTES + index_bytes
    return _decode(memoryview(data)[HEADER_BYTES:blob_at]), blob_at


def piece(data: bytes, at: int, length: int, start: int = 0) -> bytes | None:
    """One body out of a commit's bytes that begin at offset ``start`` of the file; None if it is not what was stored."""
    first = at - start
    found = data[first : first + length]
    check = data[first - CRC_BYTES : first]
    if len(found) != length or zlib.crc32(found).to_bytes(CRC_BYTES, "little") != check:
        return None
    return found
