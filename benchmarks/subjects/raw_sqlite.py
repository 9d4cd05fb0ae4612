"""The raw client on SQLite: the ``sqlite3`` of Python's standard library, in one thread, with nothing around it.

The storage work of a task queue at its least, in the layout that our driver uses too: a task by id, a narrow line of what
is ready, one record per claim, a result by id. WAL and ``synchronous=FULL``. *One*: each step is a transaction, as a queue
that takes tasks one by one must do. *Batch*: whole batches in few statements, which is the most that any client gets.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.subjects.subject import URL, Subject

BODY, RESULT = os.urandom(40), os.urandom(120)
SCHEMA = """
create table task(seq integer primary key, id text not null, queue integer not null, body blob not null) strict;
create unique index task_id on task(id);
create table ready(queue integer, rank integer, seq integer, primary key(queue, rank, seq)) strict, without rowid;
create table claim(token integer primary key, expires_at integer not null, open text not null) strict;
create table done(seq integer primary key, state integer not null, at integer not null) strict;
create table result(id text primary key, at integer not null, body blob not null) strict, without rowid;
"""


class Raw(Subject):
    distributions = ()

    async def open(self) -> None:
        self.db = sqlite3.connect(URL, isolation_level=None, cached_statements=64)
        for pragma in ("journal_mode=wal", "synchronous=full", "cache_size=-65536", "temp_store=memory"):
            self.db.execute(f"pragma {pragma}")
        self.db.executescript(SCHEMA)
        self.seq = itertools.count(1)
        self.token = itertools.count(1)

    async def close(self) -> None:
        self.db.close()

    def enqueue(self, count: int) -> None:
        rows = [(seq, f"{seq:032x}-000", 1, BODY) for seq in itertools.islice(self.seq, count)]
        self.db.execute("begin immediate")
        self.db.executemany("insert into task values (?, ?, ?, ?)", rows)
        self.db.executemany("insert into ready values (1, 0, ?)", [(row[0],) for row in rows])
        self.db.execute("commit")

    def claim(self, count: int) -> tuple[int, list[tuple[int, str, bytes]]]:
        db = self.db
        db.execute("begin immediate")
        seqs = [
            row[0]
            for row in db.execute(
                "select seq from ready where queue = 1 order by rank, seq limit ?", (count,)
            )
        ]
        if not seqs:
            db.execute("commit")
            return 0, []
        token = next(self.token)
        db.execute("delete from ready where queue = 1 and (rank, seq) <= (0, ?)", (seqs[-1],))
        db.execute("insert into claim values (?, ?, ?)", (token, time.time_ns(), json.dumps(seqs)))
        tasks = db.execute(
            "select seq, id, body from task where seq between ? and ?", (seqs[0], seqs[-1])
        ).fetchall()
        db.execute("commit")
        return token, tasks

    def settle(self, token: int, tasks: list[tuple[int, str, bytes]]) -> None:
        db, now = self.db, time.time_ns()
        db.execute("begin immediate")
        if not db.execute("select open from claim where token = ?", (token,)).fetchall():
            raise RuntimeError("the claim is gone")
        db.executemany("insert into done values (?, 2, ?)", [(task[0], now) for task in tasks])
        db.executemany("insert into result values (?, ?, ?)", [(task[1], now, RESULT) for task in tasks])
        db.execute("delete from claim where token = ?", (token,))
        db.execute("commit")


async def enqueue_one(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    return _repeat(lambda: raw.enqueue(1), 1, seconds)


async def enqueue_batch(raw: Raw, *, seconds: float, most: int, size: int) -> dict[str, Any]:
    return _repeat(lambda: raw.enqueue(size), size, seconds)


def _repeat(step: Callable[[], object], size: int, seconds: float) -> dict[str, Any]:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        count += size
    return {"rate": count / (time.perf_counter() - began), "tasks": count}


def _cycle(raw: Raw, size: int, seconds: float) -> dict[str, Any]:
    """Claim and settle with results, of what was enqueued before."""
    count, took = 0, 0.0
    while took < seconds:
        for _ in range(0, 10 * size, 500):
            raw.enqueue(500)
        began = time.perf_counter()
        for _ in range(10 if size > 1 else 200):
            token, tasks = raw.claim(size)
            raw.settle(token, tasks)
            count += len(tasks)
        took += time.perf_counter() - began
    return {"rate": count / took, "tasks": count, "size": size}


async def cycle_one(raw: Raw, *, seconds: float) -> dict[str, Any]:
    return _cycle(raw, 1, seconds)


async def cycle_batch(raw: Raw, *, seconds: float, size: int) -> dict[str, Any]:
    return _cycle(raw, size, seconds)


SCENARIOS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "enqueue one": enqueue_one,
    "enqueue batch": enqueue_batch,
    "cycle one": cycle_one,
    "cycle batch": cycle_batch,
}
SUBJECT = Raw
