"""What is known of tasks and queues: ``get``, ``query``, ``stats``, ``queue_names``. Run on the reading connection.

Every look is one short transaction, so that the WAL can be checkpointed; a query over a long history is cut into slices.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from omniq_core import QueueStats, TaskFilter, TaskSnapshot, TaskState
from omniq_sqlite.moves import CLAIMS_BETWEEN, DELAYED, IN, READY, RUNNING, STATE, claims_decoder
from omniq_sqlite.schema import STATE_NUMBERS, STATES
from omniq_sqlite.statements import encode, hex_if_small, micro, seconds, unpack

__all__ = ["find", "next_slice", "queue_names", "queue_stats", "snapshots", "snapshots_by_id", "what_is_due"]

UNSUCCESSFUL = frozenset({TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED})

SNAPSHOTS = f"""select json_group_array(json_array(seq, id, queue, name, priority, attempt, max_attempts, crashes,
  max_crashes, fence, enqueued_at, run_at, expires_at, finished_at, unique_key, cancel_requested, reason, state, body_size,
  error_size)), group_concat(body, ''), group_concat(error, '') from (
  select t.seq, t.id, q.name as queue, t.name, t.priority, t.attempt + coalesce(d.ran, 0) as attempt, t.max_attempts,
    t.crashes + coalesce(d.crashed, 0) as crashes, t.max_crashes, coalesce(d.fence, t.fence) as fence, t.enqueued_at,
    t.run_at, t.expires_at, d.at as finished_at, t.unique_key, coalesce(d.cancel_requested, 0) as cancel_requested,
    case when d.settled then d.reason else coalesce(d.reason, t.reason) end as reason, {STATE} as state,
    length(t.body) as body_size, {hex_if_small("t.body")} as body,
    length(case when d.settled then d.error else t.error end) as error_size,
    {hex_if_small("case when d.settled then d.error else t.error end")} as error
  from json_each(?) j cross join omniq_task t on %s = j.value left join omniq_done d on d.seq = t.seq
  join omniq_queue q on q.no = t.queue)"""
SNAPSHOTS_BY_SEQ = SNAPSHOTS % "t.seq"
SNAPSHOTS_BY_ID = SNAPSHOTS % "t.id"
LARGE = """select t.body, case when d.settled then d.error else t.error end from omniq_task t
  left join omniq_done d on d.seq = t.seq where t.seq = ?"""


class _Row(msgspec.Struct, array_like=True, gc=False):
    seq: int
    id: str
    queue: str
    name: str
    priority: int
    attempt: int
    max_attempts: int
    crashes: int
    max_crashes: int
    fence: int
    enqueued_at: int
    run_at: int
    expires_at: int | None
    finished_at: int | None
    unique_key: str | None
    cancel_requested: int
    reason: str | None
    state: int
    body_size: int
    error_size: int | None


_rows = msgspec.json.Decoder(list[_Row])
_numbers = msgspec.json.Decoder(list[int])


def snapshots_by_id(connection: sqlite3.Connection, task_ids: Sequence[str]) -> list[TaskSnapshot | None]:
    """By position."""
    found = {one.id: one for _, one in _load(connection, SNAPSHOTS_BY_ID, encode(set(task_ids)))}
    return [found.get(task_id) for task_id in task_ids]


def snapshots(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[TaskSnapshot]:
    """Newest first."""
    found = _load(connection, SNAPSHOTS_BY_SEQ, encode(seqs))
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def _load(connection: sqlite3.Connection, statement: str, listed: str) -> list[tuple[int, TaskSnapshot]]:
    text, bodies_text, errors_text = connection.execute(statement, (listed,)).fetchall()[0]
    rows = _rows.decode(text)
    bodies = unpack([row.body_size for row in rows], bodies_text)
    errors = unpack([row.error_size for row in rows], errors_text)
    running = [row.seq for row in rows if row.state == RUNNING]
    claims = {}
    if running:
        near = connection.execute(CLAIMS_BETWEEN, (max(running), min(running))).fetchall()[0][0]
        wanted = set(running)
        claims = {
            seq: claim
            for claim in claims_decoder.decode(near)
            for seq in wanted & claim.queue_by_seq().keys()
        }
    found = []
    for row, body, error in zip(rows, bodies, errors, strict=True):
        if body is None or (error is None and row.error_size is not None):
            body, error = connection.execute(LARGE, (row.seq,)).fetchall()[0]
        claim = claims.get(row.seq)
        snapshot = TaskSnapshot(
            id=row.id,
            queue=row.queue,
            name=row.name,
            state=STATES[max(row.state, READY)],
            body=body,
            priority=row.priority,
            attempt=row.attempt + (claim is not None),
            max_attempts=row.max_attempts,
            crashes=row.crashes,
            max_crashes=row.max_crashes,
            fence=row.fence if claim is None else claim.token,
            enqueued_at=seconds(row.enqueued_at),
            run_at=seconds(row.run_at),
            expires_at=None if row.expires_at is None else seconds(row.expires_at),
            finished_at=None if row.finished_at is None else seconds(row.finished_at),
            worker_id=None if claim is None else claim.worker_id,
            lease_expires_at=None if claim is None else seconds(claim.expires_at),
            unique_key=row.unique_key,
            cancel_requested=bool(row.cancel_requested) if claim is None else row.seq in claim.cancelled,
            reason=row.reason,
            error=error,
        )
        found.append((row.seq, snapshot))
    return found


# --- queries -------------------------------------------------------------------------------------------------------

BY_SEQ = """select json_group_array(seq) from (select seq from omniq_task where seq < ? order by seq desc limit ?)"""
BY_END = """select json_group_array(seq) from (select seq from omniq_done indexed by omniq_done_unsuccessful
  where state = ? and state > 2 and seq < ? order by seq desc limit ?)"""
EVERY_CLAIM = CLAIMS_BETWEEN.partition(" where ")[0]


def next_slice(connection: sqlite3.Connection, which: TaskFilter, before: int, size: int) -> list[int]:
    """The next task numbers below ``before`` that may match, newest first; fewer than ``size``: there are no more.

    What runs is found by way of the claims and what failed by way of its own index, so these two common questions do
    not walk through the history.
    """
    states = set(which.states)
    if states == {TaskState.RUNNING}:
        claims = claims_decoder.decode(connection.execute(EVERY_CLAIM).fetchall()[0][0])
        return sorted((seq for c in claims for seq in c.queue_by_seq() if seq < before), reverse=True)[:size]
    if states and states <= UNSUCCESSFUL:
        found: list[int] = []
        for state in states:
            values = (STATE_NUMBERS[state], before, size)
            found += _numbers.decode(connection.execute(BY_END, values).fetchall()[0][0])
        return sorted(found, reverse=True)[:size]
    return sorted(_numbers.decode(connection.execute(BY_SEQ, (before, size)).fetchall()[0][0]), reverse=True)


def find(connection: sqlite3.Connection, which: TaskFilter, seqs: Sequence[int]) -> list[int]:
    """Those of some tasks that match, newest first."""
    conditions = []
    values: list[object] = [encode(seqs)]
    if which.queues:
        conditions.append(f"t.queue in (select no from omniq_queue where name {IN})")
        values.append(encode(which.queues))
    if which.names:
        conditions.append(f"t.name {IN}")
        values.append(encode(which.names))
    if which.enqueued_after is not None:
        conditions.append("t.enqueued_at >= ?")
        values.append(micro(which.enqueued_after))
    if which.enqueued_before is not None:
        conditions.append("t.enqueued_at < ?")
        values.append(micro(which.enqueued_before))
    if which.states:
        numbers = {STATE_NUMBERS[state] for state in which.states}
        conditions.append(f"{STATE} {IN}")
        values.append(encode(numbers | ({DELAYED} if READY in numbers else set())))
    if not conditions:
        return list(seqs)
    statement = f"""select json_group_array(t.seq) from json_each(?) j cross join omniq_task t on t.seq = j.value
      left join omniq_done d on d.seq = t.seq where {" and ".join(conditions)}"""
    return sorted(_numbers.decode(connection.execute(statement, values).fetchall()[0][0]), reverse=True)


# --- queues --------------------------------------------------------------------------------------------------------

MOST_COUNTED = 10_000
STATS = f"""select json_group_array(json_array(q.name, q.ready, q.delayed, q.running, q.paused,
  case when q.delayed = 0 then 0 else (select count(*) from (select 1 from omniq_delayed l where l.queue = q.no
    and l.run_at <= ? limit {MOST_COUNTED})) end,
  (select t.run_at from omniq_ready r cross join omniq_task t on t.seq = r.seq where r.queue = q.no
    order by r.rank, r.seq limit 1),
  case when q.delayed = 0 then null else (select min(l.run_at) from omniq_delayed l where l.queue = q.no) end))
  from omniq_queue q where q.name {IN}"""
DUE = f"""select max(exists(select 1 from omniq_ready r where r.queue = q.no)),
  min(case when q.delayed = 0 then null else (select min(l.run_at) from omniq_delayed l where l.queue = q.no) end)
  from omniq_queue q where q.name {IN} and q.paused = 0"""
NAMES = "select json_group_array(name) from omniq_queue where enqueued > 0"

_stats = msgspec.json.Decoder(list[tuple[str, int, int, int, int, int, int | None, int | None]])
_names = msgspec.json.Decoder(list[str])


def queue_stats(connection: sqlite3.Connection, queues: Sequence[str], now: int) -> list[QueueStats]:
    """The stored counts. What fell due since the last claim is counted as ready, up to ``MOST_COUNTED`` of each queue."""
    found = {}
    text = connection.execute(STATS, (now, encode(queues))).fetchall()[0][0]
    for name, ready, delayed, running, paused, due, first_in_line, first_delayed in _stats.decode(text):
        first = first_in_line
        if first is None and first_delayed is not None and first_delayed <= now:
            first = first_delayed
        waits_s = None if first is None else max(0.0, seconds(now - first))
        found[name] = QueueStats(name, ready + due, delayed - due, running, bool(paused), waits_s)
    return [found.get(name) or QueueStats(name) for name in queues]


def queue_names(connection: sqlite3.Connection) -> list[str]:
    """Sorted."""
    return sorted(_names.decode(connection.execute(NAMES).fetchall()[0][0]))


def what_is_due(connection: sqlite3.Connection, queues: Sequence[str], now: int) -> tuple[bool, int | None]:
    """Whether a claim would find something, and otherwise when the next task falls due."""
    is_ready, next_due = connection.execute(DUE, (encode(queues),)).fetchall()[0]
    return bool(is_ready) or (next_due is not None and next_due <= now), next_due
