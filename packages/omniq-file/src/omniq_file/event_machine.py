"""The state of the log of events: which events there are, without the events themselves.

Events stay in their commits; readers read them there. What is kept is what appending needs (the ids, as 64-bit digests) and
what truncating needs (per commit: how many, and how young). A commit holds only what was new when it was made, so a reader
needs none of this to know what counts.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from omniq_core import Outcome
from omniq_file.moving import Row

__all__ = ["APPEND", "TRUNCATE", "EventMachine", "digest_of"]

APPEND, TRUNCATE = 1, 2
SLACK = 1.1
"""Truncation because of ``max_events`` waits for so much more, to delete many at once."""
CHUNK = 2000


def digest_of(event_id: str) -> int:
    """Stands for an id: two ids of one digest would cost one of the two events, once in 10**19 pairs."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big")


class Batch:
    """What is known of one commit's events."""

    __slots__ = ("digests", "number", "youngest")

    def __init__(self, number: int, youngest: float, digests: array[int]) -> None:
        self.number, self.youngest, self.digests = number, youngest, digests


class EventMachine:
    """Which events there are."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        """Of the commits with events, from the first one that is not wholly truncated."""
        self.skip = 0
        """How many events of the first batch are truncated."""
        self.count = 0
        """How many events there are."""
        self._ids: set[int] = set()

    # --- looking ---------------------------------------------------------------------------------------------------

    def place_of(self, number: int) -> int:
        """Where the first batch that is not before commit ``number`` is in ``batches``."""
        return bisect_left(self.batches, number, key=_number)

    def needs(self, number: int) -> bool:
        place = self.place_of(number)
        return place < len(self.batches) and self.batches[place].number == number

    def size_of(self, number: int) -> int:
        return 0

    def repacking(self, horizon: int) -> Iterator[list[Row]]:
        return iter(())

    # --- applying --------------------------------------------------------------------------------------------------

    def apply(
        self,
        number: int,
        now: float,
        policy: Sequence[Any],
        operations: Sequence[Any],
        blob_at: int,
        blob_bytes: int,
    ) -> list[Any]:
        """Applies one commit. Its answers are: the outcomes of an append, the number of a truncation."""
        answers: list[Any] = []
        digests: array[int] = array("Q")
        youngest = float("-inf")
        for operation in operations:
            if operation[0] == TRUNCATE:
                answers.append(self._truncate(operation[1], operation[2]))
                continue
            outcomes = []
            for row in operation[1]:
                digest = digest_of(row[0])
                if digest in self._ids:
                    outcomes.append(Outcome.DUPLICATE)
                    continue
                self._ids.add(digest)
                digests.append(digest)
                youngest = max(youngest, row[3])
                outcomes.append(Outcome.OK)
            answers.append(outcomes)
        if digests:
            self.batches.append(Batch(number, youngest, digests))
            self.count += len(digests)
        if self.count > policy[0] * SLACK:
            self._drop(self.count - policy[0])
        return answers

    def is_idle(self, operation: Any, now: float, policy: Sequence[Any]) -> bool:
        """Whether applying it now would change nothing."""
        if operation[0] == TRUNCATE:
            return not self.batches or (operation[1], operation[2]) <= (self.batches[0].number, self.skip)
        return all(digest_of(row[0]) in self._ids for row in operation[1])

    def answer_idle(self, operation: Any, now: float, policy: Sequence[Any]) -> Any:
        return 0 if operation[0] == TRUNCATE else [Outcome.DUPLICATE] * len(operation[1])

    def _truncate(self, number: int, index: int) -> int:
        """``(TRUNCATE, commit, index)``: deletes every event before that one; how many."""
        place = self.place_of(number)
        doomed = sum(len(batch.digests) for batch in self.batches[:place])
        if self.needs(number):
            doomed += min(index, len(self.batches[place].digests))
        return self._drop(max(0, doomed - self.skip))

    def _drop(self, count: int) -> int:
        """Deletes the first ``count`` events."""
        left, whole = count + self.skip, 0
        for batch in self.batches:
            if len(batch.digests) > left:
                break
            left -= len(batch.digests)
            # Not what was truncated before: an id of these may have come again since.
            self._ids.difference_update(batch.digests[0 if whole else self.skip :])
            whole += 1
        del self.batches[:whole]
        start = 0 if whole else self.skip
        if self.batches:
            self._ids.difference_update(self.batches[0].digests[start:left])
        self.skip = left if self.batches else 0
        self.count -= count
        return count

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> Iterator[bytes]:
        yield _encode((self.skip, self.count))
        for first in range(0, len(self.batches), CHUNK):
            yield _encode(
                [(b.number, b.youngest, b.digests.tolist()) for b in self.batches[first : first + CHUNK]]
            )

    def restore(self, parts: Iterator[bytes]) -> Iterator[None]:
        self.skip, self.count = _decode(next(parts))
        for part in parts:
            for number, youngest, digests in _decode(part):
                self._ids.update(digests[0 if self.batches else self.skip :])
                self.batches.append(Batch(number, youngest, array("Q", digests)))
            yield


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def _number(batch: Batch) -> int:
    return batch.number
