"""A TCP proxy that does to a connection what networks do, when a test says so."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from omniq_conformance.servers.base import LOOPBACK, HeldPort

Direction = Literal["both", "requests", "replies"]

_PORTS = {
    "postgresql": 5432,
    "postgres": 5432,
    "redis": 6379,
    "rediss": 6379,
    "nats": 4222,
    "http": 80,
    "https": 443,
}  # when a URL says none
_CHUNK = 16 * 1024


@dataclasses.dataclass
class Counters:
    """What has passed so far. A chunk is what one read found: usually, but not surely, one message."""

    accepted: int = 0
    """Connections that clients have made."""
    open: int = 0
    """Those that are open now."""
    requests: int = 0
    """Chunks forwarded to the server."""
    replies: int = 0
    """Chunks forwarded to the client."""
    request_bytes: int = 0
    reply_bytes: int = 0
    reset: int = 0
    """Connections that we have reset, because the test said so or because the other side was reset or is not there."""
    swallowed: int = 0
    """Replies that we have swallowed."""


@dataclasses.dataclass
class _Swallow:
    skip: int
    left: int
    predicate: Callable[[bytes], bool] | None


class _ReplySwallowed(Exception):
    pass


class Proxy:
    """A proxy in front of a server, on a port of its own; forwards faithfully until told otherwise.

    It lives in a thread of its own. Every method may be called from any thread, also from a coroutine, as none waits for the
    network; each has taken effect when it returns. What is set holds for open and new connections until :meth:`heal`.
    """

    def __init__(self, target: str | tuple[str, int], *, seed: int = 0) -> None:
        """In front of a URL or an address. `seed` is for the jitter."""
        if isinstance(target, str):
            url = urlsplit(target)
            target = url.hostname or LOOPBACK, url.port or _PORTS[url.scheme]
        self._target = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)[0]
        self._random = random.Random(seed)
        self._counters = Counters()
        self._changed = threading.Condition()
        self._links: set[asyncio.Task[bool]] = set()
        self._listener: socket.socket | None = None
        self._delay = self._jitter = 0.0
        self._rate: float | None = None
        self._swallow: _Swallow | None = None
        self._held = HeldPort()
        # Not what a policy would make, such as uvloop's: sockets are closed here under the loop's feet.
        self._loop = asyncio.SelectorEventLoop()
        self._flow = {True: asyncio.Event(), False: asyncio.Event()}  # by direction: is it a request?
        self._thread = threading.Thread(target=self._loop.run_forever, name="omniq-test-proxy", daemon=True)
        self._thread.start()
        self.heal()

    @property
    def port(self) -> int:
        return self._held.number

    def url_for(self, url: str) -> str:
        """The URL with our address in place of the server's; user, password, path and options stay."""
        parts = urlsplit(url)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return parts._replace(netloc=f"{login}{LOOPBACK}:{self.port}").geturl()

    @property
    def counters(self) -> Counters:
        """The counters at this moment."""
        with self._changed:
            return dataclasses.replace(self._counters)

    def wait_for(self, condition: Callable[[Counters], bool], timeout: float = 10.0) -> Counters:
        """Wait until the counters say so; a coroutine calls this in a thread.

        Raises:
            TimeoutError: they have not within the timeout.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._counters), timeout):
                raise TimeoutError(f"not within {timeout} s: {self._counters}")
            return dataclasses.replace(self._counters)

    def heal(self) -> None:
        """Forward faithfully again, and accept connections. What a half-open link has kept back arrives now."""
        self._delay = self._jitter = 0.0
        self._rate = self._swallow = None
        self._do(self._listen, *(event.set for event in self._flow.values()))

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Each chunk arrives `seconds` ± `jitter` later, in order, in both directions: a round trip takes twice that."""
        self._delay, self._jitter = seconds, jitter

    def throttle(self, bytes_per_second: float | None) -> None:
        """A slow line: so many bytes per second, for each connection and direction. None is as fast as it goes."""
        self._rate = bytes_per_second

    def cut(self) -> None:
        """Reset every open connection, on both sides. New ones are accepted."""
        self._wait(self._cut())

    def refuse(self) -> None:
        """Refuse new connections. Open ones stay."""
        self._do(self._unlisten)

    def accept(self) -> None:
        """Undo :meth:`refuse`."""
        self._do(self._listen)

    def half_open(self, direction: Direction = "both") -> None:
        """Stop forwarding without a word: no data, no FIN. Connections stay open, and new ones are made but lead nowhere.

        With ``replies``, requests still reach the server: a partition that works one way.
        """
        for requests, event in self._flow.items():
            if direction == "both" or (direction == "requests") == requests:
                self._do(event.clear)

    def swallow_reply(
        self, n: int = 1, predicate: Callable[[bytes], bool] | None = None, *, skip: int = 0
    ) -> None:
        """Of the next `n` requests that match, forward the request, drop the reply, and reset the client's connection.

        The server has done what it was asked, and its connection ends with a FIN only after it has answered: the client
        cannot know. `skip` matching requests pass unharmed first.

        `predicate` sees a chunk from a client, raw: it must match what makes the server *act*. A client that prepares
        statements sends their text once, and later only their name and arguments. Without it the next chunk matches; a new
        connection begins with its greeting.
        """
        self._swallow = _Swallow(skip, n, predicate)

    def close(self) -> None:
        """Reset every connection and end the thread."""
        if not self._loop.is_closed():
            self.refuse()
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # From here on everything runs in the thread.

    def _do(self, *actions: Callable[[], object]) -> None:
        async def act() -> None:
            for action in actions:
                action()

        self._wait(act())

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _end(self, *tasks: asyncio.Task[Any]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, **changes: int) -> None:
        with self._changed:
            for name, change in changes.items():
                setattr(self._counters, name, getattr(self._counters, name) + change)
            self._changed.notify_all()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.release()
            self._listener.bind((LOOPBACK, self.port))
            self._listener.listen(128)
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._take)

    def _unlisten(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _take(self) -> None:
        while self._listener is not None:
            try:
                client = self._listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                return
            self._begin(client)

    async def _cut(self) -> None:
        self._take()  # for a client a connection is open before we have looked
        await self._end(*self._links)

    def _begin(self, client: socket.socket) -> None:
        self._count(accepted=1, open=1)
        link = self._loop.create_task(self._link(client))
        self._links.add(link)
        link.add_done_callback(functools.partial(self._ended, client))

    def _ended(self, client: socket.socket, link: asyncio.Task[bool]) -> None:
        # Here and not in the task: one that is cancelled before its first step never runs.
        self._links.discard(link)
        clean = not link.cancelled() and link.result()
        if clean:
            client.close()
        else:
            _reset(client)
        self._count(open=-1, reset=0 if clean else 1)

    async def _link(self, client: socket.socket) -> bool:
        """One connection, from its beginning to its end. Answers whether there is nobody left to reset."""
        server = socket.socket(self._target[0])
        doomed: list[
            _Swallow
        ] = []  # what the reader of replies has to know: a request that matched is on its way
        pumps: list[asyncio.Task[None]] = []
        try:
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(server, self._target[4])
            for source, sink, requests in ((client, server, True), (server, client, False)):
                pumps += [self._loop.create_task(step) for step in self._pump(source, sink, requests, doomed)]
            await asyncio.gather(*pumps)
            server.close()
            return True
        except _ReplySwallowed:
            await self._end(*pumps)
            _reset(client)
            self._count(reset=1, swallowed=1)
            await self._drain(server)
            server.close()
            return True
        except OSError:
            return False  # one side was reset, or the server is not there: the other learns it by a reset
        finally:
            try:
                await self._end(*pumps)
            finally:
                _reset(server)

    async def _drain(self, server: socket.socket) -> None:
        try:
            server.shutdown(socket.SHUT_WR)  # it finishes what it was sent, and sees us leave in order
            while await self._loop.sock_recv(server, _CHUNK):
                pass
        except OSError:
            pass  # it did not wait for us

    def _pump(
        self, source: socket.socket, sink: socket.socket, requests: bool, doomed: list[_Swallow]
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        """One direction: a reader and a writer, with the line between them, so that a delay does not become a throttle."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(16)

        async def read() -> None:
            due = 0.0
            while True:
                data = await self._loop.sock_recv(source, _CHUNK)
                if data and not requests and doomed:
                    raise _ReplySwallowed
                wait = self._delay + self._random.uniform(-self._jitter, self._jitter)
                due = max(due, self._loop.time() + wait)
                await line.put((due, data))
                if not data:
                    return

        async def write() -> None:
            while True:
                due, data = await line.get()
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self._flow[requests].wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if requests and (swallow := self._matches(data)):
                    doomed.append(swallow)
                await self._send(sink, data)
                if requests:
                    self._count(requests=1, request_bytes=len(data))
                else:
                    self._count(replies=1, reply_bytes=len(data))

        return read(), write()

    async def _send(self, sink: socket.socket, data: bytes) -> None:
        while data:
            rate = self._rate
            # Small steps, so that a slow line is slow and not now and then.
            size = len(data) if rate is None else max(1, int(rate / 20))
            piece, data = data[:size], data[size:]
            if rate is not None:
                await asyncio.sleep(len(piece) / rate)
            await self._loop.sock_sendall(sink, piece)

    def _matches(self, data: bytes) -> _Swallow | None:
        swallow = self._swallow
        if swallow is None or not (swallow.predicate is None or swallow.predicate(data)):
            return None
        if swallow.skip:
            swallow.skip -= 1
            return None
        swallow.left -= 1
        if not swallow.left:
            self._swallow = None
        return swallow


def _reset(end: socket.socket) -> None:
    """Close with a RST."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # it is closed already
    end.close()
