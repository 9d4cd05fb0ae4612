"""The storages that everyone is measured on: started here, with settings that are stated, or taken from the environment.

``OMNIQ_TEST_VALKEY_URL``, ``OMNIQ_TEST_REDIS_URL``, ``OMNIQ_TEST_POSTGRES_URL`` and ``OMNIQ_TEST_NATS_URL`` name servers
that are there already. **They are wiped**: a Redis database is flushed, of PostgreSQL the database ``omniq_bench`` is dropped
and made again, and of NATS all streams are deleted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["STORES", "Store", "opened"]

DATABASE = "omniq_bench"


class Store:
    """One storage."""

    name = ""
    url = ""
    settings: dict[str, str]
    """What was found to be set on it, as far as it bears on durability and speed."""

    lives_in_driver = False
    """It is the measuring process that holds it: each scenario gets a new one."""

    def wipe(self) -> None:
        """Empties it. Nobody is connected."""
        raise NotImplementedError


class MemoryStore(Store):
    name = "memory"
    url = "memory://"
    lives_in_driver = True

    def __init__(self) -> None:
        self.settings = {"storage": "this process"}

    def wipe(self) -> None:
        pass


class SQLiteStore(Store):
    """A file. Who opens it sets it, so the settings are those that the subjects state; ours and huey's are the same."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        import sqlite3

        self._folder = folder / "sqlite"
        self.url = str(self._folder / "bench.db")
        self.settings = {
            "library": sqlite3.sqlite_version,
            "journal_mode": "wal",
            "synchronous": "full (ours, huey's, and the raw client's)",
        }
        self.wipe()

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class FileStore(Store):
    """A folder. What is written there is synced by ours and by nobody else: huey's file store does not."""

    name = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "files"
        self.url = f"file://{self._folder}"
        self.settings = {"fsync": "on (ours); huey's file store has no such thing"}
        self.wipe()

    def wipe(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


class RedisStore(Store):
    name = "redis"

    def __init__(self, url: str) -> None:
        self.url = url
        client = self._client()
        info: dict[str, Any] = client.info()
        config: dict[str, Any] = client.config_get("*")
        server = "Valkey" if "valkey_version" in info else "Redis"
        self.settings = {
            "server": f"{server} {info.get('valkey_version') or info['redis_version']}",
            **{
                key: str(config.get(key, "?"))
                for key in ("appendonly", "appendfsync", "save", "maxmemory-policy")
            },
        }
        client.close()

    def _client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url, decode_responses=True)

    def wipe(self) -> None:
        client = self._client()
        client.flushall()
        client.close()


class NatsStore(Store):
    """JetStream, on one server."""

    name = "nats"

    def __init__(self, url: str) -> None:
        self.url = url
        info = self._do(self._look)
        self.settings = {"server": f"NATS {info}", "storage": "file", "sync_interval": "2m (its default)"}
        self.wipe()

    def _do(self, work: Any) -> Any:
        import asyncio

        import nats

        async def main() -> Any:
            client = await nats.connect(self.url)
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(main())

    @staticmethod
    async def _look(client: Any) -> str:
        return str(client.connected_server_version)

    @staticmethod
    async def _empty(client: Any) -> None:
        context = client.jetstream()
        while found := await context.streams_info():
            for stream in found:
                await context.delete_stream(stream.config.name)

    def wipe(self) -> None:
        self._do(self._empty)


class PostgresStore(Store):
    name = "postgres"

    def __init__(self, url: str) -> None:
        import psycopg

        self._psycopg = psycopg
        self._admin_url = url
        base, _, query = url.partition("?")
        head, _, _ = base.rpartition("/")
        self.url = f"{head}/{DATABASE}" + (f"?{query}" if query else "")
        self.settings = {}
        with psycopg.connect(url, autocommit=True) as connection:
            for name in (
                "server_version",
                "fsync",
                "synchronous_commit",
                "full_page_writes",
                "shared_buffers",
            ):
                row = connection.execute(f"show {name}").fetchone()
                self.settings[name] = str(row[0]) if row else "?"
        for name in ("fsync", "synchronous_commit"):
            if self.settings[name] != "on":
                print(
                    f"! PostgreSQL runs with {name}={self.settings[name]}: nothing measured on it is durable"
                )
        self.wipe()

    def wipe(self) -> None:
        with self._psycopg.connect(self._admin_url, autocommit=True) as connection:
            connection.execute(f"drop database if exists {DATABASE} with (force)")
            connection.execute(f"create database {DATABASE}")
            # What the one before left behind is not written out at the cost of the next.
            connection.execute("checkpoint")


POSTGRES_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",  # of 128 MB, the default for tiny machines, 1,000,000 tasks would not fit
    "max_wal_size": "4GB",
    "max_connections": "200",
}
"""For everyone who is measured; the rest is PostgreSQL's default."""
REDIS_SETTINGS = {"save": "", "maxmemory-policy": "noeviction"}
REDIS_AOF_SETTINGS = {**REDIS_SETTINGS, "appendonly": "yes", "appendfsync": "everysec"}


STORES = ("memory", "sqlite", "file", "redis", "postgres", "nats")


@contextlib.contextmanager
def opened(name: str, *, redis: str, aof: bool) -> Iterator[Store]:
    """A storage, empty; gone afterwards.

    Args:
        name: which.
        redis: whose server, ``valkey`` or ``redis``.
        aof: with ``appendonly``, fsynced every second; else nothing is written to disk.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omniq-bench-")))
        # The test servers would keep their files in memory, where a sync costs nothing.
        os.environ.setdefault("OMNIQ_TEST_SERVERS_FOLDER", tempfile.gettempdir())
        if name == "memory":
            yield MemoryStore()
        elif name == "sqlite":
            yield SQLiteStore(folder)
        elif name == "file":
            yield FileStore(folder)
        elif name == "redis":
            from omniq_conformance.servers import RedisServer, ValkeyServer

            kind = {"valkey": ValkeyServer, "redis": RedisServer}[redis]
            settings = REDIS_AOF_SETTINGS if aof else REDIS_SETTINGS
            yield RedisStore(stack.enter_context(kind.from_env(settings=settings)).url)
        elif name == "nats":
            from omniq_conformance.servers import NatsServer

            yield NatsStore(stack.enter_context(NatsServer.from_env()).url)
        elif name == "postgres":
            from omniq_conformance.servers import PostgresServer

            yield PostgresStore(stack.enter_context(PostgresServer.from_env(settings=POSTGRES_SETTINGS)).url)
        else:
            sys.exit(f"unknown store {name!r}; there are {', '.join(STORES)}")
