"""Reaping, expiring and pruning.

A round looks first on the reading connection whether there is anything to do at all, so an idle round takes no lock. Each
part is a transaction of its own and at most about ``limit`` tasks long, so that claims get their turn in between.
"""

from __future__ import annotations

import sqlite3

import msgspec

from omniq_core import Moved, TaskState
from omniq_sqlite.claiming import EXPIRED_REASON
from omniq_sqlite.moves import (
    DELAYED,
    FREE_KEYS,
    IN,
    READY,
    claims_decoder,
    facts_by_seq,
    finish,
    leave_line,
    put_in_line,
    remember_finished,
)
from omniq_sqlite.operating import DELETE_TASKS, NOT_DONE
from omniq_sqlite.settling import CLAIM_IS_OVER
from omniq_sqlite.statements import Transaction, encode

__all__ = ["EXPIRE", "PRUNE", "PRUNE_RESULTS", "REAP", "due_work", "expire", "prune", "prune_results", "reap"]

WORKER_LOST = "its worker was lost: the lease ended"

REAP, EXPIRE, PRUNE, PRUNE_RESULTS = 1, 2, 4, 8

DUE_WORK = """select exists(select 1 from omniq_claim where expires_at <= ?)
  + 2 * exists(select 1 from omniq_expiring where expires_at <= ?)
  + 4 * exists(select 1 from omniq_finished where at <= ?)
  + 8 * exists(select 1 from omniq_result_end where at <= ?)"""
ENDED = """select json_group_array(json_array(token, worker_id, expires_at, keyed, json(cancelled), json(open))) from
  (select * from omniq_claim where expires_at <= ? order by expires_at limit ?)"""
LOST = f"""update omniq_task set attempt = attempt + 1, crashes = crashes + 1, fence = ?, run_at = ?, reason = ?
  where seq {IN}"""
QUEUE_NAMES = "select no, name from omniq_queue"
EXPIRING = """select json_group_array(seq), max(expires_at), count(*) from
  (select seq, expires_at from omniq_expiring where expires_at <= ? order by expires_at, seq limit ?)"""
EXPIRING_SEEN = f"delete from omniq_expiring where expires_at <= ? and seq {IN}"
OLDEST_FINISHED = "select no, seqs from omniq_finished where at <= ? order by at limit ?"
STILL_FINISHED = """select json_group_array(d.seq) from json_each(?) j cross join omniq_done d on d.seq = j.value
  where d.at <= ?"""
DELETE_RESULTS_WITH = (
    f"delete from omniq_result where own_ttl = 0 and task_id in (select id from omniq_task where seq {IN})"
)
FORGET_FINISHED = f"delete from omniq_finished where no {IN}"
OLDEST_RESULT_ENDS = "select no, ids from omniq_result_end where at <= ? order by at limit ?"
DELETE_ENDED_RESULTS = f"delete from omniq_result where task_id {IN} and expires_at <= ?"
FORGET_RESULT_ENDS = f"delete from omniq_result_end where no {IN}"

_numbers = msgspec.json.Decoder(list[int])
_ids = msgspec.json.Decoder(list[str])


def due_work(connection: sqlite3.Connection, now: int, retention: int) -> int:
    """Which parts of a round have something to do, as bits."""
    found: int = connection.execute(DUE_WORK, (now, now, now - retention, now)).fetchall()[0][0]
    return found


def reap(tx: Transaction, limit: int) -> tuple[list[Moved], bool]:
    """Takes over what the ended claims left open, whole claims at a time; and whether more have ended."""
    ended = claims_decoder.decode(tx.row(ENDED, (tx.now, limit + 1))[0])
    taken = 0
    chosen = []
    for claim in ended:
        if taken >= limit:
            break
        chosen.append(claim)
        taken += sum(map(len, claim.open.values()))
    if not chosen:
        return [], False
    fence = tx.take("token")
    names = dict(tx.rows(QUEUE_NAMES))
    worker_by_seq = {seq: claim.worker_id for claim in chosen for seq in claim.queue_by_seq()}
    cancelled = {seq for claim in chosen for seq in claim.cancelled}
    lost = facts_by_seq(tx, worker_by_seq)
    states: dict[int, TaskState] = {}
    for fact in lost:
        if fact.seq in cancelled:
            states[fact.seq] = TaskState.CANCELLED
        elif fact.crashes + 1 >= fact.max_crashes:
            states[fact.seq] = TaskState.DEAD
        else:
            states[fact.seq] = TaskState.PENDING
        tx.count(fact.queue, running=-1, ready=states[fact.seq] is TaskState.PENDING)
    tx.run(CLAIM_IS_OVER, (encode([claim.token for claim in chosen]),))
    again = [seq for seq, state in states.items() if state is TaskState.PENDING]
    if again:
        tx.run(LOST, (fence, tx.now, WORKER_LOST, encode(again)))
        put_in_line(tx, again)
    for state in (TaskState.CANCELLED, TaskState.DEAD):
        seqs = [seq for seq, its in states.items() if its is state]
        if seqs:
            finish(
                tx,
                seqs,
                state,
                fence=fence,
                ran=True,
                crashed=True,
                cancel_requested=state is TaskState.CANCELLED,
                reason=WORKER_LOST,
            )
            tx.run(FREE_KEYS, (encode(seqs),))
            remember_finished(tx, seqs)
    moved = [
        Moved(
            fact.id,
            names[fact.queue],
            fact.name,
            states[fact.seq],
            fence,
            fact.attempt + 1,
            fact.crashes + 1,
            WORKER_LOST,
            worker_by_seq[fact.seq],
        )
        for fact in lost
    ]
    return moved, len(chosen) < len(ended)


def expire(tx: Transaction, limit: int) -> tuple[list[Moved], bool]:
    """Pending tasks whose time has passed become ``EXPIRED``; and whether there are more."""
    listed, latest, count = tx.row(EXPIRING, (tx.now, limit))
    if not count:
        return [], False
    late = [
        fact
        for fact in facts_by_seq(tx, _numbers.decode(listed))
        if fact.state in (READY, DELAYED) and fact.expires_at is not None and fact.expires_at <= tx.now
    ]
    # An entry of a task that is running is dropped: it gets a new one should it come back.
    tx.run(EXPIRING_SEEN, (latest, listed))
    leave_line(tx, late)
    by_fence: dict[int, list[int]] = {}
    for fact in late:
        by_fence.setdefault(fact.fence, []).append(fact.seq)
    for fence, seqs in by_fence.items():
        finish(tx, seqs, TaskState.EXPIRED, fence=fence, ran=False, reason=EXPIRED_REASON)
    keyed = [fact.seq for fact in late if fact.unique_key is not None]
    if keyed:
        tx.run(FREE_KEYS, (encode(keyed),))
    remember_finished(tx, [fact.seq for fact in late])
    names = dict(tx.rows(QUEUE_NAMES))
    moved = [
        Moved(
            fact.id,
            names[fact.queue],
            fact.name,
            TaskState.EXPIRED,
            fact.fence,
            fact.attempt,
            fact.crashes,
            EXPIRED_REASON,
        )
        for fact in late
    ]
    return moved, count >= limit


def prune(tx: Transaction, limit: int) -> tuple[int, bool]:
    """Deletes tasks that were finished longer ago than they are kept, with results that have no time of their own."""
    cutoff = tx.now - tx.retention
    batches = tx.rows(OLDEST_FINISHED, (cutoff, min(limit, 200)))
    chosen: list[int] = []
    seqs: list[int] = []
    for number, listed in batches:
        if seqs and len(seqs) >= limit:
            break
        chosen.append(number)
        seqs += _numbers.decode(listed)
    if not chosen:
        return 0, False
    listed = tx.row(STILL_FINISHED, (encode(set(seqs)), cutoff))[0]
    tx.run(DELETE_RESULTS_WITH, (listed,))
    pruned = tx.run(DELETE_TASKS, (listed,))
    tx.run(NOT_DONE, (listed,))
    tx.run(FORGET_FINISHED, (encode(chosen),))
    return pruned, len(seqs) >= limit or len(batches) > len(chosen) or len(batches) == min(limit, 200)


def prune_results(tx: Transaction, limit: int) -> tuple[int, bool]:
    """Deletes results whose own time has passed."""
    batches = tx.rows(OLDEST_RESULT_ENDS, (tx.now, min(limit, 200)))
    chosen: list[int] = []
    ids: list[str] = []
    for number, listed in batches:
        if ids and len(ids) >= limit:
            break
        chosen.append(number)
        ids += _ids.decode(listed)
    if not chosen:
        return 0, False
    pruned = tx.run(DELETE_ENDED_RESULTS, (encode(set(ids)), tx.now))
    tx.run(FORGET_RESULT_ENDS, (encode(chosen),))
    return pruned, len(ids) >= limit or len(batches) > len(chosen) or len(batches) == min(limit, 200)
