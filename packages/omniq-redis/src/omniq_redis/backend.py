"""The backend: what it is made of, and what it promises on the server that it finds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from omniq_core import (
    Backend,
    BackendError,
    BackendOptions,
    Capability,
    Closed,
    ErrorCode,
    EventStore,
    Health,
    Limits,
    Queue,
    ResultStore,
    SchemaOutOfDate,
)
from omniq_redis.connection import Client
from omniq_redis.errors import classify
from omniq_redis.events import RedisEventStore
from omniq_redis.keys import LAYOUT, prefix
from omniq_redis.options import RedisOptions
from omniq_redis.queue import RedisQueue
from omniq_redis.results import RedisResultStore, Told
from omniq_redis.server import OLDEST, Server, inspect
from omniq_redis.topology import Topology
from omniq_redis.wakeup import Wakeup

__all__ = ["RedisBackend"]

ABSENT: Mapping[Capability, str] = {
    Capability.TX_ENQUEUE: "Redis has no transactions that span several calls of a client",
}
LIMITS = Limits(max_batch=1000)
"""A thousand tasks per script keep it below about 10 ms, during which the server does nothing else."""


class RedisBackend(Backend):
    """Tasks, results and events on Redis (7.0 or later) or Valkey: one server, Sentinels, or one node of a Cluster."""

    name: ClassVar[str] = "redis"
    spi_version: ClassVar[tuple[int, int]] = (0, 1)
    options_type: ClassVar[type[BackendOptions]] = RedisOptions

    absent = ABSENT
    _parts: _Parts | None = None

    async def open(self) -> None:
        if self._is_open():
            return
        parts = _Parts(cast(RedisOptions, self.options))
        try:
            server = await self._enter(parts, change=True)
        except BaseException:
            await parts.close()
            raise
        if self._is_open():  # somebody else opened it while we did
            await parts.close()
            return
        parts.make_stores(server)
        absent = dict(ABSENT)
        if not server.is_durable:
            absent[Capability.DURABLE] = server.why_not_durable
        self.absent = absent
        self.capabilities = frozenset(Capability).difference(absent)
        self.limits = LIMITS
        self._parts = parts

    def _is_open(self) -> bool:
        return self._parts is not None

    @staticmethod
    async def _enter(parts: _Parts, *, change: bool) -> Server:
        """Looks whether this server and what lies on it are ours to use; marks the layout as ours unless told not to."""
        server = await inspect(parts.client)
        if server.version and server.version < OLDEST:
            raise BackendError(
                f"{server.name} is too old: the Redis backend needs {OLDEST[0]}.{OLDEST[1]} or later",
                ErrorCode.UNSUPPORTED,
                "redis",
            )
        key = parts.client.key("v")
        if change:
            await parts.client.call("SET", key, LAYOUT, "NX")
        found = await parts.client.call("GET", key)
        if found is not None and found != b"%d" % LAYOUT:
            raise SchemaOutOfDate(
                f"the data under {key[:-1]!r} has layout {found.decode(errors='replace')}, and this driver knows {LAYOUT}: "
                "upgrade omniq-redis, or use another project_name",
                "redis",
            )
        return server

    async def close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.close()

    async def setup(self, *, dry_run: bool = False) -> Sequence[str]:
        parts = _Parts(cast(RedisOptions, self.options))
        try:
            await self._enter(parts, change=False)
            key = parts.client.key("v")
            step = f"SET {key} {LAYOUT} NX"
            if dry_run:
                return () if await parts.client.call("EXISTS", key) else (step,)
            return (step,) if await parts.client.call("SET", key, LAYOUT, "NX") else ()
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
        server = await inspect(self._opened().client)
        return Health(
            server=server.name,
            now=server.now,
            durability=server.durability,
            findings=server.findings(),
            settings=server.settings,
        )


class _Parts:
    """The connections of an opened backend and the stores on them. Nothing connects before it is used."""

    queue: RedisQueue
    results: RedisResultStore
    events: RedisEventStore

    def __init__(self, options: RedisOptions) -> None:
        self.options = options
        self.prefix = prefix(options.project_name)
        self.topology = Topology(options, f"{self.prefix}v")
        self.client = Client(self.topology, self.prefix, "redis")
        self._told = Told(self.client)
        self._subscribed = Client(
            self.topology, self.prefix, "redis", on_push=self._told.pushed, on_lost=self._told.lost
        )
        self._told.attach(self._subscribed)
        self._wakeup: Wakeup | None = None
        self._blocked = Client(self.topology, self.prefix, "redis", on_lost=self._blocking_lost)
        self._tails: set[Client] = set()

    def make_stores(self, server: Server) -> None:
        self._wakeup = Wakeup(self.client, self._blocked)
        self.queue = RedisQueue(self.client, self._wakeup, self.options, LIMITS, has_msetex=server.has_msetex)
        self.results = RedisResultStore(self.client, self._told, self.options)
        self.events = RedisEventStore(self.client, self.options, self._new_tail, self._drop_tail)

    def _blocking_lost(self, error: Exception) -> None:
        if self._wakeup is not None:
            self._wakeup.lost(error)

    def _new_tail(self) -> Client:
        tail = Client(self.topology, self.prefix, "redis")
        self._tails.add(tail)
        return tail

    async def _drop_tail(self, tail: Client) -> None:
        self._tails.discard(tail)
        await tail.close()

    async def close(self) -> None:
        # Those who wait are told first, so that they see Closed and not a broken connection.
        await self._told.close()
        if self._wakeup is not None:
            await self._wakeup.close()
        tails = list(self._tails)
        self._tails.clear()
        await asyncio.gather(
            *(client.close() for client in (self.client, self._blocked, self._subscribed, *tails))
        )
