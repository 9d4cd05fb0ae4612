"""The result store. Most records are written by a settle into the task's own row; ``put`` is for other backends' queues."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omniq_core import Outcome, ResultRecord, ResultStore
from omniq_postgres.batching import Batcher
from omniq_postgres.leases import STATE_NUMBERS, STATES
from omniq_postgres.notify import RESULT, checksum
from omniq_postgres.statements import DELETE_RESULTS, GET_RESULTS, PUT_RESULTS, TIDY

if TYPE_CHECKING:
    from omniq_postgres.backend import PostgresBackend

__all__ = ["PostgresResultStore"]

_LETTERS = {"d": Outcome.DUPLICATE, "s": Outcome.STALE}


class PostgresResultStore(ResultStore):
    """The result store of an opened backend."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._options = backend.options
        self._pool = backend.pool
        self._ringer = backend.ringer
        self._bell = backend.bell
        largest = backend.limits.max_batch
        self._put = Batcher(
            self._send_put,
            largest=largest,
            at_fault=backend.is_about_items,
            weigh=lambda record: len(record.body),
        )
        self._get = Batcher(self._send_get, largest=largest, at_fault=backend.is_about_items)

    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        self._backend.check_open()
        return await self._put(records)

    async def _send_put(self, records: Sequence[ResultRecord]) -> Sequence[Outcome]:
        outcomes = [Outcome.OK] * len(records)
        left = list(range(len(records)))
        while left:
            # One statement writes a row once, so a second record of one task goes into a second call.
            first = {records[number].task_id: number for number in reversed(left)}
            numbers = sorted(first.values())
            chosen = [records[number] for number in numbers]
            rows = await self._pool.run(
                PUT_RESULTS,
                [record.task_id for record in chosen],
                [record.fence for record in chosen],
                [STATE_NUMBERS[record.state] for record in chosen],
                [record.body for record in chosen],
                [record.ttl_s for record in chosen],
                [record.final for record in chosen],
                self._options.retention_s,
            )
            for task_id, letter in rows:
                outcomes[first[task_id]] = _LETTERS[letter]
            left = [number for number in left if first[records[number].task_id] != number]
        if self._ringer is not None:
            self._ringer.results(
                [
                    record.task_id
                    for record, outcome in zip(records, outcomes, strict=True)
                    if record.final and outcome is Outcome.OK
                ]
            )
        return outcomes

    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        self._backend.check_open()
        return [record for record, _ in await self._get(task_ids)]

    async def _send_get(self, task_ids: Sequence[str]) -> Sequence[tuple[ResultRecord | None, float]]:
        """The records, each with the time by the server's clock, not before the call, at which it was looked for."""
        found: dict[str, ResultRecord] = {}
        rows = await self._pool.run(GET_RESULTS, list(dict.fromkeys(task_ids)))
        for _, task_id, fence, state, body, final, stored_at, until in rows:
            if task_id is not None:
                other = found.get(task_id)
                if other is None or other.fence < fence:
                    found[task_id] = ResultRecord(
                        task_id, fence, STATES[state], body, None, final, stored_at, until
                    )
        looked_at = rows[0][0]
        return [(found.get(task_id), looked_at) for task_id in task_ids]

    async def delete(self, task_ids: Sequence[str], /) -> int:
        self._backend.check_open()
        if not task_ids:
            return 0
        [(count,)] = await self._pool.run(DELETE_RESULTS, list(dict.fromkeys(task_ids)))
        return int(count)

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        self._backend.check_open()
        if not self._options.notify or not task_ids:
            return await super().wait(task_ids, timeout_s=timeout_s)
        self._backend.listen()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        keys = [(RESULT, checksum(task_id)) for task_id in task_ids]
        told: dict[str, ResultRecord] = {}
        while True:
            waiter = self._bell.waiter(keys)  # before the look, so that nothing falls between
            try:
                rest = [task_id for task_id in task_ids if task_id not in told]
                looked = dict(zip(rest, await self._get(rest), strict=True))
                found = [told.get(task_id) or looked[task_id][0] for task_id in task_ids]
                left_s = end - loop.time()
                if left_s <= 0 or any(record is not None and record.final for record in found):
                    return found
                if await self._bell.sleep(waiter, min(left_s, self._options.poll_s)):
                    # Not what was settled before our look: it may have been deleted since, and its news be late.
                    told = {
                        record.task_id: record
                        for record in waiter.result()
                        if record.task_id in looked and record.stored_at > looked[record.task_id][1]
                    }
            finally:
                self._bell.forget(waiter, keys)

    async def prune(self, *, limit: int = 1000) -> int:
        self._backend.check_open()
        [(_, results, _)] = await self._pool.run(TIDY, limit, self._options.retention_s, False)
        return int(results)
