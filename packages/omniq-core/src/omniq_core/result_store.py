"""Where the ends of tasks are kept for those who wait for them."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from omniq_core.records import Outcome, ResultRecord

__all__ = ["ResultStore"]


class ResultStore(Protocol):
    """Result records by task id. The rules in :mod:`omniq_core.backend` hold for every method.

    It may stand beside a queue on another backend, so it guards itself: the record with the highest fence stays.
    """

    @abstractmethod
    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        """Stores records, durably by the store's settings.

        ``OK``: stored; also when it makes a provisional record of the same fence final. ``DUPLICATE``: a record of
        this fence is there already (and is final, or the new one is provisional as well); the old one stays.
        ``STALE``: a record of a higher fence is there; it stays. Compared and written in one atomic step. An expired
        record counts as absent.
        """
        ...

    @abstractmethod
    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        """The records of some tasks, provisional ones included; ``None`` where there is none or it has expired."""
        ...

    @abstractmethod
    async def delete(self, task_ids: Sequence[str], /) -> int:
        """Deletes records; how many there were. Idempotent."""
        ...

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        """Returns when at least one of the tasks has a *final* record, at ``timeout_s`` at the latest; what there is
        then, by position, provisional records included. It may return early without one.

        One call often stands for many waiting coroutines. The default polls ``get``, every 5 ms at first and every
        250 ms after a while; declare ``RESULT_WAIT`` where it is better.

        Args:
            task_ids: at most ``limits.max_batch``.
            timeout_s: in seconds; 0 looks once.
        """
        end = time.monotonic() + timeout_s
        pause_s = 0.005
        while True:
            found = await self.get(task_ids)
            left_s = end - time.monotonic()
            if left_s <= 0 or not task_ids or any(record is not None and record.final for record in found):
                return found
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, 0.25)

    async def prune(self, *, limit: int = 1000) -> int:
        """Deletes expired records, at most ``limit``; how many. The default leaves it to the store."""
        return 0
