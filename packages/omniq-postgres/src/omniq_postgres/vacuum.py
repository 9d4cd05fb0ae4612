"""Deleting what claims have left behind, since autovacuum comes too seldom for that.

A claim deletes rows at the beginning of ``ready``, and their entries stay at the beginning of its index until a vacuum: the
next claim steps over all of them, and after a million claimed tasks one of a hundred costs five times as much. Autovacuum
looks once a minute (``autovacuum_naptime``), and by then two million tasks may have been claimed. So each process counts
what it claims, and has the narrow tables of the hot path vacuumed in between. With several processes the same number of
tasks passes between two vacuums, and none vacuums while, or just after, another one did.

It is upkeep, so nothing depends on it: a vacuum that fails is tried again later, and autovacuum is still there.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg

from omniq_core import Closed
from omniq_postgres.connection import Link
from omniq_postgres.pool import Pool

__all__ = ["TABLES", "Vacuum", "may_vacuum"]

log = logging.getLogger("omniq")

TABLES = ("ready", "delayed", "claim", "delta")
"""Where a row lives as long as a task waits, or shorter. ``ready`` comes first: its entries cost the most."""
EVERY = 20_000
"""Claimed tasks between two vacuums: to step over so many entries takes a claim about 0.15 ms."""
PAUSE_S = 1.0
"""At least so long between two vacuums, whoever makes them."""
SHARE = 10
"""And at least so many times as long as the last one took: the index is read from end to end, and with ten million tasks
waiting that is a tenth of a second."""
FAILED_S = 30.0
TIMEOUT_S = 60.0
"""Through a pooler the server may know no time-out."""

_ASK = """
select pg_has_role(r.relowner, 'USAGE') or pg_has_role(d.datdba, 'USAGE'){maintain},
       exists (select from pg_catalog.pg_stat_progress_vacuum p where p.relid = r.oid)
       or coalesce(date_part('epoch', clock_timestamp() - s.last_vacuum) < {pause}, false)
  from pg_catalog.pg_class r
  join pg_catalog.pg_namespace n on n.oid = r.relnamespace
  join pg_catalog.pg_database d on d.datname = current_database()
  left join pg_catalog.pg_stat_all_tables s on s.relid = r.oid
 where n.nspname = '{schema}' and r.relname = 'ready' and r.relkind = 'r'
"""


class Vacuum:
    """When the tables are vacuumed for what this process claimed.

    Args:
        pool: whose connections it uses, one at a time.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._claimed = 0
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def note(self, claimed: int) -> None:
        """So many tasks were claimed. Returns at once."""
        self._claimed += claimed
        if self._claimed >= EVERY and self._task is None and not self._is_over:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._not_before - loop.time())
            self._claimed = 0
            began = loop.time()
            pause_s = FAILED_S
            try:
                await self._vacuum()
                pause_s = max(PAUSE_S, SHARE * (loop.time() - began))
            except (psycopg.Error, OSError) as error:
                log.debug("postgres: could not vacuum: %s", error)
            except Closed:
                return
            self._not_before = loop.time() + pause_s
        finally:
            self._task = None

    async def _vacuum(self) -> None:
        link = await self._pool.take()
        try:
            may, is_done = await _state(link, self._pool.schema, PAUSE_S)
            if not may:
                # The server would warn, in its log, each time.
                self._is_over = True
                log.debug("postgres: this role may not vacuum %s.ready", self._pool.schema)
            elif not is_done:
                tables = ", ".join(f"{self._pool.schema}.{table}" for table in TABLES)
                # Alone in its message: it cannot be in a transaction. Without "truncate" it locks nobody out.
                await link.script(
                    f"vacuum (skip_locked, truncate off, index_cleanup on, parallel 0) {tables}",
                    timeout_s=TIMEOUT_S,
                )
        finally:
            self._pool.give_back(link)

    async def close(self) -> None:
        """Stops counting. One that is under way is left to the server."""
        self._is_over = True
        if self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.wait([task])


async def _state(link: Link, schema: str, pause_s: float) -> tuple[bool, bool]:
    """Whether the role may vacuum, and whether somebody does or just did."""
    maintain = " or has_table_privilege(r.oid, 'MAINTAIN')" if link.server_version >= 170000 else ""
    rows = await link.script(
        _ASK.format(schema=schema.strip('"'), maintain=maintain, pause=pause_s), timeout_s=TIMEOUT_S
    )
    return (bool(rows[0][0]), bool(rows[0][1])) if rows else (False, False)


async def may_vacuum(pool: Pool) -> bool:
    """Whether the role of our sessions may vacuum the tables."""
    link = await pool.take()
    try:
        may, _ = await _state(link, pool.schema, PAUSE_S)
        return may
    finally:
        pool.give_back(link)
