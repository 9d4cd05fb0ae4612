"""The PostgreSQL backend.

Why psycopg 3 and not asyncpg, which needs less of the client's time for small batches: ``enqueue_within`` is for the
caller's own connection, and programs have psycopg's, or SQLAlchemy's over it, in both its synchronous and its asynchronous
form; libpq brings the password file, services, several hosts and every way of logging in; and an unprepared statement is
one round trip with a single ``Sync``, as a pooler in transaction mode needs it (asyncpg sends two, between which the pooler
may change the server). The difference in speed is in the waiting, which is ours: see :mod:`omniq_postgres.connection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from omniq_core import (
    Backend,
    BackendOptions,
    Capability,
    Closed,
    ErrorCode,
    EventStore,
    Health,
    Limits,
    Loss,
    Queue,
    ResultStore,
    SchemaOutOfDate,
    Unreachable,
)
from omniq_postgres.connection import Link
from omniq_postgres.errors import classify, is_about_items
from omniq_postgres.events import PostgresEventStore
from omniq_postgres.health import durability_of, examine, settings
from omniq_postgres.notify import Bell, Listener, Ringer
from omniq_postgres.options import PostgresOptions
from omniq_postgres.pool import Pool, open_session
from omniq_postgres.queue import PostgresQueue
from omniq_postgres.results import PostgresResultStore
from omniq_postgres.schema import OLDEST_SERVER, channel, migrate, quoted
from omniq_postgres.vacuum import Vacuum

__all__ = ["PostgresBackend"]

PUSHED = (Capability.WAKEUP, Capability.RESULT_WAIT, Capability.EVENT_TAIL)
MIGRATE_TIMEOUT_S = 60.0
TAILS_S = 0.5
"""How long a wake-up that was just sent may keep ``close`` waiting."""


class PostgresBackend(Backend):
    """Tasks, results and events in one schema of a PostgreSQL database."""

    name: ClassVar[str] = "postgres"
    spi_version: ClassVar[tuple[int, int]] = (0, 1)
    options_type: ClassVar[type[BackendOptions]] = PostgresOptions

    options: PostgresOptions  # pyright: ignore[reportIncompatibleVariableOverride] - the constructor sets it, nobody else

    pool: Pool
    bell: Bell
    ringer: Ringer | None = None
    vacuum: Vacuum
    absent: Mapping[Capability, str] = {}
    _listener: Listener | None = None
    _is_open = False

    # --- opening and closing ------------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._is_open:
            return
        schema = quoted(self.options.schema_name)
        pool = Pool(self.options, schema)
        try:
            link = await pool.take()
            await self._check_server(link)
            await migrate(link, schema, change=self.options.migrate, timeout_s=MIGRATE_TIMEOUT_S)
            name = await channel(link, schema, timeout_s=self.options.statement_timeout_s)
            pool.give_back(link)
            found = await settings(pool)
        except BaseException:
            pool.close()
            raise
        self.pool = pool
        self.vacuum = Vacuum(pool)
        self.bell = Bell()
        self.ringer = Ringer(self.bell, pool, name) if self.options.notify else None
        self._listener = None if self.ringer is None else Listener(self.bell, self.options, name, self.ringer)
        self.limits = Limits(max_batch=1000, poll_interval_s=self.options.poll_s)
        self._declare(found)
        self._queue = PostgresQueue(self)
        self._results = PostgresResultStore(self)
        self._events = PostgresEventStore(self)
        self._is_open = True

    @staticmethod
    async def _check_server(link: Link) -> None:
        if link.server_version // 10000 < OLDEST_SERVER:
            raise SchemaOutOfDate(
                f"omniq-postgres needs PostgreSQL {OLDEST_SERVER} or newer, the server is {link.server_version // 10000}",
                "postgres",
            )
        [(is_standby,)] = await link.script("select pg_is_in_recovery()", timeout_s=5.0)
        if is_standby:
            raise Unreachable(
                "the server is a read-only standby; name the primary, or several hosts with "
                "target_session_attrs=read-write",
                ErrorCode.UNAVAILABLE,
                "postgres",
            )

    def _declare(self, found: dict[str, str]) -> None:
        absent: dict[Capability, str] = {}
        if not self.options.notify:
            absent |= dict.fromkeys(PUSHED, "notify=False: nothing is pushed, waiting polls")
        if durability_of(found).server_killed is not Loss.NONE:
            absent[Capability.DURABLE] = "synchronous_commit is off"
        self.absent = absent
        self.capabilities = frozenset(set(Capability) - absent.keys())

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self.bell.close()
        await self.vacuum.close()
        if self._listener is not None:
            await self._listener.close()
        if self.ringer is not None:
            await self.ringer.close()
        await self.pool.end_tails(TAILS_S)
        self.pool.close()

    def check_open(self) -> None:
        """
        Raises:
            Closed: it is not open.
        """
        if not self._is_open:
            raise Closed(self.name)

    def listen(self) -> None:
        """Somebody waits: from now on other processes are heard."""
        if self._listener is not None:
            self._listener.start()

    async def pause_for(self, seconds: float) -> None:
        """Sleeps, at most until the backend is closed."""
        waiter = self.bell.waiter([("closed", 0)])
        try:
            await self.bell.sleep(waiter, seconds)
        finally:
            self.bell.forget(waiter, [("closed", 0)])

    # --- stores -------------------------------------------------------------------------------------------------

    def queue(self) -> Queue:
        self.check_open()
        return self._queue

    def result_store(self) -> ResultStore:
        self.check_open()
        return self._results

    def event_store(self) -> EventStore:
        self.check_open()
        return self._events

    def classify(self, error: BaseException, /) -> ErrorCode:
        return classify(error)

    def is_about_items(self, error: BaseException) -> bool:
        return is_about_items(error)

    # --- operators ----------------------------------------------------------------------------------------------

    async def setup(self, *, dry_run: bool = False) -> Sequence[str]:
        link = await open_session(self.options)
        try:
            await self._check_server(link)
            return await migrate(
                link,
                quoted(self.options.schema_name),
                change=True,
                dry_run=dry_run,
                timeout_s=MIGRATE_TIMEOUT_S,
            )
        finally:
            link.close()

    async def check(self) -> Health:
        self.check_open()
        return await examine(self.pool)
