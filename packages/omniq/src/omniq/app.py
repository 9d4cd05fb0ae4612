"""``AsyncOmniQ``: a task queue, a result store, an event log and a worker behind one object. ``OmniQ`` is its sync face."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, Self, TypeVar, Unpack, cast, overload

from omniq.assemble import FromSettings, Parts, parts_from_keywords
from omniq.client import Client
from omniq.config import Environment
from omniq.context import current_task
from omniq.events import AsyncEventStore, EventStore, Moment
from omniq.guarantees import Guarantees
from omniq.handles import AsyncTask, AsyncTaskMaker, define
from omniq.models import EventType, TaskEvent, TaskInfo, TaskResult
from omniq.parameters import (
    Call,
    CallParameters,
    Duration,
    EnqueueParameters,
    TaskId,
    TaskParameters,
    refuse_unknown,
    split_arguments,
)
from omniq.plugins import hooks
from omniq.queue import AsyncTaskQueue, TaskQueue
from omniq.results import AsyncResultStore, ResultStore
from omniq.task import TaskRegistry
from omniq.workers import Worker, make_worker
from omniq_core import Backend, Health, OptionError, QueueStats, Unsupported

__all__ = ["AsyncOmniQ"]

P = ParamSpec("P")
R = TypeVar("R")


class AsyncOmniQ(FromSettings):
    """A task queue with all that belongs to it. Making one opens nothing; entering it, or the first call, does.

    ``AsyncOmniQ()`` alone keeps everything in one SQLite file. ``AsyncOmniQ("redis://localhost")`` keeps it there.

    Args:
        project_name: keeps programs on one storage apart. Or a URL, for short.
        task_queue: where tasks wait.
        result_store: where results are kept, also spelled ``result_storage``; by default on the queue's backend.
        event_store: where events are logged, also spelled ``event_storage``; by default on ``backend``, if it can; with a
            ``task_queue`` of your own, nowhere.
        worker: a worker made of the same components; entering starts it.
        backend: the storage for all parts that are not given: an object, a name (``"sqlite"``) or a URL.
        queues: the names of the queues in the order in which workers take from them.
        worker_type: ``async``, ``thread_pool``, ``process_pool`` or a plugin's; entering starts a worker of that type.
        worker_config: its parameters, see :class:`~omniq.workers.Worker`.
        events: ``False``: no event is logged.
        backend_settings: of ``backend``, such as ``db_path="tasks.db"``.

    Raises:
        OptionError, TypeError: a setting is unknown, or of the wrong type.
        PluginError: the backend or the worker type is not there, or broken.
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
        parts = parts_from_keywords(
            project_name,
            task_queue=task_queue,
            result_store=result_store if result_store is not None else result_storage,
            event_store=event_store if event_store is not None else event_storage,
            worker=worker,
            backend=backend,
            queues=queues,
            worker_type=worker_type,
            worker_config=worker_config,
            events=events,
            settings=backend_settings,
        )
        self._take(parts)

    def _take(self, parts: Parts) -> None:
        self.project_name = parts.project_name
        self._parts = parts
        self.client = Client(parts.task_queue, parts.result_store, parts.event_store)
        self.client.set_worker(parts.worker)
        self.starts_worker = parts.worker is not None or parts.worker_type is not None
        hooks().call("omniq_configure", settings=self)

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        made = cls.__new__(cls)
        AsyncOmniQ._take(made, parts)
        return made

    def __await__(self) -> Generator[Any, None, Self]:
        # So that ``await AsyncOmniQ.from_backend(...)`` is right as well. Nothing is opened by it.
        yield from ()
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.task_queue.backend!r}>"

    # --- the parts ----------------------------------------------------------------------------------------------

    @property
    def task_queue(self) -> AsyncTaskQueue:
        """Where tasks wait."""
        return self.client.task_queue

    @property
    def result_store(self) -> AsyncResultStore | None:
        """Where results are kept; ``None``: nowhere."""
        return self.client.result_store

    @property
    def result_storage(self) -> AsyncResultStore | None:
        """The same as :attr:`result_store`."""
        return self.client.result_store

    @property
    def event_store(self) -> AsyncEventStore | None:
        """Where events are logged; ``None``: nowhere."""
        return self.client.event_store

    @property
    def event_storage(self) -> AsyncEventStore | None:
        """The same as :attr:`event_store`."""
        return self.client.event_store

    @property
    def backend(self) -> Backend:
        """The queue's backend."""
        return self.task_queue.backend

    @property
    def registry(self) -> TaskRegistry:
        """The functions that this program's worker runs."""
        return self.task_queue.registry

    @property
    def worker(self) -> Worker | None:
        """The worker, once one was made."""
        return self.client.worker

    # --- opening and closing ------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Opens the stores now, rather than with their first use. Idempotent.

        Raises:
            Unreachable, SchemaOutOfDate, BackendError: one of them cannot be opened.
        """
        await self.open_stores()
        return self

    async def open_stores(self) -> None:
        """:meth:`open`, without an answer."""
        await self.task_queue.open()
        for store in (self.result_store, self.event_store):
            if store is not None:
                try:
                    await store.open()
                except Unsupported:  # the backend keeps none; who asks for them is told
                    pass

    async def close(self) -> None:
        """Stops the worker and closes the stores on this event loop. Idempotent; the next use opens them again."""
        await self.stop_worker()
        await self.close_stores()

    async def close_stores(self) -> None:
        """:meth:`close` without the worker."""
        for store in (self.event_store, self.result_store, self.task_queue):
            if store is not None:
                await store.close()

    async def __aenter__(self) -> Self:
        await self.open()
        if self.starts_worker:
            await self.start_worker()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def client_only(self) -> AsyncIterator[Self]:
        """Opened, but without a worker, even if one is configured: for programs that only enqueue and look::

        async with oq.client_only() as client:
            await client.enqueue(report, 2026)
        """
        await self.open()
        try:
            yield self
        finally:
            await self.close_stores()

    # --- tasks --------------------------------------------------------------------------------------------------

    @overload
    def task(
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def task(self, func: Callable[P, R], /) -> AsyncTask[P, R, R]: ...

    @overload
    def task(self, /, **parameters: Unpack[TaskParameters]) -> AsyncTaskMaker: ...

    def task(
        self, func: Callable[..., Any] | None = None, /, **parameters: Unpack[TaskParameters]
    ) -> AsyncTask[..., Any, Any] | AsyncTaskMaker:
        """Makes a task of a function: ``@oq.task`` or ``@oq.task(queue_name="mail", max_retries=5)``.

        Args:
            func: the function, sync or async.
            parameters: see :class:`~omniq.parameters.TaskParameters`.

        Raises:
            TypeError: it cannot be a task, or an unknown keyword.
            ValueError: a value is out of range.
            DuplicateTask: another function has that name.
        """

        def make(function: Callable[..., Any]) -> AsyncTask[..., Any, Any]:
            defaults = self.task_queue.defaults
            return AsyncTask(self.client, define(self.registry, function, defaults, parameters))

        if func is not None:
            return make(func)
        refuse_unknown("task", parameters, TaskParameters)
        return AsyncTaskMaker(make)

    async def enqueue(
        self, func: Callable[..., Any] | str, *args: Any, **parameters: Unpack[EnqueueParameters]
    ) -> str:
        """Puts a call of a function into a queue. When it returns the task is stored.

        Args:
            func: a function, sync or async; a task; or the name of one.
            args: the function's positional arguments.
            parameters: see :class:`~omniq.parameters.EnqueueParameters`: ``func_args`` and ``func_kwargs`` for the
                function; ``queue_name``, ``run_in``, ``run_at``, ``priority``, ``max_retries`` and others about the task.

        Returns:
            the task's id; with a ``unique_key`` that is held, the id of the task that holds it.

        Raises:
            TypeError: an unknown keyword; arguments that do not fit (``ArgumentError``) or that cannot be sent
                (``NotSerializable``).
            ValueError: a value out of range, a name that may not be used, arguments that are too large (``TooLarge``).
            MissingCapability: the backend cannot do what a parameter asks for.
            BackendError: the store does not answer.
        """
        given: dict[str, Any] = dict(parameters)
        if given:
            refuse_unknown("enqueue", given, EnqueueParameters)
        positional, kwargs = split_arguments(args, given)
        sent = await self.client.send(self.task_queue.definition(func), positional, kwargs, given)
        return sent.task_id

    async def enqueue_many(self, calls: Iterable[Call], **parameters: Unpack[CallParameters]) -> list[str]:
        """Puts many calls into queues, in a few round trips. Nothing is sent if one of them is wrong.

        Args:
            calls: each a function, ``(function, args)``, ``(function, args, kwargs)``, or a mapping with ``func`` and the
                keywords of :meth:`enqueue`.
            parameters: for all of them; a mapping's own win.

        Returns:
            the ids, by position.
        """
        records = self.task_queue.records("enqueue_many", calls, cast(Mapping[str, Any], parameters))
        return [
            sent.task_id for sent in await self.client.send_records(records, parameters.get("transaction"))
        ]

    async def complete_within(self, transaction: object, value: Any = None) -> None:
        """Ends the task whose function is calling, as succeeded, as a part of the caller's own transaction: its effects there
        and its end are committed together or not at all. Call it last, commit, and return.

        If the transaction is rolled back, the task ends as if this had not been called.

        Args:
            transaction: see ``transaction=`` of :meth:`enqueue`; on the storage that the queue is on.
            value: the task's result. What the function returns is then not looked at any more.

        Raises:
            LookupError: called outside a task.
            LeaseLost: another worker has the task; roll back.
            MissingCapability: the backend cannot do it.
            NotSerializable: ``value`` cannot be encoded.
        """
        await self.client.complete_within(transaction, current_task(), value)

    async def get_result(self, task_id: TaskId, timeout: Duration | None = None) -> TaskResult | None:
        """How a task ended, waiting for it if need be.

        Args:
            task_id: the task; text or a ``UUID``.
            timeout: how long to wait, a ``timedelta`` or seconds. 0: only look. ``None``: as long as it takes.

        Returns:
            the result (true in a condition, whatever the value), or ``None`` if the task has not ended in time or is
            unknown.

        Raises:
            PartMissing: there is no result store.
            BackendError: a store does not answer.
        """
        return await self.client.get_result(task_id, timeout)

    async def get_results(
        self, task_ids: Sequence[TaskId], timeout: Duration | None = None
    ) -> list[TaskResult | None]:
        """:meth:`get_result` for several tasks, by position; the time is for all of them together."""
        return await self.client.results().get_many(task_ids, timeout)

    async def get_task(self, task_id: TaskId) -> TaskInfo | None:
        """What the queue knows of a task now; ``None`` for an unknown one."""
        return await self.task_queue.get_task(task_id)

    async def cancel(self, task_id: TaskId) -> bool:
        """Cancels a task that has not started, or asks the worker that runs it to stop it.

        Returns:
            whether it was or will be stopped; ``False`` for one that has ended or is unknown.

        Raises:
            MissingCapability: the backend cannot do it.
        """
        return await self.client.cancel(task_id)

    async def requeue(self, task_id: TaskId) -> bool:
        """Lets a task that is dead, cancelled or expired run again, with fresh tries.

        Returns:
            whether it is waiting now; ``False`` for one that succeeded, is unknown, or whose unique key is taken.

        Raises:
            MissingCapability: the backend cannot do it.
        """
        return await self.task_queue.requeue(task_id)

    async def retry(self, task_id: TaskId) -> bool:
        """The same as :meth:`requeue`."""
        return await self.task_queue.requeue(task_id)

    async def get_events(
        self,
        task_id: TaskId | None = None,
        event_type: EventType | str | Iterable[EventType | str] | None = None,
        start_time: Moment | None = None,
        end_time: Moment | None = None,
        limit: int | None = None,
        *,
        queue_name: str | None = None,
    ) -> list[TaskEvent]:
        """What was logged, oldest first; all the given conditions hold. What this program enqueued is there at once, what
        workers note follows a moment later.

        Args:
            task_id: of this task.
            event_type: of this type, or one of these.
            start_time: not before then.
            end_time: before then.
            limit: the first so many; ``None``: all.
            queue_name: of this queue.

        Raises:
            PartMissing: there is no event store.
            Unsupported: the backend has none.
        """
        store = self.client.events()
        await self.task_queue.flush_events()
        return await store.get_events(task_id, event_type, start_time, end_time, limit, queue_name=queue_name)

    # --- queues -------------------------------------------------------------------------------------------------

    async def get_queue_size(self, queue_name: str = "default") -> int:
        """How many tasks of a queue wait: those that are due, and those that will be."""
        return await self.task_queue.get_queue_size(queue_name)

    async def list_queues(self) -> list[str]:
        """The declared queues in their order, then ``default`` if it is used, then all others by name."""
        return await self.task_queue.list_queues()

    async def pause_queue(self, queue_name: str) -> None:
        """Lets no worker take anything from a queue until :meth:`resume_queue`. Running tasks go on. Idempotent."""
        await self.task_queue.pause_queue(queue_name)

    async def resume_queue(self, queue_name: str) -> None:
        """Ends :meth:`pause_queue`. Idempotent."""
        await self.task_queue.resume_queue(queue_name)

    async def stats(self, queue_names: Sequence[str] | None = None) -> list[QueueStats]:
        """Counts of some queues (of all by default); they may be a moment old."""
        return await self.task_queue.stats(queue_names)

    async def cleanup_expired(self) -> int:
        """Expires tasks that were not started in time, deletes what was finished long ago and results whose time has
        passed; how many. Workers do it by and by as well."""
        done = await self.task_queue.cleanup_expired()
        if self.result_store is not None:
            done += await self.result_store.cleanup_expired()
        return done

    async def guarantees(self) -> Guarantees:
        """What this program's mix of backends promises: what is lost in which accident, by the backends' own settings now."""
        return await self.client.guarantees()

    async def check(self) -> dict[str, Health]:
        """What each store's server is and what its settings mean for tasks, by part: ``task_queue``, and ``result_store``
        and ``event_store`` where they are elsewhere."""
        return await self.client.check()

    # --- the worker ---------------------------------------------------------------------------------------------

    def make_worker(
        self,
        worker_type: str | None = None,
        max_workers: int | None = None,
        worker_config: Mapping[str, Any] | None = None,
    ) -> Worker:
        """A worker for this program, not started. What is not given comes from the constructor, then from the
        environment.

        Raises:
            OptionError: a parameter is unknown or out of range.
            PluginError: there is no such worker type.
        """
        return self.make_worker_of(
            self.task_queue, self.result_store, self.event_store, worker_type, max_workers, worker_config
        )

    def make_worker_of(
        self,
        queue: TaskQueue | AsyncTaskQueue,
        results: ResultStore | AsyncResultStore | None,
        events: EventStore | AsyncEventStore | None,
        worker_type: str | None,
        max_workers: int | None,
        worker_config: Mapping[str, Any] | None,
    ) -> Worker:
        """:meth:`make_worker` from these components, sync or async."""
        configured = self._parts.worker_type
        kind = worker_type or configured or Environment().worker_type() or "async"
        config: dict[str, Any] = {}
        if worker_type is None or worker_type == configured:
            config.update(self._parts.worker_config)
        config.update(worker_config or {})
        if max_workers is not None:
            config["max_workers"] = max_workers
        return make_worker(kind, queue, results, events, config)

    async def start_worker(
        self,
        worker_type: str | None = None,
        max_workers: int | None = None,
        worker_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts a worker on this event loop. Does nothing while one runs.

        Args:
            worker_type: see the constructor; ``async`` if nobody says otherwise.
            max_workers: how many tasks run at once.
            worker_config: more parameters, see :class:`~omniq.workers.Worker`.

        Raises:
            OptionError: a parameter is unknown or out of range.
            MissingCapability, BackendError: it cannot work on that backend.
        """
        await self.prepare_worker(self.make_worker, worker_type, max_workers, worker_config).start()

    def prepare_worker(
        self,
        make: Callable[[str | None, int | None, Mapping[str, Any] | None], Worker],
        worker_type: str | None,
        max_workers: int | None,
        worker_config: Mapping[str, Any] | None,
    ) -> Worker:
        """The worker to be started: the one there is, or a new one made by ``make``."""
        worker = self.client.worker
        given = worker_type is not None or max_workers is not None or worker_config is not None
        if worker is not None and worker.is_running:
            return worker
        if worker is None or (given and worker is not self._parts.worker):
            worker = make(worker_type, max_workers, worker_config)
        elif given:
            raise OptionError("this program was given its worker; its parameters are its own")
        self.client.set_worker(worker)
        return worker

    async def stop_worker(self, *, grace: Duration | None = None) -> None:
        """Takes nothing new, lets running tasks end, gives back what was not started. Idempotent.

        Args:
            grace: how long running tasks may go on; ``None``: the worker's ``shutdown_timeout``.
        """
        worker = self.client.worker
        if worker is not None:
            await worker.stop(grace=grace)
