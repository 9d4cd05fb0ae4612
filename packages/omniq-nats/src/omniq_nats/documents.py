"""A task's document: everything about it, in one message, rewritten with each change of state.

Why one. JetStream compares the sequence of a subject's last message when it stores the next one, so what must change
together stands in one message: the state, the fence, and the result of a run. The body is in it too: a claim reads the
document anyway, and to write small bodies again costs less than a second message to read and to keep alive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from omniq_core import (
    MAX_ID_BYTES,
    MAX_NAME_BYTES,
    ResultRecord,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    TooLarge,
)

__all__ = [
    "EXPIRED",
    "WORKER_LOST",
    "Document",
    "decode",
    "decode_if",
    "encode",
    "result_of",
    "snapshot",
    "ttl_of",
]

WORKER_LOST = "its worker was lost: the lease ended"
EXPIRED = "its time to live passed before it was started"

PENDING, RUNNING, SUCCEEDED, DEAD, CANCELLED, OVER = range(6)
STATES: Sequence[TaskState] = (
    TaskState.PENDING, TaskState.RUNNING, TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED,
)  # fmt: skip


class Document(msgspec.Struct, array_like=True, gc=False):
    """What is stored of a task."""

    id: str
    queue: str
    name: str
    priority: int
    body: bytes
    max_attempts: int
    max_crashes: int
    unique_key: str | None
    enqueued_at: float
    born: int
    """The sequence of its first hint: its place in the order of arrival."""
    hint: int
    """The one hint that holds while it is pending."""
    run_at: float
    expires_at: float | None = None
    state: int = PENDING
    attempt: int = 0
    crashes: int = 0
    fence: int = 0
    settled: int = 0
    """The fence that settled last."""
    claim: str | None = None
    """The claim that holds it while it runs."""
    cancel: bool = False
    reason: str | None = None
    error: bytes | None = None
    finished_at: float | None = None
    result: bytes | None = None
    result_ends_at: float | None = None

    @property
    def is_final(self) -> bool:
        return self.state > RUNNING


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Document).decode


def decode_if(payload: bytes) -> Document | None:
    """The document, if it is one."""
    try:
        return decode(payload)
    except msgspec.MsgspecError:
        return None


def check(record: TaskRecord) -> None:
    """Refuses what is longer than the contract allows: it would not fit into a subject.

    Raises:
        TooLarge: that.
    """
    for text, most in (
        (record.queue, MAX_NAME_BYTES),
        (record.name, MAX_NAME_BYTES),
        (record.unique_key or "", MAX_NAME_BYTES),
        (record.id, MAX_ID_BYTES),
    ):
        if len(text) > most or (not text.isascii() and len(text.encode()) > most):
            raise TooLarge(
                f"the queue, name, unique key or id of task {record.id[:40]!r} is too long", "nats"
            )


def ttl_of(document: Document, now: float, retention_s: float) -> int:
    """How long a finished task's document lives from now, in whole seconds: as long as its result, at least."""
    ends = (document.finished_at or now) + retention_s
    if document.result is not None and document.result_ends_at is not None:
        ends = max(ends, document.result_ends_at)
    return max(1, math.ceil(ends - now))


def text(reason: str | None) -> str | None:
    """A reason that can be stored: a lone surrogate must not fail a settlement."""
    return None if reason is None else reason.encode("utf-8", "backslashreplace").decode()


def snapshot(
    document: Document, worker_id: str | None = None, lease_ends: float | None = None
) -> TaskSnapshot:
    """The document as the contract shows it."""
    return TaskSnapshot(
        id=document.id,
        queue=document.queue,
        name=document.name,
        state=STATES[document.state],
        body=document.body,
        priority=document.priority,
        attempt=document.attempt,
        max_attempts=document.max_attempts,
        crashes=document.crashes,
        max_crashes=document.max_crashes,
        fence=document.fence,
        enqueued_at=document.enqueued_at,
        run_at=document.run_at,
        expires_at=document.expires_at,
        finished_at=document.finished_at,
        worker_id=worker_id,
        lease_expires_at=lease_ends,
        unique_key=document.unique_key,
        cancel_requested=document.cancel,
        reason=document.reason,
        error=document.error,
    )


def result_of(document: Document, now: float) -> ResultRecord | None:
    """The result record that a settlement left in the document, unless its time is over."""
    if document.result is None or not document.is_final:
        return None
    ends = document.result_ends_at
    if ends is not None and ends <= now:
        return None
    stored = document.finished_at or 0.0
    return ResultRecord(
        document.id,
        document.settled,
        STATES[document.state],
        document.result,
        None if ends is None else ends - stored,
        True,
        stored,
        ends,
    )
