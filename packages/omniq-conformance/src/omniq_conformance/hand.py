"""One program's hands on a storage: the contract's verbs with what every check would otherwise repeat.

Nothing here hides an answer: each helper returns what the backend said, or fails with a sentence that quotes it.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from omniq_core import (
    Backend,
    Capability,
    Claim,
    Enqueued,
    EventStore,
    Extension,
    Lease,
    Limits,
    Moved,
    Outcome,
    Queue,
    ResultRecord,
    ResultStore,
    Settlement,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    Verb,
)

__all__ = ["QUEUE", "Hand", "chunks", "ids"]

T = TypeVar("T")
QUEUE = "q"
LONG_S = 3600.0
"""A lease that no check outlives."""

_numbers = itertools.count(1)


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """``items`` cut as OmniQ cuts batches."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def ids(items: Iterable[Claim | TaskRecord | TaskSnapshot]) -> list[str]:
    """The ids of the tasks that records, claims or snapshots are of, in their order."""
    return [item.task_id if isinstance(item, Claim) else item.id for item in items]


class Hand:
    """An opened backend and the short forms of its methods.

    Args:
        backend: opened.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.backend.capabilities

    @property
    def limits(self) -> Limits:
        return self.backend.limits

    @property
    def queue(self) -> Queue:
        return self.backend.queue()

    @property
    def results(self) -> ResultStore:
        return self.backend.result_store()

    @property
    def events(self) -> EventStore:
        return self.backend.event_store()

    def has(self, *capabilities: Capability) -> bool:
        return self.capabilities.issuperset(capabilities)

    @property
    def reaps_in_maintain(self) -> bool:
        """Whether upkeep is the driver's; a store that reaps by itself keeps the default, and tells nothing."""
        return type(self.queue).maintain is not Queue.maintain

    # --- making -------------------------------------------------------------------------------------------------

    @staticmethod
    def new_id(prefix: str = "t") -> str:
        """An id that no other test has: on a shared server, tests must not meet."""
        return f"{prefix}-{next(_numbers)}-{os.urandom(4).hex()}"

    @classmethod
    def record(cls, **fields: Any) -> TaskRecord:
        """A task with defaults for what the check does not care about."""
        return TaskRecord(**({"id": cls.new_id(), "queue": QUEUE, "name": "work", "body": b"body"} | fields))

    @classmethod
    def records(cls, count: int, **fields: Any) -> list[TaskRecord]:
        return [cls.record(**fields) for _ in range(count)]

    # --- the queue ----------------------------------------------------------------------------------------------

    async def enqueue(self, records: Sequence[TaskRecord]) -> list[Enqueued]:
        """Enqueues, cut to the limits."""
        answers: list[Enqueued] = []
        for batch in chunks(records, self.limits.max_batch):
            found = await self.queue.enqueue(batch)
            assert len(found) == len(batch), (
                f"enqueue answered {len(batch)} records with {len(found)} answers"
            )
            answers.extend(found)
        return answers

    async def put(self, count: int = 1, **fields: Any) -> list[TaskRecord]:
        """Enqueues new tasks, which must be accepted."""
        records = self.records(count, **fields)
        await self.put_records(records)
        return records

    async def put_records(self, records: Sequence[TaskRecord]) -> None:
        for record, answer in zip(records, await self.enqueue(records), strict=True):
            assert answer.outcome is Outcome.OK, f"enqueuing the new task {record.id!r} was answered {answer}"

    async def put_one(self, **fields: Any) -> TaskRecord:
        return (await self.put(1, **fields))[0]

    async def claim(
        self,
        *queues: str,
        max_tasks: int = 10,
        lease_s: float = LONG_S,
        worker_id: str = "worker",
        claim_id: str | None = None,
    ) -> list[Claim]:
        """One call of claim."""
        wanted = min(max_tasks, self.limits.max_batch)
        claims = await self.queue.claim(
            queues or (QUEUE,),
            max_tasks=wanted,
            lease_s=max(lease_s, self.limits.min_lease_s),
            worker_id=worker_id,
            claim_id=claim_id or str(uuid.uuid4()),
        )
        assert len(claims) <= wanted, f"claim(max_tasks={wanted}) handed out {len(claims)} tasks"
        assert len(set(ids(claims))) == len(claims), f"handed out twice by one claim: {ids(claims)}"
        return list(claims)

    async def claim_all(
        self, *queues: str, lease_s: float = LONG_S, worker_id: str = "worker"
    ) -> list[Claim]:
        """Claims until nothing more comes."""
        found: list[Claim] = []
        while claims := await self.claim(
            *queues, max_tasks=self.limits.max_batch, lease_s=lease_s, worker_id=worker_id
        ):
            found.extend(claims)
        return found

    async def claim_one(self, *queues: str, lease_s: float = LONG_S, worker_id: str = "worker") -> Claim:
        """Claims at most one task, which must come."""
        claims = await self.claim(*queues, max_tasks=1, lease_s=lease_s, worker_id=worker_id)
        assert len(claims) == 1, f"a task is pending and due in {queues or (QUEUE,)}, and claim found none"
        return claims[0]

    async def running(self, *, lease_s: float = LONG_S, worker_id: str = "worker", **fields: Any) -> Claim:
        """A new task, claimed. Its queue must hold nothing else."""
        record = await self.put_one(**fields)
        claim = await self.claim_one(record.queue, lease_s=lease_s, worker_id=worker_id)
        assert claim.task_id == record.id, f"claim handed out {claim.task_id!r} instead of {record.id!r}"
        return claim

    async def settle(self, claim: Claim | Lease, verb: Verb, **fields: Any) -> Outcome:
        """Settles one task."""
        return (await self.settle_all([self.settlement(claim, verb, **fields)]))[0]

    @staticmethod
    def settlement(claim: Claim | Lease, verb: Verb, **fields: Any) -> Settlement:
        return Settlement(claim.lease if isinstance(claim, Claim) else claim, verb, **fields)

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        answers: list[Outcome] = []
        for batch in chunks(settlements, self.limits.max_batch):
            found = await self.queue.settle(batch)
            assert len(found) == len(batch), f"settle answered {len(batch)} items with {len(found)} answers"
            answers.extend(found)
        return answers

    async def finish(self, claim: Claim | Lease, verb: Verb = Verb.SUCCEED, **fields: Any) -> None:
        """Settles one task that the caller owns, which must be accepted."""
        outcome = await self.settle(claim, verb, **fields)
        assert outcome is Outcome.OK, (
            f"the owner settled its task with {verb.name} and was answered {outcome}"
        )

    async def finish_all(
        self, claims: Iterable[Claim | Lease], verb: Verb = Verb.SUCCEED, **fields: Any
    ) -> None:
        """Settles tasks that the caller owns, all in one way, which must be accepted."""
        outcomes = await self.settle_all([self.settlement(claim, verb, **fields) for claim in claims])
        assert set(outcomes) <= {Outcome.OK}, (
            f"the owner settled its tasks with {verb.name} and was answered {outcomes}"
        )

    async def extend(self, *claims: Claim, lease_s: float = LONG_S) -> list[Extension]:
        answers: list[Extension] = []
        for batch in chunks([claim.lease for claim in claims], self.limits.max_batch):
            answers.extend(await self.queue.extend(batch, lease_s=lease_s))
        assert len(answers) == len(claims), (
            f"extend answered {len(claims)} leases with {len(answers)} answers"
        )
        return answers

    async def look(self, task_id: str) -> TaskSnapshot:
        """What the store knows of a task, which must be there."""
        found = await self.queue.get([task_id])
        assert len(found) == 1, f"get([one id]) gave {len(found)} answers"
        assert found[0] is not None, f"the store does not know the task {task_id!r} any more"
        return found[0]

    async def state(self, task_id: str) -> TaskState:
        return (await self.look(task_id)).state

    async def states(self, task_ids: Sequence[str]) -> list[TaskState | None]:
        found: list[TaskState | None] = []
        for batch in chunks(task_ids, self.limits.max_batch):
            found.extend(None if task is None else task.state for task in await self.queue.get(batch))
        return found

    async def maintain(self) -> list[Moved]:
        """Upkeep until it has nothing more to do."""
        moved: list[Moved] = []
        for _ in range(100):
            done = await self.queue.maintain()
            moved.extend(done.moved)
            if not done.more:
                return moved
        raise AssertionError("maintain answered more=True a hundred times in a row")

    async def until_claimed(
        self, task_id: str, *queues: str, lease_s: float = LONG_S, worker_id: str = "worker"
    ) -> Claim:
        """Claims a task of a queue that holds nothing else, with upkeep, as long as the store may take to reap it."""
        end = time.monotonic() + self.limits.reclaim_delay_s + 1.0
        while True:
            await self.maintain()
            claims = await self.claim(*queues, max_tasks=1, lease_s=lease_s, worker_id=worker_id)
            if claims or time.monotonic() > end:
                break
            await self.queue.wait(queues or (QUEUE,), timeout_s=0.05)
        assert [claim.task_id for claim in claims] == [task_id], (
            f"the lease of {task_id!r} has ended; maintain and then claim gave {[c.task_id for c in claims]}"
        )
        return claims[0]

    # --- results ------------------------------------------------------------------------------------------------

    async def put_result(self, task_id: str, fence: int, body: bytes = b"", **fields: Any) -> Outcome:
        record = ResultRecord(task_id, fence, fields.pop("state", TaskState.SUCCEEDED), body, **fields)
        answers = await self.results.put([record])
        assert len(answers) == 1, f"put([one record]) gave {len(answers)} answers"
        return answers[0]

    async def result(self, task_id: str) -> ResultRecord | None:
        answers = await self.results.get([task_id])
        assert len(answers) == 1, f"get([one id]) gave {len(answers)} answers"
        return answers[0]
