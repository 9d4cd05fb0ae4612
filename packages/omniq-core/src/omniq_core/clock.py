"""Where a backend without a server clock, and the engine, read the time.

``time()`` is wall time and goes into records; ``monotonic()`` measures waiting and trust in a lease. Tests inject
:class:`ManualClock` and move it instead of sleeping.
"""

from __future__ import annotations

import time
from typing import Protocol

from omniq_core.native import RLock

__all__ = ["SYSTEM_CLOCK", "Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """A source of time; safe to read from any thread."""

    def time(self) -> float:
        """Seconds since the Unix epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean something."""
        ...


class SystemClock:
    """The machine's clocks."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM_CLOCK: Clock = SystemClock()


class ManualClock:
    """A clock that stands still until a test moves it.

    Args:
        start: the first ``time()``, in seconds since the epoch.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._lock = RLock()
        self._time = start
        self._monotonic = 0.0

    def time(self) -> float:
        return self._time

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward.

        Args:
            seconds: how far; not negative. Use :meth:`jump` for a wall clock that is set back.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s; use jump()")
        with self._lock:
            self._time += seconds
            self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or back, as an administrator or NTP does; ``monotonic`` does not move."""
        with self._lock:
            self._time += seconds
