"""What the stores of one opened backend share: its clerk, until it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omniq_core import Capability, Clock, Closed
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
        """Hands a call in, and waits for its answer."""
        return await self.clerk().submit(call, events=events)

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
