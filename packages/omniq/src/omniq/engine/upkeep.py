"""Upkeep: every worker looks after the tasks of all, every few seconds, and there is no leader who could be missing.

The store does the work (``Queue.maintain``): it takes tasks away from workers whose lease has ended, expires what was not
started in time, and forgets what is old. Here it is called, and what it did is told: events, and a final result record for
each task that ended without a worker, so that those who wait for it learn of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from omniq.codec import Failure, ResultBody, encode_result
from omniq.engine.emit import Emitter
from omniq.engine.rest import Rest
from omniq.engine.trouble import Trouble
from omniq.errors import WorkerLost
from omniq.models import EventType
from omniq.stores import OpenStores
from omniq_core import Clock, Moved, ResultRecord, TaskState

__all__ = ["Upkeep"]

log = logging.getLogger("omniq.worker")

LIMIT = 1000


class Upkeep:
    """Calls ``maintain`` now and then.

    Args:
        stores: the opened stores.
        emitter: for the events.
        every_s: how often, give or take a fifth.
        clock: for the records.
        call_timeout_s: a call that is not answered by then is given up.
    """

    def __init__(
        self, stores: OpenStores, emitter: Emitter, *, every_s: float, clock: Clock, call_timeout_s: float
    ) -> None:
        self._stores = stores
        self._emitter = emitter
        self._every_s = every_s
        self._clock = clock
        self._call_timeout_s = call_timeout_s
        self._trouble = Trouble("do the upkeep", stores.queue_backend, clock)
        self._rest = Rest()
        self._closing = False
        results = stores.result_backend
        self._prunes_results = (
            stores.results is not None and results is not None and results is not stores.queue_backend
        )
        if self._prunes_results and results is not None:
            self._result_trouble = Trouble("prune results", results, clock)

    def close(self) -> None:
        self._closing = True
        self._rest.poke()

    async def run(self) -> None:
        """Until :meth:`close`."""
        while not self._closing:
            more = False
            try:
                more = await self.once()
            except Exception as error:
                self._trouble.failed(error)
            else:
                self._trouble.worked()
            pause_s = 0.05 if more else self._every_s * random.uniform(0.8, 1.2)
            if not self._closing:
                await self._rest.until_poked(pause_s)

    async def once(self) -> bool:
        """One round; whether there is more to do."""
        async with asyncio.timeout(self._call_timeout_s):
            done = await self._stores.queue.maintain(limit=LIMIT)
        if done.moved:
            await self._tell(done.moved)
        more = done.more
        if self._prunes_results and self._stores.results is not None:
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    more |= await self._stores.results.prune(limit=LIMIT) >= LIMIT
            except Exception as error:
                self._result_trouble.failed(error)
            else:
                self._result_trouble.worked()
        return more

    async def _tell(self, moved: Sequence[Moved]) -> None:
        for one in moved:
            if one.state is TaskState.EXPIRED:
                self._emitter.note(EventType.EXPIRED, one, message=one.reason)
                continue
            self._emitter.note(
                EventType.WORKER_LOST,
                one,
                message=one.reason,
                lost_worker_id=one.worker_id,
                state=one.state.value,
                crashes=one.crashes,
            )
            if one.state is TaskState.DEAD:
                self._emitter.note(EventType.ERROR, one, error=one.reason)
            elif one.state is TaskState.CANCELLED:
                self._emitter.note(EventType.CANCELLED, one, message=one.reason)
        results = self._stores.results
        records = [self._record(one) for one in moved if one.state.is_final]
        if results is None or not records:
            return
        try:
            async with asyncio.timeout(self._call_timeout_s):
                await results.put(records)
        except Exception as error:
            # Whoever waits for one of these asks the queue in the end, and learns the same there, without the details.
            log.warning(
                "%d tasks ended without a worker, and it could not be recorded: %s", len(records), error
            )

    def _record(self, moved: Moved) -> ResultRecord:
        failure = None
        if moved.state is TaskState.DEAD:
            name = f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"
            failure = Failure(name, moved.reason or "its worker was lost")
        body = ResultBody(
            failure=failure,
            finished_at=self._clock.time(),
            worker_id=moved.worker_id,
            attempt=moved.attempt,
            reason=moved.reason,
            name=moved.name,
            queue=moved.queue,
        )
        return ResultRecord(moved.task_id, moved.fence, moved.state, encode_result(body))
