"""What operators do to tasks and queues: cancel, requeue, purge, pause and resume."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from omniq_core import Outcome, TaskState
from omniq_sqlite.enqueueing import HOLDERS, KEYS
from omniq_sqlite.lockfile import QUEUE
from omniq_sqlite.moves import (
    DELAYED,
    FREE_KEYS,
    IN,
    READY,
    RUNNING,
    Fact,
    claims_with,
    facts_by_id,
    facts_by_seq,
    finish,
    leave_line,
    put_in_line,
    remember_finished,
)
from omniq_sqlite.schema import STATES
from omniq_sqlite.statements import Transaction, encode

__all__ = ["cancel", "delete", "purge", "requeue", "set_paused"]

PENDING = (READY, DELAYED)
ASK = "update omniq_claim set cancelled = ? where token = ?"
REQUEUE = f"""update omniq_task set attempt = 0, crashes = 0, expires_at = null, reason = null, error = null, run_at = ?,
  fence = coalesce((select fence from omniq_done d where d.seq = omniq_task.seq), fence) where seq {IN}"""
NOT_DONE = f"delete from omniq_done where seq {IN}"
DELETE_RESULTS_OF = f"delete from omniq_result where task_id in (select id from omniq_task where seq {IN})"
DELETE_TASKS = f"delete from omniq_task where seq {IN}"


def cancel(tx: Transaction, task_ids: Sequence[str]) -> list[Outcome]:
    """Pending tasks become ``CANCELLED``; the owners of running ones are to be told."""
    facts = facts_by_id(tx, task_ids)
    pending = [fact for fact in facts.values() if fact.state in PENDING]
    leave_line(tx, pending)
    by_fence: dict[int, list[int]] = {}
    for fact in pending:
        by_fence.setdefault(fact.fence, []).append(fact.seq)
    for fence, seqs in by_fence.items():
        finish(tx, seqs, TaskState.CANCELLED, fence=fence, ran=False)
    _free_keys(tx, pending)
    remember_finished(tx, [fact.seq for fact in pending])
    running = claims_with(tx, [fact.seq for fact in facts.values() if fact.state == RUNNING])
    for claim in {claim.token: claim for claim in running.values()}.values():
        told = {seq for seq, its in running.items() if its.token == claim.token}
        if not told <= set(claim.cancelled):
            tx.run(ASK, (encode(sorted(told | set(claim.cancelled))), claim.token))
    outcomes = []
    cancelled: set[int] = set()
    for task_id in task_ids:
        known = facts.get(task_id)
        if known is None:
            outcomes.append(Outcome.NOT_FOUND)
        elif known.state == RUNNING:
            outcomes.append(Outcome.REQUESTED)
        else:
            is_first = known.seq not in cancelled
            cancelled.add(known.seq)
            outcomes.append(Outcome.OK if known.state in PENDING and is_first else Outcome.FINISHED)
    return outcomes


def requeue(tx: Transaction, task_ids: Sequence[str]) -> list[Outcome]:
    """Dead, cancelled and expired tasks become pending."""
    facts = facts_by_id(tx, task_ids)
    keys = {fact.unique_key for fact in facts.values()} - {None}
    holders = msgspec.json.decode(tx.row(HOLDERS, (encode(keys),))[0], type=dict[str, str]) if keys else {}
    outcomes = []
    again: dict[int, Fact] = {}
    for task_id in task_ids:
        fact = facts.get(task_id)
        if fact is None:
            outcomes.append(Outcome.NOT_FOUND)
        elif fact.state <= RUNNING or fact.seq in again:
            outcomes.append(Outcome.DUPLICATE)
        elif STATES[fact.state] is TaskState.SUCCEEDED:
            outcomes.append(Outcome.FINISHED)
        elif fact.unique_key is not None and holders.setdefault(fact.unique_key, task_id) != task_id:
            outcomes.append(Outcome.CONFLICT)
        else:
            again[fact.seq] = fact
            outcomes.append(Outcome.OK)
    if again:
        seqs = list(again)
        listed = encode(seqs)
        tx.run(REQUEUE, (tx.now, listed))
        tx.run(NOT_DONE, (listed,))
        tx.run(DELETE_RESULTS_OF, (listed,))
        held = [value for f in again.values() if f.unique_key is not None for value in (f.unique_key, f.seq)]
        KEYS.run(tx, held)
        put_in_line(tx, seqs)
        for fact in again.values():
            tx.count(fact.queue, ready=1)
    return outcomes


def purge(tx: Transaction, seqs: Sequence[int], states: Collection[TaskState]) -> int:
    """Deletes tasks that are still in one of these states (none given: in any) and not running; how many."""
    doomed = [
        fact
        for fact in facts_by_seq(tx, seqs)
        if fact.state != RUNNING and (not states or STATES[max(fact.state, READY)] in states)
    ]
    pending = [fact for fact in doomed if fact.state in PENDING]
    leave_line(tx, pending)
    _free_keys(tx, pending)
    delete(tx, [fact.seq for fact in doomed])
    return len(doomed)


def delete(tx: Transaction, seqs: Sequence[int]) -> None:
    """Forgets tasks that are in no line and no claim, with their results."""
    if seqs:
        listed = encode(seqs)
        tx.run(DELETE_RESULTS_OF, (listed,))
        tx.run(NOT_DONE, (listed,))
        tx.run(DELETE_TASKS, (listed,))


def _free_keys(tx: Transaction, facts: Sequence[Fact]) -> None:
    keyed = [fact.seq for fact in facts if fact.unique_key is not None]
    if keyed:
        tx.run(FREE_KEYS, (encode(keyed),))


def set_paused(tx: Transaction, queues: Sequence[str], paused: bool) -> None:
    """Pauses or resumes queues, known or not."""
    changed = 0
    for name in queues:
        number = tx.queue_number(name)
        changed += tx.run(
            "update omniq_queue set paused = ? where no = ? and paused <> ?", (paused, number, paused)
        )
    if changed and not paused:
        tx.rings |= QUEUE
