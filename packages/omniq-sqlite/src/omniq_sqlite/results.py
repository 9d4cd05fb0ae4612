"""The result store: one record per task id, the one with the highest fence."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence

import msgspec

from omniq_core import Outcome, ResultRecord, ResultStore
from omniq_sqlite.connection import Storage
from omniq_sqlite.lockfile import RESULT
from omniq_sqlite.moves import IN, store_results
from omniq_sqlite.schema import STATE_NUMBERS, STATES
from omniq_sqlite.statements import Transaction, encode, hex_if_small, micro, seconds, unpack
from omniq_sqlite.upkeep import prune_results
from omniq_sqlite.wakeup import Ticket

__all__ = ["SQLiteResultStore"]

RECORDS = f"""select json_group_array(json_array(task_id, fence, state, final, own_ttl, stored_at, expires_at, size)),
  group_concat(digits, '') from (select r.*, length(r.body) as size, {hex_if_small("r.body")} as digits
  from json_each(?) j cross join omniq_result r on r.task_id = j.value where r.expires_at > ?)"""
BODY = "select body from omniq_result where task_id = ?"
PRESENT = """select json_group_array(json_array(r.task_id, r.fence, r.final)) from json_each(?) j
  cross join omniq_result r on r.task_id = j.value where r.expires_at > ?"""
FINAL = """select json_group_array(r.task_id) from json_each(?) j cross join omniq_result r on r.task_id = j.value
  where r.final and r.expires_at > ?"""
COUNT = f"select count(*) from omniq_result where task_id {IN} and expires_at > ?"
DELETE = f"delete from omniq_result where task_id {IN}"

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05
"""Between two looks for all that is waited for. A look at many ids takes its time, so the pause is at least as long."""

_rows = msgspec.json.Decoder(list[tuple[str, int, int, int, int, int, int, int]])
_present = msgspec.json.Decoder(list[tuple[str, int, bool | int]])
_ids = msgspec.json.Decoder(list[str])


def put(tx: Transaction, records: Sequence[ResultRecord]) -> list[Outcome]:
    """Stores the records that may stand."""
    listed = encode({record.task_id for record in records})
    present = {
        task_id: (fence, bool(final))
        for task_id, fence, final in _present.decode(tx.row(PRESENT, (listed, tx.now))[0])
    }
    outcomes = []
    alike: dict[tuple[int, int, bool, float | None], list[str | bytes]] = {}
    for record in records:
        fence, final = present.get(record.task_id, (-1, False))
        if fence > record.fence:
            outcomes.append(Outcome.STALE)
        elif fence == record.fence and (final or not record.final):
            outcomes.append(Outcome.DUPLICATE)
        else:
            present[record.task_id] = (record.fence, record.final)
            kind = (record.fence, STATE_NUMBERS[record.state], record.final, record.ttl_s)
            alike.setdefault(kind, []).extend((record.task_id, record.body))
            outcomes.append(Outcome.OK)
    for (fence, state, final, ttl_s), values in alike.items():
        # None means as long as anything is kept; as there may be no task here to go with, it has an end of its own.
        ttl = tx.retention if ttl_s is None else micro(ttl_s)
        store_results(tx, values, fence=fence, state=state, final=final, ttl=ttl)
    return outcomes


def read(connection: sqlite3.Connection, task_ids: Sequence[str], now: int) -> list[ResultRecord | None]:
    """The records by position."""
    text, digits = connection.execute(RECORDS, (encode(set(task_ids)), now)).fetchall()[0]
    rows = _rows.decode(text)
    found = {}
    for row, body in zip(rows, unpack([row[-1] for row in rows], digits), strict=True):
        task_id, fence, state, final, own_ttl, stored_at, expires_at, _ = row
        if body is None:
            body = connection.execute(BODY, (task_id,)).fetchall()[0][0]
        ttl_s = seconds(expires_at - stored_at) if own_ttl else None
        found[task_id] = ResultRecord(
            task_id, fence, STATES[state], body, ttl_s, bool(final), seconds(stored_at), seconds(expires_at)
        )
    return [found.get(task_id) for task_id in task_ids]


def which_are_final(connection: sqlite3.Connection, task_ids: Sequence[str], now: int) -> list[str]:
    """Those of some tasks that have a final record."""
    return _ids.decode(connection.execute(FINAL, (encode(task_ids), now)).fetchall()[0][0])


class SQLiteResultStore(ResultStore):
    """Results in the file."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._looker: asyncio.Task[None] | None = None

    def _now(self) -> int:
        return micro(self._storage.clock.time())

    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        return await self._storage.write_joined(put, records)

    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        return await self._storage.read(read, task_ids, self._now())

    async def delete(self, task_ids: Sequence[str], /) -> int:
        def work(tx: Transaction) -> int:
            listed = encode(set(task_ids))
            count: int = tx.row(COUNT, (listed, tx.now))[0]
            tx.run(DELETE, (listed,))
            return count

        return await self._storage.write(work)

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        """Looks at once, then joins those that wait here: one look, when results were stored, serves all of them."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            self._storage.check()
            # Registered before looking, so that what comes in between is not missed.
            future: asyncio.Future[None] = loop.create_future()
            self._register(task_ids, future)
            try:
                found = await self.get(task_ids)
                left_s = end - loop.time()
                if (
                    not task_ids
                    or left_s <= 0
                    or any(record is not None and record.final for record in found)
                ):
                    return found
                await asyncio.wait([future], timeout=left_s)
            finally:
                self._forget(task_ids, future)

    def _register(self, task_ids: Sequence[str], future: asyncio.Future[None]) -> None:
        for task_id in task_ids:
            self._waiting.setdefault(task_id, set()).add(future)
        if self._waiting and (self._looker is None or self._looker.done()):
            ticket = self._storage.watcher.join(RESULT)
            self._looker = asyncio.get_running_loop().create_task(self._look_out(ticket))

    def _forget(self, task_ids: Sequence[str], future: asyncio.Future[None]) -> None:
        for task_id in task_ids:
            waiting = self._waiting.get(task_id)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[task_id]
        if not self._waiting and self._looker is not None:
            self._looker.cancel()
            self._looker = None

    async def _look_out(self, ticket: Ticket) -> None:
        """Wakes those whose result has come, until nobody waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if not await ticket.wait(60.0):
                    continue
                began = loop.time()
                here = await self._storage.read(which_are_final, list(self._waiting), self._now())
                for task_id in here:
                    self._wake(self._waiting.get(task_id, ()))
                took_s = loop.time() - began
                await asyncio.sleep(min(max(took_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
        except Exception:
            # The backend was closed, or the file cannot be read. Those who wait look for themselves, and meet it.
            pass
        finally:
            self._storage.watcher.leave(ticket)
            for futures in self._waiting.values():
                self._wake(futures)

    @staticmethod
    def _wake(futures: set[asyncio.Future[None]] | tuple[()]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)

    async def prune(self, *, limit: int = 1000) -> int:
        return (await self._storage.write(lambda tx: prune_results(tx, limit)))[0]
