"""Enqueuing: hints first, then the documents, all of a batch or none."""

from __future__ import annotations

import time
from collections.abc import Sequence

from omniq_core import Enqueued, Outcome, TaskRecord, TooLarge
from omniq_nats.documents import Document, check, encode
from omniq_nats.jetstream import CONFLICT, Write, head
from omniq_nats.lines import payload
from omniq_nats.tasks import PATIENCE_S, Tasks

__all__ = ["Enqueueing"]

OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE
OVERHEAD = 8 * 1024
"""What else stands in a task's message, at most, when it is new."""
PAIRS = 450
"""Most tasks with a unique key in one atomic batch: two messages each, of a thousand."""


class Enqueueing:
    """See :meth:`omniq_core.Queue.enqueue`."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._known: set[str] = set()

    async def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        most = self._tasks.client.max_payload - OVERHEAD
        for record in records:
            check(record)
            if len(record.body) > most:
                raise TooLarge(
                    f"the body of task {record.id!r} has {len(record.body)} bytes, and with the server's max_payload at most "
                    f"{most} fit: raise that, or send less",
                    "nats",
                )
        await self._know({record.queue for record in records})
        answers: list[Enqueued | None] = [None] * len(records)
        left = list(range(len(records)))
        while left:
            # An id or key that comes again waits for what became of the first.
            turn, left = _apart(records, left)
            found = await self._store([records[index] for index in turn])
            for index, answer in zip(turn, found, strict=True):
                answers[index] = answer
        stored = [r.queue for r, a in zip(records, answers, strict=True) if a is not None and a.outcome is OK]
        self._tasks.wake(stored)
        return [answer for answer in answers if answer is not None]

    async def _know(self, queues: set[str]) -> None:
        new = queues - self._known
        if new:
            subjects = self._tasks.subjects
            await self._tasks.js.write([(subjects.queue(queue), head(0), b"") for queue in sorted(new)])
            self._known |= new

    async def _store(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        answers: dict[str, Enqueued] = {}
        todo = list(records)
        hopeful = all(record.unique_key is None for record in records)
        for _ in range(100):
            keys: dict[str, int] = {}
            shadows: dict[str, int] = {}
            if not hopeful:
                todo, keys, shadows = await self._sort_out(todo, answers)
            if not todo:
                break
            part = todo if not keys else todo[:PAIRS]
            if await self._try(part, keys, shadows):
                answers.update((record.id, Enqueued(OK, record.id)) for record in part)
                todo = todo[len(part) :]
                if not todo:
                    break
            hopeful = False
        else:
            raise RuntimeError("a batch of tasks met others on the way a hundred times")
        return [answers[record.id] for record in records]

    async def _sort_out(
        self, records: list[TaskRecord], answers: dict[str, Enqueued]
    ) -> tuple[list[TaskRecord], dict[str, int], dict[str, int]]:
        """Takes out the tasks that are known and the keys that are held; the sequences of the keys' messages, and of those
        tasks that are known as shadows only."""
        tasks = self._tasks
        known = await tasks.read([record.id for record in records])
        shadows = {task_id: known.pop(task_id)[0] for task_id in await tasks.shadows.among(known.values())}
        new = []
        for record in records:
            if record.id in known:
                answers[record.id] = Enqueued(DUPLICATE, record.id)
            else:
                new.append(record)
        holders = await self.holders([record.unique_key for record in new if record.unique_key is not None])
        free = []
        keys: dict[str, int] = {}
        for record in new:
            key = record.unique_key
            if key is not None:
                keys[key], holder = holders[key]
                if holder is not None:
                    answers[record.id] = Enqueued(Outcome.CONFLICT, holder)
                    continue
            free.append(record)
        return free, keys, shadows

    async def holders(self, keys: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        """For each unique key the sequence of its message, and the pending or running task that holds it."""
        tasks = self._tasks
        if not keys:
            return {}
        subjects = {tasks.subjects.key(key): key for key in keys}
        found = await tasks.js.newest(tasks.subjects.tasks, list(subjects), fresh=True)
        claimants = {subject: stored.payload.decode() for subject, stored in found.items()}
        documents = await tasks.read(list(claimants.values()))
        for task_id in await tasks.shadows.among(documents.values()):
            del documents[task_id]
        answer: dict[str, tuple[int, str | None]] = {}
        for subject, key in subjects.items():
            seq, holder = 0, None
            if subject in found:
                seq = found[subject].seq
                version = documents.get(claimants[subject])
                if version is not None and not version[1].is_final and version[1].unique_key == key:
                    holder = version[1].id
            answer[key] = (seq, holder)
        return answer

    async def _try(
        self, records: Sequence[TaskRecord], keys: dict[str, int], shadows: dict[str, int]
    ) -> bool:
        """Stores all of these tasks or none; whether it did."""
        tasks = self._tasks
        started = time.monotonic()
        now = await tasks.lines.now()
        hints: list[tuple[str, bytes]] = []
        for record in records:
            due = now + record.delay_s if record.delay_s > 0 else now
            subject, due_ms = tasks.lines.place_for(record.queue, record.priority, due, now)
            hints.append((subject, payload(record.id, 0, due_ms)))
        marks = [
            tasks.lines.expiry_mark(record.id, now + record.ttl_s, now)
            for record in records
            if record.ttl_s is not None
        ]
        places = (await tasks.lines.put(hints + marks))[: len(records)]
        writes: list[Write] = []
        for record, place in zip(records, places, strict=True):
            if record.unique_key is not None:
                key = record.unique_key
                writes.append((tasks.subjects.key(key), head(keys[key]), record.id.encode()))
            replaced = head(shadows.get(record.id, 0))
            writes.append((tasks.subjects.task(record.id), replaced, encode(_document(record, now, place))))
        if len(writes) == 1:
            answer = await tasks.js.write_one(*writes[0])
        else:
            answer = await tasks.js.write_atomically(writes)
        if answer == CONFLICT:
            await tasks.lines.drop(places)
        elif time.monotonic() - started > PATIENCE_S:
            await tasks.put_again([record.id for record in records])
        return answer != CONFLICT


def _document(record: TaskRecord, now: float, place: int) -> Document:
    return Document(
        record.id, record.queue, record.name, record.priority, record.body, record.max_attempts, record.max_crashes,
        record.unique_key, now, place, place, now + record.delay_s if record.delay_s > 0 else now,
        None if record.ttl_s is None else now + record.ttl_s,
    )  # fmt: skip


def _apart(records: Sequence[TaskRecord], indexes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Those of different ids and keys, and the rest."""
    ids: set[str] = set()
    keys: set[str] = set()
    turn, rest = [], []
    for index in indexes:
        record = records[index]
        if record.id in ids or record.unique_key in keys:
            rest.append(index)
            continue
        ids.add(record.id)
        if record.unique_key is not None:
            keys.add(record.unique_key)
        turn.append(index)
    return turn, rest
