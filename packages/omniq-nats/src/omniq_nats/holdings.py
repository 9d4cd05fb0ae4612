"""What a claim holds: one lease for all of its tasks, and which of them are settled.

``c.<claim id>`` is small and is rewritten when the lease is extended or some of the tasks are settled. The ids stand in
``k.<claim id>.<part>`` and stay; that is written first, so a claim that is known is known with its tasks. Both go when the
last task is settled, or when the lease has ended and its tasks were given to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from omniq_nats.documents import Document
from omniq_nats.jetstream import CONFLICT, JetStream, head
from omniq_nats.subjects import Subjects

__all__ = ["Entry", "Held", "Holding", "Holdings", "Lease"]


class Lease(msgspec.Struct, array_like=True, frozen=True):
    """``c.<claim id>``."""

    claim_id: str
    worker_id: str
    ends_at: float
    part: str
    """Under what the ids are stored. Two calls with one claim id must not write over each other's."""
    queues: list[tuple[str, int]]
    """How many tasks of which queue, in the order of the ids."""
    closed: bytes = b""
    """A bit for each task that is settled, lowest first."""
    taken_over: bool = False
    """The lease has ended, and somebody gives its tasks to others: it cannot be extended any more."""

    def open_in(self) -> dict[str, int]:
        """How many tasks of which queue are not settled."""
        bits = int.from_bytes(self.closed, "little")
        found: dict[str, int] = {}
        start = 0
        for queue, count in self.queues:
            settled = ((bits >> start) & ((1 << count) - 1)).bit_count()
            found[queue] = found.get(queue, 0) + count - settled
            start += count
        return found

    @property
    def count(self) -> int:
        return sum(count for _, count in self.queues)


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One task of a claim."""

    task_id: str
    hint: int
    """The hint by which it was claimed."""


_encode = msgspec.msgpack.Encoder().encode
_decode_lease = msgspec.msgpack.Decoder(Lease).decode
_decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode


class Holding:
    """A claim, as far as we know it: its lease and the sequence of that message.

    Leases are extended by another thread than tasks are settled. So the two stand in one attribute and are never taken apart:
    an old lease under a new sequence would undo what the other thread has just written.
    """

    __slots__ = ("now",)

    def __init__(self, lease: Lease, seq: int) -> None:
        self.now: tuple[Lease, int] = (lease, seq)

    @property
    def lease(self) -> Lease:
        return self.now[0]


class Held:
    """One task of a claim, as its owner has it: the handle of a lease. It spares reading before settling."""

    __slots__ = ("document", "holding", "index", "seq")

    def __init__(self, holding: Holding, index: int, document: Document, seq: int) -> None:
        self.holding, self.index, self.document, self.seq = holding, index, document, seq


class Holdings:
    """The claims of a project."""

    def __init__(self, streams: JetStream, subjects: Subjects) -> None:
        self._js = streams
        self._subjects = subjects
        self._stream = subjects.claims

    async def begin(self, lease: Lease, entries: Sequence[Entry]) -> Holding | None:
        """Records what a claim is about to take. ``None``: a claim of that id is there already."""
        claimed = self._subjects.claimed(lease.claim_id, lease.part)
        writes = [
            (claimed, b"", _encode(entries)),
            (self._subjects.lease(lease.claim_id), head(0), _encode(lease)),
        ]
        entries_seq, seq = await self._js.write(writes)
        if seq == CONFLICT:
            await self._js.delete(self._stream, [entries_seq])
            return None
        return Holding(lease, seq)

    async def find(self, claim_id: str) -> Holding | None:
        """A claim that still holds something."""
        subject = self._subjects.lease(claim_id)
        found = await self._js.newest(self._stream, [subject], fresh=True)
        return (
            Holding(_decode_lease(found[subject].payload), found[subject].seq) if subject in found else None
        )

    async def entries(self, lease: Lease) -> list[Entry]:
        """The tasks of a claim; none if it has ended."""
        subject = self._subjects.claimed(lease.claim_id, lease.part)
        found = await self._js.newest(self._stream, [subject], fresh=True)
        return _decode_entries(found[subject].payload) if subject in found else []

    async def leases(self, claim_ids: Iterable[str]) -> dict[str, Lease]:
        """The leases of some claims."""
        subjects = {self._subjects.lease(claim_id): claim_id for claim_id in claim_ids}
        if not subjects:
            return {}
        found = await self._js.newest(self._stream, list(subjects), fresh=True)
        return {subjects[subject]: _decode_lease(stored.payload) for subject, stored in found.items()}

    async def all(self) -> list[Holding]:
        """Every claim that holds something."""
        found = await self._js.matching(self._stream, self._subjects.root + "c.*")
        return [Holding(_decode_lease(stored.payload), stored.seq) for stored in found]

    async def rewrite(self, holding: Holding, seq: int, lease: Lease) -> bool:
        """Replaces the lease, unless somebody else did since ``seq``."""
        written = await self._js.write_one(self._subjects.lease(lease.claim_id), head(seq), _encode(lease))
        if written == CONFLICT:
            return False
        holding.now = lease, written
        return True

    async def refresh(self, holding: Holding) -> bool:
        """Reads the lease again; whether it is still there."""
        found = await self.find(holding.lease.claim_id)
        if found is None:
            return False
        holding.now = found.now
        return True

    async def end(self, lease: Lease, seq: int) -> bool:
        """Deletes a claim, unless its lease was written anew since ``seq``."""
        [deleted] = await self._js.delete(self._stream, [seq])
        if deleted:
            self._js.purge_soon(self._stream, self._subjects.claimed(lease.claim_id, lease.part))
        return deleted

    async def close(self, holding: Holding, indexes: Iterable[int]) -> None:
        """Notes that some of a claim's tasks are settled, and deletes it with the last."""
        wanted = 0
        for index in indexes:
            wanted |= 1 << index
        while True:
            lease, seq = holding.now
            bits = int.from_bytes(lease.closed, "little")
            if bits | wanted == bits and lease.count != bits.bit_count():
                return
            bits |= wanted
            if bits.bit_count() == lease.count:
                if await self.end(lease, seq):
                    return
            else:
                size = (lease.count + 7) // 8
                changed = msgspec.structs.replace(lease, closed=bits.to_bytes(size, "little"))
                if await self.rewrite(holding, seq, changed):
                    return
            if not await self.refresh(holding):
                return
