"""Whose bytes are still needed: how much of each commit's blob some task or result lives in.

A commit's file may be deleted once nothing in it is needed; one that holds little else than dead weight is worth moving the
rest out of (:mod:`omniq_file.moving`).
"""

from __future__ import annotations

from omniq_file.commit import CRC_BYTES, Place

__all__ = ["Blobs"]


class Blobs:
    """The blobs of the commits that a state needs, and where the next body of the one that is being applied lies."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        """How many bytes of a commit's blob are still needed, where any are."""
        self.sizes: dict[int, int] = {}
        """How long the blob of such a commit is."""
        self.number = 0
        """Of the commit that is being applied."""
        self.at = 0
        """Where what was not yet taken of its blob begins, in its file."""

    def begin(self, number: int, at: int) -> None:
        self.number, self.at = number, at

    def end(self, size: int) -> None:
        if self.number in self.live:
            self.sizes[self.number] = size

    def place(self, length: int) -> Place:
        """The next body of the commit that is being applied."""
        at = self.at + CRC_BYTES
        self.at = at + length
        return self.number, at, length

    def hold(self, number: int, length: int) -> None:
        """A body of that commit is needed."""
        self.live[number] = self.live.get(number, 0) + length + CRC_BYTES

    def release(self, number: int, length: int) -> None:
        """It is needed no more."""
        left = self.live[number] - length - CRC_BYTES
        if left:
            self.live[number] = left
        else:
            del self.live[number]
            self.sizes.pop(number, None)
