"""Reading bodies back from the commits that they came with, with a cache of whole commits."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from omniq_file.commit import CRC_BYTES, Place, piece
from omniq_file.shelves.shelf import Shelf

__all__ = ["Bodies"]

WHOLE_BYTES = 1024 * 1024
"""A commit up to this long is read whole: its other bodies will be asked for next."""
GAP_BYTES = 32 * 1024
"""Bodies of a larger one that are no further apart are read at once."""


class Bodies:
    """The bodies of one log.

    Args:
        shelf: opened.
        name_of: a commit's file name, by its number.
        cache_bytes: most bytes of commits that are kept.
    """

    def __init__(self, shelf: Shelf, name_of: Callable[[int], str], cache_bytes: int) -> None:
        self._shelf, self._name_of, self._cache_bytes = shelf, name_of, cache_bytes
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0

    def keep(self, number: int, data: bytes) -> None:
        """Remembers a commit for a while: what was just written or read is often wanted soon."""
        if len(data) > self._cache_bytes // 2:
            return
        old = self._kept.pop(number, None)
        if old is not None:
            self._kept_bytes -= len(old)
        self._kept[number] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._cache_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    async def commit(self, number: int) -> bytes | None:
        """A whole commit's file; None: it is gone."""
        data = self._kept.get(number)
        if data is None:
            data = await self._shelf.read(self._name_of(number))
            if data is not None:
                self.keep(number, data)
        return data

    async def commits(self, numbers: Sequence[int]) -> list[bytes | None]:
        """Several."""
        return list(await asyncio.gather(*map(self.commit, numbers)))

    async def fetch(self, places: Sequence[Place], size_of: Callable[[int], int]) -> list[bytes | None]:
        """What lies at these places; None: the commit is gone, or something else is there.

        Args:
            places: where.
            size_of: how long the blob of a commit is.
        """
        if (
            len({number for number, _, _ in places}) == 1
            and (data := self._kept.get(places[0][0])) is not None
        ):
            return [piece(data, at, length) for _, at, length in places]
        by_commit: dict[int, list[int]] = {}
        for index, (number, _, _) in enumerate(places):
            by_commit.setdefault(number, []).append(index)
        found: list[bytes | None] = [None] * len(places)
        missing: list[int] = []
        for number, indices in by_commit.items():
            data = self._kept.get(number)
            if data is None:
                missing.append(number)
                continue
            self._kept.move_to_end(number)
            for index in indices:
                found[index] = piece(data, places[index][1], places[index][2])
        width = max(self._shelf.facts.parallel_reads, 1)
        for first in range(0, len(missing), width):
            numbers = missing[first : first + width]
            await asyncio.gather(*(self._read(n, by_commit[n], places, found, size_of(n)) for n in numbers))
        return found

    async def _read(
        self, number: int, indices: list[int], places: Sequence[Place], found: list[bytes | None], size: int
    ) -> None:
        if size <= WHOLE_BYTES or sum(places[index][2] for index in indices) * 2 > size:
            data = await self.commit(number)
            for index in indices if data is not None else ():
                found[index] = piece(data or b"", places[index][1], places[index][2])
            return
        for run in _runs(sorted(indices, key=lambda index: places[index][1]), places):
            start = places[run[0]][1] - CRC_BYTES
            end = max(places[index][1] + places[index][2] for index in run)
            data = await self._shelf.read(self._name_of(number), start=start, length=end - start)
            if data is None:
                return
            for index in run:
                found[index] = piece(data, places[index][1], places[index][2], start)


def _runs(indices: Iterable[int], places: Sequence[Place]) -> list[list[int]]:
    """Neighbours in the file, together."""
    runs: list[list[int]] = []
    end = -1
    for index in indices:
        _, at, length = places[index]
        if runs and at - end <= GAP_BYTES:
            runs[-1].append(index)
        else:
            runs.append([index])
        end = at + length
    return runs
