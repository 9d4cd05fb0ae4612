"""The log: one sequence of commits that every process agrees on, made of write-once files and nothing else.

Files, below the folder of the log (``tasks`` or ``events``)::

    log/<number // 1000>/<number>      a commit: what was asked, and the bodies. Numbers rise by one from 1.
    part/<number>-<token>/<place>      a part of a checkpoint
    checkpoint/<number>                the state after that commit: a list of its parts. Created after they are.
    horizon/<number>                   commits up to this number may be gone, or may be *lies*; see below.

**Agreement.** A process that holds the state after commit ``n`` proposes its own operations as commit ``n + 1`` by creating
that file exclusively. One wins. The others read what won, apply it, look again at what of their own is left to do, and
propose ``n + 2``. Applying is deterministic (:mod:`omniq_file.machine`), so all hold the same state after the same number,
and the answers to a call are what its operation did at its place in the log. No locks, leaders or clocks take part.

**A lost reply.** Each commit carries a random token of its writer. If a creation fails with an unknown effect, or says that
the file is there already, the file is read: with the token in it, it is ours.

**The past.** Old commits are deleted once checkpoints hold what they did. That opens a trap: a process that slept meanwhile
may find the name ``n + 1`` free *because it was deleted*, create it, and believe; another sleeper may read that lie. So:

1. Before anything numbered ``k`` or lower is deleted, ``horizon/<k>`` is created. The horizon is the highest of these.
2. Who has created commit ``n`` reads the horizon *afterwards*. Is it below ``n``, the commit stands; else it is void: the
   state is loaded from a checkpoint, and the operations are looked at again.
3. Who has read commits ``n .. m``, and who found no commit ``n``, reads the horizon *afterwards* as well, and trusts what
   it saw only if the horizon is below ``n``.

*Why this suffices.* Let the horizon, read at time ``t``, be below ``n``. Then by rule 1, as creation is durable and reading
strict, nothing numbered ``n`` or higher had been deleted by anyone before ``t``. So each name from ``n`` on had been created
at most once before ``t``, by a process that held the state after its predecessor; by induction over the numbers that state
was the true one. (The first one, after an empty log or a checkpoint, is: a checkpoint is made from a true state.) Hence
what is read under such a name is the true commit, what is created under it *is* the true commit, and what is absent does
not exist yet. A lie, a file that was created under a deleted name, is numbered at or below the horizon, so rules 2 and 3
make everybody disregard it, its author first, and the next trim deletes it.

*Why a commit that stands stays.* The horizon is always the number of the last checkpoint *but one*, and is only raised after
a newer checkpoint is complete. So every number up to it is held by at least two checkpoints.

A commit that stands may be declared void by rule 2 only if its author slept between creating it and reading the horizon,
for as long as two checkpoints took. It then finds its operations done: to each of them that is a repeated call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from omniq_core import BackendError, Clock, ErrorCode
from omniq_file.bodies import Bodies
from omniq_file.commit import CHECKPOINT, COMMIT, HEADER_BYTES, PART, corrupt, pack, unpack
from omniq_file.moving import Row
from omniq_file.shelves.shelf import Shelf

__all__ = ["Draft", "Log", "Machine", "checkpoint_name", "commit_name", "horizon_name", "number_of"]

logger = logging.getLogger("omniq")

SHARD = 1000
"""Commits per folder, so that no folder of a disk grows without end."""
MOST_AT_ONCE = 16
"""Commits that are read before the horizon is looked at and they are applied."""
TRIES = 5
"""How often a creation without an answer is made, and a checkpoint looked for, before the call fails. All of these creations
together may take as long as one: ``ShelfFacts.timeout_s``."""
MOST_CONTRADICTIONS = 50
_NUMBER = re.compile(r"[0-9]{20}")

Draft = tuple[list[Any], list[msgspec.Raw], list[bytes]]
"""The operations of a commit, the same encoded, and the bodies that they mention."""


class Machine(Protocol):
    """What a log replays into."""

    def apply(
        self,
        number: int,
        now: float,
        policy: Sequence[Any],
        operations: Sequence[Any],
        blob_at: int,
        blob_bytes: int,
        /,
    ) -> list[Any]:
        """Applies one commit; the answers to its operations."""
        ...

    def save(self) -> Iterator[bytes]:
        """The state, in parts of moderate size."""
        ...

    def restore(self, parts: Iterator[bytes], /) -> Iterator[None]:
        """Fills a new machine; yields now and then."""
        ...

    def needs(self, number: int, /) -> bool:
        """Whether something in that commit's file is still needed beside the state."""
        ...

    def size_of(self, number: int, /) -> int:
        """How long the blob of that commit is; 0 if it is not known."""
        ...

    def repacking(self, horizon: int, /) -> Iterator[list[Row]]:
        """What should be moved out of commits up to ``horizon``, in batches: rows of a ``MOVE``."""
        ...

    def is_idle(self, operation: Any, now: float, policy: Sequence[Any], /) -> bool:
        """Whether applying the operation now would change nothing. In doubt no."""
        ...

    def answer_idle(self, operation: Any, now: float, policy: Sequence[Any], /) -> Any:
        """The answer to such an operation, without applying it."""
        ...


M = TypeVar("M", bound=Machine)


def commit_name(folder: str, number: int) -> str:
    return f"{folder}/log/{number // SHARD:017d}/{number:020d}"


def checkpoint_name(folder: str, number: int) -> str:
    return f"{folder}/checkpoint/{number:020d}"


def horizon_name(folder: str, number: int) -> str:
    return f"{folder}/horizon/{number:020d}"


def number_of(name: str) -> int | None:
    """The number in a file's name; None for a stray file."""
    last = name.rpartition("/")[2]
    return int(last) if _NUMBER.fullmatch(last) else None


class Log(Generic[M]):
    """This process's place in a log, and the state there. Used by one coroutine at a time.

    Args:
        shelf: opened.
        folder: the name of the log on the shelf.
        new_machine: makes an empty state.
        policy: written into each commit of this process.
        clock: for the time of its commits.
        bodies: is told of every commit's bytes.
    """

    def __init__(
        self,
        shelf: Shelf,
        folder: str,
        new_machine: Callable[[], M],
        policy: Sequence[Any],
        clock: Clock,
        bodies: Bodies,
    ) -> None:
        self.shelf, self.folder, self.policy, self.clock, self.bodies = shelf, folder, policy, clock, bodies
        self._new_machine = new_machine
        self.machine = new_machine()
        self.number = 0
        """Of the last commit that was applied."""
        self.horizon = 0
        self.checkpoint = 0
        """The newest checkpoint that is known of."""
        self.checkpoint_bytes = 0
        self.since: deque[tuple[int, int]] = deque()
        """Number and size of the commits after it."""
        self.since_bytes = 0
        self.loads = 0
        """How often the state was loaded from a checkpoint: who keeps a part of it looks whether it is another one."""
        self.is_loaded = False

    # --- reading ---------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Applies everything that was committed before this call."""
        if not self.is_loaded:
            await self._load()
        while True:
            found = await self._read_on()
            if await self._read_horizon() > self.number:
                await self._load()
                continue
            for number, data in found:
                self._apply(number, data)
            if len(found) < MOST_AT_ONCE:
                return
            await asyncio.sleep(0)

    async def _read_on(self) -> list[tuple[int, bytes]]:
        """The next commits, as far as there are any, at most ``MOST_AT_ONCE``. Not to be trusted yet."""
        found: list[tuple[int, bytes]] = []
        at_once = 1
        while len(found) < MOST_AT_ONCE:
            at_once = min(at_once, MOST_AT_ONCE - len(found))
            first = self.number + 1 + len(found)
            numbers = range(first, first + at_once)
            datas = (
                await asyncio.gather(*(self.shelf.read(commit_name(self.folder, n)) for n in numbers))
                if at_once > 1
                else [await self.shelf.read(commit_name(self.folder, first))]
            )
            for number, data in zip(numbers, datas, strict=True):
                if data is None:
                    return found
                found.append((number, data))
            at_once = min(at_once * 2, self.shelf.facts.parallel_reads)
        return found

    async def _read_horizon(self) -> int:
        names = await self.shelf.list(
            f"{self.folder}/horizon", after=horizon_name(self.folder, self.horizon), limit=1000
        )
        for name in names:
            self.horizon = max(self.horizon, number_of(name) or 0)
        return self.horizon

    def _apply(self, number: int, data: bytes) -> list[Any]:
        name = commit_name(self.folder, number)
        index, blob_at = unpack(name, COMMIT, data)
        if index[1] != number:
            raise corrupt(name, f"holds commit {index[1]}")
        return self._take(number, index[2], index[3], index[4], blob_at, data)

    def _take(
        self,
        number: int,
        now: float,
        policy: Sequence[Any],
        operations: Sequence[Any],
        blob_at: int,
        data: bytes,
    ) -> list[Any]:
        try:
            answers = self.machine.apply(number, now, policy, operations, blob_at, len(data) - blob_at)
        except BaseException:
            self.is_loaded = False  # half applied: not to be used again
            raise
        self.number = number
        self.bodies.keep(number, data)
        self.since.append((number, len(data)))
        self.since_bytes += len(data)
        return answers

    # --- checkpoints, read -----------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Takes the state of the newest checkpoint that can be read."""
        problem: BaseException | None = None
        for _ in range(TRIES):
            horizon = await self._read_horizon()
            names = await self.checkpoints()
            for name in reversed(names):
                try:
                    if await self._load_from(name):
                        return
                except BackendError as error:
                    if error.error_code is not ErrorCode.CORRUPT:
                        raise
                    logger.warning("omniq-file: %s; the checkpoint before it is used", error)
                    problem = error
            if problem is not None:
                raise problem
            if not names and not horizon:
                self._start_from(self._new_machine(), 0, 0)
                return
        raise corrupt(f"{self.folder}/checkpoint", f"has nothing that leads beyond commit {self.horizon}")

    async def checkpoints(self) -> list[str]:
        """The names of the checkpoints, oldest first."""
        names = await self.shelf.list(f"{self.folder}/checkpoint", limit=10_000)
        return [name for name in names if number_of(name) is not None]

    async def _load_from(self, name: str) -> bool:
        """Whether it was there, with all of its parts."""
        number = number_of(name) or 0
        data = await self.shelf.read(name)
        if data is None or number < self.horizon:
            return False
        (said, parts), _ = unpack(name, CHECKPOINT, data)
        if said != number:
            raise corrupt(name, f"holds checkpoint {said}")
        read: list[bytes] = []
        width = max(self.shelf.facts.parallel_reads, 1)
        for first in range(0, len(parts), width):
            names = parts[first : first + width]
            for part, found in zip(names, await asyncio.gather(*map(self.shelf.read, names)), strict=True):
                if found is None:
                    return False
                unpack(part, PART, found)
                read.append(found)
        machine = self._new_machine()
        for _ in machine.restore(iter([_contents(part) for part in read])):
            await asyncio.sleep(0)
        self._start_from(machine, number, len(data) + sum(map(len, read)))
        return True

    def _start_from(self, machine: M, number: int, size: int) -> None:
        self.machine, self.number = machine, number
        self.since.clear()
        self.since_bytes = 0
        self.note_checkpoint(number, size)
        self.loads += 1
        self.is_loaded = True

    def note_checkpoint(self, number: int, size: int) -> None:
        """There is a checkpoint of that number: what came before it is no longer to be replayed."""
        if number >= self.checkpoint:
            self.checkpoint, self.checkpoint_bytes = number, size
            while self.since and self.since[0][0] <= number:
                self.since_bytes -= self.since.popleft()[1]

    # --- writing ---------------------------------------------------------------------------------------------------

    async def commit(self, compose: Callable[[M, float], Draft | None]) -> list[Any] | None:
        """Adds a commit, unless there is nothing to write; afterwards the state is that of a moment within this call.

        Args:
            compose: what to write, from the newest state that is known and the time; None: nothing. Called again after
                each lost race.

        Returns:
            The answers to the operations of the last draft; None: there was none.

        Raises:
            Exception: native, or a ``BackendError`` of ``UNKNOWN_EFFECT``: the commit may stand. If it does, the next
                look finds it.
        """
        if not self.is_loaded:
            await self._load()
        await self.shelf.take_turn()
        try:
            if self.shelf.facts.quick:
                await self.refresh()
            stuck = 0
            while True:
                draft = compose(self.machine, now := self.clock.time())
                if draft is None:
                    return None
                operations, written, blobs = draft
                number = self.number + 1
                token = os.urandom(16)
                data, blob_at = pack(COMMIT, (token, number, now, self.policy, written), blobs)
                if await self._create(number, token, data):
                    if await self._horizon_after(number) < number:
                        answers = self._take(number, now, self.policy, operations, blob_at, data)
                        self.shelf.ring()
                        return answers
                    logger.warning(
                        "omniq-file: this process slept while its part of the log was tidied up; "
                        "commit %d is void and its operations are looked at again", number,
                    )  # fmt: skip
                    await self._load()
                await self.refresh()
                # Lost to another process, whose commit we have by now; or the storage contradicts itself.
                stuck = stuck + 1 if self.number < number else 0
                if stuck == MOST_CONTRADICTIONS:
                    raise BackendError(
                        f"{commit_name(self.folder, number)} can neither be created nor read",
                        ErrorCode.UNAVAILABLE,
                        "file",
                    )
        finally:
            self.shelf.end_turn()

    async def _create(self, number: int, token: bytes, data: bytes) -> bool:
        """Whether the commit of this number is ours."""
        name = commit_name(self.folder, number)
        in_doubt = False
        loop, timeout_s = asyncio.get_running_loop(), self.shelf.facts.timeout_s
        end = loop.time() + timeout_s if timeout_s is not None else float("inf")
        for attempt in range(1, TRIES + 1):
            try:
                if await self.shelf.create(name, data):
                    return True
                # It is there, and as durable as the shelf can make it. By whom?
                found = await self.shelf.read(name)
                if found is not None:
                    return bool(_token_of(found) == token)
                # It was there and is gone: trimmed, which the horizon will tell.
                return False
            except Exception as error:
                if self.shelf.classify(error) not in (ErrorCode.UNKNOWN_EFFECT, ErrorCode.UNKNOWN):
                    if in_doubt:
                        raise _in_doubt(name) from error
                    raise
                pause_s = 0.02 * 2**attempt
                if attempt == TRIES or loop.time() + pause_s > end:
                    raise
                in_doubt = True
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def _horizon_after(self, number: int) -> int:
        try:
            return await self._read_horizon()
        except Exception as error:
            # Our commit is there, and will be found at the next look.
            raise _in_doubt(commit_name(self.folder, number)) from error


def _in_doubt(name: str) -> BackendError:
    return BackendError(
        f"{name} may have been written: the storage failed before it could be confirmed. Repeat the call",
        ErrorCode.UNKNOWN_EFFECT, "file",
    )  # fmt: skip


def _contents(part: bytes) -> bytes:
    index, blob_at = unpack("", PART, part)
    del index
    return part[blob_at + 4 :]


def _token_of(data: bytes) -> Any:
    """The token of a commit; None for something that is none."""
    if len(data) < HEADER_BYTES:
        return None
    try:
        return unpack("", COMMIT, data)[0][0]
    except BackendError:
        return None
