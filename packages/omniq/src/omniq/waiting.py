"""Waiting for the ends of tasks: one waiter for all coroutines of a loop that wait on one result store.

A thousand coroutines that wait for a thousand tasks cost a handful of calls of ``ResultStore.wait``, not a thousand.
Newcomers of one turn of the loop share a new call; two calls of like size are merged into one (the binary counter of
log-structured merge trees), so there are about ``log2(n)`` calls under way, and each id is handed over as often.

Not every end leaves a record: a task that was cancelled, expired or lost its workers was settled by nobody, and a record
may have expired. So every now and then, first after a twentieth of a second and then ever more seldom, the queue is asked
about those that are still waited for. It also decides about a *provisional* record, which a worker wrote ahead of the
queue's settlement on another backend and then could not finish: if the queue has ended the task under the same fence, the
record holds and is made final here; if not, it is another's, and the waiting goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

import msgspec

from omniq.models import TaskResult, result_of_record, result_of_snapshot
from omniq.stores import explain
from omniq_core import Backend, Closed, Queue, ResultRecord, ResultStore, TaskSnapshot

__all__ = ["ResultWaiter", "UnknownId"]

log = logging.getLogger("omniq")

FIRST_LOOK_S = 0.05
"""When the queue is asked for the first time. Most tasks that are waited for are done by then."""
LONGEST_LOOK_S = 2.0
PAUSE_PER_ID_S = 20e-6
LONGEST_PAUSE_S = 0.1
"""A call that brought few of many is not repeated at once: each costs as much as there are ids, and results come in batches.
For one id there is next to no pause, for five thousand it is a tenth of a second."""
FIRST_PAUSE_S = 0.05
FAILURES = 6
"""How many calls in a row may fail before the waiting coroutines hear of it; with the pauses, about three seconds."""


class UnknownId(LookupError):
    """Neither the queue nor the result store knows a task of that id."""


class _Call:
    """A call of ``ResultStore.wait`` under way, again and again for those that are left."""

    __slots__ = ("ids", "task")

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self.task: asyncio.Task[None] | None = None


class ResultWaiter:
    """Waits on one loop, for as many coroutines as like.

    Args:
        results: the result store, opened.
        backend: whose it is.
        queue: the queue, to be asked about tasks that leave no record; ``None``: there is none to ask.
        queue_backend: whose it is.
        is_authority: whether a task that the queue does not know is unknown (not so for a result store on its own, whose
            tasks may be in a queue elsewhere).
    """

    def __init__(
        self,
        results: ResultStore,
        backend: Backend,
        queue: Queue | None,
        queue_backend: Backend | None,
        *,
        is_authority: bool,
    ) -> None:
        self._results = results
        self._backend = backend
        self._queue = queue
        self._is_authority = is_authority
        self._largest = backend.limits.max_batch
        if queue_backend is not None:
            self._largest = min(self._largest, queue_backend.limits.max_batch)
        self._waiting: dict[str, list[asyncio.Future[TaskResult]]] = {}
        self._new: list[str] = []
        self._calls: list[_Call] = []
        self._hints: set[asyncio.Task[None]] = set()

    async def wait(self, task_id: str, timeout_s: float | None) -> TaskResult:
        """The end of a task.

        Args:
            task_id: the task.
            timeout_s: how long to wait, in seconds; 0: only look; ``None``: as long as it takes.

        Raises:
            TimeoutError: it has not ended in time.
            UnknownId: there is no such task.
            BackendError: a store does not answer.
        """
        if timeout_s is not None and timeout_s <= 0:
            return await self._look(task_id)
        future: asyncio.Future[TaskResult] = asyncio.get_running_loop().create_future()
        others = self._waiting.get(task_id)
        if others is None:
            self._waiting[task_id] = [future]
            if not self._new:
                asyncio.get_running_loop().call_soon(self._start)
            self._new.append(task_id)
        else:
            others.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            if timeout_s is not None and timeout_s < 2 * FIRST_LOOK_S:
                return await self._look(task_id)  # too short for the queue to have been asked
            raise
        finally:
            if not future.done() or future.cancelled():
                self._leave(task_id, future)

    def _leave(self, task_id: str, future: asyncio.Future[TaskResult]) -> None:
        futures = self._waiting.get(task_id)
        if futures is not None and future in futures:
            futures.remove(future)
            if not futures:
                del self._waiting[task_id]

    def hint(self, task_ids: Iterable[str]) -> None:
        """Something happened to these tasks that leaves no record: ask the queue now, if somebody waits for them."""
        waited_for = [task_id for task_id in task_ids if task_id in self._waiting]
        if waited_for:
            task = asyncio.get_running_loop().create_task(self._ask_quietly(waited_for))
            self._hints.add(task)
            task.add_done_callback(self._hints.discard)

    async def close(self) -> None:
        """Ends all waiting; who waits gets :class:`~omniq_core.Closed`."""
        tasks = [call.task for call in self._calls if call.task is not None] + list(self._hints)
        self._calls.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._fail(list(self._waiting), Closed(self._backend.name))

    # --- the calls under way ------------------------------------------------------------------------------------

    def _start(self) -> None:
        ids = [task_id for task_id in self._new if task_id in self._waiting]
        self._new.clear()
        while ids:
            self._follow(ids[: self._largest])
            ids = ids[self._largest :]

    def _follow(self, ids: list[str]) -> None:
        # The calls stand in order of size, the largest first.
        while self._calls and len(self._calls[-1].ids) <= len(ids):
            last = self._calls[-1]
            if len(last.ids) + len(ids) > self._largest:
                break
            self._calls.pop()
            if last.task is not None:
                last.task.cancel()
            ids = last.ids + ids
        call = _Call(ids)
        self._calls.append(call)
        self._calls.sort(key=lambda other: -len(other.ids))
        call.task = asyncio.get_running_loop().create_task(self._wait_again_and_again(call))

    async def _wait_again_and_again(self, call: _Call) -> None:
        clock = asyncio.get_running_loop().time
        look_s = FIRST_LOOK_S
        next_look = clock() + look_s
        failures = 0
        try:
            while call.ids:
                try:
                    found = await self._results.wait(call.ids, timeout_s=max(0.0, next_look - clock()))
                    for record in found:
                        if record is not None and record.final:
                            self._resolve_with(record)
                    before = len(call.ids)
                    call.ids = [task_id for task_id in call.ids if task_id in self._waiting]
                    if 4 * (before - len(call.ids)) < before:
                        await asyncio.sleep(min(LONGEST_PAUSE_S, len(call.ids) * PAUSE_PER_ID_S))
                    if clock() >= next_look and call.ids:
                        await self._ask(call.ids)
                        call.ids = [task_id for task_id in call.ids if task_id in self._waiting]
                        look_s = min(LONGEST_LOOK_S, look_s * 2)
                        next_look = clock() + look_s
                    failures = 0
                except Exception as error:
                    failures += 1
                    if failures >= FAILURES or not self._backend.classify(error).is_retryable:
                        self._fail(call.ids, explain(self._backend, error, "wait for results"), error)
                        return
                    await asyncio.sleep(FIRST_PAUSE_S * 2**failures)
        finally:
            if call in self._calls:
                self._calls.remove(call)

    def _resolve_with(self, record: ResultRecord) -> None:
        futures = self._waiting.pop(record.task_id, None)
        if futures:
            try:
                self._set(futures, result_of_record(record))
            except (
                Exception
            ) as error:  # what is stored is no result of ours: only those who wait for it hear of it
                for future in futures:
                    if not future.done():
                        future.set_exception(error)

    def _resolve(self, task_id: str, result: TaskResult) -> None:
        self._set(self._waiting.pop(task_id, ()), result)

    @staticmethod
    def _set(futures: Iterable[asyncio.Future[TaskResult]], result: TaskResult) -> None:
        for future in futures:
            if not future.done():
                future.set_result(result)

    def _fail(self, ids: Iterable[str], error: Exception, cause: Exception | None = None) -> None:
        if error is not cause:
            error.__cause__ = cause
        for task_id in ids:
            for future in self._waiting.pop(task_id, ()):
                if not future.done():
                    future.set_exception(error)

    # --- asking the queue ---------------------------------------------------------------------------------------

    async def _look(self, task_id: str) -> TaskResult:
        try:
            [record] = await self._results.get([task_id])
            if record is not None and record.final:
                return result_of_record(record)
            ends, unknown = await self._ends([task_id])
        except Exception as error:
            raise explain(self._backend, error, "look for a result") from error
        if unknown:
            raise UnknownId(task_id)
        if not ends:
            raise TimeoutError(f"task {task_id} has not ended")
        return ends[0]

    async def _ask_quietly(self, ids: Sequence[str]) -> None:
        try:
            await self._ask(ids)
        except Exception:  # the calls under way ask again, and say so if it lasts
            log.debug("could not ask the queue about tasks that are waited for", exc_info=True)

    async def _ask(self, ids: Sequence[str]) -> None:
        ends, unknown = await self._ends(ids)
        for result in ends:
            self._resolve(result.task_id, result)
        for task_id in unknown:
            self._fail([task_id], UnknownId(task_id))

    async def _ends(self, ids: Sequence[str]) -> tuple[list[TaskResult], list[str]]:
        """How those of ``ids`` that have ended did so, and which ids nobody knows."""
        if self._queue is None:
            return [], []
        snapshots = await self._queue.get(ids)
        over = {
            task_id: snapshot
            for task_id, snapshot in zip(ids, snapshots, strict=True)
            if snapshot is None or snapshot.state.is_final
        }
        if not over:
            return [], []
        # Looked for again, and only now: it may have been written between the last look and the queue's answer.
        records = await self._results.get(list(over))
        ends: list[TaskResult] = []
        unknown: list[str] = []
        repaired: list[ResultRecord] = []
        for (task_id, snapshot), record in zip(over.items(), records, strict=True):
            if record is not None and (record.final or _holds(record, snapshot)):
                ends.append(result_of_record(record))
                if not record.final:
                    repaired.append(record)
            elif snapshot is not None:
                ends.append(result_of_snapshot(snapshot))
            elif self._is_authority:
                unknown.append(task_id)
        if repaired:
            await self._repair(repaired)
        return ends, unknown

    async def _repair(self, records: Sequence[ResultRecord]) -> None:
        """Makes provisional records final, for those who come later. It may fail: they would do the same."""
        try:
            await self._results.put([_final(record) for record in records])
        except Exception:
            log.warning("could not make %d provisional results final", len(records), exc_info=True)


def _holds(record: ResultRecord, snapshot: TaskSnapshot | None) -> bool:
    """Whether a provisional record tells the truth. Without the task (pruned since) it is all that is known."""
    return snapshot is None or (snapshot.state is record.state and snapshot.fence == record.fence)


def _final(record: ResultRecord) -> ResultRecord:
    left_s = None
    if record.expires_at is not None and record.ttl_s is not None:
        left_s = max(0.001, record.expires_at - record.stored_at)
    return msgspec.structs.replace(record, final=True, ttl_s=left_s, stored_at=0.0, expires_at=None)
