"""What the other modules have in common: where a task is, and moving it from one place to another.

All of it works on whole lists of task numbers, within a transaction that the caller holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from omniq_core import TaskState
from omniq_sqlite.lockfile import QUEUE, RESULT
from omniq_sqlite.schema import STATE_NUMBERS
from omniq_sqlite.statements import Rows, Transaction, encode

__all__ = [
    "DELAYED",
    "READY",
    "RUNNING",
    "STATE",
    "Fact",
    "OpenClaim",
    "claims_of",
    "claims_with",
    "facts_by_id",
    "facts_by_seq",
    "finish",
    "leave_line",
    "put_in_line",
    "remember_finished",
    "store_results",
]

DELAYED, READY, RUNNING = -1, 0, 1
"""What :data:`STATE` gives besides the numbers of the final states: both of the first are pending."""

STATE = """case
  when d.state is not null then d.state
  when exists(select 1 from omniq_ready r where r.queue = t.queue and r.rank = -t.priority and r.seq = t.seq) then 0
  when exists(select 1 from omniq_delayed l where l.queue = t.queue and l.run_at = t.run_at and l.seq = t.seq) then -1
  else 1 end"""
"""The SQL of a task's state, for ``omniq_task t`` left joined with ``omniq_done d``: three look-ups by primary key."""


class Fact(msgspec.Struct, array_like=True, gc=False):
    """What is decided by, about one task."""

    id: str
    seq: int
    queue: int
    name: str
    attempt: int
    crashes: int
    max_crashes: int
    fence: int
    unique_key: str | None
    expires_at: int | None
    done_fence: int | None
    state: int


_FACTS = f"""select json_group_array(json_array(t.id, t.seq, t.queue, t.name, t.attempt, t.crashes, t.max_crashes, t.fence,
  t.unique_key, t.expires_at, d.fence, {STATE})) from json_each(?) j cross join omniq_task t on %s = j.value
  left join omniq_done d on d.seq = t.seq"""
FACTS_BY_SEQ = _FACTS % "t.seq"
FACTS_BY_ID = _FACTS % "t.id"
_facts_decoder = msgspec.json.Decoder(list[Fact])


def facts_by_seq(tx: Transaction, seqs: Iterable[int]) -> list[Fact]:
    """The facts of those tasks that exist."""
    return _facts_decoder.decode(tx.row(FACTS_BY_SEQ, (encode(seqs),))[0])


def facts_by_id(tx: Transaction, task_ids: Collection[str]) -> dict[str, Fact]:
    """The facts of those tasks that exist, by id."""
    text = tx.row(FACTS_BY_ID, (encode(set(task_ids)),))[0]
    return {fact.id: fact for fact in _facts_decoder.decode(text)}


# --- into and out of the line --------------------------------------------------------------------------------------

IN = "in (select value from json_each(?))"

PUT_READY = (
    f"insert into omniq_ready select queue, -priority, seq from omniq_task where seq {IN} and run_at <= ?"
)
PUT_DELAYED = (
    f"insert into omniq_delayed select queue, run_at, seq from omniq_task where seq {IN} and run_at > ?"
)
PUT_EXPIRING = (
    "insert or ignore into omniq_expiring select expires_at, seq from omniq_task "
    f"where seq {IN} and expires_at is not null"
)
LEAVE_READY = f"""delete from omniq_ready where (queue, rank, seq) in
  (select queue, -priority, seq from omniq_task where seq {IN})"""
LEAVE_DELAYED = f"""delete from omniq_delayed where (queue, run_at, seq) in
  (select queue, run_at, seq from omniq_task where seq {IN})"""
FREE_KEYS = f"delete from omniq_unique where seq {IN}"


def put_in_line(tx: Transaction, seqs: Sequence[int]) -> None:
    """Makes tasks pending whose row says since when. The caller counts them."""
    listed = encode(seqs)
    ready = tx.run(PUT_READY, (listed, tx.now))
    if ready < len(seqs):
        tx.run(PUT_DELAYED, (listed, tx.now))
    tx.run(PUT_EXPIRING, (listed,))
    tx.rings |= QUEUE


def leave_line(tx: Transaction, pending: Iterable[Fact]) -> None:
    """Takes pending tasks out of their line, and off the counts."""
    pending = list(pending)
    for state, statement in ((READY, LEAVE_READY), (DELAYED, LEAVE_DELAYED)):
        here = [fact for fact in pending if fact.state == state]
        if here:
            tx.run(statement, (encode([fact.seq for fact in here]),))
            for fact in here:
                tx.count(fact.queue, ready=-(state == READY), delayed=-(state == DELAYED))


# --- the end -------------------------------------------------------------------------------------------------------

DONE_ALIKE = (
    "insert into omniq_done(seq, state, fence, at, ran, crashed, cancel_requested, settled, reason) "
    "select value, ?, ?, ?, ?, ?, ?, ?, ? from json_each(?)"
)
FINISHED = "insert into omniq_finished(at, seqs) values (?, ?)"


def finish(
    tx: Transaction,
    seqs: Sequence[int],
    state: TaskState,
    *,
    fence: int,
    ran: bool,
    crashed: bool = False,
    cancel_requested: bool = False,
    settled: bool = False,
    reason: str | None = None,
) -> None:
    """Makes tasks final that end alike. They were taken from where they were, and their keys freed."""
    flags = (int(ran), int(crashed), int(cancel_requested), int(settled))
    tx.run(DONE_ALIKE, (STATE_NUMBERS[state], fence, tx.now, *flags, reason, encode(seqs)))


def remember_finished(tx: Transaction, seqs: Sequence[int]) -> None:
    """Notes for pruning what was finished now."""
    if seqs:
        tx.run(FINISHED, (tx.now, encode(seqs)))


# --- claims --------------------------------------------------------------------------------------------------------


class OpenClaim(msgspec.Struct, array_like=True):
    """A row of ``omniq_claim``."""

    token: int
    worker_id: str
    expires_at: int
    keyed: int
    cancelled: list[int]
    open: dict[int, list[int]]
    """By the queue's number."""

    def queue_by_seq(self) -> dict[int, int]:
        """The open tasks, and their queues."""
        return {seq: queue for queue, seqs in self.open.items() for seq in seqs}


CLAIM_COLUMNS = """json_group_array(json_array(token, worker_id, expires_at, keyed, json(cancelled), json(open)))
  from omniq_claim"""
CLAIMS_BY_TOKEN = f"select {CLAIM_COLUMNS} where token {IN}"
CLAIMS_BETWEEN = f"select {CLAIM_COLUMNS} where low <= ? and high >= ?"
claims_decoder = msgspec.json.Decoder(list[OpenClaim])


def claims_of(tx: Transaction, tokens: Iterable[int]) -> dict[int, OpenClaim]:
    """The claims that still stand, by token."""
    return {
        claim.token: claim for claim in claims_decoder.decode(tx.row(CLAIMS_BY_TOKEN, (encode(tokens),))[0])
    }


def claims_with(tx: Transaction, seqs: Collection[int]) -> dict[int, OpenClaim]:
    """Which claim each of some running tasks is open in. Reads the claims whose bounds meet theirs: there are as many
    claims as calls under way, not as tasks."""
    if not seqs:
        return {}
    found = claims_decoder.decode(tx.row(CLAIMS_BETWEEN, (max(seqs), min(seqs)))[0])
    wanted = set(seqs)
    return {seq: claim for claim in found for seq in wanted & claim.queue_by_seq().keys()}


# --- results -------------------------------------------------------------------------------------------------------

RESULTS = Rows(
    "insert into omniq_result(task_id, fence, state, final, own_ttl, stored_at, expires_at, body)",
    "(@, $, $, $, $, $, $, @)",
    "on conflict(task_id) do update set fence = excluded.fence, state = excluded.state, final = excluded.final, "
    "own_ttl = excluded.own_ttl, stored_at = excluded.stored_at, expires_at = excluded.expires_at, body = excluded.body "
    "where excluded.fence > fence or expires_at <= excluded.stored_at "
    "or (excluded.fence = fence and excluded.final > final)",
)
RESULT_END = "insert into omniq_result_end(at, ids) values (?, ?)"


def store_results(
    tx: Transaction, values: list[str | bytes], *, fence: int, state: int, final: bool, ttl: int | None
) -> None:
    """Stores results that are alike but for task and body, unless better ones are there.

    Args:
        tx: the transaction.
        values: id, body, id, body, ...
        fence: of all of them.
        state: its number.
        final: as in the record.
        ttl: in microseconds; ``None``: with the task.
    """
    ends = tx.now + (tx.retention if ttl is None else ttl)
    RESULTS.run(tx, values, fence, state, int(final), int(ttl is not None), tx.now, ends)
    if ttl is not None:
        tx.run(RESULT_END, (ends, encode(values[::2])))
    if final:
        tx.rings |= RESULT
