"""Tasks as bytes: what stands in ``t:<id>``, and what it means together with the record in ``h``.

An envelope is a fixed head (so that scripts read it with one ``struct.unpack``, and never touch the body), the names, and the
body. The server puts its stamp before it: the place of the batch in the order of arrival, and the time. ``index`` is the
task's place in its batch, so one stamp serves a batch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from omniq_core import (
    MAX_ID_BYTES,
    MAX_NAME_BYTES,
    Claim,
    Lease,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    TooLarge,
)

__all__ = ["EXPIRED", "STATE_OF", "WORKER_LOST", "claims_of", "millis", "note", "pack", "snapshot_of"]

WORKER_LOST = "its worker was lost: the lease ended"
EXPIRED = "its time to live passed before it was started"
STATE_OF = {
    "P": TaskState.PENDING,
    "R": TaskState.RUNNING,
    "S": TaskState.SUCCEEDED,
    "D": TaskState.DEAD,
    "C": TaskState.CANCELLED,
    "X": TaskState.EXPIRED,
}
"""The letters of records in ``h``."""
CANCEL, UNIQUE, NO_TTL, LOST = 1, 2, 4, 8
"""The flags of records in ``h``; ``lua/prelude.lua`` has the same."""

# flags, index, priority, max_attempts, max_crashes, delay, time to live (ms; -1: none), lengths of queue, key, name and id.
# The numbers are doubles because Lua has no others.
_SENT = struct.Struct(">BHhddddHHHH")
_STORED = struct.Struct(">ddBHhddddHHHH")
_unpack, _HEAD = _STORED.unpack_from, _STORED.size
_known_names: dict[bytes, str] = {}  # a worker decodes the same few names for every task


def millis(seconds: float) -> int:
    """Whole milliseconds, rounded up: a delay never ends early. The inner rounding drops what floats make of 1.1 * 1000."""
    return math.ceil(round(seconds * 1000, 3))


def pack(record: TaskRecord, index: int) -> bytes:
    """A task's envelope, as it is sent.

    Raises:
        TooLarge: a name, id or key is longer than the contract allows.
    """
    queue, name, id_ = record.queue.encode(), record.name.encode(), record.id.encode()
    key = b"" if record.unique_key is None else record.unique_key.encode()
    if (
        len(queue) > MAX_NAME_BYTES
        or len(name) > MAX_NAME_BYTES
        or len(key) > MAX_NAME_BYTES
        or len(id_) > MAX_ID_BYTES
    ):
        raise TooLarge(f"the queue, name, unique key or id of task {record.id[:40]!r} is too long", "redis")
    head = _SENT.pack(
        0 if record.unique_key is None else UNIQUE,
        index,
        record.priority,
        record.max_attempts,
        record.max_crashes,
        millis(record.delay_s) if record.delay_s > 0 else 0,
        -1 if record.ttl_s is None else millis(record.ttl_s),
        len(queue),
        len(key),
        len(name),
        len(id_),
    )
    return b"".join((head, queue, key, name, id_, record.body))


def _name(raw: bytes) -> str:
    found = _known_names.get(raw)
    if found is None:
        found = raw.decode()
        if len(_known_names) < 4096:
            _known_names[raw] = found
    return found


def claims_of(answer: Sequence[Any]) -> list[Claim]:
    """What ``claim.lua`` handed out."""
    fence, until, envelopes, odd = answer
    starts = {odd[i] - 1: (odd[i + 1], odd[i + 2]) for i in range(0, len(odd), 3)}
    ends_at = until / 1000
    claims = []
    attempt, crashes = 1, 0
    for number, raw in enumerate(envelopes):
        if raw is None:
            continue  # somebody deleted the key by hand, or the server evicts: there is nothing to run
        if starts:
            attempt, crashes = starts.get(number, (1, 0))
        _, at, _, _, _, max_attempts, max_crashes, _, _, lq, lk, ln, li = _unpack(raw)
        name_at = _HEAD + lq + lk
        id_at = name_at + ln
        body_at = id_at + li
        id_ = raw[id_at:body_at].decode()
        claims.append(
            Claim(
                id_,
                _name(raw[_HEAD : _HEAD + lq]),
                _name(raw[name_at:id_at]),
                raw[body_at:],
                attempt,
                crashes,
                int(max_attempts),
                int(max_crashes),
                at / 1000,
                Lease(id_, fence, ends_at),
            )
        )
    return claims


def note(reason: str | None, error: bytes | None) -> bytes:
    """A reason and an error as they are kept in ``e``; empty for none."""
    if reason is None and error is None:
        return b""
    if reason is not None:
        reason = reason.encode(
            "utf-8", "backslashreplace"
        ).decode()  # a lone surrogate must not fail a settlement
    return msgspec.msgpack.encode((reason, error))


_decode_note = msgspec.msgpack.Decoder(tuple[str | None, bytes | None]).decode


def snapshot_of(
    raw: bytes, record: bytes | None, noted: bytes | None, until: bytes | None, worker: bytes | None
) -> TaskSnapshot:
    """One task from what ``get.lua`` tells of it."""
    _, at, flags, _, priority, max_attempts, max_crashes, delay, ttl, lq, lk, ln, li = _unpack(raw)
    key_at = _HEAD + lq
    name_at = key_at + lk
    id_at = name_at + ln
    body_at = id_at + li
    unique_key = raw[key_at:name_at].decode() if flags == UNIQUE else None
    letter, fence, attempt, crashes, when = "P", 0, 0, 0, 0
    if record is not None:
        words = record.decode().split(" ", 7)
        letter = words[0]
        fence, attempt, crashes, when, flags = map(int, words[1:6])
    state = STATE_OF[letter]
    reason, error = _decode_note(noted) if noted else (None, None)
    if state is TaskState.EXPIRED:
        reason = EXPIRED
    elif flags & LOST:
        reason = WORKER_LOST
    return TaskSnapshot(
        id=raw[id_at:body_at].decode(),
        queue=raw[_HEAD:key_at].decode(),
        name=raw[name_at:id_at].decode(),
        state=state,
        body=raw[body_at:],
        priority=priority,
        attempt=attempt,
        max_attempts=int(max_attempts),
        crashes=crashes,
        max_crashes=int(max_crashes),
        fence=fence,
        enqueued_at=at / 1000,
        run_at=(when if when and not state.is_final else at + delay) / 1000,
        expires_at=None if ttl < 0 or flags & NO_TTL else (at + ttl) / 1000,
        finished_at=when / 1000 if state.is_final else None,
        worker_id=None if worker is None else worker.decode(),
        lease_expires_at=None if until is None else float(until) / 1000,
        unique_key=unique_key,
        cancel_requested=bool(flags & CANCEL),
        reason=reason,
        error=error,
    )
