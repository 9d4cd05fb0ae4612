"""How far a document's sequence is from its hint's. Those of tasks that were enqueued one after the other, and not changed
since, are equally far, and a server reads a message by its sequence in half the time that it needs by its subject."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Distance"]

TIMES = 2
"""So many readings in a row must have shown the same distance before it is relied on."""


class Distance:
    """What recent readings have shown. A guess: who relies on it looks whether the right document came."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._times = 0

    @property
    def likely(self) -> int | None:
        """From a hint to its document; ``None``: nobody can tell."""
        return self._last if self._times >= TIMES else None

    def learn(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Takes note of a reading.

        Args:
            pairs: the sequences of hints and of their documents.
        """
        if not pairs:
            return
        hint, document = pairs[0]
        distance = document - hint
        if any(document - hint != distance for hint, document in pairs):
            self._last, self._times = None, 0
        elif distance == self._last:
            self._times += 1
        else:
            self._last, self._times = distance, 1
