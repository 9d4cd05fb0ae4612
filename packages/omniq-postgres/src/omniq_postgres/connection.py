"""One connection to the server, and how its answers reach the event loop.

psycopg makes the connection (names, several hosts, TLS, passwords) and reads the rows; what lies between, the waiting, is
ours: a short asyncio edge over libpq's own non-blocking calls. psycopg's ``AsyncConnection`` is not used for that, since

* **a call that is cancelled must end at once.** psycopg then asks the server to cancel and waits for its answer, up to
  ten seconds if the server is frozen or gone. Here the connection is closed, and nothing is waited for. Whether the call
  took effect is unknown to the caller either way, and the contract allows for that;
* **an idle connection must be watched**, so that the end of a server is seen when it comes, and not by the next call;
* it halves the client's work per call: one reader stays registered, and there is one future per call.

A link does one call at a time. One that failed in any way but an error that the server told is closed, never used again.

A call may have a *tail*: a second statement, sent with the first and run after its commit, whose answer nobody waits for.
The first answer comes as soon as without; only the next call of the link waits until the tail has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict

from omniq_postgres.encoding import encode
from omniq_postgres.statements import Statement

__all__ = ["Link", "NoReply", "NotConnected", "Prepared", "ReplyLost", "connect"]

Row = tuple[Any, ...]
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_BINARY, _TEXT = pq.Format.BINARY, pq.Format.TEXT


class NotConnected(psycopg.OperationalError):
    """No connection could be made, or it broke before anything was sent."""


class ReplyLost(psycopg.OperationalError):
    """The connection broke after the call was sent: it may have taken effect."""


class NoReply(psycopg.OperationalError):
    """The server did not answer in time: the call may have taken effect."""


async def connect(conninfo: str, *, timeout_s: float) -> Link:
    """A new connection.

    Raises:
        psycopg.OperationalError: it was refused; a ``NotConnected`` if nobody answered in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except TimeoutError:
        raise NotConnected(f"{_server(conninfo)} did not answer within {timeout_s:g} s") from None
    except psycopg.errors.ConnectionTimeout as error:
        raise NotConnected(str(error)) from None
    return Link(connection)


def _server(conninfo: str) -> str:
    """What messages call the server of a connection string: where it is, and never who logs in."""
    given = conninfo_to_dict(conninfo)
    where = [str(given[name]) for name in ("host", "port") if name in given]
    return f"the server at {':'.join(where)}" if where else "the server"


class Prepared(NamedTuple):
    """A statement with its parameters."""

    statement: Statement
    text: bytes
    values: Sequence[Any]


class Link:
    """A connection that is open and belongs to the running loop.

    Args:
        connection: fresh from psycopg, in autocommit mode.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection  # kept: it owns the socket
        self._pgconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._loop = asyncio.get_running_loop()
        self._fd = self._pgconn.socket
        self._transformer = Transformer()
        self._prepared: set[bytes] = set()
        self._waiter: asyncio.Future[list[pq.abc.PGresult]] | None = None
        self._results: list[pq.abc.PGresult] = []
        self._writing = False
        self.tail: asyncio.Future[None] | None = None
        """Set while the answer to a tail has not come."""
        self._is_in_tail = False  # the answer to the call itself has come
        self.is_open = True
        self.on_notify: Callable[[str, int], None] | None = None
        """Called with the payload and the sender's process id."""
        self.on_close: Callable[[Link], None] | None = None
        self._loop.add_reader(self._fd, self.read)

    @property
    def server_pid(self) -> int:
        return self._pgconn.backend_pid

    @property
    def server_version(self) -> int:
        return self._pgconn.server_version

    # --- calls --------------------------------------------------------------------------------------------------

    async def run(
        self,
        statement: Statement,
        text: bytes,
        values: Sequence[Any],
        *,
        timeout_s: float,
        prepare: bool = True,
        tail: Prepared | None = None,
    ) -> list[Row]:
        """Calls a statement; the rows of its answer.

        Args:
            statement: what to call.
            text: its SQL.
            values: its parameters.
            timeout_s: after that the link is closed, and ``NoReply`` raised.
            prepare: keep the statement prepared on this session.
            tail: what is run right after it, in a transaction of its own, whether or not it failed; with ``prepare`` only.
        """
        parameters = encode(statement.types, values)
        formats = [_BINARY] * len(parameters)
        if not prepare:
            result = await self._ask(
                lambda: self._pgconn.send_query_params(
                    text, parameters, param_types=statement.oids, param_formats=formats, result_format=_BINARY
                ),
                timeout_s,
            )
            return self._rows(result)
        await self._prepare(statement, text, timeout_s)
        behind: list[bytes | None] = []
        if tail is not None:
            await self._prepare(tail.statement, tail.text, timeout_s)
            behind = encode(tail.statement.types, tail.values)

        def send() -> None:
            pgconn = self._pgconn
            if tail is not None:
                pgconn.enter_pipeline_mode()
            pgconn.send_query_prepared(
                statement.name, parameters, param_formats=formats, result_format=_BINARY
            )
            if tail is not None:
                # A "sync" after each: it ends a transaction, and what comes after it is not skipped if that one failed.
                pgconn.pipeline_sync()
                pgconn.send_query_prepared(tail.statement.name, behind, param_formats=[_BINARY] * len(behind))
                pgconn.pipeline_sync()
                self.tail = self._loop.create_future()

        return self._rows(await self._ask(send, timeout_s))

    async def _prepare(self, statement: Statement, text: bytes, timeout_s: float) -> None:
        if statement.name not in self._prepared:
            await self._ask(
                lambda: self._pgconn.send_prepare(statement.name, text, param_types=statement.oids), timeout_s
            )
            self._prepared.add(statement.name)

    async def script(self, sql: str, *, timeout_s: float) -> list[Row]:
        """Runs one or several statements without parameters; the rows of the last."""
        return self._rows(await self._ask(lambda: self._pgconn.send_query(sql.encode()), timeout_s))

    def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        if not result.ntuples:
            return []
        self._transformer.set_pgresult(result)
        try:
            return self._transformer.load_rows(0, result.ntuples, tuple)
        finally:
            self._transformer.set_pgresult(None)

    async def _ask(self, send: Callable[[], None], timeout_s: float) -> pq.abc.PGresult:
        if not self.is_open:
            raise NotConnected("the connection was closed")
        if self._waiter is not None:
            raise RuntimeError("a link does one call at a time")
        waiter = self._waiter = self._loop.create_future()
        self._results = []
        timer = self._loop.call_later(timeout_s, self._out_of_time, timeout_s)
        try:
            if self.tail is not None:
                await self.tail
            try:
                if self.is_open:
                    send()
                    self._flush()
            except psycopg.OperationalError as error:
                self.close(ReplyLost(str(error)))
            results: list[pq.abc.PGresult] = await waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None
        for result in results:
            if result.status not in _OK:
                raise psycopg.errors.error_from_result(result)
        return results[-1]

    def _out_of_time(self, timeout_s: float) -> None:
        server = _server(self._connection.info.dsn)
        self.close(NoReply(f"{server} did not answer within {timeout_s:g} s"))

    # --- the socket ---------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._pgconn.flush():  # the server does not take all of it at once
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._writable)
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _writable(self) -> None:
        try:
            self._flush()
        except psycopg.OperationalError as error:
            self.close(ReplyLost(str(error)))

    def read(self) -> None:
        """Takes what has arrived."""
        if not self.is_open:
            return
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            if self._writing:
                self._flush()
            while (notification := pgconn.notifies()) is not None:
                if self.on_notify is not None:
                    self.on_notify(notification.extra.decode(), notification.be_pid)
            if not self._take_results():
                return
        except psycopg.OperationalError as error:
            self.close(ReplyLost(str(error)))
            return
        if pgconn.status != pq.ConnStatus.OK:
            # The server's last words, if it had any, tell more than libpq does: it was shut down, or we were told to go.
            fatal = next((found for found in self._results if found.status not in _OK), None)
            words = fatal.get_error_message() if fatal is not None else pgconn.get_error_message()
            self.close(ReplyLost(words.strip() or "the server closed the connection"))
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._results:
            waiter.set_result(self._results)

    def _take_results(self) -> bool:
        """Whether an answer is complete, or the connection broke."""
        pgconn = self._pgconn
        is_complete = False
        was_none = False
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if pgconn.status != pq.ConnStatus.OK:
                if result is not None:
                    self._results.append(result)
                return True
            if result is None:
                # In a pipeline it stands between the answers, too.
                if self.tail is None or was_none:
                    return self.tail is None or is_complete
                was_none = True
                continue
            was_none = False
            if self.tail is None:
                self._results.append(result)
            elif result.status != pq.ExecStatus.PIPELINE_SYNC:
                if not self._is_in_tail:
                    self._results.append(result)
            elif not self._is_in_tail:
                is_complete = self._is_in_tail = True
            else:
                self._end_tail()
                pgconn.exit_pipeline_mode()
                return is_complete
        return is_complete

    def _end_tail(self) -> None:
        self._is_in_tail = False
        if self.tail is not None:
            if not self.tail.done():
                self.tail.set_result(None)
            self.tail = None

    def close(self, error: Exception | None = None) -> None:
        """Ends the connection at once, without a word to the server. Idempotent.

        Args:
            error: what a call that is under way raises.
        """
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._pgconn.finish()
        self._end_tail()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error or ReplyLost("the connection was closed"))
        if self.on_close is not None:
            self.on_close(self)
