"""New tasks: ``- -> pending``.

The usual batch has no unique keys and no known ids. So it is inserted without looking first, the unique index on the
id decides, and only if fewer rows went in than were sent is it asked which.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from omniq_core import Enqueued, Outcome, TaskRecord
from omniq_sqlite.lockfile import QUEUE
from omniq_sqlite.statements import Rows, Transaction, encode, micro

__all__ = ["enqueue"]

TASKS = Rows(
    "insert into omniq_task(seq, id, queue, name, body, priority, max_attempts, max_crashes, enqueued_at, run_at, "
    "expires_at, unique_key)",
    "(@, @, @, @, @, @, @, @, $, @, @, @)",
    "on conflict(id) do nothing",
)
_NEW = "from omniq_task where seq between ? and ?"
NEW_READY = f"insert into omniq_ready select queue, -priority, seq {_NEW} and run_at <= ?"
NEW_DELAYED = f"insert into omniq_delayed select queue, run_at, seq {_NEW} and run_at > ?"
NEW_EXPIRING = f"insert into omniq_expiring select expires_at, seq {_NEW} and expires_at is not null"
INSERTED = "select json_group_array(seq) from omniq_task where seq between ? and ?"
KNOWN = "select json_group_array(t.id) from json_each(?) j cross join omniq_task t on t.id = j.value"
HOLDERS = """select json_group_object(u.key, t.id) from json_each(?) j cross join omniq_unique u on u.key = j.value
  cross join omniq_task t on t.seq = u.seq"""
KEYS = Rows("insert into omniq_unique(key, seq)", "(@, @)")


def enqueue(tx: Transaction, records: Sequence[TaskRecord]) -> list[Enqueued]:
    """Stores tasks that are new."""
    answers: list[Enqueued | None] = [None] * len(records)
    places: Sequence[int] = range(len(records))
    if any(record.unique_key is not None for record in records):
        places = _free_of_conflict(tx, records, answers)
    accepted = _insert(tx, records, places)
    for place in accepted:
        answers[place] = Enqueued(Outcome.OK, records[place].id)
    return [
        answer or Enqueued(Outcome.DUPLICATE, record.id)
        for answer, record in zip(answers, records, strict=True)
    ]


def _free_of_conflict(
    tx: Transaction, records: Sequence[TaskRecord], answers: list[Enqueued | None]
) -> Sequence[int]:
    """The places of records that are new and whose keys are free; answers the conflicts. The id is looked at first."""
    known = set(msgspec.json.decode(tx.row(KNOWN, (encode({r.id for r in records}),))[0], type=list[str]))
    keys = {record.unique_key for record in records} - {None}
    holders = msgspec.json.decode(tx.row(HOLDERS, (encode(keys),))[0], type=dict[str, str])
    free = []
    for place, record in enumerate(records):
        if record.id in known:
            continue
        if record.unique_key is not None:
            holder = holders.setdefault(record.unique_key, record.id)
            if holder != record.id:
                answers[place] = Enqueued(Outcome.CONFLICT, holder)
                continue
        known.add(record.id)
        free.append(place)
    return free


def _insert(tx: Transaction, records: Sequence[TaskRecord], places: Sequence[int]) -> Sequence[int]:
    """Inserts the records at these places, but for ids that are known; the places of those that are new."""
    if not places:
        return ()
    now = tx.now
    first = seq = tx.take("seq", len(places))
    last = first + len(places) - 1
    numbers = {name: tx.queue_number(name) for name in {records[place].queue for place in places}}
    values: list[object] = []
    keys: list[object] = []
    delayed = expiring = False
    for place in places:
        record = records[place]
        run_at, expires_at = now, None
        if record.delay_s > 0:
            run_at += micro(record.delay_s)
            delayed = True
        if record.ttl_s is not None:
            expires_at = now + micro(record.ttl_s)
            expiring = True
        if record.unique_key is not None:
            keys += (record.unique_key, seq)
        values += (
            seq, record.id, numbers[record.queue], record.name, record.body, record.priority, record.max_attempts,
            record.max_crashes, run_at, expires_at, record.unique_key,
        )  # fmt: skip
        seq += 1
    inserted = TASKS.run(tx, values, now)
    if inserted < len(places):
        stored = msgspec.json.decode(tx.row(INSERTED, (first, last))[0], type=set[int])
        places = [place for index, place in enumerate(places) if first + index in stored]
        if not places:
            return ()
    if keys:
        KEYS.run(tx, keys)
    tx.run(NEW_READY, (first, last, now))
    if delayed:
        tx.run(NEW_DELAYED, (first, last, now))
    if expiring:
        tx.run(NEW_EXPIRING, (first, last))
    for place in places:
        record = records[place]
        is_later = record.delay_s > 0 and micro(record.delay_s) > 0
        tx.count(numbers[record.queue], ready=not is_later, delayed=is_later, enqueued=1)
    tx.rings |= QUEUE
    return places
