"""A worker process on an object store, for as long as there is something to do. It tells what it has done.

It waits for a line before it begins, and for another one when it has done something: until others have some as well.
"""

from __future__ import annotations

import asyncio
import sys
import uuid

from omniq_conformance.nursery_main import ready
from omniq_core import Outcome, Settlement, Verb
from omniq_file import FileBackend


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def work(url: str, me: str, count: int, lease_s: float) -> None:
    async with FileBackend.from_url(url) as backend:
        queue, first = backend.queue(), True
        ready()
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        while True:
            claims = await queue.claim(
                ["q"], max_tasks=count, lease_s=lease_s, worker_id=me, claim_id=str(uuid.uuid4())
            )
            if not claims:
                stats = await queue.stats(["q"])
                if not any(found.ready or found.delayed or found.running for found in stats):
                    return
                await queue.wait(["q"], timeout_s=0.2)
                await queue.maintain()
                continue
            if me == "dies":
                say(*(claim.task_id for claim in claims))
                await asyncio.sleep(3600)
            ends = [Settlement(claim.lease, Verb.SUCCEED, result=me.encode()) for claim in claims]
            outcomes = await queue.settle(ends)
            done = [c.task_id for c, end in zip(claims, outcomes, strict=True) if end is Outcome.OK]
            say(*done)
            if first:
                first = False
                await asyncio.to_thread(sys.stdin.readline)


def main(url: str, me: str, count: int, lease_s: float) -> None:
    """
    Args:
        me: its name, which is the result of what it does. ``dies``: it claims and then waits to be killed.
        count: how many tasks it takes at a time.
    """
    asyncio.run(work(url, me, count, lease_s))
