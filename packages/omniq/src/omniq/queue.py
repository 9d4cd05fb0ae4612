"""Task queues: where tasks wait for workers.

``AsyncTaskQueue`` is the queue, ``TaskQueue`` its sync face. ``SQLiteTaskQueue``, ``AsyncPostgresTaskQueue`` and the like
(and the names without ``Task``) are the same on the backend that the name says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from omniq.by_name import ByName, FromConfig
from omniq.component import SyncComponent
from omniq.context import TaskContext
from omniq.door import Door, Sent
from omniq.ids import new_id
from omniq.models import TaskInfo
from omniq.operations import QueueOperations
from omniq.parameters import (
    Call,
    CallParameters,
    EnqueueParameters,
    TaskId,
    delay_of,
    headers_of,
    queue_names_of,
    refuse_unknown,
    split_arguments,
    split_call,
    task_id_of,
    with_parameters,
)
from omniq.portal import run_sync
from omniq.stores import Stores, resolve_backend
from omniq.task import DEFAULT_OPTIONS, TaskDefinition, TaskOptions, TaskRegistry
from omniq_core import (
    Backend,
    Health,
    QueueStats,
    TaskRecord,
)

__all__ = ["AsyncTaskQueue", "TaskQueue"]


class AsyncTaskQueue(FromConfig, QueueOperations):
    """Where tasks wait. Making one opens nothing.

    Args:
        backend: a backend: an object, a name (``"sqlite"``) or a URL.
        queues: the names of its queues, in the order in which workers take from them. Other names may be used as well;
            they come after these, ``default`` first.
        events_backend: where enqueuing is noted; ``None``: nowhere.
        registry: the functions that a worker on this queue runs.
        defaults: how tasks are run that do not say so themselves.
        settings: of the backend, when it is given by name or URL.
    """

    def __init__(
        self,
        backend: Backend | str,
        *,
        queues: Sequence[str] | None = None,
        events_backend: Backend | None = None,
        registry: TaskRegistry | None = None,
        defaults: TaskOptions = DEFAULT_OPTIONS,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.backend = resolve_backend(backend, settings)
        self.queues = queue_names_of(queues)
        self.events_backend = events_backend
        self.registry = registry if registry is not None else TaskRegistry.for_program()
        self.defaults = defaults

    @classmethod
    def from_backend(
        cls,
        backend: Backend | str,
        queues: Sequence[str] | None = None,
        *,
        events_backend: Backend | None = None,
        registry: TaskRegistry | None = None,
        defaults: TaskOptions = DEFAULT_OPTIONS,
    ) -> Self:
        """The queues of a backend that others may share."""
        made = cls.__new__(cls)
        AsyncTaskQueue.__init__(
            made, backend, queues=queues, events_backend=events_backend, registry=registry, defaults=defaults
        )
        return made

    def __repr__(self) -> str:
        queues = f", queues={self.queues}" if self.queues else ""
        return f"<{type(self).__name__} on {self.backend!r}{queues}>"

    async def _open_here(self) -> Door:
        stores = await Stores(self.backend, None, self.events_backend).open()
        return Door(stores)

    async def _close_here(self, state: Door) -> None:
        await state.close()

    # --- enqueuing ----------------------------------------------------------------------------------------------

    async def enqueue(
        self, func: Callable[..., Any] | str, *args: Any, **parameters: Unpack[EnqueueParameters]
    ) -> str:
        """Puts a call of a function into a queue. When it returns the task is stored.

        Args:
            func: a function, sync or async; a decorated task; or the name of one.
            args: the function's positional arguments.
            parameters: see :class:`~omniq.parameters.EnqueueParameters`: ``func_args`` and ``func_kwargs`` for the
                function, ``queue_name``, ``run_in``, ``run_at``, ``priority``, ``max_retries`` and others about the task.

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
        record = self.record(func, positional, kwargs, given)
        [sent] = await self.send_records([record], given.get("transaction"))
        return sent.task_id

    async def enqueue_many(self, calls: Iterable[Call], **parameters: Unpack[CallParameters]) -> list[str]:
        """Puts many calls into queues, in a few round trips. Nothing is sent if one of them is wrong.

        Args:
            calls: each a function, ``(function, args)``, ``(function, args, kwargs)``, or a mapping with ``func`` and the
                keywords of :meth:`enqueue`.
            parameters: for all of them; a mapping's own win.

        Returns:
            the ids, by position.

        Raises:
            as for :meth:`enqueue`.
        """
        records = self.records("enqueue_many", calls, cast(Mapping[str, Any], parameters))
        return [sent.task_id for sent in await self.send_records(records, parameters.get("transaction"))]

    async def send_records(
        self, records: Sequence[TaskRecord], transaction: object | None = None
    ) -> list[Sent]:
        """:meth:`enqueue` for records that were made by :meth:`record`, telling more about what became of them."""
        door = await self._here()
        return await (door.send(records) if transaction is None else door.send_within(transaction, records))

    async def complete_within(
        self, transaction: object, task: TaskContext, value: Any, *, keeps_result: bool
    ) -> None:
        """Ends ``task``, whose function is running, as a part of the caller's own transaction.

        Args:
            transaction: the caller's.
            task: the running task.
            value: its result.
            keeps_result: results are on this very backend, so that this one belongs into the transaction.

        Raises:
            LeaseLost: another worker has the task.
            MissingCapability: the backend cannot do it.
        """
        door = await self._here()
        await door.complete_within(transaction, task, value, keeps_result=keeps_result)

    def definition(self, func: Callable[..., Any] | str) -> TaskDefinition[..., Any]:
        """The definition of what was given to ``enqueue``, registered if need be.

        Raises:
            UnknownTask: a name that is not registered.
            TypeError: something that cannot be a task.
        """
        if isinstance(func, str):
            return self.registry[func]
        return self.registry.adopt(getattr(func, "definition", func))

    def record(
        self,
        definition: TaskDefinition[..., Any] | Callable[..., Any] | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Mapping[str, Any],
    ) -> TaskRecord:
        """What is sent for one call."""
        if not isinstance(definition, TaskDefinition):
            definition = self.definition(definition)
        options = definition.options
        if options is DEFAULT_OPTIONS:
            options = self.defaults
        if not parameters:
            return definition.record(new_id(), args, kwargs, options)
        task_id = parameters.get("task_id")
        return definition.record(
            new_id() if task_id is None else task_id_of(task_id),
            args,
            kwargs,
            with_parameters(options, parameters),
            delay_s=delay_of(parameters, self.backend.clock.time()),
            unique_key=parameters.get("unique_key"),
            headers=headers_of(parameters.get("headers")),
        )

    def records(self, where: str, calls: Iterable[Call], common: Mapping[str, Any]) -> list[TaskRecord]:
        """What is sent for many calls; ``where`` is the method, for messages."""
        refuse_unknown(where, common, CallParameters)
        return [self.record(*split_call(where, call, common)) for call in calls]


class TaskQueue(FromConfig, SyncComponent[AsyncTaskQueue]):
    """The sync face of :class:`AsyncTaskQueue`; see there for the parameters."""

    def __init__(
        self,
        backend: Backend | str,
        *,
        queues: Sequence[str] | None = None,
        events_backend: Backend | None = None,
        registry: TaskRegistry | None = None,
        defaults: TaskOptions = DEFAULT_OPTIONS,
        **settings: Any,
    ) -> None:
        self.aio = AsyncTaskQueue(
            backend,
            queues=queues,
            events_backend=events_backend,
            registry=registry,
            defaults=defaults,
            **settings,
        )

    @classmethod
    def wrap(cls, aio: AsyncTaskQueue) -> TaskQueue:
        """The sync face of a queue that is there."""
        made = TaskQueue.__new__(TaskQueue)
        made.aio = aio
        return made

    @classmethod
    def from_backend(
        cls,
        backend: Backend | str,
        queues: Sequence[str] | None = None,
        *,
        events_backend: Backend | None = None,
        registry: TaskRegistry | None = None,
        defaults: TaskOptions = DEFAULT_OPTIONS,
    ) -> Self:
        """The queues of a backend that others may share."""
        made = cls.__new__(cls)
        TaskQueue.__init__(
            made, backend, queues=queues, events_backend=events_backend, registry=registry, defaults=defaults
        )
        return made

    @property
    def backend(self) -> Backend:
        return self.aio.backend

    @property
    def registry(self) -> TaskRegistry:
        return self.aio.registry

    @property
    def queues(self) -> list[str]:
        return self.aio.queues

    def enqueue(
        self, func: Callable[..., Any] | str, *args: Any, **parameters: Unpack[EnqueueParameters]
    ) -> str:
        """See :meth:`AsyncTaskQueue.enqueue`."""
        return run_sync(self.aio.enqueue(func, *args, **parameters))

    def enqueue_many(self, calls: Iterable[Call], **parameters: Unpack[CallParameters]) -> list[str]:
        """See :meth:`AsyncTaskQueue.enqueue_many`."""
        return run_sync(self.aio.enqueue_many(calls, **parameters))

    def get_task(self, task_id: TaskId) -> TaskInfo | None:
        """See :meth:`AsyncTaskQueue.get_task`."""
        return run_sync(self.aio.get_task(task_id))

    def cancel(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncTaskQueue.cancel`."""
        return run_sync(self.aio.cancel(task_id))

    def requeue(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncTaskQueue.requeue`."""
        return run_sync(self.aio.requeue(task_id))

    def retry(self, task_id: TaskId) -> bool:
        """See :meth:`AsyncTaskQueue.requeue`."""
        return run_sync(self.aio.requeue(task_id))

    def flush_events(self) -> None:
        """See :meth:`AsyncTaskQueue.flush_events`."""
        run_sync(self.aio.flush_events())

    def get_queue_size(self, queue_name: str = "default") -> int:
        """See :meth:`AsyncTaskQueue.get_queue_size`."""
        return run_sync(self.aio.get_queue_size(queue_name))

    def list_queues(self) -> list[str]:
        """See :meth:`AsyncTaskQueue.list_queues`."""
        return run_sync(self.aio.list_queues())

    def get_queue_names(self) -> list[str]:
        """See :meth:`AsyncTaskQueue.get_queue_names`."""
        return self.aio.get_queue_names()

    def add_queue(self, queue_name: str) -> None:
        """See :meth:`AsyncTaskQueue.add_queue`."""
        self.aio.add_queue(queue_name)

    def remove_queue(self, queue_name: str) -> bool:
        """See :meth:`AsyncTaskQueue.remove_queue`."""
        return run_sync(self.aio.remove_queue(queue_name))

    def pause_queue(self, queue_name: str) -> None:
        """See :meth:`AsyncTaskQueue.pause_queue`."""
        run_sync(self.aio.pause_queue(queue_name))

    def resume_queue(self, queue_name: str) -> None:
        """See :meth:`AsyncTaskQueue.resume_queue`."""
        run_sync(self.aio.resume_queue(queue_name))

    def stats(self, queue_names: Sequence[str] | None = None) -> list[QueueStats]:
        """See :meth:`AsyncTaskQueue.stats`."""
        return run_sync(self.aio.stats(queue_names))

    def cleanup_expired(self) -> int:
        """See :meth:`AsyncTaskQueue.cleanup_expired`."""
        return run_sync(self.aio.cleanup_expired())

    def check(self) -> Health:
        """See :meth:`AsyncTaskQueue.check`."""
        return run_sync(self.aio.check())


_by_name = ByName(
    __name__,
    sync=TaskQueue,
    asynchronous=AsyncTaskQueue,
    suffixes=("TaskQueue", "Queue"),
    own={"queues": list[str]},
)


def __getattr__(name: str) -> Any:
    return _by_name.find(name)


def __dir__() -> list[str]:
    return [*__all__, *_by_name.names()]


if TYPE_CHECKING:

    class _Named(TaskQueue):
        def __init__(
            self, project_name: str | None = None, *, queues: Sequence[str] | None = None, **settings: Any
        ) -> None: ...

    class _AsyncNamed(AsyncTaskQueue):
        def __init__(
            self, project_name: str | None = None, *, queues: Sequence[str] | None = None, **settings: Any
        ) -> None: ...

    MemoryTaskQueue = _Named
    SQLiteTaskQueue = _Named
    FileTaskQueue = _Named
    PostgresTaskQueue = _Named
    RedisTaskQueue = _Named
    NATSTaskQueue = _Named
    AsyncMemoryTaskQueue = _AsyncNamed
    AsyncSQLiteTaskQueue = _AsyncNamed
    AsyncFileTaskQueue = _AsyncNamed
    AsyncPostgresTaskQueue = _AsyncNamed
    AsyncRedisTaskQueue = _AsyncNamed
    AsyncNATSTaskQueue = _AsyncNamed
