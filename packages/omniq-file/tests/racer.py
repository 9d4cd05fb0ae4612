"""A process that creates the same names as others, and tells which it has won. It waits for a line before it begins."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from omniq_conformance.nursery_main import ready


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def race(shelf: Any, me: str, count: int) -> None:
    await shelf.open(create=True)
    ready()
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    won = [n for n in range(count) if await shelf.create(f"race/{n}", me.encode())]
    await shelf.close()
    say(*won)


def main(code: str, me: str, count: int) -> None:
    """
    Args:
        code: makes the ``shelf``.
        me: what it writes.
    """
    scope: dict[str, Any] = {}
    exec(code, scope)
    asyncio.run(race(scope["shelf"], me, count))
