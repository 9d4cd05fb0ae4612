"""The raw client on NATS: nats-py, one connection, with nothing around it.

The storage work of a task queue at its least: a message per task in a work-queue stream, and a message with the result, with
an end, in another. Nothing is fenced. *Batch*: that many messages on their way, and fetches of as many.
"""

from __future__ import annotations

import asyncio
import itertools
import os

import nats
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from benchmarks.subjects.raw import RESULT, SCENARIOS, RawSubject
from benchmarks.subjects.subject import URL

__all__ = ["SCENARIOS", "SUBJECT"]

BODY = os.urandom(80)


class RawNats(RawSubject):
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

    async def put(self, count: int) -> None:
        await self._publish(["q"] * count, BODY)

    async def _publish(self, subjects: list[str], data: bytes) -> None:
        if len(subjects) == 1:
            await self.js.publish(subjects[0], data)
            return
        await asyncio.gather(*[await self.js.publish_async(subject, data) for subject in subjects])

    async def cycle(self, count: int) -> int:
        messages = await self.consumer.fetch(count, timeout=5)
        await self._publish([f"r.{next(self.numbers)}" for _ in messages], RESULT)
        for message in messages:
            await message.ack()
        return len(messages)


SUBJECT = RawNats
