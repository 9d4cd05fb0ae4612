"""What SIGINT and SIGTERM do to a worker: the first lets running tasks end, the second gives them back now, the third ends
the process on the spot (leases end by themselves)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from omniq.engine.worker import Engine

__all__ = ["install"]

log = logging.getLogger("omniq.worker")


def install(loop: asyncio.AbstractEventLoop, engine: Engine) -> Callable[[], None]:
    """Lets signals stop ``engine``. Only on the main thread.

    Args:
        loop: the main thread's; the engine may run on another.
        engine: the worker.

    Returns:
        a function that puts the former handlers back.
    """
    count = 0

    def handle(number: int, times: int) -> None:
        name = signal.Signals(number).name
        if times == 1:
            log.warning(
                "%s: stopping; running tasks have %g s. Again to give them back now",
                name,
                engine.settings.grace_s,
            )
        else:
            log.warning("%s again: giving back what runs. Once more to leave at once", name)
        engine.stop_threadsafe()

    def from_frame(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count >= 3:  # counted here, not on the loop: the loop may be what hangs
            os._exit(128 + number)
        loop.call_soon_threadsafe(handle, number, count)

    former = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        # signal.signal rather than loop.add_signal_handler: it exists on Windows, and it fires while the loop is blocked.
        former[number] = signal.signal(number, from_frame)

    def uninstall() -> None:
        if count >= 2:
            return  # the process is on its way out, and a third signal still ends it on the spot
        for number, handler in former.items():
            signal.signal(number, handler)

    return uninstall
