"""Checkpoints, and what they allow: deleting old commits, and moving the few bodies that are left in some.

Made by whoever finds that the log has grown by half a checkpoint (or ``SMALLEST_BYTES``) since the last one; any number of
processes may do it at once, and one that dies in the middle leaves only files that the next one deletes. Steps, each of
which may be the last:

1. Encode the state (nothing is applied meanwhile; a million tasks take some tenths of a second).
2. Create the parts, then the checkpoint that lists them. From now on loading begins there.
3. Create ``horizon/<number of the checkpoint before>``. From now on that part of the log is the past (:mod:`omniq_file.log`).
4. Delete the commits up to it that the state does not need, older checkpoints and their parts, all but the last few horizons.
5. If much of what is kept is dead weight, copy the living bodies of the worst files into a new commit.

Deleting is safe for a process that is late, too: what a state after the horizon does not need is needed by none that follows,
since only a commit itself brings bytes into its file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from omniq_file.commit import CHECKPOINT, PART, pack
from omniq_file.log import Log, Machine, checkpoint_name, commit_name, horizon_name, number_of
from omniq_file.operations import MOVE

__all__ = ["Tidying"]

logger = logging.getLogger("omniq")

SMALLEST_BYTES = 4 * 1024 * 1024
"""A log is not shortened before it has grown by this."""
PAUSE_S = 10.0
"""After a failure, before it is tried again."""
HORIZONS_KEPT = 4
"""So that a listing of the folder that is under way cannot miss all of them."""

M = TypeVar("M", bound=Machine)


class Tidying(Generic[M]):
    """The upkeep of one log by one process.

    Args:
        log: whose.
        move: commits an operation of this process.
    """

    def __init__(self, log: Log[M], move: Callable[[Any, list[bytes]], Awaitable[None]]) -> None:
        self._log = log
        self._move = move
        self._not_before = 0.0
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def due_bytes(self) -> float:
        """How much the log may grow beyond its checkpoint."""
        return max(SMALLEST_BYTES, self._log.checkpoint_bytes / 2)

    async def start(self) -> None:
        """Encodes the state now, and does the rest beside the log's work. Does nothing if somebody else just did it."""
        if self.tasks or time.monotonic() < self._not_before:
            return
        log = self._log
        names = await log.checkpoints()
        newest = number_of(names[-1]) if names else None
        if newest is not None and log.checkpoint < newest <= log.number:
            log.note_checkpoint(newest, log.checkpoint_bytes)
            if log.since_bytes <= self.due_bytes:
                return
        number = log.number
        parts = []
        for part in log.machine.save():
            parts.append(part)
            await asyncio.sleep(0)
        task = asyncio.get_running_loop().create_task(self._rest(number, parts))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _rest(self, number: int, parts: list[bytes]) -> None:
        try:
            await self.write(number, parts)
            await self.trim()
            await self.repack()
        except Exception as error:
            # Nothing depends on it, and a later commit beyond the limit tries again.
            self._not_before = time.monotonic() + PAUSE_S
            logger.warning("omniq-file: tidying up %s failed: %s", self._log.folder, error)

    async def write(self, number: int, parts: list[bytes]) -> None:
        """Stores a checkpoint of the state after commit ``number``."""
        log = self._log
        token = os.urandom(8).hex()
        names = []
        size = 0
        for place, part in enumerate(parts):
            name = f"{log.folder}/part/{number:020d}-{token}/{place:06d}"
            data, _ = pack(PART, None, [part])
            await log.shelf.create(name, data)
            names.append(name)
            size += len(data)
            await asyncio.sleep(0)
        data, _ = pack(CHECKPOINT, (number, names))
        # There already: another process was at the same commit, and its state is the same.
        await log.shelf.create(checkpoint_name(log.folder, number), data)
        log.note_checkpoint(number, size + len(data))

    async def trim(self) -> None:
        """Deletes what the last two checkpoints made superfluous."""
        log, shelf, folder = self._log, self._log.shelf, self._log.folder
        checkpoints = await log.checkpoints()
        if len(checkpoints) < 2:
            return
        horizon = number_of(checkpoints[-2]) or 0
        await shelf.create(horizon_name(folder, horizon), b"")
        log.horizon = max(log.horizon, horizon)
        await self._delete_commits(horizon)
        kept = {f"{number_of(name) or 0:020d}" for name in checkpoints[-2:]}
        await shelf.delete(checkpoints[:-2])
        await self._delete_below(f"{folder}/part", lambda name: self._is_old_part(name, kept, horizon))
        horizons = await shelf.list(f"{folder}/horizon", limit=10_000)
        await shelf.delete(horizons[:-HORIZONS_KEPT])

    def _is_old_part(self, name: str, kept: set[str], horizon: int) -> bool:
        number = name.removeprefix(f"{self._log.folder}/part/").partition("/")[0].partition("-")[0]
        # One of a higher number may be on its way to a checkpoint of another process.
        return number not in kept and number.isdigit() and int(number) < horizon

    async def _delete_commits(self, horizon: int) -> None:
        log, end = self._log, commit_name(self._log.folder, horizon)
        machine = log.machine
        await self._delete_below(
            f"{log.folder}/log", lambda name: name <= end and not machine.needs(number_of(name) or 0), end=end
        )

    async def _delete_below(self, folder: str, is_doomed: Callable[[str], bool], end: str = "~") -> None:
        shelf = self._log.shelf
        after = ""
        while True:
            names = await shelf.list(folder, after=after, limit=1000)
            doomed = [name for name in names if is_doomed(name)]
            for first in range(0, len(doomed), shelf.facts.delete_batch):
                await shelf.delete(doomed[first : first + shelf.facts.delete_batch])
                await asyncio.sleep(0)
            if len(names) < 1000 or names[-1] > end:
                return
            after = names[-1]

    async def repack(self) -> None:
        """Copies what still lives out of files that hold little else."""
        log = self._log
        for rows in log.machine.repacking(log.horizon):
            found = await log.bodies.fetch([(row[2], row[3], row[4]) for row in rows], log.machine.size_of)
            pairs = [(row, body) for row, body in zip(rows, found, strict=True) if body is not None]
            if pairs:
                await self._move((MOVE, [row for row, _ in pairs]), [body for _, body in pairs])
