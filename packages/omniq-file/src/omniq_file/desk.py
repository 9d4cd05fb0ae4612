"""Where the calls on one log become commits: group commit, looks at the state, and upkeep.

One round at a time. What arrives while a round is under way makes the next one, so a hundred concurrent calls of a process
share a commit, and a lone call starts at once; there is no timer. A round writes what would change anything; whatever
would not (an empty claim, a repeated settlement) costs no commit, only a look that nothing new was committed by others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import Any, Generic, TypeVar

from omniq_core import BackendError, ErrorCode
from omniq_file.call import Call, Wanted, deliver
from omniq_file.log import Draft, Log, Machine
from omniq_file.tidying import Tidying

__all__ = ["Desk"]

logger = logging.getLogger("omniq")

MOST_ITEMS = 20_000
MOST_BYTES = 8 * 1024 * 1024
"""A commit is closed once it holds so much. A single call may be larger."""
TRIES = 4
"""How often a call looks again for bodies that were moved or deleted between its look and its reading."""


M = TypeVar("M", bound=Machine)


class Desk(Generic[M]):
    """One log of an opened place. Lives on the clerk's loop.

    Args:
        log: not yet read.
        announce: is told after each change of the state, with whether it was loaded anew.
    """

    def __init__(self, log: Log[M], announce: Any) -> None:
        self.log = log
        self._announce = announce
        self._inbox: deque[Call] = deque()
        self._arrived = asyncio.Event()
        self._seen_loads = 0
        self._seen_number = -1
        self._look_again = False
        self._outbox: dict[asyncio.AbstractEventLoop, list[tuple[Call, Any]]] = {}
        self._open: dict[Call, None] = {}
        """The calls of this round that have no answer yet."""
        self._chosen: list[Call] = []
        """Those in the commit that is being made."""
        self._fetching: set[asyncio.Task[None]] = set()
        self._tidying: Tidying[M] = Tidying(log, self._move)
        self._patience = random.uniform(1.0, 1.3)

    def accept(self, call: Call) -> None:
        """Takes a call; its answer goes to the caller's loop."""
        self._inbox.append(call)
        self._arrived.set()

    def notice(self) -> None:
        """Something may have been committed by another process."""
        self._look_again = True
        self._arrived.set()

    async def serve(self) -> None:
        """Works until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._inbox or self._look_again:
                self._look_again = False
                self._open = dict.fromkeys(self._next_calls())
                try:
                    await self._round()
                except asyncio.CancelledError:
                    self._fail(BackendError("the backend was closed meanwhile", ErrorCode.CLOSED, "file"))
                    raise
                except Exception as error:
                    # The storage's own: each call is told, and the next round tries anew.
                    if not self._open:
                        logger.warning("omniq-file: looking for new commits failed: %s", error)
                    self._fail(error)
                finally:
                    self._tell()
                    self._flush()
                await asyncio.sleep(0)

    async def end(self) -> None:
        """Answers what is left. After ``serve`` was cancelled."""
        for task in (*self._fetching, *self._tidying.tasks):
            task.cancel()
        await asyncio.gather(*self._fetching, *self._tidying.tasks, return_exceptions=True)
        while self._inbox:
            self._answer(
                self._inbox.popleft(), BackendError("the backend was closed", ErrorCode.CLOSED, "file")
            )
        self._flush()

    def _next_calls(self) -> list[Call]:
        calls: list[Call] = []
        items = size = 0
        while self._inbox and (not calls or (items < MOST_ITEMS and size < MOST_BYTES)):
            call = self._inbox.popleft()
            if call.future.cancelled():
                continue
            items += call.items
            size += call.blob_bytes
            calls.append(call)
        return calls

    # --- a round ---------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        log = self.log
        if not self._open:
            await log.refresh()
        while self._open:
            answers = await log.commit(self._compose)
            now = log.clock.time()
            if answers is not None:
                for call, answer in zip(self._chosen, answers, strict=True):
                    del self._open[call]
                    await self._finish(call, answer, now)
            elif not log.shelf.facts.quick:
                await log.refresh()
            for call in list(self._open):
                answer = None
                if call.operation is not None:
                    if not log.machine.is_idle(call.operation, now, log.policy):
                        continue
                    answer = log.machine.answer_idle(call.operation, now, log.policy)
                del self._open[call]
                await self._finish(call, answer, now)
        if log.since_bytes > self._tidying.due_bytes * self._patience:
            self._patience = random.uniform(1.0, 1.3)
            await self._tidying.start()

    def _compose(self, machine: M, now: float) -> Draft | None:
        """What of this round is still to be written."""
        self._chosen = []
        operations, encoded, blobs = [], [], []
        for call in list(self._open):
            if call.future.cancelled():
                del self._open[call]  # nobody waits for it any more: it is not begun
                continue
            if call.operation is None or machine.is_idle(call.operation, now, self.log.policy):
                continue
            self._chosen.append(call)
            operations.append(call.operation)
            encoded.append(call.encoded)
            blobs += call.blobs
        return (operations, encoded, blobs) if operations else None

    async def _finish(self, call: Call, answer: Any, now: float) -> None:
        try:
            finished = call.finish(self.log.machine, answer, now)
        except Exception as error:  # of this call alone: the others of its round have theirs
            finished = error
        if not isinstance(finished, Wanted):
            self._answer(call, finished)
        elif self.log.shelf.facts.quick:
            await self._fetch(call, finished)
        else:
            task = asyncio.get_running_loop().create_task(self._fetch(call, finished, flush=True))
            self._fetching.add(task)
            task.add_done_callback(self._fetching.discard)

    async def _fetch(self, call: Call, wanted: Wanted, *, flush: bool = False) -> None:
        try:
            bodies = await self.log.bodies.fetch(wanted.places, self.log.machine.size_of)
            if None in bodies:
                call.tries += 1
                if call.tries < TRIES:
                    # Moved or deleted by another process since we looked: the next look tells.
                    self.accept(call)
                    return
                if not wanted.may_lack:
                    place = wanted.places[bodies.index(None)]
                    raise BackendError(
                        f"commit {place[0]} of {self.log.folder} has lost the {place[2]} bytes at {place[1]}: its file was "
                        "damaged. Restore it from a copy",
                        ErrorCode.CORRUPT, "file",
                    )  # fmt: skip
            self._answer(call, wanted.build(bodies))
        except asyncio.CancelledError:
            self._answer(call, BackendError("the backend was closed meanwhile", ErrorCode.CLOSED, "file"))
            raise
        except Exception as error:
            self._answer(call, error)
        finally:
            if flush:
                self._flush()

    def _fail(self, error: BaseException) -> None:
        for call in self._open:
            self._answer(call, error)
        self._open = {}

    # --- telling ---------------------------------------------------------------------------------------------------

    def _answer(self, call: Call, answer: Any) -> None:
        self._outbox.setdefault(call.loop, []).append((call, answer))

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for loop, answers in outbox.items():
            deliver(loop, answers)

    def _tell(self) -> None:
        log = self.log
        if log.number != self._seen_number or log.loads != self._seen_loads:
            is_new = log.loads != self._seen_loads
            self._seen_number, self._seen_loads = log.number, log.loads
            self._announce(log.machine, is_new)

    async def _move(self, operation: Any, blobs: list[bytes]) -> None:
        """Commits an operation of our own."""
        call = Call(operation, lambda _machine, answer, _now: answer, blobs)
        self.accept(call)
        await call.future
