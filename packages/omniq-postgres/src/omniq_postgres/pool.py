"""The connections of an opened backend, and who has which.

A call takes a free link, makes one if there are fewer than ``pool_size``, or waits for one. A link that broke is dropped;
when one breaks the idle ones are dropped with it, since whatever happened to the server happened to all of them: the next
calls connect anew instead of failing one after the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg

from omniq_core import Closed
from omniq_postgres.connection import Link, NotConnected, Prepared, Row, connect
from omniq_postgres.options import PostgresOptions
from omniq_postgres.statements import Statement

__all__ = ["NoFreeConnection", "Pool"]


class NoFreeConnection(psycopg.OperationalError):
    """All connections were in use for too long. Nothing was sent."""


class Pool:
    """At most ``pool_size`` links.

    Args:
        options: of the backend.
        schema: quoted.
    """

    def __init__(self, options: PostgresOptions, schema: str) -> None:
        self.options = options
        self.schema = schema
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._server_pids: set[int] = set()
        self._size = 0  # links and those being made
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._texts: dict[bytes, bytes] = {}
        self._is_closed = False

    async def run(self, statement: Statement, *values: Any) -> list[Row]:
        """Calls a statement on some link."""
        link = await self.take()
        try:
            return await self.run_on(link, statement, values)
        finally:
            self.give_back(link)

    async def run_before(
        self, tail: Statement, tail_values: Sequence[Any], statement: Statement, values: Sequence[Any]
    ) -> list[Row]:
        """As ``run``, with a second statement behind it, for whose answer nobody waits. Not through a pooler."""
        link = await self.take()
        try:
            behind = Prepared(tail, self._text(tail), tail_values)
            return await link.run(
                statement, self._text(statement), values, timeout_s=self.call_timeout_s, tail=behind
            )
        finally:
            self.give_back(link)

    async def run_on(self, link: Link, statement: Statement, values: Sequence[Any]) -> list[Row]:
        return await link.run(
            statement,
            self._text(statement),
            values,
            timeout_s=self.call_timeout_s,
            prepare=not self.options.is_pooled,
        )

    async def query(
        self, sql: str, types: Sequence[str], values: Sequence[Any], *, writes: bool = False
    ) -> list[Row]:
        """Runs a statement that is put together for this one call."""
        statement = Statement("", sql, types, writes=writes)
        link = await self.take()
        try:
            return await link.run(
                statement, self._make_text(statement), values, timeout_s=self.call_timeout_s, prepare=False
            )
        finally:
            self.give_back(link)

    def is_own(self, server_pid: int) -> bool:
        """Whether that is the session of one of our links. (A pooler tells numbers of its own.)"""
        return not self.options.is_pooled and server_pid in self._server_pids

    def _text(self, statement: Statement) -> bytes:
        text = self._texts.get(statement.name)
        if text is None:
            text = self._texts[statement.name] = self._make_text(statement)
        return text

    def _make_text(self, statement: Statement) -> bytes:
        if self.options.is_pooled:
            return statement.pooled_text(self.schema, self.options.synchronous_commit)
        return statement.text(self.schema)

    @property
    def call_timeout_s(self) -> float:
        """The server gives up first, if it can: then the answer is certain."""
        return self.options.statement_timeout_s + 1.0

    # --- taking and giving back ---------------------------------------------------------------------------------

    async def take(self) -> Link:
        """A link for the caller alone, until it is given back.

        Raises:
            NoFreeConnection: none became free within the connect time-out.
            Closed: the pool was closed.
        """
        deadline: float | None = None
        while True:
            if self._is_closed:
                raise Closed("postgres")
            while self._idle:
                link = self._idle.pop()
                link.read()  # the end of a server that the loop has not come round to telling
                if link.is_open:
                    return link
            if self._size < self.options.pool_size:
                return await self._connect()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self.options.connect_timeout_s if deadline is None else deadline
            turn = loop.create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout_at(deadline):
                    await turn
            except BaseException as error:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                elif not turn.cancelled():
                    self._next()  # our turn came as we were leaving: pass it on
                if isinstance(error, TimeoutError):
                    raise NoFreeConnection(
                        f"all {self.options.pool_size} connections were in use for {self.options.connect_timeout_s:g} s"
                    ) from None
                raise

    async def _connect(self) -> Link:
        self._size += 1
        try:
            link = await open_session(self.options)
        except BaseException:
            self._size -= 1
            self._next()
            raise
        if self._is_closed:
            link.close()
            raise Closed("postgres")
        self._links.add(link)
        self._server_pids.add(link.server_pid)
        link.on_close = self._dropped
        return link

    def give_back(self, link: Link) -> None:
        if link.is_open:
            self._idle.append(link)
            self._next()

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _dropped(self, link: Link) -> None:
        self._links.discard(link)
        self._server_pids = {other.server_pid for other in self._links}
        self._size -= 1
        idle, self._idle = self._idle, []
        for other in idle:
            other.close()
        self._next()

    async def end_tails(self, timeout_s: float) -> None:
        """Lets what was sent behind the last calls be run."""
        tails = [link.tail for link in self._links if link.tail is not None]
        if tails:
            await asyncio.wait(tails, timeout=timeout_s)

    def close(self) -> None:
        """Closes every link; calls that are under way raise ``Closed``."""
        self._is_closed = True
        for link in list(self._links):
            link.close(Closed("postgres"))
        while self._waiting:
            self._next()


async def open_session(options: PostgresOptions, *, listen: bool = False) -> Link:
    """A link that is set up for our calls.

    Raises:
        psycopg.OperationalError: as for ``connect``.
    """
    link = await connect(options.conninfo(listen=listen), timeout_s=options.connect_timeout_s)
    if listen or not options.is_pooled:
        milliseconds = max(1, round(options.statement_timeout_s * 1000))
        try:
            await link.script(
                f"set synchronous_commit = {options.synchronous_commit}; set statement_timeout = {milliseconds}; "
                # The functions look again after they have waited for somebody: each statement needs its own snapshot.
                "set default_transaction_isolation = 'read committed'; "
                # A transaction of ours is never idle; should the client stand still in a migration, it lets go.
                "set idle_in_transaction_session_timeout = 60000",
                timeout_s=options.connect_timeout_s,
            )
        except BaseException as error:
            link.close()
            if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
                raise NotConnected(str(error)) from None
            raise
    return link
