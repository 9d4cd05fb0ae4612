"""What ``@oq.task`` makes of a function, and what enqueuing it gives: typed to the function's own parameters and value.

``Task`` and ``TaskHandle`` belong to ``OmniQ`` and wait; ``AsyncTask`` and ``AsyncTaskHandle`` belong to ``AsyncOmniQ`` and
are awaited. The function itself may be sync or async with either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, cast, overload

from omniq.client import Client
from omniq.door import Sent
from omniq.errors import TaskError
from omniq.models import TaskResult, TaskStatus
from omniq.outcome import seconds
from omniq.parameters import (
    CallParameters,
    Duration,
    TaskParameters,
    refuse_unknown,
    with_parameters,
)
from omniq.portal import run_sync
from omniq.task import TaskDefinition, TaskOptions, TaskRegistry
from omniq.waiting import UnknownId

__all__ = ["AsyncTask", "AsyncTaskHandle", "AsyncTaskMaker", "Task", "TaskHandle", "TaskMaker"]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")
"""What calling the function gives: its value, or a coroutine."""


# --- handles -----------------------------------------------------------------------------------------------------


class AsyncTaskHandle(Generic[R]):
    """One enqueued call. Awaiting it gives its value.

    Attributes:
        id: the task's id.
        created: whether this very call put it into the queue; ``False`` if its id or unique key was there already.
    """

    def __init__(self, client: Client, definition: TaskDefinition[..., Any], sent: Sent) -> None:
        self._client = client
        self._definition = definition
        self.id = sent.task_id
        self.created = sent.created

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self._definition.name}>"

    async def result(self, timeout: Duration | None = None) -> R:
        """The function's value, as its return annotation wants it, once the task has ended.

        Args:
            timeout: how long to wait, a ``timedelta`` or seconds; ``None``: as long as it takes.

        Raises:
            TimeoutError: the task has not ended in time. It goes on.
            Exception: what the function raised: a builtin or registered exception as itself, another as ``TaskError``, with
                the remote traceback as the cause.
            TaskCancelled, TaskExpired, TaskDead, WorkerLost: it ended without a value.
            TaskError: nothing is known of it any more.
        """
        try:
            ended = await self._client.wait(self.id, timeout)
        except UnknownId:
            raise TaskError(
                f"task {self.id} ({self._definition.name}) is unknown: it was purged, or ended longer ago than the store "
                "keeps finished tasks",
                task_id=self.id,
            ) from None
        except TimeoutError:
            waited = "" if timeout is None else f" within {seconds(timeout):g} s"
            raise TimeoutError(f"task {self.id} ({self._definition.name}) has not ended{waited}") from None
        return cast(R, self._definition.convert_result(ended.unwrap()))

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    async def get(self, timeout: Duration | None = None) -> TaskResult | None:
        """How the task ended, whatever way; ``None`` if it has not in time."""
        return await self._client.get_result(self.id, timeout)

    async def status(self) -> TaskStatus | None:
        """How the task stands now; ``None`` if nothing is known of it any more."""
        return await self._client.status(self.id)

    async def cancel(self) -> bool:
        """Cancels the task, see ``AsyncOmniQ.cancel``."""
        return await self._client.cancel(self.id)


class TaskHandle(Generic[R]):
    """One enqueued call.

    Attributes:
        id: the task's id.
        created: whether this very call put it into the queue; ``False`` if its id or unique key was there already.
    """

    def __init__(self, aio: AsyncTaskHandle[R]) -> None:
        self.aio = aio

    @property
    def id(self) -> str:
        return self.aio.id

    @property
    def created(self) -> bool:
        return self.aio.created

    def __repr__(self) -> str:
        return repr(self.aio).replace("Async", "", 1)

    def result(self, timeout: Duration | None = None) -> R:
        """See :meth:`AsyncTaskHandle.result`."""
        return run_sync(self.aio.result(timeout))

    def get(self, timeout: Duration | None = None) -> TaskResult | None:
        """See :meth:`AsyncTaskHandle.get`."""
        return run_sync(self.aio.get(timeout))

    def status(self) -> TaskStatus | None:
        """See :meth:`AsyncTaskHandle.status`."""
        return run_sync(self.aio.status())

    def cancel(self) -> bool:
        """See :meth:`AsyncTaskHandle.cancel`."""
        return run_sync(self.aio.cancel())


# --- tasks -------------------------------------------------------------------------------------------------------


class _BoundTask(Generic[P, R, C]):
    """A function and the program that it belongs to."""

    def __init__(
        self,
        client: Client,
        definition: TaskDefinition[P, R],
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self.definition = definition
        self._parameters: Mapping[str, Any] = parameters or {}
        functools.update_wrapper(self, cast(Callable[..., Any], definition.func), updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Calls the function, here and now."""
        return cast(C, self.definition.func(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<task {self.definition.name}>"

    def __reduce__(self) -> str:
        return self.__qualname__  # by name, as a function is

    __qualname__: str

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.definition.name

    @property
    def func(self) -> Callable[P, C]:
        """The function as it was decorated."""
        return self.definition.func

    def with_options(self, **parameters: Unpack[CallParameters]) -> Self:
        """The same task with other parameters for the calls that are enqueued through it::

            report.with_options(run_in=60, priority=5).enqueue(2026)

        Raises:
            TypeError: an unknown keyword or a wrong type.
            ValueError: a value is out of range.
        """
        refuse_unknown("with_options", parameters, CallParameters)
        with_parameters(
            self.definition.options, parameters
        )  # a wrong value is told here, not at the first use
        return type(self)(self._client, self.definition, {**self._parameters, **parameters})

    def options(self, **parameters: Unpack[CallParameters]) -> Self:
        """The same as :meth:`with_options`."""
        return self.with_options(**parameters)

    async def _enqueue_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[AsyncTaskHandle[R]]:
        records = []
        for call in calls:
            if isinstance(call, Mapping):
                args, kwargs = (), call
            elif isinstance(call, (str, bytes)) or not isinstance(call, Sequence):
                raise TypeError(
                    "each call must be a sequence of positional arguments or a mapping of keyword arguments, "
                    f"got {type(call).__name__}: {call!r}; write [({call!r},), ...]"
                )
            else:
                args, kwargs = tuple(call), {}
            records.append(self._client.task_queue.record(self.definition, args, kwargs, self._parameters))
        sent = await self._client.send_records(records, self._parameters.get("transaction"))
        return [AsyncTaskHandle(self._client, self.definition, one) for one in sent]


class AsyncTask(_BoundTask[P, R, C]):
    """A task of an ``AsyncOmniQ``. Calling it calls the function; enqueuing it is awaited."""

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> AsyncTaskHandle[R]:
        """Puts a call into a queue. When it returns the task is stored.

        Raises:
            ArgumentError: the arguments do not fit the function.
            NotSerializable: an argument cannot be sent.
            MissingCapability, TooLarge, BackendError: see ``AsyncOmniQ.enqueue``.
        """
        sent = await self._client.send(self.definition, args, kwargs, self._parameters)
        return AsyncTaskHandle(self._client, self.definition, sent)

    async def enqueue_many(
        self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[AsyncTaskHandle[R]]:
        """Puts many calls into a queue, in a few round trips. Nothing is sent if one of them is wrong.

        Args:
            calls: for each call its positional arguments as a sequence, or its keyword arguments as a mapping.
        """
        return await self._enqueue_many(calls)


class Task(_BoundTask[P, R, C]):
    """A task of an ``OmniQ``. Calling it calls the function."""

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """See :meth:`AsyncTask.enqueue`."""
        sent = run_sync(self._client.send(self.definition, args, kwargs, self._parameters))
        return TaskHandle(AsyncTaskHandle(self._client, self.definition, sent))

    def enqueue_many(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[TaskHandle[R]]:
        """See :meth:`AsyncTask.enqueue_many`."""
        return [TaskHandle(handle) for handle in run_sync(self._enqueue_many(calls))]


# --- decorators --------------------------------------------------------------------------------------------------


def define(
    registry: TaskRegistry, func: Callable[..., Any], defaults: TaskOptions, parameters: TaskParameters
) -> TaskDefinition[..., Any]:
    """Registers a decorated function.

    Raises:
        TypeError: it cannot be a task, or an unknown keyword.
        DuplicateTask: another function has that name.
    """
    refuse_unknown("task", parameters, TaskParameters)
    definition: TaskDefinition[..., Any] = TaskDefinition(
        func, name=parameters.get("name"), options=with_parameters(defaults, parameters)
    )
    registry.add(definition)
    return definition


class AsyncTaskMaker:
    """``@oq.task(...)`` of an ``AsyncOmniQ``."""

    def __init__(self, make: Callable[[Callable[..., Any]], AsyncTask[..., Any, Any]]) -> None:
        self._make = make

    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, func: Callable[P, R], /) -> AsyncTask[P, R, R]: ...

    def __call__(self, func: Callable[..., Any], /) -> AsyncTask[..., Any, Any]:
        return self._make(func)


class TaskMaker:
    """``@oq.task(...)`` of an ``OmniQ``."""

    def __init__(self, make: Callable[[Callable[..., Any]], Task[..., Any, Any]]) -> None:
        self._make = make

    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Coroutine[Any, Any, R]]: ...

    @overload
    def __call__(self, func: Callable[P, R], /) -> Task[P, R, R]: ...

    def __call__(self, func: Callable[..., Any], /) -> Task[..., Any, Any]:
        return self._make(func)
