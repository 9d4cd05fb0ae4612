"""Which tasks and which events: filters as SQL. Only fixed text is put together; what comes from outside is a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omniq_core import EventFilter, TaskFilter, TaskState
from omniq_postgres.leases import STATE_NUMBERS

__all__ = ["candidates", "event_conditions"]

_FAILED = {TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED}
_OPEN = {TaskState.PENDING, TaskState.RUNNING}
_IN_LINE = """(
    exists (select from @schema.ready r where r.queue_id = t.queue_id and r.rank = t.rank and r.seq = t.seq)
    or exists (select from @schema.delayed d where d.queue_id = t.queue_id and d.run_at = t.run_at and d.seq = t.seq))"""


class _Conditions:
    """Conditions and their parameters, as they are collected."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.types: list[str] = []
        self.values: list[Any] = []

    def add(self, text: str, type_: str | None = None, value: object = None) -> None:
        """With at most one ``{}``, for the value."""
        self.texts.append(text)
        if type_ is not None:
            self.types.append(type_)
            self.values.append(value)

    @property
    def where(self) -> str:
        return " and ".join(self.texts) or "true"


def candidates(
    which: TaskFilter, limit: int, *, before: int | None = None, to_purge: bool = False
) -> tuple[str, Sequence[str], Sequence[Any]]:
    """A query for the numbers of tasks, newest first, with its parameters.

    Failed tasks are found by way of ``failed``, pending and running ones by way of where they stand; so a filter for
    these states costs nothing for all the tasks that have succeeded. Others read ``task`` backwards.

    Args:
        which: the filter.
        limit: most numbers.
        before: only lower numbers.
        to_purge: running tasks are not meant, and those that wait come in any order: to find the newest of many, all of
            them are read, and a purge asks once for each thousand.
    """
    states = set(which.states) or set(TaskState)
    if to_purge:
        states.discard(TaskState.RUNNING)
    conditions = _Conditions()
    if which.queues:
        conditions.add(
            "t.queue_id = any (array(select q.queue_id from @schema.queue q where q.name = any ({})))",
            "text[]",
            list(which.queues),
        )
    if which.names:
        conditions.add("t.name = any ({})", "text[]", list(which.names))
    if which.enqueued_after is not None:
        conditions.add("t.enqueued_at >= {}", "float8", which.enqueued_after)
    if which.enqueued_before is not None:
        conditions.add("t.enqueued_at < {}", "float8", which.enqueued_before)
    if before is not None:
        conditions.add("t.seq < {}", "bigint", before)

    if to_purge and states == {TaskState.PENDING}:
        conditions.types.append("integer")
        conditions.values.append(limit)
        # Task by task ("offset 0" keeps the planner from joining all of them), until there are enough.
        text = f"""select o.seq from (select r.seq from @schema.ready r union all select d.seq from @schema.delayed d) o
            cross join lateral (select from @schema.task t where t.seq = o.seq and {conditions.where} offset 0) t
            limit {{}}"""
        return text, conditions.types, conditions.values

    if states != set(TaskState):
        wanted = []
        final = [STATE_NUMBERS[state] for state in states if state.is_final]
        if final:
            wanted.append("t.state = any ({})")
            conditions.types.append("smallint[]")
            conditions.values.append(final)
        if states >= _OPEN:
            wanted.append("t.state = 0")
        elif TaskState.PENDING in states:
            wanted.append(f"t.state = 0 and {_IN_LINE}")
        elif TaskState.RUNNING in states:
            wanted.append(f"t.state = 0 and not {_IN_LINE}")
        conditions.texts.append("(" + (" or ".join(wanted) or "false") + ")")

    source = "@schema.task t"
    if states <= _FAILED:
        source = "@schema.failed f join @schema.task t on t.seq = f.seq"
    elif states <= _OPEN:
        source = """(
            select r.seq from @schema.ready r union select d.seq from @schema.delayed d
            union select unnest(c.seqs) from @schema.claim c) o join @schema.task t on t.seq = o.seq"""
    conditions.types.append("integer")
    conditions.values.append(limit)
    text = f"select t.seq from {source} where {conditions.where} order by t.seq desc limit {{}}"
    return text, conditions.types, conditions.values


def event_conditions(which: EventFilter, after: int) -> tuple[str, list[str], list[Any]]:
    """The conditions of a filter, with their parameters."""
    conditions = _Conditions()
    conditions.add("e.pos > {}", "bigint", after)
    for column, values in (("task_id", which.task_ids), ("type", which.types), ("queue", which.queues)):
        if values:
            conditions.add(f"e.{column} = any ({{}})", "text[]", list(values))
    if which.since is not None:
        conditions.add("e.at >= {}", "float8", which.since)
    if which.until is not None:
        conditions.add("e.at < {}", "float8", which.until)
    return conditions.where, conditions.types, conditions.values
