"""``pending -> running``, and longer leases.

What a claim takes is the beginning of a queue's line, so it leaves ``omniq_ready`` by one range delete, however many tasks
wait behind it. It costs the same with a thousand and with a million: every statement here is a search in an index that ends
after as many rows as are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from omniq_core import Claim, Extension, Lease, Outcome, TaskState
from omniq_sqlite.moves import FREE_KEYS, IN, claims_of, facts_by_id, finish, remember_finished
from omniq_sqlite.statements import Transaction, encode, hex_if_small, micro, seconds, unpack

__all__ = ["EXPIRED_REASON", "claim", "extend", "place_of"]

EXPIRED_REASON = "its time to live passed before it was started"

MOST_PROMOTED = 2000
"""Most tasks of one queue that one claim moves from ``omniq_delayed`` to ``omniq_ready``, the first to become due first. If
more fell due since the last claim, a later one of high priority may have to wait for the next claims."""
MOST_EXPIRED = 20_000
"""Most tasks that one claim finds to have expired before it gives up until the next call."""

QUEUES = f"select name, no, ready, delayed from omniq_queue where paused = 0 and name {IN}"
REPEATED = "select token, expires_at, open from omniq_claim where claim_id = ?"
DUE_BOUND = "select run_at, seq from omniq_delayed where queue = ? and run_at <= ? order by run_at, seq limit 1 offset ?"
PROMOTE = """insert into omniq_ready select l.queue, -t.priority, l.seq from omniq_delayed l
  cross join omniq_task t on t.seq = l.seq where l.queue = ? and (l.run_at, l.seq) <= (?, ?)"""
PROMOTED = "delete from omniq_delayed where queue = ? and (run_at, seq) <= (?, ?)"
_TASK = f"""t.seq, t.id, t.name, t.attempt, t.crashes, t.max_attempts, t.max_crashes, t.enqueued_at, t.expires_at, t.fence,
  t.unique_key is not null as keyed, length(t.body) as size, {hex_if_small("t.body")} as digits,
  (select name from omniq_queue q where q.no = t.queue) as queue"""
_AS_ONE_ROW = """select json_group_array(json_array(rank, seq, id, name, attempt, crashes, max_attempts, max_crashes,
  enqueued_at, expires_at, keyed, size, queue, fence)), group_concat(digits, '') from"""
FIRST_IN_LINE = f"""{_AS_ONE_ROW} (select r.rank, {_TASK} from omniq_ready r cross join omniq_task t on t.seq = r.seq
  where r.queue = ? order by r.rank, r.seq limit ?)"""
THESE = f"""{_AS_ONE_ROW} (select j.key as rank, {_TASK} from json_each(?) j cross join omniq_task t on t.seq = j.value)"""
BODY = "select body from omniq_task where seq = ?"
TAKE = "delete from omniq_ready where queue = ? and (rank, seq) <= (?, ?)"
RECORD = (
    "insert into omniq_claim(token, claim_id, worker_id, expires_at, low, high, keyed, open) "
    "values (?, ?, ?, ?, ?, ?, ?, ?)"
)
EXTEND = f"update omniq_claim set expires_at = max(expires_at, ?) where token {IN}"


class Taken(msgspec.Struct, array_like=True, gc=False):
    """A task that was taken out of its line."""

    rank: int
    seq: int
    id: str
    name: str
    attempt: int
    crashes: int
    max_attempts: int
    max_crashes: int
    enqueued_at: int
    expires_at: int | None
    keyed: int
    size: int
    queue: str
    fence: int


_taken_decoder = msgspec.json.Decoder(list[Taken])
_open_decoder = msgspec.json.Decoder(dict[int, list[int]])


def place_of(lease: Lease) -> int | None:
    """The number of a lease's task. ``None`` if the lease is none of ours, or was changed."""
    handle = lease.handle
    if isinstance(handle, (tuple, list)) and len(handle) == 2 and handle[1] == lease.task_id:
        seq = handle[0]
        return seq if isinstance(seq, int) else None
    return None


def claim(
    tx: Transaction, queues: Sequence[str], max_tasks: int, lease_s: float, worker_id: str, claim_id: str
) -> list[Claim]:
    """Takes due tasks, or finds again what this very claim took. Writes nothing if there is nothing to take."""
    repeated = tx.row(REPEATED, (claim_id,))
    if repeated is not None:
        token, ends, listed = repeated
        seqs = [seq for seqs in _open_decoder.decode(listed).values() for seq in seqs]
        return _claims(_read(tx, THESE, encode(seqs)), token, ends)
    tx.write_counts()
    by_name = {name: (no, ready, delayed) for name, no, ready, delayed in tx.rows(QUEUES, (encode(queues),))}
    taken: list[tuple[Taken, bytes]] = []
    by_queue: dict[int, list[int]] = {}
    for name in queues:
        if name in by_name and len(taken) < max_tasks:
            queue, ready, delayed = by_name[name]
            if delayed:
                ready += _promote(tx, queue)
            if ready:
                here = _take(tx, queue, max_tasks - len(taken))
                if here:
                    by_queue[queue] = [task.seq for task, _ in here]
                    tx.count(queue, ready=-len(here), running=len(here))
                    taken += here
    if not taken:
        return []
    token = tx.take("token")
    ends = tx.now + micro(lease_s)
    every = [task.seq for task, _ in taken]
    keyed = int(any(task.keyed for task, _ in taken))
    is_open = msgspec.json.encode(by_queue).decode()
    tx.run(RECORD, (token, claim_id, worker_id, ends, min(every), max(every), keyed, is_open))
    return _claims(taken, token, ends)


def _promote(tx: Transaction, queue: int) -> int:
    """Moves what has become due into the line; how many."""
    bound = tx.row(DUE_BOUND, (queue, tx.now, MOST_PROMOTED - 1)) or (tx.now, 2**63 - 1)
    promoted = tx.run(PROMOTE, (queue, *bound))
    if promoted:
        tx.run(PROMOTED, (queue, *bound))
        tx.count(queue, ready=promoted, delayed=-promoted)
    return promoted


def _take(tx: Transaction, queue: int, most: int) -> list[tuple[Taken, bytes]]:
    """Takes up to ``most`` tasks from the beginning of a queue's line. What has expired there becomes ``EXPIRED``."""
    taken: list[tuple[Taken, bytes]] = []
    gone = 0
    while len(taken) < most and gone < MOST_EXPIRED:
        wanted = most - len(taken)
        first = _read(tx, FIRST_IN_LINE, queue, wanted)
        if not first:
            break
        last = first[-1][0]
        tx.run(TAKE, (queue, last.rank, last.seq))
        late = [task for task, _ in first if task.expires_at is not None and task.expires_at <= tx.now]
        if late:
            _expire(tx, queue, late)
            gone += len(late)
            first = [pair for pair in first if pair[0].expires_at is None or pair[0].expires_at > tx.now]
        taken += first
        if len(first) + len(late) < wanted:
            break
    return taken


def _expire(tx: Transaction, queue: int, late: Sequence[Taken]) -> None:
    seqs = [task.seq for task in late]
    by_fence: dict[int, list[int]] = {}
    for task in late:
        by_fence.setdefault(task.fence, []).append(task.seq)
    for fence, some in by_fence.items():
        finish(tx, some, TaskState.EXPIRED, fence=fence, ran=False, reason=EXPIRED_REASON)
    if any(task.keyed for task in late):
        tx.run(FREE_KEYS, (encode(seqs),))
    remember_finished(tx, seqs)
    tx.count(queue, ready=-len(seqs))


def _read(tx: Transaction, statement: str, *values: object) -> list[tuple[Taken, bytes]]:
    """The tasks that a statement names, in order, with their bodies."""
    listed, digits = tx.row(statement, values)
    tasks = _taken_decoder.decode(listed)
    bodies = unpack([task.size for task in tasks], digits)
    pairs = [
        (task, tx.row(BODY, (task.seq,))[0] if body is None else body)
        for task, body in zip(tasks, bodies, strict=True)
    ]
    # SQLite does not promise in which order it gathers the rows of a subquery, so the order is made sure of here. Both
    # columns were gathered in the same one.
    pairs.sort(key=_line_order)
    return pairs


def _line_order(pair: tuple[Taken, bytes]) -> tuple[int, int]:
    return pair[0].rank, pair[0].seq


def _claims(taken: Sequence[tuple[Taken, bytes]], token: int, ends: int) -> list[Claim]:
    ends_s = seconds(ends)
    return [
        Claim(
            task.id, task.queue, task.name, body, task.attempt + 1, task.crashes, task.max_attempts, task.max_crashes,
            seconds(task.enqueued_at), Lease(task.id, token, ends_s, (task.seq, task.id)),
        )
        for task, body in taken
    ]  # fmt: skip


def extend(tx: Transaction, leases: Sequence[Lease], lease_s: float) -> list[Extension]:
    """Longer leases, for whole claims."""
    claims = claims_of(tx, {lease.fence for lease in leases})
    until = tx.now + micro(lease_s)
    is_open = {token: claim.queue_by_seq() for token, claim in claims.items()}
    without_place = [lease.task_id for lease in leases if place_of(lease) is None]
    found = facts_by_id(tx, without_place) if without_place else {}
    answers = []
    touched = set()
    for lease in leases:
        seq = place_of(lease)
        if seq is None and lease.task_id in found:
            seq = found[lease.task_id].seq
        if lease.fence not in claims or seq not in is_open[lease.fence]:
            answers.append(Extension(Outcome.STALE))
            continue
        claim = claims[lease.fence]
        touched.add(lease.fence)
        answers.append(
            Extension(
                Outcome.OK, seconds(max(until, claim.expires_at)), cancel_requested=seq in claim.cancelled
            )
        )
    if touched:
        tx.run(EXTEND, (until, encode(touched)))
    return answers
