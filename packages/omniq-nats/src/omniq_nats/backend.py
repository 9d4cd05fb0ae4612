"""The backend: what it is made of, and what it promises on the server that it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from omniq_core import (
    Backend,
    BackendOptions,
    Capability,
    Closed,
    ErrorCode,
    EventStore,
    Health,
    Limits,
    Queue,
    ResultStore,
)
from omniq_nats.clock import ServerClock
from omniq_nats.connection import Client
from omniq_nats.errors import classify
from omniq_nats.events import NatsEventStore
from omniq_nats.health import Streams, examine, find_or_make, why_not_durable
from omniq_nats.jetstream import JetStream
from omniq_nats.options import NatsOptions
from omniq_nats.queue import NatsQueue, Through
from omniq_nats.results import NatsResultStore
from omniq_nats.subjects import Subjects
from omniq_nats.tasks import Tasks
from omniq_nats.wakeup import Wakeup

__all__ = ["NatsBackend"]

ABSENT: Mapping[Capability, str] = {
    Capability.TX_ENQUEUE: "NATS has no transactions that span several calls of a client",
}


class NatsBackend(Backend):
    """Tasks, results and events on NATS JetStream (2.12 or later): one server, or a cluster with replicas."""

    name: ClassVar[str] = "nats"
    spi_version: ClassVar[tuple[int, int]] = (0, 1)
    options_type: ClassVar[type[BackendOptions]] = NatsOptions

    absent = ABSENT
    _parts: _Parts | None = None

    async def open(self) -> None:
        if self._is_open():
            return
        parts = _Parts(cast(NatsOptions, self.options))
        try:
            made, _ = await parts.enter(make=True)
            limits = limits_of(parts.client.max_payload)
            parts.make_stores(made, limits)
            if made.torn:
                await parts.queue.mend(lines=parts.subjects.lines in made.torn)
        except BaseException:
            await parts.close()
            raise
        if self._is_open():  # somebody else opened it while we did
            await parts.close()
            return
        self.limits = limits
        absent = dict(ABSENT)
        if why := why_not_durable(made):
            absent[Capability.DURABLE] = why
        self.absent = absent
        self.capabilities = frozenset(Capability).difference(absent)
        self._parts = parts

    def _is_open(self) -> bool:
        return self._parts is not None

    async def close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.close()

    async def setup(self, *, dry_run: bool = False) -> Sequence[str]:
        parts = _Parts(cast(NatsOptions, self.options))
        try:
            _, steps = await parts.enter(make=not dry_run)
            return tuple(steps)
        finally:
            await parts.close()

    def queue(self) -> Queue:
        return self._opened().queue

    def result_store(self) -> ResultStore:
        return self._opened().results

    def event_store(self) -> EventStore:
        return self._opened().events

    def _opened(self) -> _Parts:
        if self._parts is None:
            raise Closed(self.name)
        return self._parts

    def classify(self, error: BaseException, /) -> ErrorCode:
        return classify(error)

    async def check(self) -> Health:
        parts = self._opened()
        made, _ = await parts.enter(make=False)
        return await examine(parts.streams, made, parts.options, await parts.tasks.lines.now())


def limits_of(max_payload: int) -> Limits:
    """What fits into one message, which holds all of a task: half for the body, and the rest for how it ended."""
    room = max_payload - 16 * 1024
    body = min(1024 * 1024, room // 2)
    return Limits(
        max_batch=1000,  # an atomic batch has no more
        max_body_bytes=body,
        max_result_bytes=min(4 * 1024 * 1024, (room - body) // 2),
        time_resolution_s=0.005,
    )


class _Parts:
    """The connection of an opened backend and the stores on it. Nothing connects before it is used."""

    tasks: Tasks
    queue: NatsQueue
    results: NatsResultStore
    events: NatsEventStore

    def __init__(self, options: NatsOptions) -> None:
        self.options = options
        self.subjects = Subjects(options.project_name)
        self.client = Client(options, self._lost)
        self.streams = JetStream(self.client, is_replicated=options.replicas > 1)
        self.clock = ServerClock()
        self._through = Through()
        self._wakeup: Wakeup | None = None

    async def enter(self, *, make: bool) -> tuple[Streams, list[str]]:
        await self.client.link()
        return await find_or_make(self.streams, self.subjects, self.options, make=make)

    def make_stores(self, made: Streams, limits: Limits) -> None:
        self.streams.is_replicated = any(int(c.get("num_replicas", 1)) > 1 for c in made.configs.values())
        self.tasks = Tasks(self.client, self.streams, self.subjects, self.clock, self.options)
        self._wakeup = Wakeup(self.tasks)
        self.queue = NatsQueue(self.tasks, self._wakeup, self._through, limits)
        self.results = NatsResultStore(self.tasks, self._through)
        self.events = NatsEventStore(self.tasks)

    def _lost(self, _: Exception) -> None:
        if self._wakeup is not None:
            self._wakeup.lost()
            self.results.lost()
            self.tasks.lines.forget_dealers()

    async def close(self) -> None:
        # Those who wait are told first, so that they see Closed and not a broken connection.
        if self._wakeup is not None:
            self._wakeup.close()
            self.results.close()
            self.events.close()
        await self._through.close()
        await self.client.close()
