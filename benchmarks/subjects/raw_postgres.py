"""The raw client on PostgreSQL: asyncpg, one connection, with nothing around it.

The storage work of a task queue at its least: a task with its result, a narrow table of what is ready, one row per claim.
*One*: a transaction per step, as a queue that takes tasks one by one must do. *Batch*: whole batches by ``unnest``, claims
of 500 by ``for update skip locked``. *From 64*: 64 coroutines on a pool of 16 connections.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from benchmarks.subjects.subject import URL, Subject

BODY, RESULT = os.urandom(40), os.urandom(120)
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


class Raw(Subject):
    distributions = ("asyncpg",)

    async def open(self) -> None:
        self.db = await asyncpg.connect(URL)
        await self.db.execute(SCHEMA)
        self.numbers = itertools.count(1)

    async def close(self) -> None:
        await self.db.close()

    def ids(self, count: int) -> list[uuid.UUID]:
        return [uuid.UUID(int=number) for number in itertools.islice(self.numbers, count)]

    async def enqueue(self, db: Any, count: int) -> None:
        await db.execute("select enqueue($1, $2)", self.ids(count), [BODY] * count)

    async def cycle(self, count: int) -> int:
        rows = await self.db.fetch("select * from claim($1)", count)
        if not rows:
            return 0
        ids = [row[1] for row in rows]
        if not await self.db.fetchval("select settle($1, $2, $3)", rows[0][0], ids, [RESULT] * len(ids)):
            raise RuntimeError("the claim is gone")
        return len(ids)


async def _repeat(step: Callable[[], Awaitable[object]], size: int, seconds: float) -> dict[str, Any]:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        await step()
        count += size
    return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def enqueue_one(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    return await _repeat(lambda: raw.enqueue(raw.db, 1), 1, seconds)


async def enqueue_batch(raw: Raw, *, seconds: float, most: int, size: int) -> dict[str, Any]:
    return await _repeat(lambda: raw.enqueue(raw.db, size), size, seconds)


async def enqueue_64(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    async with asyncpg.create_pool(URL, min_size=16, max_size=16) as pool:
        end = time.perf_counter() + seconds

        async def produce() -> int:
            mine = 0
            while time.perf_counter() < end:
                await raw.enqueue(pool, 1)
                mine += 1
            return mine

        began = time.perf_counter()
        count = sum(await asyncio.gather(*(produce() for _ in range(64))))
        return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def _cycle(raw: Raw, size: int, seconds: float) -> dict[str, Any]:
    count, took = 0, 0.0
    while took < seconds:
        for _ in range(10 if size > 1 else 1):
            await raw.enqueue(raw.db, 500)
        began = time.perf_counter()
        for _ in range(10 if size > 1 else 500):
            count += await raw.cycle(size)
        took += time.perf_counter() - began
    return {"rate": count / took, "tasks": count, "size": size}


async def cycle_one(raw: Raw, *, seconds: float) -> dict[str, Any]:
    return await _cycle(raw, 1, seconds)


async def cycle_batch(raw: Raw, *, seconds: float, size: int) -> dict[str, Any]:
    return await _cycle(raw, size, seconds)


SCENARIOS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "enqueue one": enqueue_one,
    "enqueue 64": enqueue_64,
    "enqueue batch": enqueue_batch,
    "cycle one": cycle_one,
    "cycle batch": cycle_batch,
}
SUBJECT = Raw
