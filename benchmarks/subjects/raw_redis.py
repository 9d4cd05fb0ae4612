"""The raw client on Redis: redis-py with hiredis, one connection, with nothing around it.

The storage work of a task queue at its least: a string per task, a list of what is ready, one lease per claim, a string per
result with an end. A round trip per step: pipelines, and one script for the claim and one for the settlement of a batch.
*From 64*: redis-py's asyncio client with a pool.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis

from benchmarks.subjects.raw import RESULT, SCENARIOS, RawSubject
from benchmarks.subjects.subject import URL

__all__ = ["SCENARIOS", "SUBJECT"]

BODY = os.urandom(40)

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


class RawRedis(RawSubject):
    distributions = ("redis", "hiredis")

    async def open(self) -> None:
        self.redis = Redis.from_url(URL)
        self.claim_script = self.redis.register_script(CLAIM)
        self.settle_script = self.redis.register_script(SETTLE)
        self.numbers = itertools.count(1)

    async def close(self) -> None:
        self.redis.close()

    async def put(self, count: int) -> None:
        ids = [f"{number:032x}" for number in itertools.islice(self.numbers, count)]
        pipe = self.redis.pipeline(transaction=True)
        pipe.mset({f"t:{identity}": BODY for identity in ids})
        pipe.rpush("ready", *ids)
        pipe.execute()

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[Callable[[], Awaitable[object]]]:
        pool = BlockingConnectionPool.from_url(URL, max_connections=16, timeout=60)
        async with AsyncRedis.from_pool(pool) as client:

            async def put_one() -> None:
                identity = f"{next(self.numbers):032x}"
                async with client.pipeline(transaction=True) as pipe:
                    pipe.set(f"t:{identity}", BODY)
                    pipe.rpush("ready", identity)
                    await pipe.execute()

            yield put_one

    async def cycle(self, count: int) -> int:
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


SUBJECT = RawRedis
