"""The raw client on PostgreSQL: asyncpg, one connection, with nothing around it.

The storage work of a task queue at its least: a task with its result, a narrow table of what is ready, one row per claim.
A transaction per step. *Batch*: whole batches by ``unnest``, claims by ``for update skip locked``. *From 64*: on a pool of 16
connections.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from benchmarks.subjects.raw import RESULT, SCENARIOS, RawSubject
from benchmarks.subjects.subject import URL

__all__ = ["SCENARIOS", "SUBJECT"]

BODY = os.urandom(40)
SCHEMA = """
create table task(id uuid primary key, queue text collate "C" not null, state smallint not null default 0,
  body bytea not null, result bytea, done_at timestamptz) with (fillfactor = 70);
create table ready(queue text collate "C", rank smallint, id uuid, primary key (queue, rank, id));
create table claim(token bigint primary key, expires_at timestamptz not null, ids uuid[] not null);
create sequence token;
create function enqueue(uuid[], bytea[]) returns void language sql as $$
  insert into task(id, queue, body) select i, 'q', b from unnest($1, $2) as t(i, b);
  insert into ready select 'q', 0, i from unnest($1) as i;
$$;
create function claim(n int) returns table(t bigint, id uuid, body bytea) language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare taken uuid[]; tok bigint := nextval('token');
begin
  with gone as (delete from ready r where r.ctid = any(array(
      select x.ctid from ready x where x.queue = 'q' order by x.rank, x.id limit n for update skip locked))
    returning r.id)
  select array_agg(gone.id) into taken from gone;
  if taken is null then return; end if;
  insert into claim values (tok, clock_timestamp() + interval '30 s', taken);
  return query select tok, k.id, k.body from unnest(taken) as u(id) join task k using (id);
end $$;
create function settle(tok bigint, done uuid[], results bytea[]) returns int language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
begin
  delete from claim where token = tok;
  if not found then return 0; end if;
  update task k set state = 2, result = u.r, done_at = clock_timestamp() from unnest(done, results) as u(id, r)
    where k.id = u.id;
  return 1;
end $$;
"""


class RawPostgres(RawSubject):
    distributions = ("asyncpg",)

    async def open(self) -> None:
        self.db = await asyncpg.connect(URL)
        await self.db.execute(SCHEMA)
        self.numbers = itertools.count(1)

    async def close(self) -> None:
        await self.db.close()

    async def put(self, count: int) -> None:
        await self._put(self.db, count)

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[Callable[[], Awaitable[object]]]:
        async with asyncpg.create_pool(URL, min_size=16, max_size=16) as pool:
            yield lambda: self._put(pool, 1)

    async def _put(self, db: Any, count: int) -> None:
        ids = [uuid.UUID(int=number) for number in itertools.islice(self.numbers, count)]
        await db.execute("select enqueue($1, $2)", ids, [BODY] * count)

    async def cycle(self, count: int) -> int:
        rows = await self.db.fetch("select * from claim($1)", count)
        if not rows:
            return 0
        ids = [row[1] for row in rows]
        if not await self.db.fetchval("select settle($1, $2, $3)", rows[0][0], ids, [RESULT] * len(ids)):
            raise RuntimeError("the claim is gone")
        return len(ids)


SUBJECT = RawPostgres
