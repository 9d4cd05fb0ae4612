"""Results that live on another backend than the queue: written in an order that loses none.

    put(provisional)  ->  settle on the queue (the commit)  ->  put(final)  ->  events

A crash before the commit re-runs the task, whose next result has a higher fence and replaces ours. A crash after it leaves
a provisional record; a reader who finds one asks the queue, and makes it final. Never the other way round: a task that was
settled first has lost its result if the worker dies in between.

While the result store is down, what has a result waits, leased, and nothing new is claimed. What has waited for a whole
lease is given up: its run counts as failed, so it is tried again while its policy allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omniq.engine.ending import Endings
from omniq.engine.held import Held
from omniq.engine.trouble import Trouble
from omniq_core import Backend, Clock, Outcome, ResultRecord, ResultStore, TaskState

__all__ = ["Beside"]

MOST_UNFINISHED = 10_000


class ResultNotStored(Exception):
    """The function returned, and its result could not be stored."""


class Beside:
    """Writes the results of one worker to their own backend.

    Args:
        store: the result store.
        backend: whose store it is.
        endings: for the runs that are given up.
        clock: measures patience.
        patience_s: how long a result is tried.
    """

    def __init__(
        self, store: ResultStore, backend: Backend, endings: Endings, *, clock: Clock, patience_s: float
    ) -> None:
        self._store = store
        self._endings = endings
        self._clock = clock
        self._patience_s = patience_s
        self._trouble = Trouble("store results", backend, clock)
        self._since: dict[Held, float] = {}
        self._unfinished: list[ResultRecord] = []
        self._retry_at = 0.0

    @property
    def is_down(self) -> bool:
        return self._trouble.is_on

    @property
    def waiting(self) -> int:
        """How many runs wait for their result to be stored."""
        return len(self._since)

    def retry_in_s(self) -> float | None:
        """When to call :meth:`due` next; ``None``: nothing waits."""
        if not self._since and not self._unfinished:
            return None
        return max(0.0, self._retry_at - self._clock.monotonic())

    def due(self, most: int) -> list[Held]:
        """The runs that wait and should be tried again now."""
        if self._clock.monotonic() < self._retry_at:
            return []
        return list(self._since)[:most]

    async def put(self, batch: Sequence[Held]) -> list[Held]:
        """Stores the results of a batch ahead of its settlement; those that may be settled now. The others are kept."""
        with_result = [held for held in batch if held.result is not None]
        if not with_result:
            return list(batch)
        try:
            async with asyncio.timeout(self._patience_s):
                await self._store.put([_record(held, final=False) for held in with_result])
        except Exception as error:
            now = self._clock.monotonic()
            self._retry_at = now + self._trouble.failed(error)
            hopeless = self._trouble.is_lasting(error) and len(with_result) == 1
            ready = [held for held in batch if held.result is None]
            for held in with_result:
                since = self._since.setdefault(held, now)
                if hopeless or now - since >= self._patience_s:
                    del self._since[held]
                    self._give_up(held, error)
                    ready.append(held)
            if self._trouble.is_lasting(error) and len(with_result) > 1:
                # One of them is refused: find out which.
                half = len(with_result) // 2
                ready += await self.put(with_result[:half])
                ready += await self.put(with_result[half:])
            return ready
        self._trouble.worked()
        for held in with_result:
            self._since.pop(held, None)
        return list(batch)

    def _give_up(self, held: Held, error: Exception) -> None:
        held.result = held.result_state = None
        told = f"its result could not be stored ({type(error).__name__}: {error})"
        self._endings.raised(held, ResultNotStored(told))
        held.result = held.result_state = None  # neither can a record of this failure

    async def finish(self, batch: Sequence[Held], answers: Sequence[Outcome]) -> None:
        """Makes the records of settled runs final. Failing to is no harm: a reader does it instead."""
        records = [
            _record(held, final=True)
            for held, answer in zip(batch, answers, strict=True)
            if held.result is not None and answer in (Outcome.OK, Outcome.DUPLICATE)
        ]
        self._unfinished += records[: MOST_UNFINISHED - len(self._unfinished)]
        await self.finish_rest()

    async def finish_rest(self) -> None:
        """Tries once more to make final what is not yet."""
        while self._unfinished:
            chunk = self._unfinished[:500]
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._store.put(chunk)
            except Exception as error:
                self._retry_at = self._clock.monotonic() + self._trouble.failed(error)
                if self._trouble.is_lasting(error):
                    del self._unfinished[: len(chunk)]
                return
            self._trouble.worked()
            del self._unfinished[: len(chunk)]


def _record(held: Held, *, final: bool) -> ResultRecord:
    settlement = held.settlement
    return ResultRecord(
        held.claim.task_id,
        held.claim.lease.fence,
        held.result_state or TaskState.SUCCEEDED,
        held.result or b"",
        None if settlement is None else settlement.result_ttl_s,
        final,
    )
