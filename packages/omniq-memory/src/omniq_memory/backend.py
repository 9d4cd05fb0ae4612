"""The memory backend: the contract in its shortest complete form. Authors of backends start here.

Everything is kept in this process and dies with it; ``capabilities`` says so. Its use is tests, notebooks, single
programs, and being the model that the conformance suite holds other backends against.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import ClassVar, Self, TypeVar, cast

from omniq_core import (
    Backend,
    BackendError,
    BackendOptions,
    Capability,
    Claim,
    Closed,
    Durability,
    Enqueued,
    ErrorCode,
    Event,
    EventFilter,
    EventStore,
    Extension,
    Health,
    Lease,
    Limits,
    Loss,
    Maintained,
    Outcome,
    Page,
    Queue,
    QueueStats,
    ResultRecord,
    ResultStore,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
    Unsupported,
    Url,
)
from omniq_core.native import RLock
from omniq_memory.bell import EVENTS, Bell
from omniq_memory.store import Store

__all__ = ["MemoryBackend", "MemoryOptions"]

T = TypeVar("T")

ABSENT: Mapping[Capability, str] = {
    Capability.DURABLE: "everything is lost when the process ends",
    Capability.MULTI_PROCESS: "the data is in one process",
    Capability.MULTI_HOST: "the data is in one process",
    Capability.SERVER_CLOCK: "there is no server",
    Capability.TX_ENQUEUE: "there are no transactions to join",
}


class MemoryOptions(BackendOptions, frozen=True, kw_only=True):
    """Settings of the memory backend."""

    name: str = ""
    """Backends of one name share their data while any of them is in use; without a name it is this backend's own."""
    retention_s: float = 3600.0
    """How long finished tasks, and results without a time to live, are kept, in seconds."""
    max_finished: int = 100_000
    """Most finished tasks that are kept; the oldest go first."""
    max_events: int = 100_000
    """Most events that are kept; the oldest go first."""

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        return {"name": url.host}

    def describe(self) -> str:
        return f"memory://{self.name}"

    @property
    def is_private(self) -> bool:
        return not self.name

    def __post_init__(self) -> None:
        if self.retention_s < 0 or self.max_finished < 0 or self.max_events < 0:
            raise ValueError("retention_s, max_finished and max_events must not be negative")


_named: weakref.WeakValueDictionary[tuple[str, str], Store] = weakref.WeakValueDictionary()
_named_lock = RLock()


class MemoryBackend(Backend):
    """Tasks, results and events in the memory of this process, for any number of its threads."""

    name: ClassVar[str] = "memory"
    spi_version: ClassVar[tuple[int, int]] = (0, 1)
    options_type: ClassVar[type[BackendOptions]] = MemoryOptions

    absent = ABSENT
    _store: Store | None = None
    _is_open = False

    async def open(self) -> None:
        if self._is_open:
            return
        self._attach()
        self.capabilities = frozenset(Capability).difference(ABSENT)
        self.limits = Limits(max_batch=10_000)
        self._queue = MemoryQueue(self)
        self._results = MemoryResultStore(self)
        self._events = MemoryEventStore(self)
        self._is_open = True

    def _attach(self) -> Store:
        if self._store is None:
            options = cast(MemoryOptions, self.options)
            key = (options.project_name, options.name)
            with _named_lock:
                store = _named.get(key) if options.name else None
                if store is None:
                    store = Store(
                        self.clock,
                        retention_s=options.retention_s,
                        max_finished=options.max_finished,
                        max_events=options.max_events,
                    )
                    if options.name:
                        _named[key] = store
            self._store = store
        return self._store

    async def close(self) -> None:
        self._is_open = False

    def twin(self) -> Self:
        twin = type(self).from_options(self.options, clock=self.clock)
        twin._store = self._attach()
        return twin

    def queue(self) -> Queue:
        self.store()
        return self._queue

    def result_store(self) -> ResultStore:
        self.store()
        return self._results

    def event_store(self) -> EventStore:
        self.store()
        return self._events

    def store(self) -> Store:
        """The data, while the backend is open."""
        if not self._is_open or self._store is None:
            raise Closed(self.name)
        return self._store

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, BackendError):
            return error.error_code
        if isinstance(error, Unsupported):
            return ErrorCode.UNSUPPORTED
        if isinstance(error, MemoryError):
            return ErrorCode.EXHAUSTED
        return ErrorCode.UNKNOWN

    async def check(self) -> Health:
        return Health(
            server="memory of this process",
            now=self.clock.time(),
            durability=Durability(server_killed=Loss.ALL, power_cut=Loss.ALL),
        )


class MemoryQueue(Queue):
    backend_name = MemoryBackend.name

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self.limits = backend.limits
        self._seen: dict[str, int] = {}  # a queue's rings as of the last look that found it empty

    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        return self._backend.store().enqueue(records)

    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        store = self._backend.store()
        rings = store.bell.rings(("queue", name) for name in queues)
        claims = store.claim(
            queues, max_tasks=max_tasks, lease_s=lease_s, worker_id=worker_id, claim_id=claim_id
        )
        if not claims:
            self._seen.update(zip(queues, rings, strict=True))
        return claims

    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        return self._backend.store().settle(settlements)

    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        return self._backend.store().extend(leases, lease_s=lease_s)

    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        return self._backend.store().get(task_ids)

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        store = self._backend.store()
        keys = [("queue", name) for name in queues]
        due_s = store.seconds_to_next_due()
        if due_s is not None:
            timeout_s = min(timeout_s, max(due_s, 0.001))
        seen = [self._seen.get(name, 0) for name in queues]
        woken = await _wait(
            self._backend, store.bell, keys, timeout_s, lambda: store.bell.rings(keys) != seen
        )
        return woken or due_s is not None

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        return self._backend.store().maintain(limit)

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return self._backend.store().cancel(task_ids)

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        return self._backend.store().requeue(task_ids)

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        return self._backend.store().query(which, limit, cursor)

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        return self._backend.store().stats(queues)

    async def queue_names(self) -> Sequence[str]:
        return self._backend.store().queue_names()

    async def pause(self, queues: Sequence[str], /) -> None:
        self._backend.store().set_paused(queues, True)

    async def resume(self, queues: Sequence[str], /) -> None:
        self._backend.store().set_paused(queues, False)

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        return self._backend.store().purge(which, limit)


class MemoryResultStore(ResultStore):
    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend

    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        return self._backend.store().put_results(records)

    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        return self._backend.store().get_results(task_ids)

    async def delete(self, task_ids: Sequence[str], /) -> int:
        return self._backend.store().delete_results(task_ids)

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        store = self._backend.store()

        def is_there() -> bool:
            return any(record is not None and record.final for record in store.get_results(task_ids))

        if task_ids:
            keys = [("result", task_id) for task_id in task_ids]
            await _wait(self._backend, store.bell, keys, timeout_s, is_there)
        return self._backend.store().get_results(task_ids)

    async def prune(self, *, limit: int = 1000) -> int:
        return self._backend.store().prune_results(limit)


class MemoryEventStore(EventStore):
    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend

    async def append(self, events: Sequence[Event], /) -> Sequence[Outcome]:
        return self._backend.store().append(events)

    async def read(
        self, which: EventFilter, /, *, after: str | None = None, limit: int = 1000
    ) -> Page[Event]:
        return self._backend.store().read(which, after, limit)

    async def tail(self, which: EventFilter, /, *, after: str | None = None) -> AsyncIterator[Event]:
        cursor = after
        while True:
            store = self._backend.store()
            rings = store.bell.rings([EVENTS])
            page = store.read(which, cursor, 1000)
            for event in page.items:
                yield event
            cursor = page.cursor
            if not page.items:
                bell = store.bell
                # The lambda is used in this turn of the loop alone.
                await _wait(self._backend, bell, [EVENTS], 1.0, lambda: bell.rings([EVENTS]) != rings)  # noqa: B023

    async def truncate(self, *, before: float, limit: int = 1000) -> int:
        return self._backend.store().truncate(before, limit)


async def _wait(
    backend: MemoryBackend,
    bell: Bell,
    keys: Sequence[tuple[str, str]],
    timeout_s: float,
    is_there: Callable[[], bool],
) -> bool:
    """Waits for a ring, unless what the caller waits for is there; whether one of the two happened.

    The waiter is registered before ``is_there`` looks, so nothing falls between. Wakes every second at the latest, so
    that it ends soon after the backend is closed.
    """
    end = asyncio.get_running_loop().time() + timeout_s
    while True:
        future = bell.waiter(keys)
        try:
            if is_there():
                return True
            left_s = end - asyncio.get_running_loop().time()
            if left_s <= 0:
                return False
            await asyncio.wait([future], timeout=min(left_s, 0.5))
            if future.done():
                return True
        finally:
            bell.forget(future, keys)
        backend.store()
