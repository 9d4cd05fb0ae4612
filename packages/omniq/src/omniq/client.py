"""The producer's half of a program: sends tasks, waits for their ends, cancels them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omniq.context import TaskContext
from omniq.door import Sent
from omniq.errors import PartMissing
from omniq.events import AsyncEventStore
from omniq.guarantees import Guarantees, guarantees
from omniq.models import TaskResult, TaskStatus
from omniq.parameters import Duration, TaskId, task_id_of
from omniq.queue import AsyncTaskQueue
from omniq.results import AsyncResultStore
from omniq.stores import Stores
from omniq.task import TaskDefinition
from omniq.waiting import UnknownId
from omniq.workers import Worker
from omniq_core import Health, TaskRecord

__all__ = ["Client"]


class Client:
    """What tasks, handles and the faces of a program share.

    Args:
        task_queue: where tasks are sent.
        result_store: where their ends are waited for; ``None``: nowhere.
        event_store: where events are read; ``None``: nowhere.
    """

    def __init__(
        self,
        task_queue: AsyncTaskQueue,
        result_store: AsyncResultStore | None,
        event_store: AsyncEventStore | None,
    ) -> None:
        self.task_queue = task_queue
        self.result_store = result_store
        self.event_store = event_store
        self.worker: Worker | None = None
        self._told: set[str] = set()
        """The queues that the worker of this program has been told of."""

    # --- sending ------------------------------------------------------------------------------------------------

    async def send(
        self,
        definition: TaskDefinition[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Mapping[str, Any],
    ) -> Sent:
        """Sends one call."""
        records = [self.task_queue.record(definition, args, kwargs, parameters)]
        [sent] = await self.task_queue.send_records(records, parameters.get("transaction"))
        self._tell_worker(records)
        return sent

    async def send_records(
        self, records: Sequence[TaskRecord], transaction: object | None = None
    ) -> list[Sent]:
        """Sends records, and tells this program's own worker of queues that are new to it."""
        sent = await self.task_queue.send_records(records, transaction)
        self._tell_worker(records)
        return sent

    def _tell_worker(self, records: Sequence[TaskRecord]) -> None:
        worker = self.worker
        if worker is not None and worker.is_running:
            for record in records:
                if record.queue not in self._told:
                    self._told.add(record.queue)
                    worker.learn_queue(record.queue)

    async def complete_within(self, transaction: object, task: TaskContext, value: Any) -> None:
        """See ``AsyncOmniQ.complete_within``."""
        store = self.result_store
        keeps_result = store is not None and store.backend is self.task_queue.backend
        await self.task_queue.complete_within(transaction, task, value, keeps_result=keeps_result)

    def set_worker(self, worker: Worker | None) -> None:
        """Makes ``worker`` this program's own."""
        self.worker = worker
        self._told.clear()

    # --- waiting ------------------------------------------------------------------------------------------------

    def results(self) -> AsyncResultStore:
        """The result store.

        Raises:
            PartMissing: there is none.
        """
        if self.result_store is None:
            raise PartMissing(
                "this program was made without a result store; give result_store= to wait for results"
            )
        return self.result_store

    def events(self) -> AsyncEventStore:
        """The event store.

        Raises:
            PartMissing: there is none.
        """
        if self.event_store is None:
            raise PartMissing(
                "this program was made without an event store; give event_store= to read events"
            )
        return self.event_store

    async def wait(self, task_id: TaskId, timeout: Duration | None) -> TaskResult:
        """See :meth:`AsyncResultStore.wait`."""
        return await self.results().wait(task_id, timeout)

    async def get_result(self, task_id: TaskId, timeout: Duration | None) -> TaskResult | None:
        """The same, with ``None`` for a task that has not ended in time, or is unknown."""
        try:
            return await self.results().wait(task_id, timeout)
        except (TimeoutError, UnknownId):
            return None

    async def status(self, task_id: TaskId) -> TaskStatus | None:
        """How a task stands now; ``None``: nothing is known of it."""
        task = await self.task_queue.get_task(task_id)
        if task is not None:
            return task.status
        if self.result_store is None:
            return None
        ended = await self.get_result(task_id, 0)
        return None if ended is None else ended.status

    # --- cancelling ---------------------------------------------------------------------------------------------

    async def cancel(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncTaskQueue.cancel`; who waits for the task here hears of it at once."""
        task_id = task_id_of(task_id)
        is_stopping = await self.task_queue.cancel(task_id)
        if is_stopping:
            if self.result_store is not None:
                self.result_store.look_again([task_id])
            if self.worker is not None:
                self.worker.cancel_soon(task_id)
        return is_stopping

    async def guarantees(self) -> Guarantees:
        """What this mix of backends promises."""
        parts = [None if part is None else part.backend for part in (self.result_store, self.event_store)]
        opened = await Stores(self.task_queue.backend, *parts).open()
        try:
            return await guarantees(opened)
        finally:
            await opened.close()

    async def check(self) -> dict[str, Health]:
        """What each store's server is, by part; a part on the queue's own backend is not named again."""
        found = {"task_queue": await self.task_queue.check()}
        for name, store in (("result_store", self.result_store), ("event_store", self.event_store)):
            if store is not None and store.backend is not self.task_queue.backend:
                found[name] = await store.check()
        return found
