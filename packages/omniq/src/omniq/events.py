"""Event stores: what happened to tasks, for monitoring.

``AsyncEventStore`` is the store, ``EventStore`` its sync face. ``SQLiteEventStorage``, ``PostgresEventStorage`` and the
like (``Async…`` as well) are the same on the backend that the name says.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import msgspec

from omniq.by_name import ByName, FromConfig
from omniq.component import OnEachLoop, SyncComponent
from omniq.ids import new_id
from omniq.models import EventType, TaskEvent
from omniq.outcome import seconds
from omniq.parameters import Duration, TaskId, task_id_of
from omniq.portal import run_sync
from omniq.stores import acquire, explain, release, resolve_backend
from omniq_core import Backend, Event, EventFilter, Health
from omniq_core import EventStore as StoredEvents

__all__ = ["AsyncEventStore", "EventStore"]

Moment: TypeAlias = datetime.datetime | float
"""A ``datetime`` (without a time zone: UTC), or seconds since the epoch."""


class _Open:
    """An event store that is open on one loop."""

    def __init__(self, backend: Backend, events: StoredEvents) -> None:
        self.backend = backend
        self.events = events


class AsyncEventStore(FromConfig, OnEachLoop[_Open]):
    """A log of events. Making one opens nothing.

    Args:
        backend: a backend: an object, a name (``"sqlite"``) or a URL.
        settings: of the backend, when it is given by name or URL.
    """

    def __init__(self, backend: Backend | str, **settings: Any) -> None:
        super().__init__()
        self.backend = resolve_backend(backend, settings)

    @classmethod
    def from_backend(cls, backend: Backend | str) -> Self:
        """The event log of a backend that others may share."""
        made = cls.__new__(cls)
        AsyncEventStore.__init__(made, backend)
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.backend!r}>"

    async def _open_here(self) -> _Open:
        backend = await acquire(self.backend)
        try:
            return _Open(backend, backend.event_store())
        except BaseException:  # a backend without events says why
            await release(self.backend)
            raise

    async def _close_here(self, state: _Open) -> None:
        await release(self.backend)

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
        """Events in the order of the log, oldest first; all the given conditions hold.

        Args:
            task_id: of this task.
            event_type: of this type, or one of these.
            start_time: not before then.
            end_time: before then.
            limit: the first so many; ``None``: all.
            queue_name: of this queue.
        """
        which = EventFilter(
            task_ids=() if task_id is None else (task_id_of(task_id),),
            types=_types(event_type),
            queues=() if queue_name is None else (queue_name,),
            since=_seconds(start_time),
            until=_seconds(end_time),
        )
        if limit is not None and limit < 0:
            raise ValueError(f"limit must not be negative, got {limit}")
        state = await self._here()
        found: list[TaskEvent] = []
        cursor: str | None = None
        try:
            while limit is None or len(found) < limit:
                wanted = 1000 if limit is None else min(1000, limit - len(found))
                page = await state.events.read(which, after=cursor, limit=wanted)
                found += [TaskEvent.of(event) for event in page.items]
                if not page.items or page.cursor is None:
                    break
                cursor = page.cursor
        except Exception as error:
            raise explain(state.backend, error, "read events") from error
        return found

    async def log(self, *events: TaskEvent) -> None:
        """Adds events; one whose id is there already changes nothing."""
        state = await self._here()
        largest = state.backend.limits.max_batch
        try:
            for start in range(0, len(events), largest):
                await state.events.append([_stored(event) for event in events[start : start + largest]])
        except Exception as error:
            raise explain(state.backend, error, "append events") from error

    async def cleanup_old_events(self, older_than: Duration | datetime.datetime) -> int:
        """Deletes events; how many.

        Args:
            older_than: an age (a ``timedelta`` or seconds), or a moment.

        Raises:
            Unsupported: the backend keeps its log as it is.
        """
        state = await self._here()
        if isinstance(older_than, datetime.datetime):
            before = _seconds(older_than) or 0.0
        else:
            before = state.backend.clock.time() - seconds(older_than)
        deleted = 0
        try:
            while True:
                truncated = await state.events.truncate(before=before, limit=1000)
                deleted += truncated
                if truncated < 1000:
                    return deleted
        except Exception as error:
            raise explain(state.backend, error, "delete old events") from error

    async def check(self) -> Health:
        """What the server is, and what its settings mean."""
        state = await self._here()
        try:
            return await state.backend.check()
        except Exception as error:
            raise explain(state.backend, error, "check") from error


def _seconds(moment: Moment | None) -> float | None:
    if isinstance(moment, datetime.datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    return moment


def _types(given: EventType | str | Iterable[EventType | str] | None) -> Sequence[str]:
    if given is None:
        return ()
    kinds = [given] if isinstance(given, str) else list(given)
    # Both ``EventType.FAILED`` and the text "failed" (or "FAILED") mean the member's value, "error".
    return [EventType.__members__.get(kind.upper(), kind) for kind in kinds]


def _stored(event: TaskEvent) -> Event:
    fields = {
        "message": event.message,
        "error": event.error,
        "execution_time": event.execution_time,
        "attempt": event.attempt,
        "schedule_id": event.schedule_id,
    }
    data = event.data | {key: value for key, value in fields.items() if value is not None}
    return Event(
        event.id or new_id(),
        event.task_id,
        str(event.event_type),
        _seconds(event.timestamp) or 0.0,
        event.queue_name,
        event.name,
        event.worker_id,
        msgspec.json.encode(data),
    )


class EventStore(FromConfig, SyncComponent[AsyncEventStore]):
    """The sync face of :class:`AsyncEventStore`; see there for the parameters."""

    def __init__(self, backend: Backend | str, **settings: Any) -> None:
        self.aio = AsyncEventStore(backend, **settings)

    @classmethod
    def wrap(cls, aio: AsyncEventStore) -> EventStore:
        """The sync face of a store that is there."""
        made = EventStore.__new__(EventStore)
        made.aio = aio
        return made

    @classmethod
    def from_backend(cls, backend: Backend | str) -> Self:
        """The event log of a backend that others may share."""
        made = cls.__new__(cls)
        EventStore.__init__(made, backend)
        return made

    @property
    def backend(self) -> Backend:
        return self.aio.backend

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
        """See :meth:`AsyncEventStore.get_events`."""
        return run_sync(
            self.aio.get_events(task_id, event_type, start_time, end_time, limit, queue_name=queue_name)
        )

    def log(self, *events: TaskEvent) -> None:
        """See :meth:`AsyncEventStore.log`."""
        run_sync(self.aio.log(*events))

    def cleanup_old_events(self, older_than: Duration | datetime.datetime) -> int:
        """See :meth:`AsyncEventStore.cleanup_old_events`."""
        return run_sync(self.aio.cleanup_old_events(older_than))

    def check(self) -> Health:
        """See :meth:`AsyncEventStore.check`."""
        return run_sync(self.aio.check())


_by_name = ByName(
    __name__,
    sync=EventStore,
    asynchronous=AsyncEventStore,
    suffixes=("EventStorage", "EventStore"),
    own={},
)


def __getattr__(name: str) -> Any:
    return _by_name.find(name)


def __dir__() -> list[str]:
    return [*__all__, *_by_name.names()]


if TYPE_CHECKING:

    class _Named(EventStore):
        def __init__(self, project_name: str | None = None, **settings: Any) -> None: ...

    class _AsyncNamed(AsyncEventStore):
        def __init__(self, project_name: str | None = None, **settings: Any) -> None: ...

    MemoryEventStorage = _Named
    SQLiteEventStorage = _Named
    FileEventStorage = _Named
    PostgresEventStorage = _Named
    RedisEventStorage = _Named
    NATSEventStorage = _Named
    AsyncMemoryEventStorage = _AsyncNamed
    AsyncSQLiteEventStorage = _AsyncNamed
    AsyncFileEventStorage = _AsyncNamed
    AsyncPostgresEventStorage = _AsyncNamed
    AsyncRedisEventStorage = _AsyncNamed
    AsyncNATSEventStorage = _AsyncNamed
