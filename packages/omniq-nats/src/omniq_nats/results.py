"""Results: those that were settled stand in the task's document, those that were put by themselves in a message of their own.

Where both are there, the one of the higher fence counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
from collections.abc import Sequence

import msgspec

from omniq_core import Closed, Outcome, ResultRecord, ResultStore, TaskState
from omniq_nats.documents import Document, decode, result_of
from omniq_nats.jetstream import CONFLICT, head
from omniq_nats.queue import Through
from omniq_nats.tasks import Tasks
from omniq_nats.told import LOOK_AGAIN_S, Told

__all__ = ["NatsResultStore"]


class Record(msgspec.Struct, array_like=True, gc=False):
    """``r.<id>``."""

    id: str
    fence: int
    state: str
    body: bytes
    is_final: bool
    stored_at: float
    ends_at: float
    ttl_s: float | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class _Found:
    """What there is of one task's result."""

    __slots__ = ("document", "document_seq", "record", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self.record: Record | None = None
        self.document: Document | None = None
        self.document_seq = 0

    def best(self, now: float) -> ResultRecord | None:
        settled = result_of(self.document, now) if self.document is not None else None
        record = self.record
        if record is None or record.ends_at <= now:
            return settled
        if settled is not None and settled.fence >= record.fence:
            return settled
        return ResultRecord(
            record.id, record.fence, TaskState(record.state), record.body, record.ttl_s, record.is_final,
            record.stored_at, record.ends_at,
        )  # fmt: skip


class NatsResultStore(ResultStore):
    """See :class:`omniq_core.ResultStore`."""

    def __init__(self, tasks: Tasks, through: Through) -> None:
        self._tasks = tasks
        self._through = through
        self._told = Told(tasks.client, tasks.subjects)
        self._is_closed = False

    async def _find(self, task_ids: Sequence[str], *, fresh: bool = True) -> dict[str, _Found]:
        subjects = self._tasks.subjects
        names: dict[str, str] = {}
        for task_id in task_ids:
            names[subjects.task(task_id)] = task_id
            names[subjects.result(task_id)] = task_id
        stored = await self._tasks.js.newest(subjects.tasks, list(names), fresh=fresh)
        found = {task_id: _Found() for task_id in task_ids}
        for subject, message in stored.items():
            entry = found[names[subject]]
            if subject == subjects.task(names[subject]):
                entry.document, entry.document_seq = decode(message.payload), message.seq
            else:
                entry.record, entry.seq = _decode(message.payload), message.seq
        return found

    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        if not task_ids:
            return []
        now = await self._tasks.lines.now()
        found = await self._find(list(dict.fromkeys(task_ids)))
        return [found[task_id].best(now) for task_id in task_ids]

    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        return await self._through(self._put(records)) if records else []

    async def _put(self, records: Sequence[ResultRecord]) -> list[Outcome]:
        tasks = self._tasks
        answers: dict[int, Outcome] = {}
        left = list(range(len(records)))
        now = await tasks.lines.now()
        while left:
            turn: list[int] = []
            later: list[int] = []
            seen: set[str] = set()
            for index in left:
                (later if records[index].task_id in seen else turn).append(index)
                seen.add(records[index].task_id)
            found = await self._find(list(seen))
            writes = []
            written = []
            for index in turn:
                record = records[index]
                old = found[record.task_id].best(now)
                if old is not None and old.fence > record.fence:
                    answers[index] = Outcome.STALE
                elif old is not None and old.fence == record.fence and (old.final or not record.final):
                    answers[index] = Outcome.DUPLICATE
                else:
                    lives_s = tasks.options.retention_s if record.ttl_s is None else record.ttl_s
                    data = _encode(
                        Record(
                            record.task_id, record.fence, record.state.value, record.body, record.final, now,
                            now + lives_s, record.ttl_s,
                        )
                    )  # fmt: skip
                    expected = found[record.task_id].seq
                    header = head(expected, max(1, math.ceil(lives_s)))
                    writes.append((tasks.subjects.result(record.task_id), header, data))
                    written.append(index)
            left = later
            # Also what is provisional: who waits takes what it has not heard of for absent.
            stored = await tasks.js.write(writes, tasks.subjects.finished)
            for index, answer in zip(written, stored, strict=True):
                if answer == CONFLICT:
                    left.append(index)
                else:
                    answers[index] = Outcome.OK
            left.sort()
        return [answers[index] for index in range(len(records))]

    async def delete(self, task_ids: Sequence[str], /) -> int:
        return await self._through(self._delete(task_ids)) if task_ids else 0

    async def _delete(self, task_ids: Sequence[str]) -> int:
        tasks = self._tasks
        now = await tasks.lines.now()
        deleted: set[str] = set()
        left = list(dict.fromkeys(task_ids))
        while left:
            found = await self._find(left)
            live = {task_id for task_id, entry in found.items() if entry.best(now) is not None}
            await tasks.js.delete(tasks.subjects.tasks, [entry.seq for entry in found.values() if entry.seq])
            changes = []
            for entry in found.values():
                document = entry.document
                if document is not None and document.result is not None and document.is_final:
                    changed = copy.copy(document)
                    changed.result = changed.result_ends_at = None
                    changes.append((changed, entry.document_seq))
            answers = await tasks.change(changes, now)
            deleted |= live
            left = [d.id for (d, _), answer in zip(changes, answers, strict=True) if answer == CONFLICT]
        return len(deleted)

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        if not task_ids:
            return []
        if self._is_closed:
            raise Closed("nats")
        if timeout_s <= 0:
            return await self.get(task_ids)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        found: dict[str, ResultRecord | None] = dict.fromkeys(task_ids)
        over: set[str] = set()
        woken = asyncio.Event()
        # Listening first: what comes in between is either seen or wakes.
        self._told.listen(found, woken)
        try:
            while True:
                woken.clear()
                began = loop.time()
                # At the end the answer is what there is then, heard of or not.
                is_the_end = began >= end
                asked = self._told.unknown(found, math.inf if is_the_end else began)
                if asked:
                    looked = await self.get(list(asked))
                    self._told.looked(asked, looked, began)
                    found.update(zip(asked, looked, strict=True))
                    over = {record.task_id for record in looked if record is not None and record.final}
                if is_the_end or over:
                    return [found[task_id] for task_id in task_ids]
                left = max(0.0, end - loop.time())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_AGAIN_S)):
                        await woken.wait()
                if self._is_closed:
                    raise Closed("nats")
        finally:
            self._told.leave(found, over, woken)

    def lost(self) -> None:
        """The connection broke: whoever waits looks again."""
        self._told.lost()

    def close(self) -> None:
        """Ends all waits."""
        self._is_closed = True
        self._told.close()
