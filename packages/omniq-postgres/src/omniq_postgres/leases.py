"""What a lease carries for us: its task's number, so that a settle finds the row without looking its id up.

The claim that gave a lease out is its proof that the task belongs to the claim. A lease whose handle does not fit its id
and fence (it came from a test, or by way of JSON) is looked up and checked on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from omniq_core import Claim, Lease, TaskSnapshot, TaskState
from omniq_postgres.connection import Row
from omniq_postgres.pool import Pool
from omniq_postgres.statements import LOCATE

__all__ = ["STATES", "STATE_NUMBERS", "Place", "claims_of", "find", "snapshot_of"]

STATES = {
    0: TaskState.PENDING,
    1: TaskState.RUNNING,
    2: TaskState.SUCCEEDED,
    3: TaskState.DEAD,
    4: TaskState.CANCELLED,
    5: TaskState.EXPIRED,
}
STATE_NUMBERS = {state: number for number, state in STATES.items()}


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a lease's task is. ``seq`` 0: there is no such task; -1: it is not in that claim."""

    seq: int
    fence: int
    task_id: str
    written: int = 0
    """With -1: the fence that the task's row has."""


def claims_of(rows: Sequence[Row]) -> list[Claim]:
    """The answer of a claim."""
    return [
        Claim(
            task_id, queue, name, body, attempt, crashes, max_attempts, max_crashes, enqueued_at,
            Lease(task_id, token, until, Place(seq, token, task_id)),
        )
        for token, until, seq, task_id, queue, name, body, attempt, crashes, max_attempts, max_crashes, enqueued_at in rows
    ]  # fmt: skip


async def find(pool: Pool, leases: Sequence[Lease]) -> list[Place]:
    """Where the tasks of some leases are, one for one."""
    places: list[Place] = []
    unknown: list[int] = []
    for number, lease in enumerate(leases):
        handle: Any = lease.handle
        if type(handle) is Place and handle.fence == lease.fence and handle.task_id == lease.task_id:
            places.append(handle)
        else:
            places.append(Place(0, lease.fence, lease.task_id))
            unknown.append(number)
    if unknown:
        asked = [leases[number] for number in unknown]
        rows = await pool.run(LOCATE, [lease.task_id for lease in asked], [lease.fence for lease in asked])
        for place, seq, fence, is_held in rows:
            lease = leases[unknown[place - 1]]
            places[unknown[place - 1]] = Place(seq if is_held else -1, lease.fence, lease.task_id, fence)
    return places


def snapshot_of(row: Row) -> TaskSnapshot:
    """A row of the function ``snapshots``."""
    (
        _, task_id, queue, name, state, body, priority, attempt, max_attempts, crashes, max_crashes, fence, enqueued_at,
        run_at, expires_at, finished_at, worker_id, until, unique_key, cancel_requested, reason, error,
    ) = row  # fmt: skip
    return TaskSnapshot(
        id=task_id, queue=queue, name=name, state=STATES[state], body=body, priority=priority, attempt=attempt,
        max_attempts=max_attempts, crashes=crashes, max_crashes=max_crashes, fence=fence, enqueued_at=enqueued_at,
        run_at=run_at, expires_at=expires_at, finished_at=finished_at, worker_id=worker_id, lease_expires_at=until,
        unique_key=unique_key, cancel_requested=cancel_requested, reason=reason, error=error,
    )  # fmt: skip
