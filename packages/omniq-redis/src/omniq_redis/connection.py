"""One connection, many callers: how this driver talks to a server.

Why an own one. A task queue's hot path is thousands of small calls from many coroutines. A pooled client gives each call a
connection, a lock, a time-out object and a parser state; measured on one machine, 64 coroutines paid about 140 microseconds
per command with redis-py, and about 12 with this. It is a hundred lines over ``hiredis`` (redis-py's own parser), because a
multiplexed connection is simple:

* Requests are answered in order. So there is one deque of futures: a request appends one, an answer takes the first.
* What is requested while nothing is owed leaves at once, so that a lone caller does not wait for a turn of the event loop.
  What is requested after it within one turn leaves in one write.
* **A cancelled call stays in the deque.** Its answer comes all the same and is dropped in its turn; taking the future out
  would hand every later answer to the wrong caller.
* **Any error of the stream ends the connection**, and everything that was owed fails as :class:`ConnectionLost`, since it
  may have taken effect. Nothing is ever sent a second time from here: callers repeat, and every call is idempotent.
* There is one timer per connection, not one per call: it is armed while answers are owed, and gives the connection up when
  nothing at all has come for ``timeout_s``. A frozen server is noticed so, and a long batch is not.
* Blocking commands would hold up all others, so whoever blocks has a connection of its own (``wakeup``, ``events``), and so
  has the subscription to results: a refused SSUBSCRIBE is answered, a granted one is pushed, and on a shared connection
  nobody could tell whose answer comes next.

RESP3 is spoken, so pushed messages are told from answers. ``Client`` keeps one such connection, makes it anew when it is
gone, and follows a Cluster's redirection; ``topology`` knows where to.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from omniq_core import Closed
from omniq_redis.errors import CannotConnect, ConnectionLost, NoAnswer, Refused
from omniq_redis.scripts import SCRIPTS
from omniq_redis.topology import Address, Topology

__all__ = ["Client", "Link", "Push"]

Push = Callable[[list[Any]], None]
NOTHING = object()


class Link(asyncio.Protocol):
    """An open connection. Belongs to the loop that made it.

    Args:
        loop: the running loop.
        timeout_s: how long the server may be silent while it owes an answer.
        on_push: called with each pushed message.
        on_lost: called once with the reason, when the connection has ended.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        on_push: Push | None = None,
        on_lost: Callable[[Exception], None] | None = None,
    ) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._extra_s = 0.0
        self._on_push = on_push
        self._on_lost = on_lost
        self._reader = hiredis.Reader(replyError=Refused, notEnoughData=NOTHING)
        self._owed: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._room: asyncio.Future[None] | None = None
        self._end: Exception | None = None
        self.is_open = False

    # --- asking -------------------------------------------------------------------------------------------------

    def send(self, *words: Any, extra_s: float = 0.0) -> asyncio.Future[Any]:
        """Requests, and returns the future of the answer.

        Args:
            words: the command: text, bytes, or numbers.
            extra_s: how much longer than usual the server may be silent, for a command that blocks.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            answer.set_exception(self._end or ConnectionLost("the connection is closed"))
            return answer
        if not self._owed:
            self._heard = self._loop.time()
            self._extra_s = extra_s
            if self._timer is None:
                self._arm(self._timeout_s + extra_s)
        self._owed.append(answer)
        data = hiredis.pack_command(words)
        if len(self._owed) == 1 and not self._out and self._transport is not None:
            self._transport.write(data)
        else:
            self._write(data)
        return answer

    def post(self, *words: Any) -> None:
        """Sends a command whose answer is pushed (a subscription). On connections that do nothing else."""
        self._write(hiredis.pack_command(words))

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    async def room(self) -> None:
        """Waits while the socket cannot take more: a producer must not fill our memory with what the server cannot read."""
        while self._room is not None:
            await asyncio.shield(self._room)

    @property
    def is_full(self) -> bool:
        return self._room is not None

    def _arm(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._owed:
            return
        patience = self._timeout_s + self._extra_s
        silent = self._loop.time() - self._heard
        if silent < patience:
            self._arm(patience - silent)
            return
        self.end(NoAnswer(f"the server has not answered for {silent:.1f} s"))

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # A peer that vanished without a word is noticed also on a connection that only listens.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reader, owed = self._reader, self._owed
        self._heard = self._loop.time()
        reader.feed(data)
        try:
            while (answer := reader.gets()) is not NOTHING:
                if type(answer) is hiredis.PushNotification:
                    if self._on_push is not None:
                        self._on_push(answer)
                elif not owed:
                    # Only a refused subscription is answered without being owed.
                    self.end(
                        answer if isinstance(answer, Refused) else ConnectionLost("an answer to no question")
                    )
                    return
                else:
                    future = owed.popleft()
                    if future.done():
                        continue  # its caller was cancelled
                    if isinstance(answer, Refused):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        except hiredis.ProtocolError as error:
            self.end(ConnectionLost(f"the server does not speak Redis' protocol: {error}"))

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(ConnectionLost(f"the connection broke: {exc or 'the server closed it'}"))

    def end(self, error: Exception) -> None:
        """Ends the connection; what is owed fails with ``error``. Again: nothing."""
        if self._end is not None:
            return
        self._end = error
        self.is_open = False
        self.resume_writing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        owed, self._owed = self._owed, deque()
        for future in owed:
            if not future.done():
                future.set_exception(error)
        if self._on_lost is not None:
            self._on_lost(error)


class Client:
    """One connection, made when it is needed and anew when it is gone.

    Args:
        topology: where the server is, and how to greet it.
        prefix: of the project's keys.
        name: of the backend, for :class:`~omniq_core.errors.Closed`.
        on_push: called with each pushed message.
        on_lost: called with the reason when a connection has ended.
    """

    def __init__(
        self,
        topology: Topology,
        prefix: str,
        name: str,
        on_push: Push | None = None,
        on_lost: Callable[[Exception], None] | None = None,
    ) -> None:
        self._topology = topology
        self._prefix = prefix.encode()
        self._text_prefix = prefix
        self._name = name
        self._on_push, self._on_lost = on_push, on_lost
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._closed = False

    def key(self, rest: str) -> str:
        """One of the project's keys; see ``keys``."""
        return self._text_prefix + rest

    async def connect(self) -> Link:
        """The open connection, made now if there is none. Callers that come meanwhile share the attempt."""
        if self._closed:
            raise Closed(self._name)
        link = self._link
        if link is not None and link.is_open:
            return link
        if self._connecting is None or self._connecting.done():
            # A task of its own, since its first caller may be cancelled while others wait for it.
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(_look_at)
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed:
                raise Closed(self._name) from None
            raise

    async def _connect(self) -> Link:
        self._link = None
        options = self._topology.options
        loop = asyncio.get_running_loop()

        def new_link() -> Link:
            return Link(loop, options.timeout_s, self._on_push, self._on_lost)

        try:
            async with asyncio.timeout(options.connect_timeout_s):
                self._link = await self._topology.connect(new_link)
        except TimeoutError:
            raise CannotConnect(
                f"{options.describe()} did not answer within {options.connect_timeout_s:g} s"
            ) from None
        return self._link

    async def call(self, *words: Any, extra_s: float = 0.0) -> Any:
        """One command and its answer."""
        link = self._link
        if link is None or not link.is_open:
            link = await self.connect()
        if link.is_full:
            await link.room()
        try:
            return await link.send(*words, extra_s=extra_s)
        except Refused as error:
            if not await self._redirected(error, link):
                raise
        return await (await self.connect()).send(*words, extra_s=extra_s)

    async def script(self, name: str, *words: Any) -> Any:
        """Runs a script. One that the server does not know (a restart, a failover, SCRIPT FLUSH) is sent in full: it was not
        run, so this repeats nothing."""
        script = SCRIPTS[name]
        try:
            return await self.call(b"EVALSHA", script.sha, b"1", self._prefix, *words)
        except Refused as error:
            if error.code != "NOSCRIPT":
                raise
        return await self.call(b"EVAL", script.text, b"1", self._prefix, *words)

    async def _redirected(self, error: Refused, link: Link) -> bool:
        """Whether the call was refused because it belongs elsewhere, and may now be sent there."""
        if error.code in ("READONLY", "UNBLOCKED"):
            # It was demoted, and a blocking command ended for it: whoever calls next looks for the new master.
            link.end(ConnectionLost("the server became a replica"))
        elif error.code == "MOVED" and self._topology.options.cluster:
            address: Address = self._topology.moved(str(error))
            link.end(ConnectionLost(f"the project's keys moved to {address[0]}:{address[1]}"))
            return True
        return False

    def drop(self, why: str) -> None:
        """Gives the connection up; the next call makes another."""
        if self._link is not None:
            self._link.end(ConnectionLost(why))

    async def close(self) -> None:
        """Ends the connection. Calls that wait raise ``Closed``."""
        self._closed = True
        connecting = self._connecting
        if connecting is not None and not connecting.done():
            connecting.cancel()
            await asyncio.wait({connecting})
        if self._link is not None:
            self._link.end(Closed(self._name))
            self._link = None


def _look_at(task: asyncio.Task[Link]) -> None:
    """Who asked for the connection may be gone; then nobody asks what became of it, and the loop would complain."""
    if not task.cancelled():
        task.exception()
