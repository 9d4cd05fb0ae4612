"""The raw client on SQLite: the ``sqlite3`` of Python's standard library, in one thread, with nothing around it.

The storage work of a task queue at its least, in the layout that our driver uses too: a task by id, a narrow line of what
is ready, one record per claim, a result by id. WAL and ``synchronous=FULL``. Each step is a transaction. *Batch*: in few
statements, which is the most that any client gets.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import time

from benchmarks.subjects.raw import RESULT, SCENARIOS, RawSubject
from benchmarks.subjects.subject import URL

__all__ = ["SCENARIOS", "SUBJECT"]

BODY = os.urandom(40)
SCHEMA = """
create table task(seq integer primary key, id text not null, queue integer not null, body blob not null) strict;
create unique index task_id on task(id);
create table ready(queue integer, rank integer, seq integer, primary key(queue, rank, seq)) strict, without rowid;
create table claim(token integer primary key, expires_at integer not null, open text not null) strict;
create table done(seq integer primary key, state integer not null, at integer not null) strict;
create table result(id text primary key, at integer not null, body blob not null) strict, without rowid;
"""


class RawSQLite(RawSubject):
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

    async def put(self, count: int) -> None:
        rows = [(seq, f"{seq:032x}-000", 1, BODY) for seq in itertools.islice(self.seq, count)]
        self.db.execute("begin immediate")
        self.db.executemany("insert into task values (?, ?, ?, ?)", rows)
        self.db.executemany("insert into ready values (1, 0, ?)", [(row[0],) for row in rows])
        self.db.execute("commit")

    async def cycle(self, count: int) -> int:
        token, tasks = self._claim(count)
        self._settle(token, tasks)
        return len(tasks)

    def _claim(self, count: int) -> tuple[int, list[tuple[int, str, bytes]]]:
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

    def _settle(self, token: int, tasks: list[tuple[int, str, bytes]]) -> None:
        db, now = self.db, time.time_ns()
        db.execute("begin immediate")
        if not db.execute("select open from claim where token = ?", (token,)).fetchall():
            raise RuntimeError("the claim is gone")
        db.executemany("insert into done values (?, 2, ?)", [(task[0], now) for task in tasks])
        db.executemany("insert into result values (?, ?, ?)", [(task[1], now, RESULT) for task in tasks])
        db.execute("delete from claim where token = ?", (token,))
        db.execute("commit")


SUBJECT = RawSQLite
