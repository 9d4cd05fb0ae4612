"""The task queue as the contract wants it: calls made of records, answers made of the machine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omniq_core import (
    Capability,
    Claim,
    Enqueued,
    Extension,
    Lease,
    Limits,
    Maintained,
    Outcome,
    Page,
    Queue,
    QueueStats,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
    Unsupported,
)  # fmt: skip
from omniq_file import operations as op
from omniq_file.bell import queue_key
from omniq_file.call import Call, Wanted
from omniq_file.commit import Place
from omniq_file.index import DELAYED, RUNNING, Task
from omniq_file.machine import TaskMachine
from omniq_file.opened import Opened
from omniq_file.selecting import matching, newest_first

__all__ = ["FileQueue"]

MOST_COUNTED = 10_000
"""How many tasks that just fell due are counted for ``stats`` one by one."""


class FileQueue(Queue):
    """Tasks of one opened backend."""

    backend_name = "file"

    def __init__(self, opened: Opened, limits: Limits) -> None:
        self._opened = opened
        self.limits = limits
        self._seen: dict[str, int] = {}
        """A queue's rings as of the last look that found it empty."""

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        if not records:
            self._opened.clerk()
            return []
        kinds: dict[tuple[str, str, int, int, int], int] = {}
        rows: list[tuple[Any, ...]] = []
        for record in records:
            kind = (record.queue, record.name, record.priority, record.max_attempts, record.max_crashes)
            code = kinds.setdefault(kind, len(kinds))
            if record.delay_s or record.ttl_s is not None or record.unique_key is not None:
                ttl_s = None if record.ttl_s is None else seconds(record.ttl_s)
                rows.append(
                    (record.id, code, len(record.body), seconds(record.delay_s), ttl_s, record.unique_key)
                )
            else:
                rows.append((record.id, code, len(record.body)))
        operation = (op.ENQUEUE, list(kinds), rows)
        answers: Sequence[Enqueued] = await self._opened.do(
            Call(operation, _as_it_is, [record.body for record in records], len(rows))
        )
        return answers

    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        rings = self._opened.bell().rings(map(queue_key, queues))
        operation = (op.CLAIM, list(queues), int(max_tasks), seconds(lease_s), worker_id, claim_id)
        claims: Sequence[Claim] = await self._opened.do(Call(operation, _claims, items=max_tasks))
        if not claims:
            self._seen.update(zip(queues, rings, strict=True))
        return claims

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        if not settlements:
            self._opened.clerk()
            return []
        rows: list[tuple[Any, ...]] = []
        blobs: list[bytes] = []
        for s in settlements:
            result, error = s.result, s.error
            row: tuple[Any, ...] = (
                s.lease.task_id, s.lease.fence, op.VERB_CODES[s.verb], None if result is None else len(result),
                None if s.result_ttl_s is None else seconds(s.result_ttl_s),
            )  # fmt: skip
            if s.delay_s or s.reason is not None or error is not None or s.crashed:
                if error is not None:
                    blobs.append(error)
                row += (seconds(s.delay_s), s.reason, None if error is None else len(error), bool(s.crashed))
            if result is not None:
                blobs.append(result)
            rows.append(row)
        answers: Sequence[Outcome] = await self._opened.do(
            Call((op.SETTLE, rows), _as_it_is, blobs, len(rows))
        )
        return answers

    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        if not leases:
            self._opened.clerk()
            return []
        rows = [(lease.task_id, lease.fence) for lease in leases]
        answers: Sequence[Extension] = await self._opened.do(
            Call((op.EXTEND, rows, seconds(lease_s)), _as_it_is, items=len(rows))
        )
        return answers

    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        if not task_ids:
            self._opened.clerk()
            return []

        def look(machine: TaskMachine, _: Any, __: float) -> Wanted:
            return _snapshots(machine, [machine.tasks.get(task_id) for task_id in task_ids])

        answers: Sequence[TaskSnapshot | None] = await self._opened.do(Call(None, look, items=len(task_ids)))
        return answers

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        bell = self._opened.bell()
        keys = [queue_key(name) for name in queues]
        due_s = self._seconds_to_next_due(queues)
        if due_s is not None:
            timeout_s = min(timeout_s, max(due_s, 0.001))
        seen = [self._seen.get(name, 0) for name in queues]
        woken = await self._opened.wait(keys, timeout_s, lambda: bell.rings(keys) != seen)
        return woken or due_s is not None

    def _seconds_to_next_due(self, queues: Sequence[str]) -> float | None:
        """As of the last look. Reads what the clerk's thread writes, so it may be off by a moment."""
        machine = self._opened.tasks()
        due = []
        for home in map(machine.queues.get, queues):
            try:
                if home is not None and not home.paused:
                    due.append(home.waiting[0][0])
            except IndexError:
                continue
        return min(due) - self._opened.clock.time() if due else None

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        result: Maintained = await self._opened.do(Call((op.MAINTAIN, int(limit)), _as_it_is))
        return result

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return await self._by_id(op.CANCEL, task_ids)

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return await self._by_id(op.REQUEUE, task_ids)

    async def _by_id(self, code: int, task_ids: Sequence[str]) -> Sequence[Outcome]:
        if not task_ids:
            self._opened.clerk()
            return []
        answers: Sequence[Outcome] = await self._opened.do(
            Call((code, list(task_ids)), _as_it_is, items=len(task_ids))
        )
        return answers

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        before = None if cursor is None else int(cursor)
        conditions = _conditions(which)

        def look(machine: TaskMachine, _: Any, __: float) -> Wanted:
            found: list[Task] = []
            for task in matching(machine, conditions, newest_first(machine, which.states)):
                if before is None or task.seq < before:
                    found.append(task)
                    if len(found) > limit:
                        break
            after = str(found[limit - 1].seq) if len(found) > limit else None
            wanted = _snapshots(machine, found[:limit])
            build = wanted.build
            wanted.build = lambda bodies: Page(build(bodies), after)
            return wanted

        page: Page[TaskSnapshot] = await self._opened.do(Call(None, look, items=limit))
        return page

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        names = list(queues)

        def look(machine: TaskMachine, _: Any, now: float) -> list[QueueStats]:
            return [_stats(machine, name, now) for name in names]

        answers: Sequence[QueueStats] = await self._opened.do(Call(None, look))
        return answers

    async def queue_names(self) -> Sequence[str]:
        def look(machine: TaskMachine, _: Any, __: float) -> list[str]:
            return sorted(name for name, queue in machine.queues.items() if queue.used)

        answers: Sequence[str] = await self._opened.do(Call(None, look))
        return answers

    async def pause(self, queues: Sequence[str], /) -> None:
        await self._opened.do(Call((op.PAUSE, list(queues), True), _as_it_is))

    async def resume(self, queues: Sequence[str], /) -> None:
        await self._opened.do(Call((op.PAUSE, list(queues), False), _as_it_is))

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        deleted: int = await self._opened.do(
            Call((op.PURGE, _conditions(which), int(limit)), _as_it_is, items=limit)
        )
        return deleted

    def _unsupported(self, capability: Capability) -> Unsupported:
        self._opened.tasks()
        return Unsupported(capability, self.backend_name, self._opened.absent.get(capability, ""))


def seconds(value: float) -> float:
    """A duration as it is written into a commit, where nothing may stand that no process could apply.

    Raises:
        ValueError: not a number.
    """
    value = float(value)
    if value != value:
        raise ValueError("a duration must be a number of seconds, got nan")
    return value


def _as_it_is(_machine: Any, answer: Any, _now: float) -> Any:
    return answer


def _conditions(which: TaskFilter) -> tuple[Any, ...]:
    return (
        list(which.queues), list(which.names), [state.value for state in which.states], which.enqueued_after,
        which.enqueued_before,
    )  # fmt: skip


def _claims(machine: TaskMachine, tasks: Sequence[Task], _: float) -> Any:
    if not tasks:
        return []
    kinds, claims = machine.kinds, machine.claims
    found = [
        (
            t.id,
            kinds[t.kind],
            t.attempt,
            t.crashes,
            t.enqueued_at,
            Lease(t.id, t.fence, claims[t.fence].until),
        )
        for t in tasks
    ]

    def build(bodies: Sequence[bytes | None]) -> list[Claim]:
        return [
            Claim(
                task_id,
                kind.queue,
                kind.name,
                body,
                attempt,
                crashes,
                kind.max_attempts,
                kind.max_crashes,
                at,
                lease,
            )
            for (task_id, kind, attempt, crashes, at, lease), body in zip(found, bodies, strict=True)
            if body is not None
        ]

    # One that cannot be read must not hold up the others: it stays leased, and ends as a task that crashes.
    return Wanted([(t.body_in, t.body_at, t.body_bytes) for t in tasks], build, may_lack=True)


def _snapshots(machine: TaskMachine, tasks: Sequence[Task | None]) -> Wanted:
    found: list[dict[str, Any] | None] = []
    places: list[Place] = []
    for task in tasks:
        if task is None:
            found.append(None)
            continue
        found.append(_snapshot(machine, task))
        places.append((task.body_in, task.body_at, task.body_bytes))
        if task.rare is not None and task.rare.error is not None:
            places.append(task.rare.error)

    def build(bodies: Sequence[bytes]) -> list[TaskSnapshot | None]:
        following = iter(bodies)
        snapshots: list[TaskSnapshot | None] = []
        for fields in found:
            if fields is None:
                snapshots.append(None)
                continue
            body = next(following)
            error = next(following) if fields.pop("has_error") else None
            snapshots.append(TaskSnapshot(body=body, error=error, **fields))
        return snapshots

    return Wanted(places, build)


def _snapshot(machine: TaskMachine, task: Task) -> dict[str, Any]:
    kind, rare = machine.kinds[task.kind], task.rare
    claim = machine.claims[task.fence] if task.state == RUNNING else None
    return {
        "id": task.id, "queue": kind.queue, "name": kind.name, "state": op.STATES[task.state], "priority": kind.priority,
        "attempt": task.attempt, "max_attempts": kind.max_attempts, "crashes": task.crashes,
        "max_crashes": kind.max_crashes, "fence": task.fence, "enqueued_at": task.enqueued_at, "run_at": task.run_at,
        "worker_id": claim.worker_id if claim else None, "lease_expires_at": claim.until if claim else None,
        "expires_at": rare.expires_at if rare else None, "finished_at": rare.finished_at if rare else None,
        "unique_key": rare.unique_key if rare else None, "cancel_requested": bool(rare and rare.cancel_requested),
        "reason": rare.reason if rare else None, "has_error": bool(rare and rare.error is not None),
    }  # fmt: skip


def _stats(machine: TaskMachine, name: str, now: float) -> QueueStats:
    queue = machine.queues.get(name)
    if queue is None:
        return QueueStats(name)
    due = _due(queue.waiting, now)
    return QueueStats(name, queue.ready + due, queue.delayed - due, queue.running, queue.paused)


def _due(waiting: Sequence[tuple[float, int, Task]], now: float) -> int:
    """How many of a heap have fallen due and did not join the line yet: it is only walked as far as they go."""
    due, places = 0, [0]
    while places and due < MOST_COUNTED:
        place = places.pop()
        if place < len(waiting) and waiting[place][0] <= now:
            run_at, _, task = waiting[place]
            due += task.state == DELAYED and task.run_at == run_at
            places += (2 * place + 1, 2 * place + 2)
    return due
