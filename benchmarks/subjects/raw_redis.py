"""The raw client on Redis: redis-py with hiredis, one connection, with nothing around it.

The storage work of a task queue at its least: a string per task, a list of what is ready, one lease per claim, a string per
result with an end. *One*: a round trip per step, as a queue that takes tasks one by one must do. *Batch*: pipelines, and
one script for the claim and one for the settlement of 500 tasks. *From 64*: redis-py's asyncio client with a pool.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis

from benchmarks.subjects.subject import URL, Subject

BODY, RESULT = os.urandom(40), os.urandom(120)

CLAIM = """
local ids = redis.call('LPOP', 'ready', ARGV[1])
if not ids then return {} end
local token = redis.call('INCR', 'token')
redis.call('ZADD', 'lease', ARGV[2], token)
redis.call('RPUSH', 'claim:' .. token, unpack(ids))
local keys = {}
for i, id in ipairs(ids) do keys[i] = 't:' .. id end
return {token, ids, redis.call('MGET', unpack(keys))}
"""
SETTLE = """
local token = ARGV[1]
if redis.call('EXISTS', 'claim:' .. token) == 0 then return 0 end
for i = 3, #ARGV, 2 do redis.call('SET', 't:' .. ARGV[i], ARGV[i + 1], 'PX', ARGV[2]) end
redis.call('DEL', 'claim:' .. token)
redis.call('ZREM', 'lease', token)
return 1
"""


class Raw(Subject):
    distributions = ("redis", "hiredis")

    async def open(self) -> None:
        self.redis = Redis.from_url(URL)
        self.claim_script = self.redis.register_script(CLAIM)
        self.settle_script = self.redis.register_script(SETTLE)
        self.numbers = itertools.count(1)

    async def close(self) -> None:
        self.redis.close()

    def enqueue(self, count: int) -> None:
        ids = [f"{number:032x}" for number in itertools.islice(self.numbers, count)]
        pipe = self.redis.pipeline(transaction=True)
        pipe.mset({f"t:{identity}": BODY for identity in ids})
        pipe.rpush("ready", *ids)
        pipe.execute()

    def cycle(self, count: int) -> int:
        reply = self.claim_script(args=[count, time.time_ns()])
        if not reply:
            return 0
        token, ids, _ = reply
        arguments: list[Any] = [token, 3_600_000]
        for identity in ids:
            arguments += (identity, RESULT)
        if not self.settle_script(args=arguments):
            raise RuntimeError("the claim is gone")
        return len(ids)


def _repeat(step: Callable[[], object], size: int, seconds: float) -> dict[str, Any]:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        count += size
    return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def enqueue_one(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    return _repeat(lambda: raw.enqueue(1), 1, seconds)


async def enqueue_batch(raw: Raw, *, seconds: float, most: int, size: int) -> dict[str, Any]:
    return _repeat(lambda: raw.enqueue(size), size, seconds)


async def enqueue_64(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    client = AsyncRedis.from_pool(BlockingConnectionPool.from_url(URL, max_connections=16, timeout=60))
    end = time.perf_counter() + seconds

    async def produce() -> int:
        mine = 0
        while time.perf_counter() < end:
            identity = f"{next(raw.numbers):032x}"
            async with client.pipeline(transaction=True) as pipe:
                pipe.set(f"t:{identity}", BODY)
                pipe.rpush("ready", identity)
                await pipe.execute()
            mine += 1
        return mine

    began = time.perf_counter()
    count = sum(await asyncio.gather(*(produce() for _ in range(64))))
    took = time.perf_counter() - began
    await client.aclose()
    return {"rate": count / took, "tasks": count}


def _cycle(raw: Raw, size: int, seconds: float) -> dict[str, Any]:
    count, took = 0, 0.0
    while took < seconds:
        for _ in range(10 if size > 1 else 1):
            raw.enqueue(500)
        began = time.perf_counter()
        for _ in range(10 if size > 1 else 500):
            count += raw.cycle(size)
        took += time.perf_counter() - began
    return {"rate": count / took, "tasks": count, "size": size}


async def cycle_one(raw: Raw, *, seconds: float) -> dict[str, Any]:
    return _cycle(raw, 1, seconds)


async def cycle_batch(raw: Raw, *, seconds: float, size: int) -> dict[str, Any]:
    return _cycle(raw, size, seconds)


SCENARIOS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "enqueue one": enqueue_one,
    "enqueue 64": enqueue_64,
    "enqueue batch": enqueue_batch,
    "cycle one": cycle_one,
    "cycle batch": cycle_batch,
}
SUBJECT = Raw
