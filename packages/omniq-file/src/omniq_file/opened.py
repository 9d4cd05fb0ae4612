"""What the stores of one opened backend share: its clerk, until it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omniq_core import Capability, Clock, Closed, ErrorCode, Unreachable
from omniq_file.bell import Bell, Key
from omniq_file.call import Call
from omniq_file.clerk import Clerk, check_process
from omniq_file.event_machine import EventMachine
from omniq_file.machine import TaskMachine

__all__ = ["LOOK_S", "Opened"]

LOOK_S = 0.5
"""How soon a waiting call sees that its backend was closed, in seconds."""


class Opened:
    """Made by ``open``, ended by ``close``."""

    def __init__(self, clerk: Clerk, clock: Clock, absent: Mapping[Capability, str]) -> None:
        self._clerk: Clerk | None = clerk
        self.pid = clerk.pid
        self.clock = clock
        self.absent = absent

    def clerk(self) -> Clerk:
        """The clerk.

        Raises:
            Closed: the backend was closed.
            BackendError: the process was forked since.
        """
        if self._clerk is None:
            raise Closed("file")
        check_process(self._clerk)
        return self._clerk

    def bell(self) -> Bell:
        return self.clerk().bell

    def tasks(self) -> TaskMachine:
        """The state of the tasks as of the last look. It belongs to the clerk's thread."""
        return self.clerk().tasks.log.machine

    def events(self) -> EventMachine:
        return self.clerk().events.log.machine

    async def do(self, call: Call, *, events: bool = False) -> Any:
        """Hands a call in, and waits for its answer.

        Raises:
            Unreachable: there was none within ``ShelfFacts.timeout_s``, whatever the time went by with: standing in line
                behind others, or one request after the other. What was begun goes on; what was not never is.
        """
        clerk = self.clerk()
        answer = clerk.submit(call, events=events)
        timeout_s = clerk.shelf.facts.timeout_s
        if timeout_s is None:
            return await answer
        try:
            # Not asyncio.timeout: while this loop was blocked the answer may have come, and is not to be thrown away.
            await asyncio.wait([answer], timeout=timeout_s)
            if not answer.done():
                raise Unreachable(
                    f"{clerk.shelf.facts.product} did not answer within timeout_s={timeout_s:g} seconds",
                    ErrorCode.TIMEOUT if call.operation is None else ErrorCode.UNKNOWN_EFFECT,
                    "file",
                )
            return answer.result()
        finally:
            answer.cancel()  # one that is still in line is then left out

    async def wait(self, keys: Sequence[Key], timeout_s: float, is_there: Callable[[], bool]) -> bool:
        """Waits for a ring, unless what the caller waits for is there; whether one of the two happened.

        The waiter joins before ``is_there`` looks, so nothing falls between.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        bell = self.bell()
        while True:
            future = bell.join(keys)
            try:
                if is_there():
                    return True
                left_s = end - loop.time()
                if left_s <= 0:
                    return False
                await asyncio.wait([future], timeout=min(left_s, LOOK_S))
                if future.done():
                    return True
            finally:
                bell.leave(future, keys)
            self.clerk()

    async def close(self) -> None:
        clerk, self._clerk = self._clerk, None
        if clerk is not None:
            clerk.bell.ring_all()
            await clerk.leave()
