"""The queue: one file per group of its methods, all on what ``tasks`` shares."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from omniq_core import (
    Claim,
    Closed,
    Enqueued,
    Extension,
    Lease,
    Limits,
    Maintained,
    Outcome,
    Page,
    Queue,
    QueueStats,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
)
from omniq_nats.claiming import Claiming
from omniq_nats.enqueueing import Enqueueing
from omniq_nats.looking import Looking
from omniq_nats.operating import Operating
from omniq_nats.settling import Settling
from omniq_nats.tasks import Tasks
from omniq_nats.upkeep import Upkeep
from omniq_nats.wakeup import Wakeup

__all__ = ["NatsQueue", "Through"]

T = TypeVar("T")


class Through:
    """Lets calls of several steps run to their end, also when their caller is cancelled: half a step would be put right
    only when a lease or a hint's time ends."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def __call__(self, call: Coroutine[Any, Any, T]) -> T:
        if self.is_closed():
            call.close()
            raise Closed("nats")
        task = asyncio.get_running_loop().create_task(call)
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self.is_closed() and task.cancelled():
                raise Closed("nats") from None
            raise

    def is_closed(self) -> bool:
        return self._closed

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; then nobody else asks

    async def close(self) -> None:
        """Ends what still runs."""
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


class NatsQueue(Queue):
    """See :class:`omniq_core.Queue`."""

    backend_name = "nats"

    def __init__(self, tasks: Tasks, wakeup: Wakeup, through: Through, limits: Limits) -> None:
        self._tasks = tasks
        self._wakeup = wakeup
        self._through = through
        self.limits = limits
        self._looking = Looking(tasks)
        self._enqueueing = Enqueueing(tasks)
        self._claiming = Claiming(tasks)
        self._settling = Settling(tasks)
        self._upkeep = Upkeep(tasks)
        self._operating = Operating(tasks, self._enqueueing, self._looking)

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        return await self._through(self._enqueueing.enqueue(records)) if records else []

    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        return await self._through(
            self._claiming.claim(
                queues, max_tasks=max_tasks, lease_s=lease_s, worker_id=worker_id, claim_id=claim_id
            )
        )

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        return await self._through(self._settling.settle(settlements)) if settlements else []

    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        return await self._through(self._settling.extend(leases, lease_s=lease_s)) if leases else []

    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        return await self._looking.get(task_ids) if task_ids else []

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        return await self._wakeup.wait(queues, timeout_s)

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        return await self._through(self._upkeep.maintain(limit))

    async def mend(self, *, lines: bool) -> None:
        """Gives back the tasks that run under claims that are gone, and if the ``lines`` are gone, puts all pending ones into
        line again."""
        await self._through(self._upkeep.mend(self._looking, lines=lines))

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return await self._through(self._operating.cancel(task_ids)) if task_ids else []

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return await self._through(self._operating.requeue(task_ids)) if task_ids else []

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        return await self._looking.query(which, limit, cursor)

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        return await self._looking.stats(queues) if queues else []

    async def queue_names(self) -> Sequence[str]:
        return await self._looking.queue_names()

    async def pause(self, queues: Sequence[str], /) -> None:
        if queues:
            await self._tasks.lines.pause(queues)

    async def resume(self, queues: Sequence[str], /) -> None:
        if queues:
            await self._tasks.lines.resume(queues)
            self._tasks.wake(queues)

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        return await self._through(self._operating.purge(which, limit))
