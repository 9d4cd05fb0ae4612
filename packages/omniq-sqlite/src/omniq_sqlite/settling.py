"""The ends of runs: ``running -> final`` or back to ``pending``, each under its fence.

The condition, for each item, in the one transaction: the claim with this token still stands, and the task is still open in
it. The reaper deletes the claim, a settlement closes the task in it, so at most one of all who try finds both. A task's own
row is looked at only for items that fail it, to tell ``DUPLICATE``, ``STALE`` and ``NOT_FOUND`` apart, and for leases
that have lost their handle.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from omniq_core import Outcome, Settlement, TaskState, Verb
from omniq_sqlite.claiming import place_of
from omniq_sqlite.moves import (
    FREE_KEYS,
    IN,
    OpenClaim,
    claims_of,
    facts_by_id,
    finish,
    put_in_line,
    remember_finished,
    store_results,
)
from omniq_sqlite.schema import STATE_NUMBERS
from omniq_sqlite.statements import Rows, Transaction, encode, micro

__all__ = ["settle"]

FINAL_STATE = {
    Verb.SUCCEED: TaskState.SUCCEEDED,
    Verb.DEAD: TaskState.DEAD,
    Verb.CANCEL: TaskState.CANCELLED,
}

CLAIM_IS_OVER = f"delete from omniq_claim where token {IN}"
CLAIM_GOES_ON = "update omniq_claim set open = ? where token = ?"
DONE = Rows(
    "insert into omniq_done(seq, state, fence, at, ran, crashed, cancel_requested, settled, reason, error)",
    "(@, @, @, $, @, @, @, 1, @, @)",
)
BACK = Rows(
    "with v(seq, fence, attempt, crashed, run_at, reason, error) as (",
    "(@, @, @, @, @, @, @)",
    ") update omniq_task as t set fence = v.fence, attempt = t.attempt + v.attempt, crashes = t.crashes + v.crashed, "
    "run_at = v.run_at, reason = v.reason, error = v.error from v where t.seq = v.seq",
)


def settle(tx: Transaction, settlements: Sequence[Settlement]) -> list[Outcome]:
    """Writes those settlements whose fences hold."""
    claims = claims_of(tx, {settlement.lease.fence for settlement in settlements})
    still_open = {token: claim.queue_by_seq() for token, claim in claims.items()}
    seqs: list[int | None] = [place_of(settlement.lease) for settlement in settlements]
    if None in seqs:
        lost = [s.lease.task_id for s, seq in zip(settlements, seqs, strict=True) if seq is None]
        found = facts_by_id(tx, lost)
        for index, settlement in enumerate(settlements):
            fact = found.get(settlement.lease.task_id)
            if seqs[index] is None and fact is not None:
                seqs[index] = fact.seq

    refused: list[int] = []
    batch = _Batch(tx)
    for index, (settlement, seq) in enumerate(zip(settlements, seqs, strict=True)):
        fence = settlement.lease.fence
        queue = still_open[fence].pop(seq, None) if fence in claims and seq is not None else None
        if queue is None or seq is None:
            refused.append(index)
        else:
            batch.add(seq, queue, claims[fence], settlement)
    _close(tx, claims, still_open)
    batch.write()
    outcomes = [Outcome.OK] * len(settlements)
    if refused:
        facts = facts_by_id(tx, [settlements[index].lease.task_id for index in refused])
        for index in refused:
            lease = settlements[index].lease
            fact = facts.get(lease.task_id)
            if fact is None:
                outcomes[index] = Outcome.NOT_FOUND
            else:
                # The last write about the task bears its writer's fence, and a reaper writes with one of its own.
                last = fact.fence if fact.done_fence is None else fact.done_fence
                outcomes[index] = Outcome.DUPLICATE if last == lease.fence else Outcome.STALE
    return outcomes


def _close(tx: Transaction, claims: dict[int, OpenClaim], still_open: dict[int, dict[int, int]]) -> None:
    over = []
    for token, claim in claims.items():
        left = still_open[token]
        if not left:
            over.append(token)
        elif len(left) < sum(map(len, claim.open.values())):
            by_queue: dict[int, list[int]] = {}
            for seq, queue in left.items():
                by_queue.setdefault(queue, []).append(seq)
            tx.run(CLAIM_GOES_ON, (msgspec.json.encode(by_queue).decode(), token))
    if over:
        tx.run(CLAIM_IS_OVER, (encode(over),))


class _Batch:
    """What a batch of settlements writes, gathered by statement."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self.alike: dict[tuple[TaskState, int, bool, bool, bool], list[int]] = {}
        self.done: list[object] = []
        self.finished: list[int] = []
        self.keyed: list[int] = []
        self.back: list[object] = []
        self.back_seqs: list[int] = []
        self.results: dict[tuple[int, TaskState, float | None], list[str | bytes]] = {}
        self.ended: dict[int, int] = {}

    def add(self, seq: int, queue: int, claim: OpenClaim, settlement: Settlement) -> None:
        verb = settlement.verb
        cancel_requested = seq in claim.cancelled if claim.cancelled else False
        ran = verb is not Verb.RELEASE
        state = FINAL_STATE.get(verb)
        if state is None:
            if not cancel_requested:
                self._goes_back(seq, queue, claim.token, ran, settlement)
                return
            state = TaskState.CANCELLED
        self.ended[queue] = self.ended.get(queue, 0) + 1
        self.finished.append(seq)
        if claim.keyed:
            self.keyed.append(seq)
        if settlement.reason is None and settlement.error is None:
            how = (state, claim.token, ran, settlement.crashed, cancel_requested)
            same = self.alike.get(how)
            if same is None:
                self.alike[how] = [seq]
            else:
                same.append(seq)
        else:
            self.done += (
                seq, STATE_NUMBERS[state], claim.token, int(ran), int(settlement.crashed), int(cancel_requested),
                settlement.reason, settlement.error,
            )  # fmt: skip
        if settlement.result is not None:
            kind = (claim.token, state, settlement.result_ttl_s)
            results = self.results.get(kind)
            if results is None:
                results = self.results[kind] = []
            results += (settlement.lease.task_id, settlement.result)

    def _goes_back(self, seq: int, queue: int, fence: int, ran: bool, settlement: Settlement) -> None:
        delay = max(0, micro(settlement.delay_s))
        self.back += (
            seq, fence, int(ran), int(settlement.crashed), self.tx.now + delay, settlement.reason, settlement.error,
        )  # fmt: skip
        self.back_seqs.append(seq)
        self.tx.count(queue, running=-1, ready=delay == 0, delayed=delay > 0)

    def write(self) -> None:
        tx = self.tx
        for queue, ended in self.ended.items():
            tx.count(queue, running=-ended)
        for (state, fence, ran, crashed, cancel_requested), seqs in self.alike.items():
            finish(
                tx,
                seqs,
                state,
                fence=fence,
                ran=ran,
                crashed=crashed,
                cancel_requested=cancel_requested,
                settled=True,
            )
        if self.done:
            DONE.run(tx, self.done, tx.now)
        if self.keyed:
            tx.run(FREE_KEYS, (encode(self.keyed),))
        for (fence, state, ttl_s), values in self.results.items():
            ttl = None if ttl_s is None else micro(ttl_s)
            store_results(tx, values, fence=fence, state=STATE_NUMBERS[state], final=True, ttl=ttl)
        remember_finished(tx, self.finished)
        if self.back:
            BACK.run(tx, self.back)
            put_in_line(tx, self.back_seqs)
