"""Result stores: how tasks ended, for those who wait.

``AsyncResultStore`` is the store, ``ResultStore`` its sync face. ``SQLiteResultStorage``, ``FileResultStorage`` and the
like (``Async…`` as well, and the names without ``Storage``) are the same on the backend that the name says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from omniq.by_name import ByName, FromConfig
from omniq.component import OnEachLoop, SyncComponent
from omniq.models import TaskResult
from omniq.outcome import seconds
from omniq.parameters import Duration, TaskId, task_id_of
from omniq.portal import run_sync
from omniq.stores import acquire, explain, release, resolve_backend
from omniq.waiting import ResultWaiter, UnknownId
from omniq_core import Backend, Health
from omniq_core import ResultStore as StoredResults

__all__ = ["AsyncResultStore", "ResultStore"]

DEFAULT_TIMEOUT_S = 10.0
"""How long ``get`` waits unless it is told: a store cannot know whether a task exists at all."""


class _Open:
    """A result store that is open on one loop."""

    def __init__(self, backend: Backend, results: StoredResults, waiter: ResultWaiter) -> None:
        self.backend = backend
        self.results = results
        self.waiter = waiter


class AsyncResultStore(FromConfig, OnEachLoop[_Open]):
    """Where the ends of tasks are kept. Making one opens nothing.

    Args:
        backend: a backend: an object, a name (``"sqlite"``) or a URL.
        queue_backend: the backend of the queue whose results these are. It is asked about tasks that leave no result:
            cancelled, expired, lost. Without it, the store's own backend is asked, if it has a queue.
        settings: of the backend, when it is given by name or URL.
    """

    def __init__(
        self, backend: Backend | str, *, queue_backend: Backend | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.backend = resolve_backend(backend, settings)
        self.queue_backend = queue_backend

    @classmethod
    def from_backend(cls, backend: Backend | str, *, queue_backend: Backend | None = None) -> Self:
        """The results of a backend that others may share."""
        made = cls.__new__(cls)
        AsyncResultStore.__init__(made, backend, queue_backend=queue_backend)
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.backend!r}>"

    async def _open_here(self) -> _Open:
        backend = await acquire(self.backend)
        queue_backend = self.queue_backend or self.backend
        try:
            results = backend.result_store()
            queue_instance = await acquire(queue_backend)
        except BaseException:
            await release(self.backend)
            raise
        waiter = ResultWaiter(
            results,
            backend,
            queue_instance.queue(),
            queue_instance,
            is_authority=self.queue_backend is not None,
        )
        return _Open(backend, results, waiter)

    async def _close_here(self, state: _Open) -> None:
        await state.waiter.close()
        await release(self.queue_backend or self.backend)
        await release(self.backend)

    # --- reading ------------------------------------------------------------------------------------------------

    async def get(self, task_id: TaskId, timeout: Duration | None = DEFAULT_TIMEOUT_S) -> TaskResult | None:
        """How a task ended, waiting for it if need be.

        Args:
            task_id: the task; text or a ``UUID``.
            timeout: how long to wait, a ``timedelta`` or seconds. 0: only look. ``None``: as long as it takes.

        Returns:
            the result, or ``None`` if nothing came in time.
        """
        try:
            return await self.wait(task_id, timeout)
        except (TimeoutError, UnknownId):
            return None

    async def get_result(
        self, task_id: TaskId, timeout: Duration | None = DEFAULT_TIMEOUT_S
    ) -> TaskResult | None:
        """The same as :meth:`get`."""
        return await self.get(task_id, timeout)

    async def get_many(
        self, task_ids: Sequence[TaskId], timeout: Duration | None = DEFAULT_TIMEOUT_S
    ) -> list[TaskResult | None]:
        """:meth:`get` for several tasks, by position; the time is for all of them together."""
        if timeout is not None and seconds(timeout) <= 0:
            return [await self.get(task_id, 0) for task_id in task_ids]
        return list(await asyncio.gather(*(self.get(task_id, timeout) for task_id in task_ids)))

    async def wait(self, task_id: TaskId, timeout: Duration | None = None) -> TaskResult:
        """:meth:`get` that raises instead of returning ``None``.

        Raises:
            TimeoutError: the task has not ended in time.
            UnknownId: there is no such task.
            BackendError: a store does not answer.
        """
        state = await self._here()
        return await state.waiter.wait(task_id_of(task_id), None if timeout is None else seconds(timeout))

    def look_again(self, task_ids: Sequence[str]) -> None:
        """Tells those who wait on this loop that something happened to these tasks which leaves no record."""
        state = self._open.get(asyncio.get_running_loop())
        if state is not None:
            state.waiter.hint(task_ids)

    # --- cleaning -----------------------------------------------------------------------------------------------

    async def delete(self, *task_ids: TaskId) -> int:
        """Deletes results; how many there were. Idempotent."""
        state = await self._here()
        ids = [task_id_of(task_id) for task_id in task_ids]
        largest = state.backend.limits.max_batch
        deleted = 0
        try:
            for start in range(0, len(ids), largest):
                deleted += await state.results.delete(ids[start : start + largest])
        except Exception as error:
            raise explain(state.backend, error, "delete results") from error
        return deleted

    async def cleanup_expired(self) -> int:
        """Deletes results whose time has passed; how many. Workers do it by and by as well."""
        state = await self._here()
        deleted = 0
        try:
            while True:
                pruned = await state.results.prune(limit=1000)
                deleted += pruned
                if pruned < 1000:
                    return deleted
        except Exception as error:
            raise explain(state.backend, error, "delete expired results") from error

    async def check(self) -> Health:
        """What the server is, and what its settings mean."""
        state = await self._here()
        try:
            return await state.backend.check()
        except Exception as error:
            raise explain(state.backend, error, "check") from error


class ResultStore(FromConfig, SyncComponent[AsyncResultStore]):
    """The sync face of :class:`AsyncResultStore`; see there for the parameters."""

    def __init__(
        self, backend: Backend | str, *, queue_backend: Backend | None = None, **settings: Any
    ) -> None:
        self.aio = AsyncResultStore(backend, queue_backend=queue_backend, **settings)

    @classmethod
    def wrap(cls, aio: AsyncResultStore) -> ResultStore:
        """The sync face of a store that is there."""
        made = ResultStore.__new__(ResultStore)
        made.aio = aio
        return made

    @classmethod
    def from_backend(cls, backend: Backend | str, *, queue_backend: Backend | None = None) -> Self:
        """The results of a backend that others may share."""
        made = cls.__new__(cls)
        ResultStore.__init__(made, backend, queue_backend=queue_backend)
        return made

    @property
    def backend(self) -> Backend:
        return self.aio.backend

    def get(self, task_id: TaskId, timeout: Duration | None = DEFAULT_TIMEOUT_S) -> TaskResult | None:
        """See :meth:`AsyncResultStore.get`."""
        return run_sync(self.aio.get(task_id, timeout))

    def get_result(self, task_id: TaskId, timeout: Duration | None = DEFAULT_TIMEOUT_S) -> TaskResult | None:
        """See :meth:`AsyncResultStore.get`."""
        return run_sync(self.aio.get(task_id, timeout))

    def get_many(
        self, task_ids: Sequence[TaskId], timeout: Duration | None = DEFAULT_TIMEOUT_S
    ) -> list[TaskResult | None]:
        """See :meth:`AsyncResultStore.get_many`."""
        return run_sync(self.aio.get_many(task_ids, timeout))

    def wait(self, task_id: TaskId, timeout: Duration | None = None) -> TaskResult:
        """See :meth:`AsyncResultStore.wait`."""
        return run_sync(self.aio.wait(task_id, timeout))

    def delete(self, *task_ids: TaskId) -> int:
        """See :meth:`AsyncResultStore.delete`."""
        return run_sync(self.aio.delete(*task_ids))

    def cleanup_expired(self) -> int:
        """See :meth:`AsyncResultStore.cleanup_expired`."""
        return run_sync(self.aio.cleanup_expired())

    def check(self) -> Health:
        """See :meth:`AsyncResultStore.check`."""
        return run_sync(self.aio.check())


_by_name = ByName(
    __name__,
    sync=ResultStore,
    asynchronous=AsyncResultStore,
    suffixes=("ResultStorage", "ResultStore"),
    own={},
)


def __getattr__(name: str) -> Any:
    return _by_name.find(name)


def __dir__() -> list[str]:
    return [*__all__, *_by_name.names()]


if TYPE_CHECKING:

    class _Named(ResultStore):
        def __init__(self, project_name: str | None = None, **settings: Any) -> None: ...

    class _AsyncNamed(AsyncResultStore):
        def __init__(self, project_name: str | None = None, **settings: Any) -> None: ...

    MemoryResultStorage = _Named
    SQLiteResultStorage = _Named
    FileResultStorage = _Named
    PostgresResultStorage = _Named
    RedisResultStorage = _Named
    NATSResultStorage = _Named
    AsyncMemoryResultStorage = _AsyncNamed
    AsyncSQLiteResultStorage = _AsyncNamed
    AsyncFileResultStorage = _AsyncNamed
    AsyncPostgresResultStorage = _AsyncNamed
    AsyncRedisResultStorage = _AsyncNamed
    AsyncNATSResultStorage = _AsyncNamed
