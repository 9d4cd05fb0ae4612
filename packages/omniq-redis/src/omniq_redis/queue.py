"""The queue: one script per call. What a script does is told at its top, in ``lua/``; what the keys mean, in ``keys``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omniq_core import (
    Claim,
    Enqueued,
    Extension,
    Lease,
    Limits,
    Maintained,
    Moved,
    Outcome,
    Page,
    Queue,
    QueueStats,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    TooLarge,
    Verb,
)
from omniq_redis.connection import Client
from omniq_redis.envelope import EXPIRED, STATE_OF, WORKER_LOST, claims_of, millis, note, pack, snapshot_of
from omniq_redis.options import RedisOptions
from omniq_redis.wakeup import Wakeup

__all__ = ["RedisQueue"]

OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE
SETTLED = {"o": OK, "d": DUPLICATE, "s": Outcome.STALE, "n": Outcome.NOT_FOUND}
CANCELLED = {"o": OK, "r": Outcome.REQUESTED, "f": Outcome.FINISHED, "n": Outcome.NOT_FOUND}
REQUEUED = {"o": OK, "d": DUPLICATE, "f": Outcome.FINISHED, "c": Outcome.CONFLICT, "n": Outcome.NOT_FOUND}
OPS = {Verb.SUCCEED: "S", Verb.DEAD: "D", Verb.CANCEL: "C", Verb.RETRY: "R", Verb.RELEASE: "L"}
LETTER_OF = {state: letter for letter, state in STATE_OF.items()}
MOST_BYTES = 256 * 1024 * 1024
"""Of one batch: the server copies it a few times while it works on it, and closes connections that send a gigabyte."""


class RedisQueue(Queue):
    """See :class:`omniq_core.Queue`."""

    backend_name = "redis"

    def __init__(
        self, client: Client, wakeup: Wakeup, options: RedisOptions, limits: Limits, *, has_msetex: bool
    ) -> None:
        self._client = client
        self._wakeup = wakeup
        self._retention_ms = millis(options.retention_s)
        self._msetex = "1" if has_msetex else "0"
        self.limits = limits

    # --- enqueue ------------------------------------------------------------------------------------------------

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        if not records:
            return []
        if len(records) == 1:
            [record] = records
            if record.delay_s <= 0 and record.ttl_s is None and record.unique_key is None:
                envelope = pack(record, 0)
                _check_size(len(envelope), "enqueue")
                stored = await self._client.script(
                    "enqueue", self._retention_ms, 1, 1, record.queue, record.priority, 1, record.id, envelope
                )
                if stored:
                    return [Enqueued(OK, record.id)]
            return await self._enqueue_each(records)
        lines: dict[tuple[str, int], tuple[list[str], list[bytes]]] = {}
        seen: set[str] = set()
        size = 0
        is_plain = True
        for index, record in enumerate(records):
            if record.delay_s > 0 or record.ttl_s is not None or record.unique_key is not None:
                is_plain = False
                break
            envelope = pack(record, index)
            size += len(envelope)
            line = lines.get((record.queue, record.priority))
            if line is None:
                line = lines[record.queue, record.priority] = ([], [])
            line[0].append(record.id)
            line[1].append(envelope)
            seen.add(record.id)
        # An id twice in one MSETNX would be stored twice, so such a batch takes the long way.
        if is_plain and len(seen) == len(records):
            _check_size(size, "enqueue")
            words: list[Any] = [self._retention_ms, len(records), len(lines)]
            for (queue, priority), (ids, _) in lines.items():
                words += (queue, priority, len(ids))
            for ids, _ in lines.values():
                words += ids
            for _, envelopes in lines.values():
                words += envelopes
            if await self._client.script("enqueue", *words):
                return [Enqueued(OK, record.id) for record in records]
        return await self._enqueue_each(records)

    async def _enqueue_each(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        words: list[Any] = [self._retention_ms]
        size = 0
        for index, record in enumerate(records):
            envelope = pack(record, index)
            size += len(envelope)
            words += (
                record.id,
                envelope,
                record.queue,
                record.priority,
                millis(record.delay_s) if record.delay_s > 0 else 0,
                -1 if record.ttl_s is None else millis(record.ttl_s),
                "" if record.unique_key is None else "k" + record.unique_key,
            )
        _check_size(size, "enqueue")
        answers = await self._client.script("enqueue_each", *words)
        found = []
        for record, answer in zip(records, answers, strict=True):
            if isinstance(answer, int):
                found.append(Enqueued(OK if answer else DUPLICATE, record.id))
            else:
                found.append(Enqueued(Outcome.CONFLICT, answer.decode()))
        return found

    # --- claim, settle, extend ----------------------------------------------------------------------------------

    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        answer = await self._client.script("claim", max_tasks, millis(lease_s), worker_id, claim_id, *queues)
        return claims_of(answer) if answer else []

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        if not settlements:
            return []
        ops: list[str] = []
        ids: list[str] = []
        fences: list[int] = []
        delays: list[int] = []
        notes: list[bytes] = []
        results: list[bytes] = []
        ttls: list[int] = []
        any_delay = any_note = any_crash = False
        size = 0
        for settlement in settlements:
            lease, result = settlement.lease, settlement.result
            ids.append(lease.task_id)
            fences.append(lease.fence)
            op = OPS[settlement.verb]
            if result is not None:
                op = op.lower()
                results.append(result)
                size += len(result)
                ttl_s = settlement.result_ttl_s
                ttls.append(self._retention_ms if ttl_s is None else millis(ttl_s))
            ops.append(op)
            any_delay |= settlement.delay_s > 0
            any_note |= settlement.reason is not None or settlement.error is not None
            any_crash |= settlement.crashed
        if any_delay:
            delays = [millis(s.delay_s) if s.delay_s > 0 else 0 for s in settlements]
        if any_note:
            notes = [note(s.reason, s.error) for s in settlements]
            size += sum(map(len, notes))
        _check_size(size, "settle")
        crashed = "".join("1" if s.crashed else "0" for s in settlements) if any_crash else ""
        # A worker settles what it claimed: most batches have one fence, and nearly all one time to live.
        one_fence = len(set(fences)) == 1
        one_ttl = len(set(ttls)) == 1
        answer = await self._client.script(
            "settle", len(ids), "".join(ops), crashed, fences[0] if one_fence else "", max(1, ttls[0]) if one_ttl else "",
            self._msetex, len(delays), len(notes), *ids, *(() if one_fence else fences), *delays, *notes, *results,
            *(() if one_ttl else [max(1, ttl) for ttl in ttls]),
        )  # fmt: skip
        if isinstance(answer, int):
            return [OK] * answer
        return [SETTLED[letter] for letter in answer.decode()]

    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        if not leases:
            return []
        ids, fences = [lease.task_id for lease in leases], [lease.fence for lease in leases]
        answers = await self._client.script("extend", millis(lease_s), len(leases), *ids, *fences)
        return [
            Extension(OK, abs(ends) / 1000, ends < 0) if ends else Extension(Outcome.STALE)
            for ends in answers
        ]

    # --- looking ------------------------------------------------------------------------------------------------

    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        if not task_ids:
            return []
        values = await self._client.script("get", *task_ids)
        return [
            None if values[i] is None else snapshot_of(*values[i : i + 5]) for i in range(0, len(values), 5)
        ]

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        found = await self._scan(which, limit + 1, cursor or "")
        more = len(found) > limit
        found = found[:limit]
        tasks: list[TaskSnapshot] = []
        for start in range(0, len(found), self.limits.max_batch):
            some = await self.get([task_id for task_id, _ in found[start : start + self.limits.max_batch]])
            # One may have moved on since it was found.
            tasks += [
                task for task in some if task is not None and (not which.states or task.state in which.states)
            ]
        return Page(tasks, str(found[-1][1]) if more else None)

    async def _scan(self, which: TaskFilter, want: int, below: str | int) -> list[tuple[str, int]]:
        """Ids and places of matching tasks, newest first. Fewer than ``want``: there are no more."""
        found: list[tuple[str, int]] = []
        words: list[Any] = [
            "".join(LETTER_OF[state] for state in which.states),
            "" if which.enqueued_after is None else repr(which.enqueued_after * 1000),
            "" if which.enqueued_before is None else repr(which.enqueued_before * 1000),
        ]
        segment: str | int = ""
        while True:
            segment, *matches = await self._client.script(
                "scan",
                segment,
                below,
                *words,
                want - len(found),
                len(which.queues),
                *which.queues,
                *which.names,
            )
            found += [(matches[i].decode(), int(matches[i + 1])) for i in range(0, len(matches), 2)]
            if segment == -1 or len(found) >= want:
                return found

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        if not queues:
            return []
        v = await self._client.script("stats", *queues)
        return [
            QueueStats(
                queue, v[i], v[i + 1], v[i + 2], bool(v[i + 3]), None if v[i + 4] < 0 else v[i + 4] / 1000
            )
            for queue, i in zip(queues, range(0, len(v), 5), strict=True)
        ]

    async def queue_names(self) -> Sequence[str]:
        names = await self._client.call("SMEMBERS", self._client.key("q"))
        return sorted(name.decode() for name in names)

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        return await self._wakeup.wait(queues, timeout_s)

    # --- upkeep -------------------------------------------------------------------------------------------------

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        # Three scripts, so that claims come in between.
        reaped = await self._client.script("reap", limit)
        expired = await self._client.script("expire", limit)
        pruned, more = await self._client.script("prune", self._retention_ms, limit)
        moved = [*_moved(reaped, WORKER_LOST), *_moved(expired, EXPIRED)]
        return Maintained(moved, pruned, more=bool(reaped[0] or expired[0] or more))

    # --- features -----------------------------------------------------------------------------------------------

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        if not task_ids:
            return []
        return [CANCELLED[letter] for letter in (await self._client.script("cancel", *task_ids)).decode()]

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        if not task_ids:
            return []
        return [REQUEUED[letter] for letter in (await self._client.script("requeue", *task_ids)).decode()]

    async def pause(self, queues: Sequence[str], /) -> None:
        if queues:
            await self._client.call("SADD", self._client.key("paused"), *queues)

    async def resume(self, queues: Sequence[str], /) -> None:
        if queues:
            await self._client.script("resume", *queues)

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        states = [state for state in which.states or TaskState if state is not TaskState.RUNNING]
        if not states:
            return 0
        which = TaskFilter(
            queues=which.queues,
            names=which.names,
            states=states,
            enqueued_after=which.enqueued_after,
            enqueued_before=which.enqueued_before,
        )
        letters = "".join(LETTER_OF[state] for state in states)
        purged, below = 0, ""
        while (want := min(limit - purged, 1000)) > 0:
            found = await self._scan(which, want, below)
            if found:
                purged += await self._client.script("purge", letters, *(task_id for task_id, _ in found))
                below = str(found[-1][1])
            if len(found) < want:
                break
        return purged


def _moved(values: list[Any], reason: str) -> list[Moved]:
    moved = []
    for i in range(1, len(values), 8):
        task_id, queue, name, letter, fence, attempt, crashes, worker = values[i : i + 8]
        moved.append(
            Moved(
                task_id.decode(),
                queue.decode(),
                name.decode(),
                STATE_OF[letter.decode()],
                fence,
                attempt,
                crashes,
                reason,
                worker.decode() or None,
            )
        )
    return moved


def _check_size(size: int, call: str) -> None:
    if size > MOST_BYTES:
        raise TooLarge(
            f"one call of {call} holds {size} bytes, and the Redis backend sends at most {MOST_BYTES}: use smaller batches",
            "redis",
        )
