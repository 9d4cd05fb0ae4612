"""The raw client on NATS: nats-py, one connection, with nothing around it.

The storage work of a task queue at its least: a message per task in a work-queue stream, and a message with the result, with
an end, in another. Nothing is fenced. *One*: a round trip per step. *Batch*: up to 500 messages on their way, and fetches of
500. *From 64*: 64 coroutines on the one connection.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from benchmarks.subjects.subject import URL, Subject

BODY, RESULT = os.urandom(80), os.urandom(120)


class Raw(Subject):
    distributions = ("nats-py",)

    async def open(self) -> None:
        self.client = await nats.connect(URL)
        self.js = self.client.jetstream(publish_async_max_pending=4000)
        await self.js.add_stream(StreamConfig("Q", subjects=["q"], retention=RetentionPolicy.WORK_QUEUE))
        await self.js.add_stream(StreamConfig("R", subjects=["r.*"], max_msgs_per_subject=1, max_age=3600))
        config = ConsumerConfig(durable_name="c", max_ack_pending=100_000)
        self.consumer = await self.js.pull_subscribe("q", "c", stream="Q", config=config)
        self.numbers = itertools.count(1)

    async def close(self) -> None:
        await self.client.close()

    async def send(self, subjects: list[str], data: bytes) -> None:
        if len(subjects) == 1:
            await self.js.publish(subjects[0], data)
            return
        await asyncio.gather(*[await self.js.publish_async(subject, data) for subject in subjects])

    async def cycle(self, size: int) -> int:
        messages = await self.consumer.fetch(size, timeout=5)
        await self.send([f"r.{next(self.numbers)}" for _ in messages], RESULT)
        for message in messages:
            await message.ack()
        return len(messages)


async def _repeat(step: Callable[[], Awaitable[object]], size: int, seconds: float) -> dict[str, Any]:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        await step()
        count += size
    return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def enqueue_one(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    return await _repeat(lambda: raw.send(["q"], BODY), 1, seconds)


async def enqueue_batch(raw: Raw, *, seconds: float, most: int, size: int) -> dict[str, Any]:
    return await _repeat(lambda: raw.send(["q"] * size, BODY), size, seconds)


async def enqueue_64(raw: Raw, *, seconds: float, most: int) -> dict[str, Any]:
    end = time.perf_counter() + seconds

    async def produce() -> int:
        mine = 0
        while time.perf_counter() < end:
            await raw.js.publish("q", BODY)
            mine += 1
        return mine

    began = time.perf_counter()
    count = sum(await asyncio.gather(*(produce() for _ in range(64))))
    return {"rate": count / (time.perf_counter() - began), "tasks": count}


async def _cycle(raw: Raw, size: int, seconds: float) -> dict[str, Any]:
    count, took = 0, 0.0
    while took < seconds:
        for _ in range(10 if size > 1 else 1):
            await raw.send(["q"] * 500, BODY)
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
