"""The server's clock, as far as it can be known from here."""

from __future__ import annotations

import time

__all__ = ["ServerClock"]

FRESH_S = 20.0
"""How long a reading is good for: ordinary clocks drift apart by less than a millisecond in that time."""


class ServerClock:
    """The time of the server that leads the stream of waiting tasks.

    Every answer about a stream carries the server's time. It was written between our question and our reading, so half of
    that is the most by which we are wrong. From the last good reading on, our own *monotonic* clock counts: what anyone does
    to this machine's wall clock does not matter.
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._read_at = -1e9
        self._width = 1e9
        self._last = 0.0

    def read(self, theirs: float, asked: float, answered: float) -> None:
        """Takes a reading.

        Args:
            theirs: the server's time, in seconds since the epoch.
            asked: our monotonic time when we asked.
            answered: and when the answer came.
        """
        width = answered - asked
        if width <= self._width or answered - self._read_at > FRESH_S / 2:
            self._offset = theirs - (asked + answered) / 2
            self._read_at, self._width = answered, width

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < FRESH_S

    def now(self) -> float:
        """Seconds since the epoch; never goes back."""
        self._last = max(self._last, time.monotonic() + self._offset)
        return self._last
