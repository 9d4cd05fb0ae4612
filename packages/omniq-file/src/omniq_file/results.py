"""The result store. Its records stand in the same log as the tasks, so a settlement and its result are one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from omniq_core import Outcome, ResultRecord, ResultStore
from omniq_file import operations as op
from omniq_file.bell import result_key
from omniq_file.call import Call, Wanted
from omniq_file.index import Result
from omniq_file.machine import TaskMachine
from omniq_file.opened import LOOK_S, Opened
from omniq_file.queue import seconds

__all__ = ["FileResultStore"]


class FileResultStore(ResultStore):
    """Results of one opened backend."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        if not records:
            self._opened.clerk()
            return []
        rows = [
            (
                record.task_id, record.fence, op.STATE_CODES[record.state], len(record.body),
                None if record.ttl_s is None else seconds(record.ttl_s), bool(record.final),
            )
            for record in records
        ]  # fmt: skip
        call = Call((op.PUT, rows), _as_it_is, [record.body for record in records], len(rows))
        outcomes: Sequence[Outcome] = await self._opened.do(call)
        return outcomes

    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        if not task_ids:
            self._opened.clerk()
            return []

        def look(machine: TaskMachine, _: Any, now: float) -> Wanted:
            return _records([machine.results.live(task_id, now) for task_id in task_ids])

        found: Sequence[ResultRecord | None] = await self._opened.do(Call(None, look, items=len(task_ids)))
        return found

    async def delete(self, task_ids: Sequence[str], /) -> int:
        if not task_ids:
            self._opened.clerk()
            return 0
        deleted: int = await self._opened.do(
            Call((op.DELETE, list(task_ids)), _as_it_is, items=len(task_ids))
        )
        return deleted

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        loop = asyncio.get_running_loop()
        bell, keys = self._opened.bell(), [result_key(task_id) for task_id in task_ids]
        end = loop.time() + timeout_s
        while True:
            # Joined before looking, so nothing falls between.
            future = bell.join(keys)
            try:
                found = await self.get(task_ids)
                left_s = end - loop.time()
                if (
                    left_s <= 0
                    or not task_ids
                    or any(record is not None and record.final for record in found)
                ):
                    return found
                while not future.done() and left_s > 0:
                    await asyncio.wait([future], timeout=min(left_s, LOOK_S))
                    self._opened.clerk()
                    left_s = end - loop.time()
            finally:
                bell.leave(future, keys)

    async def prune(self, *, limit: int = 1000) -> int:
        pruned: int = await self._opened.do(Call((op.PRUNE, int(limit)), _as_it_is))
        return pruned


def _as_it_is(_machine: Any, answer: Any, _now: float) -> Any:
    return answer


def _records(results: Sequence[Result | None]) -> Wanted:
    copies = [
        None
        if result is None
        else (
            result.task_id,
            result.fence,
            result.state,
            result.ttl_s,
            result.final,
            result.stored_at,
            result.expires_at,
        )
        for result in results
    ]

    def build(bodies: Sequence[bytes]) -> list[ResultRecord | None]:
        following = iter(bodies)
        records: list[ResultRecord | None] = []
        for copy in copies:
            if copy is None:
                records.append(None)
                continue
            task_id, fence, state, ttl_s, final, stored_at, expires_at = copy
            records.append(
                ResultRecord(
                    task_id, fence, op.STATES[state], next(following), ttl_s, final, stored_at, expires_at
                )
            )
        return records

    return Wanted([(r.body_in, r.body_at, r.body_bytes) for r in results if r is not None], build)
