"""A batch on its way in: the columns of ``enqueue`` and ``settle``, and what their answers mean item by item; and the
parameters of a record that comes alone.

A column that is at its default in the whole batch is sent as null. Used on our own connections and on the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from omniq_core import Enqueued, Lease, Outcome, Settlement, TaskRecord, Verb
from omniq_postgres.connection import Row
from omniq_postgres.leases import Place

__all__ = ["EnqueueBatch", "SettleBatch", "is_plain", "is_plain_success", "parameters_of"]

T = TypeVar("T")
_VERBS = {Verb.RETRY: 0, Verb.RELEASE: 1, Verb.SUCCEED: 2, Verb.DEAD: 3, Verb.CANCEL: 4}
_LETTERS = {"o": Outcome.OK, "d": Outcome.DUPLICATE, "s": Outcome.STALE, "n": Outcome.NOT_FOUND}


def _column(values: list[T], default: T) -> list[T] | None:
    return None if values.count(default) == len(values) else values


def _line(reason: str | None) -> str | None:
    """As PostgreSQL can store it. It comes from any exception, and must never be what keeps a task from ending."""
    if reason is None or (reason.isascii() and "\0" not in reason):
        return reason
    return reason.replace("\0", "\ufffd").encode(errors="replace").decode()


def is_plain(record: TaskRecord) -> bool:
    """Whether ``enqueue_one`` can take it."""
    return record.unique_key is None and record.delay_s == 0


def parameters_of(record: TaskRecord) -> tuple[Any, ...]:
    """A plain record as the parameters of ``enqueue_one``."""
    return (
        record.queue, record.id, record.name, record.body, -1 - record.priority, record.ttl_s, record.max_attempts,
        record.max_crashes,
    )  # fmt: skip


def is_plain_success(item: Settlement, place: Place) -> bool:
    """Whether ``settle_one`` can take it."""
    return (
        item.verb is Verb.SUCCEED
        and place.seq > 0
        and not item.crashed
        and item.reason is None
        and item.error is None
    )


class EnqueueBatch:
    """Some records as the parameters of ``enqueue``.

    Args:
        records: at most 1000.
    """

    def __init__(self, records: Sequence[TaskRecord]) -> None:
        self.records = records
        names = list(dict.fromkeys([record.queue for record in records]))
        self.queues = names
        places = {name: number for number, name in enumerate(names, 1)}
        self.parameters: tuple[Any, ...] = (
            names,
            None if len(names) == 1 else [places[record.queue] for record in records],
            [record.id for record in records],
            [record.name for record in records],
            [record.body for record in records],
            _column([-1 - record.priority for record in records], -1),
            _column([record.delay_s for record in records], 0.0),
            _column([record.ttl_s for record in records], None),
            _column([record.max_attempts for record in records], 1),
            _column([record.max_crashes for record in records], 3),
            _column([record.unique_key for record in records], None),
        )

    def answers(self, rows: Iterable[Row]) -> list[Enqueued]:
        """One for one; the rows tell what was not stored."""
        found = [Enqueued(Outcome.OK, record.id) for record in self.records]
        for place, is_duplicate, holder in rows:
            if is_duplicate:
                found[place - 1] = Enqueued(Outcome.DUPLICATE, self.records[place - 1].id)
            else:
                found[place - 1] = Enqueued(Outcome.CONFLICT, holder)
        return found


class SettleBatch:
    """Some settlements as the parameters of ``settle``.

    Args:
        settlements: at most 1000.
        places: of their leases.
        retention_s: of results without a time to live.
        joins: whether they become part of a longer transaction.
    """

    def __init__(
        self,
        settlements: Sequence[Settlement],
        places: Sequence[Place],
        *,
        retention_s: float,
        joins: bool = False,
    ) -> None:
        self.outcomes: list[Outcome] = [Outcome.NOT_FOUND] * len(settlements)
        seen: dict[tuple[int, int], int] = {}
        self._repeats: list[tuple[int, int]] = []
        order: list[tuple[int, int]] = []
        for number, place in enumerate(places):
            if place.seq > 0:
                first = seen.setdefault((place.seq, place.fence), number)
                if first != number:
                    self._repeats.append((number, first))
                else:
                    order.append((place.seq, number))
            elif place.seq < 0:
                # A fence that a claim gave is even. One that the row bears was settled by just this lease.
                was_settled = place.written == place.fence and place.fence > 0 and place.fence % 2 == 0
                self.outcomes[number] = Outcome.DUPLICATE if was_settled else Outcome.STALE
        order.sort()  # rows are locked in the order of their numbers
        # Two claims may hold one task in this batch, one of them stale: only one row can be joined with the task's.
        self._rounds = _rounds(order)
        self._settlements = settlements
        self._places = places
        self._retention_s = retention_s
        self._joins = joins
        self.rung: set[str] = set()

    def calls(self) -> Iterable[tuple[list[int], tuple[Any, ...]]]:
        """Each call of ``settle`` that is needed, mostly one: the items in it, and the parameters."""
        for numbers in self._rounds:
            items = [self._settlements[number] for number in numbers]
            fences = [self._places[number].fence for number in numbers]
            tokens = list(dict.fromkeys(fences))
            yield (
                numbers,
                (
                    tokens,
                    None if len(tokens) == 1 else fences,
                    [self._places[number].seq for number in numbers],
                    _column([_VERBS[item.verb] for item in items], 2),
                    _column([item.crashed for item in items], False),
                    _column([item.delay_s for item in items], 0.0),
                    _column([item.result_ttl_s for item in items], None),
                    _column([_line(item.reason) for item in items], None),
                    _column([item.error for item in items], None),
                    _column([item.result for item in items], None),
                    self._retention_s,
                    self._joins,
                ),
            )

    def take(self, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Notes the answer of one call."""
        letters, rung = rows[0]
        for place, number in enumerate(numbers):
            self.outcomes[number] = Outcome.OK if letters is None else _LETTERS[letters[place]]
        self.rung.update(rung or ())

    def gone(self) -> list[Lease]:
        """The leases whose row is gone; of their ids somebody may have made a new task since."""
        return [
            item.lease
            for item, outcome in zip(self._settlements, self.outcomes, strict=True)
            if outcome is Outcome.NOT_FOUND
        ]

    def take_reused(self, task_ids: set[str]) -> None:
        """Notes which of these ids are known: an old lease on a new task of the same id is stale."""
        for number, item in enumerate(self._settlements):
            if self.outcomes[number] is Outcome.NOT_FOUND and item.lease.task_id in task_ids:
                self.outcomes[number] = Outcome.STALE

    def answers(self) -> list[Outcome]:
        for number, first in self._repeats:
            outcome = self.outcomes[first]
            self.outcomes[number] = Outcome.DUPLICATE if outcome is Outcome.OK else outcome
        return self.outcomes


def _rounds(order: list[tuple[int, int]]) -> list[list[int]]:
    rounds: list[list[int]] = []
    last, depth = 0, 0
    for seq, number in order:
        depth = depth + 1 if seq == last else 0
        last = seq
        if depth == len(rounds):
            rounds.append([])
        rounds[depth].append(number)
    return rounds
