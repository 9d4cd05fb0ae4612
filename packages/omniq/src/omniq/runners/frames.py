"""What the parent and a child process of the process pool say to each other: frames of MessagePack, each behind its length.

The pipe is private to the two, and carries a call's arguments and a function's value still encoded: the parent neither
decodes what goes in nor what comes out.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from omniq.codec import NIL, Failure

__all__ = ["CallFrame", "Frames", "LoadFrame", "OutcomeFrame", "pack", "unpack_to_child", "unpack_to_parent"]

LENGTH_BYTES = 4


class LoadFrame(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """A function that is going to be called."""

    name: str
    """The task's."""
    module: str = ""
    qualname: str = ""
    pickled: bytes = b""
    """By value, for a function that cannot be imported; through the parent's own pipe, never from a message."""


class CallFrame(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """Run this."""

    name: str
    arguments: msgspec.Raw
    task_id: str
    queue: str
    attempt: int
    crashes: int
    max_attempts: int
    max_crashes: int
    fence: int
    enqueued_at: float
    worker_id: str
    headers: dict[str, str] | None = None


class OutcomeFrame(msgspec.Struct, frozen=True, array_like=True, tag="outcome"):
    """What came of a call, or (``not_loaded``) why its function is not there. The first one says that the child is ready."""

    value: msgspec.Raw = NIL
    failure: Failure | None = None
    signal: str = ""
    """``Retry``, ``Reject`` or ``Snooze``, if it was one."""
    seconds: float | None = None
    reason: str = ""
    undecodable: str = ""
    not_loaded: str = ""


_encoder = msgspec.msgpack.Encoder()
_to_child = msgspec.msgpack.Decoder(LoadFrame | CallFrame)
_to_parent = msgspec.msgpack.Decoder(OutcomeFrame)
unpack_to_child = _to_child.decode
unpack_to_parent = _to_parent.decode


def pack(frame: LoadFrame | CallFrame | OutcomeFrame) -> bytes:
    """A frame as bytes, with its length."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class Frames:
    """Cuts what comes out of the pipe into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Adds what was read; the frames that are complete now."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(buffer[:LENGTH_BYTES], "big")
            if len(buffer) < end:
                return
            frame = bytes(buffer[LENGTH_BYTES:end])
            del buffer[:end]
            yield frame
