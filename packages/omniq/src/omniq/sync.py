"""``OmniQ``: the sync face of ``AsyncOmniQ``. The same methods with the same parameters; each waits on the portal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, Self, TypeVar, Unpack, overload

from omniq.app import AsyncOmniQ
from omniq.assemble import FromSettings, Parts
from omniq.context import current_task
from omniq.events import AsyncEventStore, EventStore, Moment
from omniq.guarantees import Guarantees
from omniq.handles import Task, TaskMaker, define
from omniq.models import EventType, TaskEvent, TaskInfo, TaskResult
from omniq.parameters import (
    Call,
    CallParameters,
    Duration,
    EnqueueParameters,
    TaskId,
    TaskParameters,
    refuse_unknown,
)
from omniq.portal import run_sync
from omniq.queue import AsyncTaskQueue, TaskQueue
from omniq.results import AsyncResultStore, ResultStore
from omniq.task import TaskRegistry
from omniq.workers import Worker
from omniq_core import Backend, Health, QueueStats

__all__ = ["OmniQ"]

P = ParamSpec("P")
R = TypeVar("R")


class OmniQ(FromSettings):
    """A task queue with all that belongs to it, for code that is not async. See :class:`~omniq.app.AsyncOmniQ` for the
    parameters.

    ``OmniQ()`` alone keeps everything in one SQLite file. It works inside a running event loop (a notebook) as well, and
    from any number of threads. Its worker has a thread and an event loop of its own.

    Attributes:
        aio: the ``AsyncOmniQ`` behind it.
    """

    def __init__(
        self,
        project_name: str | None = None,
        *,
        task_queue: AsyncTaskQueue | TaskQueue | None = None,
        result_store: AsyncResultStore | ResultStore | None = None,
        event_store: AsyncEventStore | EventStore | None = None,
        worker: Worker | None = None,
        backend: Backend | str | None = None,
        queues: Sequence[str] | None = None,
        worker_type: str | None = None,
        worker_config: Mapping[str, Any] | None = None,
        events: bool = True,
        result_storage: AsyncResultStore | ResultStore | None = None,
        event_storage: AsyncEventStore | EventStore | None = None,
        **backend_settings: Any,
    ) -> None:
        self._take(
            AsyncOmniQ(
                project_name,
                task_queue=task_queue,
                result_store=result_store,
                event_store=event_store,
                worker=worker,
                backend=backend,
                queues=queues,
                worker_type=worker_type,
                worker_config=worker_config,
                events=events,
                result_storage=result_storage,
                event_storage=event_storage,
                **backend_settings,
            )
        )
        parts: list[object] = [task_queue, result_store, result_storage, event_store, event_storage]
        if worker is not None:
            parts += [worker.queue, worker.result_store, worker.event_store]
        for given in parts:
            if isinstance(given, (TaskQueue, ResultStore, EventStore)):
                self._faces[id(given.aio)] = given

    def _take(self, aio: AsyncOmniQ) -> None:
        self.aio = aio
        self._faces: dict[int, Any] = {}

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        made = cls.__new__(cls)
        OmniQ._take(made, AsyncOmniQ.from_parts(parts))
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.backend!r}>"

    # --- the parts ----------------------------------------------------------------------------------------------

    @property
    def project_name(self) -> str | None:
        """As it was given."""
        return self.aio.project_name

    @property
    def task_queue(self) -> TaskQueue:
        """Where tasks wait."""
        aio = self.aio.task_queue
        face: TaskQueue = self._faces.setdefault(id(aio), TaskQueue.wrap(aio))
        return face

    @property
    def result_store(self) -> ResultStore | None:
        """Where results are kept; ``None``: nowhere."""
        aio = self.aio.result_store
        return None if aio is None else self._faces.setdefault(id(aio), ResultStore.wrap(aio))

    @property
    def result_storage(self) -> ResultStore | None:
        """The same as :attr:`result_store`."""
        return self.result_store

    @property
    def event_store(self) -> EventStore | None:
        """Where events are logged; ``None``: nowhere."""
        aio = self.aio.event_store
        return None if aio is None else self._faces.setdefault(id(aio), EventStore.wrap(aio))

    @property
    def event_storage(self) -> EventStore | None:
        """The same as :attr:`event_store`."""
        return self.event_store

    @property
    def backend(self) -> Backend:
        """The queue's backend."""
        return self.aio.backend

    @property
    def registry(self) -> TaskRegistry:
        """The functions that this program's worker runs."""
        return self.aio.registry

    @property
    def worker(self) -> Worker | None:
        """The worker, once one was made."""
        return self.aio.worker

    # --- opening and closing ------------------------------------------------------------------------------------

    def open(self) -> Self:
        """See :meth:`AsyncOmniQ.open`."""
        run_sync(self.aio.open_stores())
        return self

    def close(self) -> None:
        """Stops the worker and closes the stores, for all sync code of this process that uses this object. Idempotent; the
        next use opens them again."""
        self.stop_worker()
        run_sync(self.aio.close_stores())

    def __enter__(self) -> Self:
        self.open()
        if self.aio.starts_worker:
            self.start_worker()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def client_only(self) -> Iterator[Self]:
        """See :meth:`AsyncOmniQ.client_only`."""
        self.open()
        try:
            yield self
        finally:
            run_sync(self.aio.close_stores())

    # --- tasks --------------------------------------------------------------------------------------------------

    @overload
    def task(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, func: Callable[P, R], /) -> Task[P, R, R]: ...

    @overload
    def task(self, /, **parameters: Unpack[TaskParameters]) -> TaskMaker: ...

    def task(
        self, func: Callable[..., Any] | None = None, /, **parameters: Unpack[TaskParameters]
    ) -> Task[..., Any, Any] | TaskMaker:
        """See :meth:`AsyncOmniQ.task`."""

        def make(function: Callable[..., Any]) -> Task[..., Any, Any]:
            defaults = self.aio.task_queue.defaults
            return Task(self.aio.client, define(self.registry, function, defaults, parameters))

        if func is not None:
            return make(func)
        refuse_unknown("task", parameters, TaskParameters)
        return TaskMaker(make)

    def enqueue(
        self, func: Callable[..., Any] | str, *args: Any, **parameters: Unpack[EnqueueParameters]
    ) -> str:
        """See :meth:`AsyncOmniQ.enqueue`."""
        return run_sync(self.aio.enqueue(func, *args, **parameters))

    def complete_within(self, transaction: object, value: Any = None) -> None:
        """See :meth:`AsyncOmniQ.complete_within`. A connection that belongs to its thread (``sqlite3``) must have been opened
        with ``check_same_thread=False``, here and for ``transaction=`` of :meth:`enqueue`."""
        run_sync(self.aio.client.complete_within(transaction, current_task(), value))

    def enqueue_many(self, calls: Iterable[Call], **parameters: Unpack[CallParameters]) -> list[str]:
        """See :meth:`AsyncOmniQ.enqueue_many`."""
        return run_sync(self.aio.enqueue_many(calls, **parameters))

    def get_result(self, task_id: TaskId, timeout: Duration | None = None) -> TaskResult | None:
        """See :meth:`AsyncOmniQ.get_result`."""
        return run_sync(self.aio.get_result(task_id, timeout))

    def get_results(
        self, task_ids: Sequence[TaskId], timeout: Duration | None = None
    ) -> list[TaskResult | None]:
        """See :meth:`AsyncOmniQ.get_results`."""
        return run_sync(self.aio.get_results(task_ids, timeout))

    def get_task(self, task_id: TaskId) -> TaskInfo | None:
        """See :meth:`AsyncOmniQ.get_task`."""
        return run_sync(self.aio.get_task(task_id))

    def cancel(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncOmniQ.cancel`."""
        return run_sync(self.aio.cancel(task_id))

    def requeue(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncOmniQ.requeue`."""
        return run_sync(self.aio.requeue(task_id))

    def retry(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncOmniQ.requeue`."""
        return run_sync(self.aio.requeue(task_id))

    def get_events(
        self,
        task_id: TaskId | None = None,
        event_type: EventType | str | Iterable[EventType | str] | None = None,
        start_time: Moment | None = None,
        end_time: Moment | None = None,
        limit: int | None = None,
        *,
        queue_name: str | None = None,
    ) -> list[TaskEvent]:
        """See :meth:`AsyncOmniQ.get_events`."""
        return run_sync(
            self.aio.get_events(task_id, event_type, start_time, end_time, limit, queue_name=queue_name)
        )

    # --- queues -------------------------------------------------------------------------------------------------

    def get_queue_size(self, queue_name: str = "default") -> int:
        """See :meth:`AsyncOmniQ.get_queue_size`."""
        return run_sync(self.aio.get_queue_size(queue_name))

    def list_queues(self) -> list[str]:
        """See :meth:`AsyncOmniQ.list_queues`."""
        return run_sync(self.aio.list_queues())

    def pause_queue(self, queue_name: str) -> None:
        """See :meth:`AsyncOmniQ.pause_queue`."""
        run_sync(self.aio.pause_queue(queue_name))

    def resume_queue(self, queue_name: str) -> None:
        """See :meth:`AsyncOmniQ.resume_queue`."""
        run_sync(self.aio.resume_queue(queue_name))

    def stats(self, queue_names: Sequence[str] | None = None) -> list[QueueStats]:
        """See :meth:`AsyncOmniQ.stats`."""
        return run_sync(self.aio.stats(queue_names))

    def cleanup_expired(self) -> int:
        """See :meth:`AsyncOmniQ.cleanup_expired`."""
        return run_sync(self.aio.cleanup_expired())

    def guarantees(self) -> Guarantees:
        """See :meth:`AsyncOmniQ.guarantees`."""
        return run_sync(self.aio.guarantees())

    def check(self) -> dict[str, Health]:
        """See :meth:`AsyncOmniQ.check`."""
        return run_sync(self.aio.check())

    # --- the worker ---------------------------------------------------------------------------------------------

    def make_worker(
        self,
        worker_type: str | None = None,
        max_workers: int | None = None,
        worker_config: Mapping[str, Any] | None = None,
    ) -> Worker:
        """See :meth:`AsyncOmniQ.make_worker`. This one has a thread of its own."""
        return self.aio.make_worker_of(
            self.task_queue, self.result_store, self.event_store, worker_type, max_workers, worker_config
        )

    def start_worker(
        self,
        worker_type: str | None = None,
        max_workers: int | None = None,
        worker_config: Mapping[str, Any] | None = None,
    ) -> None:
        """See :meth:`AsyncOmniQ.start_worker`. The worker has a thread and an event loop of its own; when this returns it is
        about to take its first task."""
        worker = self.aio.prepare_worker(self.make_worker, worker_type, max_workers, worker_config)
        worker.start_thread()

    def stop_worker(self, *, grace: Duration | None = None) -> None:
        """See :meth:`AsyncOmniQ.stop_worker`."""
        worker = self.aio.worker
        if worker is not None:
            worker.stop_thread(grace=grace)
