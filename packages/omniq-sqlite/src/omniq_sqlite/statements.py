"""How statements are written here, and what one transaction carries.

**Few statements, whole batches.** Python's ``sqlite3`` gives the GIL away around every step of a statement, and a thread that
wants it back waits up to 5 ms while another one computes. A statement per task, or a row at a time from a SELECT, then costs
5 ms *per task*: 500 tasks were read in 850 ms beside a busy event loop. So what is written goes in as one statement of many
rows, or as a JSON list that SQLite takes apart; what is read comes back as *one* row, a JSON list put together by SQLite and
all the bodies in one string of hexadecimal digits: 12 ms, and 1.5 µs instead of 1.1 µs per row when nothing is busy.

**Few texts.** A statement's text is its key in the connection's cache of prepared statements. Lists come in chunks of 250,
50, 10 and 1 rows, so each statement has four texts and not a thousand.

**Times** are whole microseconds since the epoch: they pass through JSON unchanged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

__all__ = ["INLINE", "Rows", "Transaction", "encode", "hex_if_small", "micro", "seconds", "unpack"]

T = TypeVar("T")

CHUNKS = (250, 64, 10, 1)
INLINE = 16 * 1024
"""Bodies up to this many bytes come as hexadecimal digits within the one row; larger ones are fetched one by one."""


def micro(seconds_: float) -> int:
    """Seconds as stored."""
    return round(seconds_ * 1e6)


def seconds(stored: int) -> float:
    """A stored time in seconds. Division rounds correctly, so a time with six decimals comes back as it went in."""
    return stored / 1e6


def encode(items: Iterable[Any]) -> str:
    """A list as the JSON text that ``json_each`` takes apart."""
    return msgspec.json.encode(items if isinstance(items, (list, tuple)) else list(items)).decode()


def hex_if_small(column: str) -> str:
    """The SQL of ``column`` in hexadecimal digits, for a row of JSON; nothing if it is null or too large for that."""
    return f"case when length({column}) <= {INLINE} then hex({column}) else '' end"


def unpack(sizes: Sequence[int | None], digits: str | None) -> list[bytes | None]:
    """Blobs from their hexadecimal digits in one string: ``None`` where there was none or it was too large."""
    whole = bytes.fromhex(digits or "")
    start = 0
    found: list[bytes | None] = []
    for size in sizes:
        if size is None or size > INLINE:
            found.append(None)
        else:
            found.append(whole[start : start + size])
            start += size
    return found


class Rows:
    """A statement over a list of rows, in a few texts.

    No parameter has a number. From Python 3.12 on a number counts as a name, which is searched for in a list whenever a
    value is bound: 250 rows took four times as long (3.12.0 to 3.12.3 also warn of each). So what all rows share does not
    stand in each of them: the rows are a table of their own, and it is selected beside them.

    Args:
        head: what stands before the rows, but for ``values``.
        row: one row; ``@`` stands for its next value, ``$`` for the next of those that all rows share.
        tail: what follows.
    """

    def __init__(self, head: str, row: str, tail: str = "") -> None:
        self.width = row.count("@")
        self._texts = {count: self._text(head, row, tail, count) for count in CHUNKS}

    def _text(self, head: str, row: str, tail: str, count: int) -> str:
        if "$" not in row:
            return f"{head} values {', '.join([row.replace('@', '?')] * count)} {tail}"
        names = [f"c{number}" for number in range(self.width)]
        rows = ", ".join([f"({', '.join('?' * self.width)})"] * count)
        selected = row.strip("()").replace("$", "?").replace("@", "{}").format(*names)
        # Without a condition the parser would take `on conflict` for that of a join.
        return (
            f"with v({', '.join(names)}) as (values {rows}) {head} select {selected} from v where true {tail}"
        )

    def texts(self) -> Iterable[str]:
        """Every text, for tests that look at query plans."""
        return self._texts.values()

    def run(self, tx: Transaction, values: list[Any], *shared: Any) -> int:
        """Runs it over ``values``, the rows one after the other in one flat list; how many rows were changed."""
        width, changed, start = self.width, 0, 0
        left = len(values) // width
        for count in CHUNKS:
            while left >= count:
                end = start + count * width
                changed += tx.run(self._texts[count], (*values[start:end], *shared))
                start, left = end, left - count
        return changed


class Transaction:
    """One open transaction on one connection, and what is to be done before and after its commit.

    Args:
        connection: with a transaction open.
        now: the store's time, in microseconds: one for the whole transaction.
        retention: how long finished tasks are kept, in microseconds.
        numbers: queue names -> numbers as far as they are known. Its owner must empty it on a rollback.
    """

    __slots__ = ("_counts", "cursor", "now", "numbers", "retention", "rings")

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        now: int,
        retention: int,
        numbers: dict[str, int] | None = None,
    ) -> None:
        self.cursor = connection.cursor()
        self.cursor.row_factory = None  # the caller's own connection may have another one
        self.now = now
        self.retention = retention
        self.numbers = {} if numbers is None else numbers
        self.rings = 0
        self._counts: dict[int, list[int]] = {}

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Runs a statement that gives no rows; how many it changed."""
        return self.cursor.execute(sql, values).rowcount

    def row(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first row or ``None``. The statement is run to its end, so that nothing stays open."""
        rows = self.cursor.execute(sql, values).fetchall()
        return rows[0] if rows else None

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows: for a handful."""
        return self.cursor.execute(sql, values).fetchall()

    def take(self, counter: str, count: int = 1) -> int:
        """The first of ``count`` numbers of a counter. A number is never given out twice, whatever is deleted."""
        last: int = self.row(
            "update omniq_counter set value = value + ? where name = ? returning value", (count, counter)
        )[0]
        return last - count + 1

    def queue_number(self, name: str) -> int:
        """The number of a queue, which is created if need be."""
        number = self.numbers.get(name)
        if number is None:
            self.run("insert into omniq_queue(name) values (?) on conflict do nothing", (name,))
            number = self.numbers[name] = self.row("select no from omniq_queue where name = ?", (name,))[0]
        return number

    def count(
        self, queue: int, *, ready: int = 0, delayed: int = 0, running: int = 0, enqueued: int = 0
    ) -> None:
        """Notes a change of a queue's counts. Written once per transaction and queue, by :meth:`write_counts`."""
        counts = self._counts.get(queue)
        if counts is None:
            counts = self._counts[queue] = [0, 0, 0, 0]
        counts[0] += ready
        counts[1] += delayed
        counts[2] += running
        counts[3] += enqueued

    def write_counts(self) -> None:
        """Before the commit, and before anything reads the counts."""
        for queue, counts in self._counts.items():
            if any(counts):
                self.run(
                    "update omniq_queue set ready = ready + ?, delayed = delayed + ?, running = running + ?, "
                    "enqueued = enqueued + ? where no = ?",
                    (*counts, queue),
                )
        self._counts.clear()

    def forget_counts(self) -> None:
        """When what they count was rolled back."""
        self._counts.clear()
