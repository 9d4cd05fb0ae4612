"""One connection, many callers: how this driver talks to a NATS server.

Why an own one. The hot path of a task queue is thousands of small requests from many coroutines, whose replies come on one
inbox. nats-py makes a queue, a task or a time-out object per subscription or request, and parses with regular expressions;
measured on one machine, 64 coroutines paid 68 microseconds per acknowledged publish with it and under 10 with this, and a
``fetch`` of a hundred messages cost ten times what it costs here. The protocol is small:

* What is sent within one turn of the event loop leaves in one write.
* There is one subscription for all replies, ``_INBOX.<random>.*``; the last token says whose reply it is. A caller that
  was cancelled leaves its token behind, and the late reply is dropped. Replies that others want to hear as well come under
  subjects of their own (see ``Link.ask``), by a second subscription: that saves a message that tells them.
* **A broken connection fails everything that is owed** as :class:`ConnectionLost`, since it may have taken effect. Nothing
  is ever sent a second time from here: callers repeat, and every call is idempotent.
* Nobody answers a request to a stream without a leader, so each request has an end of its own; one timer looks at the
  oldest, as all have the same patience. If nothing at all was heard meanwhile, the connection is given up: a frozen server.

``Client`` keeps one such connection, makes it anew when it is gone, goes round the servers of the cluster, and subscribes
again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, cast

from omniq_core import Closed, TooLarge
from omniq_nats.errors import CannotConnect, ConnectionLost, Forbidden, NoAnswer, NotThere, Refused
from omniq_nats.options import NatsOptions
from omniq_nats.signing import proof

__all__ = ["Client", "Collector", "Heard", "Link", "Message", "Outgoing", "Reply", "answers_of", "forget"]

Reply: TypeAlias = tuple[bytes, bytes]
"""Header and payload of a reply; an empty header for none."""
Message: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""Subject, reply subject, header and payload of a message; empty for none."""
Heard: TypeAlias = Callable[[Message], None]
Outgoing: TypeAlias = tuple[bytes, bytes, bytes]
"""Subject, header (may be empty) and payload."""

NO_RESPONDERS = b"NATS/1.0 503"
ANSWERS, SHARED_ANSWERS = b"0", b"1"
"""The numbers of the two subscriptions for replies. Clients count theirs from 2."""
BOTH = frozenset({ANSWERS, SHARED_ANSWERS})


class Collector(Protocol):
    """Takes the many messages that answer one request."""

    def take(self, message: Message) -> bool:
        """Whether that was the last one."""
        ...


class _Owed:
    """The replies to some requests that were sent together."""

    __slots__ = ("answer", "found", "is_shared", "left", "sent_at", "subject")

    def __init__(
        self,
        answer: asyncio.Future[Any],
        count: int,
        sent_at: float,
        subject: bytes,
        *,
        is_shared: bool = False,
    ) -> None:
        self.answer = answer
        self.found: list[Any] = [None] * count
        self.left = count
        self.sent_at = sent_at
        self.subject = subject
        self.is_shared = is_shared


class Link(asyncio.Protocol):
    """An open connection. Belongs to the loop that made it.

    Args:
        loop: the running loop.
        timeout_s: how long an answer may take.
        on_lost: called once with the reason, when the connection has ended.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        on_lost: Callable[[Exception], None] | None = None,
    ) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._out: list[bytes] = []
        self._owed: dict[bytes, tuple[_Owed, int]] = {}
        self._last = 0
        self._heard: dict[bytes, Heard] = {}
        self._name = secrets.token_hex(8).encode()
        self._inbox = b"_INBOX.%s." % self._name
        self._shares: bytes | None = None
        self._pulled = b"_INBOX.%s" % secrets.token_hex(8).encode()
        self._idle_pulls: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._room: asyncio.Future[None] | None = None
        self._end: Exception | None = None
        self._pong: asyncio.Future[None] | None = None
        self.greeted: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.info: dict[str, Any] = {}
        self.is_open = False

    # --- saying -------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)

    def flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def hello(self, words: dict[str, Any]) -> asyncio.Future[None]:
        """Says who we are; the future ends when the server has let us in."""
        self._pong = self._loop.create_future()
        self._write(b"CONNECT " + json.dumps(words).encode() + b"\r\nPING\r\n")
        self._write(b"SUB %s* %s\r\n" % (self._inbox, ANSWERS))
        self.is_open = True
        return self._pong

    def publish(self, subject: bytes, payload: bytes = b"", reply: bytes = b"") -> None:
        """Sends a message. Nobody tells whether it arrived."""
        self._write(b"PUB %s %s %d\r\n%s\r\n" % (subject, reply, len(payload), payload))

    def publish_same(self, subjects: Sequence[bytes], payload: bytes) -> None:
        """Sends the same to several subjects."""
        if subjects:
            tail = b" %d\r\n%s\r\n" % (len(payload), payload)
            self._write(b"".join([b"PUB %s%s" % (subject, tail) for subject in subjects]))

    def send(self, data: bytes) -> None:
        """Sends whole messages now."""
        if data:
            self._write(data)
            self.flush()

    def subscribe(self, number: int, subject: bytes, heard: Heard) -> None:
        self._heard[b"%d" % number] = heard
        self._write(b"SUB %s %d\r\n" % (subject, number))

    def unsubscribe(self, number: int) -> None:
        if self._heard.pop(b"%d" % number, None) is not None:
            self._write(b"UNSUB %d\r\n" % number)

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(self, items: Sequence[Outgoing], share: bytes = b"") -> asyncio.Future[list[Reply]]:
        """Sends requests, and returns the future of their replies, by position.

        Args:
            items: the requests.
            share: the replies come under ``<share>.<last token of the request's subject>.>``, where others may hear them too.
                The same with each call that has it.
        """
        answer: asyncio.Future[list[Reply]] = self._loop.create_future()
        if not self.is_open:
            answer.set_exception(self._end or ConnectionLost("the connection is closed"))
            return answer
        count = len(items)
        owed = _Owed(answer, count, self._loop.time(), items[0][0], is_shared=bool(share))
        first = self._last + 1
        self._last += count
        tokens = [b"%d" % number for number in range(first, first + count)]
        self._owed.update(zip(tokens, zip(itertools.repeat(owed), range(count), strict=False), strict=True))
        inbox = self._inbox
        if share:
            if self._shares is None:
                self._shares = share
                self._write(b"SUB %s.*.%s.* %s\r\n" % (share, self._name, SHARED_ANSWERS))
            inboxes = [
                b"%s%s.%s." % (share, subject[subject.rfind(b".") :], self._name) for subject, _, _ in items
            ]
        else:
            inboxes = [inbox] * count
        self._write(
            b"".join(
                [
                    b"HPUB %s %s%s %d %d\r\n%s%s\r\n"
                    % (subject, inbox, token, len(header), len(header) + len(payload), header, payload)
                    if header
                    else b"PUB %s %s%s %d\r\n%s\r\n" % (subject, inbox, token, len(payload), payload)
                    for token, inbox, (subject, header, payload) in zip(tokens, inboxes, items, strict=True)
                ]
            )
        )
        if self._timer is None:
            self._arm(self._timeout_s)
        return answer

    def collect(self, subject: bytes, payload: bytes, collector: Collector) -> asyncio.Future[Any]:
        """Sends a request that is answered with many messages; the future ends with the last one.

        What is pulled from a stream comes under its own subject, so each such request has a subscription of its own while
        it lasts; they are used again and again.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            answer.set_exception(self._end or ConnectionLost("the connection is closed"))
            return answer
        if self._idle_pulls:
            sid = self._idle_pulls.pop()
        else:
            self._last += 1
            sid = b"P%d" % self._last
            self._write(b"SUB %s.%s %s\r\n" % (self._pulled, sid, sid))
        owed = _Owed(answer, 1, self._loop.time(), subject)
        self._owed[sid] = (owed, 0)

        def heard(message: Message) -> None:
            if not answer.done():
                try:
                    if not collector.take(message):
                        return
                except Exception as error:
                    answer.set_exception(error)
                else:
                    answer.set_result(None)
                    # Nothing more comes for it: the next request may have it. Else it may not.
                    del self._heard[sid]
                    self._owed.pop(sid, None)
                    self._idle_pulls.append(sid)
                    return
            elif not collector.take(message):  # its caller was cancelled: what still comes is for nobody else
                return
            self._forget_pull(sid)

        self._heard[sid] = heard
        self.publish(subject, payload, b"%s.%s" % (self._pulled, sid))
        if self._timer is None:
            self._arm(self._timeout_s)
        return answer

    def _forget_pull(self, sid: bytes) -> None:
        self._owed.pop(sid, None)
        if self._heard.pop(sid, None) is not None:
            self._write(b"UNSUB %s\r\n" % sid)

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
        now = self._loop.time()
        while self._owed:
            token, (owed, _) = next(iter(self._owed.items()))
            left = owed.sent_at + self._timeout_s - now
            if left > 0:
                self._arm(left)
                return
            if now - self._heard_at >= self._timeout_s:
                self.end(NoAnswer(f"the server has not said anything for {now - self._heard_at:.1f} s"))
                return
            del self._owed[token]
            self._forget_pull(token)
            if not owed.answer.done():
                owed.answer.set_exception(
                    NoAnswer(f"no answer to {_shown(owed.subject)} within {self._timeout_s:g} s")
                )

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._heard_at = self._loop.time()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # A peer that vanished without a word is noticed also on a connection that only listens.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def encrypt(self, context: ssl.SSLContext, hostname: str) -> None:
        """Goes on encrypted."""
        assert self._transport is not None
        transport = await self._loop.start_tls(self._transport, self, context, server_hostname=hostname)
        if transport is None:
            raise ConnectionLost("the connection broke during the TLS handshake")
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        self._heard_at = self._loop.time()
        at, size = 0, len(data)
        inbox_size = len(self._inbox)
        owed = self._owed
        try:
            while at < size:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                mark = data[at]
                if mark in (77, 72):  # MSG, HMSG
                    words = data[at:end].split(b" ")
                    total = int(words[-1])
                    start = end + 2
                    after = start + total
                    if after + 2 > size:
                        break
                    if mark == 72:
                        split = start + int(words[-2])
                        header, payload = data[start:split], data[split:after]
                        reply = words[3] if len(words) == 6 else b""
                    else:
                        header, payload = b"", data[start:after]
                        reply = words[3] if len(words) == 5 else b""
                    at = after + 2
                    number = words[2]
                    if number in BOTH:
                        subject = words[1]
                        token = subject[inbox_size if number == ANSWERS else subject.rfind(b".") + 1 :]
                        entry = owed.pop(token, None)
                        if entry is not None:
                            asked, index = entry
                            asked.found[index] = (header, payload)
                            asked.left -= 1
                            if not asked.left and not asked.answer.done():
                                asked.answer.set_result(asked.found)
                        continue
                    heard = self._heard.get(number)
                    if heard is not None:
                        heard((words[1], reply, header, payload))
                    continue
                line = data[at:end]
                at = end + 2
                self._said(line)
                if self._end is not None:
                    return
        except (ValueError, IndexError) as error:
            self.end(ConnectionLost(f"the server does not speak NATS' protocol: {error}"))
            return
        self._rest = data[at:]

    def _said(self, line: bytes) -> None:
        word = line[:4].upper()
        if word == b"PING":
            self._write(b"PONG\r\n")
        elif word == b"PONG":
            if self._pong is not None and not self._pong.done():
                self._pong.set_result(None)
        elif word == b"INFO":
            self.info = json.loads(line[5:])
            if not self.greeted.done():
                self.greeted.set_result(self.info)
        elif word == b"-ERR":
            self._complained(line[5:].strip(b" '").decode(errors="replace"))
        elif word != b"+OK":
            raise ValueError(f"got {line[:40]!r}")

    def _complained(self, what: str) -> None:
        lower = what.lower()
        if "permissions violation" in lower:
            # It names the subject, and goes on; nobody will answer that request, or we would not hear it.
            error: Exception = Refused(what, 403)
            is_ours = self._name.decode() in what
            if is_ours:
                self._shares = None
            for owed, _ in list(self._owed.values()):
                is_meant = owed.is_shared if is_ours else owed.subject.decode(errors="replace") in what
                if is_meant and not owed.answer.done():
                    owed.answer.set_exception(error)
            return
        is_ours = any(
            word in lower for word in ("authorization", "authentication", "account", "tls required")
        )
        self.end(
            Forbidden(f"the server does not let us in: {what}")
            if is_ours
            else ConnectionLost(f"the server said: {what}")
        )

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
        self._rest = b""
        self.resume_writing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        owed, self._owed = self._owed, {}
        for waiting in {id(entry[0]): entry[0] for entry in owed.values()}.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
        for future in (self.greeted, self._pong):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # asked for, should nobody wait any more
        if self._on_lost is not None:
            self._on_lost(error)


class Client:
    """One connection, made when it is needed and anew when it is gone.

    Args:
        options: the settings.
        on_lost: called with the reason when a connection has ended.
    """

    def __init__(self, options: NatsOptions, on_lost: Callable[[Exception], None] | None = None) -> None:
        self._options = options
        self._on_lost = on_lost
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._closed = False
        self._known: list[tuple[str, int]] = list(options.addresses)
        self._next = 0
        self._subscribed: dict[int, tuple[bytes, Heard]] = {}
        self._numbers = itertools.count(2)
        self.max_payload = 1024 * 1024

    # --- connecting ---------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self._link is not None and self._link.is_open

    @property
    def info(self) -> dict[str, Any]:
        """What the server said of itself."""
        return self._link.info if self._link is not None else {}

    async def link(self) -> Link:
        """The open connection, made now if there is none. Callers that come meanwhile share the attempt."""
        link = self._link
        if link is not None and link.is_open:
            if link.is_full:
                await link.room()
            return link
        if self._closed:
            raise Closed("nats")
        if self._connecting is None or self._connecting.done():
            # A task of its own, since its first caller may be cancelled while others wait for it.
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(_look_at)
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed:
                raise Closed("nats") from None
            raise

    async def _connect(self) -> Link:
        self._link = None
        options = self._options
        # Each time another one first: a server that is silent must not be the first for ever.
        start = self._next % len(self._known)
        addresses = self._known[start:] + self._known[:start]
        problems: list[str] = []
        refused = 0
        share_s = options.connect_timeout_s / len(addresses)
        for address in addresses:
            try:
                async with asyncio.timeout(share_s):
                    link = await self._reach(address)
            except (OSError, ConnectionLost, CannotConnect, TimeoutError, ssl.SSLError) as error:
                self._next += 1
                refused += isinstance(error, Forbidden)
                why = (
                    f"did not answer within {share_s:g} s" if isinstance(error, TimeoutError) else str(error)
                )
                problems.append(f"{address[0]}:{address[1]}: {why}")
                continue
            self._link = link
            self._learn(link.info)
            self.max_payload = int(link.info.get("max_payload", self.max_payload))
            for number, (subject, heard) in self._subscribed.items():
                link.subscribe(number, subject, heard)
            return link
        kind = Forbidden if refused == len(addresses) else CannotConnect
        raise kind(f"no NATS server lets us in: {'; '.join(problems)}")

    def _learn(self, info: dict[str, Any]) -> None:
        """Remembers the servers that this one tells of, so that one is left to ask when those in the settings are gone."""
        for text in info.get("connect_urls") or ():
            host, _, port = str(text).rpartition(":")
            address = host.strip("[]"), int(port)
            if address not in self._known and len(self._known) < 32:
                self._known.append(address)

    async def _reach(self, address: tuple[str, int]) -> Link:
        options = self._options
        loop = asyncio.get_running_loop()
        link = Link(loop, options.timeout_s, self._lost)
        host = options.tls_hostname or address[0]
        first = options.tls and options.tls_handshake_first
        context = options.ssl_context() if options.tls else None
        try:
            await loop.create_connection(
                lambda: link,
                *address,
                ssl=context if first else None,
                server_hostname=host if first else None,
            )
            info = await link.greeted
            encrypted = options.tls or bool(info.get("tls_required"))
            if encrypted and not first:
                await link.encrypt(context or options.ssl_context(), host)
            words = {
                "verbose": False,
                "pedantic": False,
                "tls_required": encrypted,
                "name": options.client_name,
                "lang": "python-omniq",
                "version": "0.1.0",
                "protocol": 1,
                "headers": True,
                "no_responders": True,
                **proof(options, str(info.get("nonce", ""))),
            }
            await link.hello(words)
        except BaseException:
            link.end(ConnectionLost("not let in"))
            raise
        return link

    def _lost(self, error: Exception) -> None:
        if self._on_lost is not None:
            self._on_lost(error)

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
            self._link.flush()
            self._link.end(Closed("nats"))
            self._link = None

    # --- talking ------------------------------------------------------------------------------------------------

    async def ask(self, subject: bytes, payload: bytes = b"", header: bytes = b"") -> Reply:
        """One request and its reply.

        Raises:
            NotThere: nobody listens to that subject.
        """
        [reply] = await self.ask_all([(subject, header, payload)])
        return reply

    async def ask_all(self, items: Sequence[Outgoing]) -> list[Reply]:
        """Requests that leave together, and their replies by position.

        Raises:
            NotThere: nobody listens to any of these subjects.
        """
        replies = await (await self.begin_all(items))
        answers_of(replies)
        return replies

    def check(self, items: Sequence[Outgoing]) -> None:
        """Refuses messages that the server would not take.

        Raises:
            TooLarge: that.
        """
        most = self.max_payload
        for _, header, payload in items:
            if len(payload) + len(header) > most:
                raise TooLarge(
                    f"a message of {len(payload)} bytes is over the server's max_payload of {most}: raise that, or send less",
                    "nats",
                )

    async def begin_all(self, items: Sequence[Outgoing], share: bytes = b"") -> asyncio.Future[list[Reply]]:
        """Sends requests now, and returns the future of their replies; ``share`` as with :meth:`Link.ask`."""
        self.check(items)
        link = await self.link()
        answer = link.ask(items, share)
        if len(items) > 1:
            link.flush()  # while we make the next ones, the server works on these
        return answer

    def ask_and_forget(self, subject: bytes, payload: bytes) -> None:
        """Sends a request if we are connected. Nobody waits for the answer."""
        if self._link is not None and self._link.is_open:
            forget(self._link.ask([(subject, b"", payload)]))

    async def collect(self, subject: bytes, payload: bytes, collector: Collector) -> None:
        """One request that is answered with many messages; returns after the last one."""
        await (await self.link()).collect(subject, payload, collector)

    def publish(self, subject: bytes, payload: bytes = b"") -> None:
        """Sends a message if we are connected. Nobody tells whether it arrived."""
        if self._link is not None and self._link.is_open:
            self._link.publish(subject, payload)

    def publish_all(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Sends messages if we are connected. Nobody tells whether they arrived."""
        link = self._link
        if link is not None and link.is_open:
            data = b"".join(
                [b"PUB %s %d\r\n%s\r\n" % (subject, len(payload), payload) for subject, payload in items]
            )
            if data:
                link._write(data)

    async def subscribe(self, subject: bytes, heard: Heard) -> int:
        """Has ``heard`` called with each message on a subject, over broken connections; the number is for `unsubscribe`."""
        number = self.listen(subject, heard)
        if not self.is_connected:
            await self.link()
        return number

    def listen(self, subject: bytes, heard: Heard) -> int:
        """The same, from when there is a connection: without waiting for one."""
        number = next(self._numbers)
        self._subscribed[number] = (subject, heard)
        link = self._link
        if link is not None and link.is_open:
            link.subscribe(number, subject, heard)
        return number

    def unsubscribe(self, number: int) -> None:
        """Ends a subscription. Again: nothing."""
        self._subscribed.pop(number, None)
        if self._link is not None and self._link.is_open:
            self._link.unsubscribe(number)


def answers_of(replies: Sequence[Reply]) -> list[bytes]:
    """The payloads of replies.

    Raises:
        NotThere: nobody listened to any of the requests.
        NoAnswer: nobody listened to some of them.
    """
    absent = sum([header[:12] == NO_RESPONDERS for header, _ in replies])
    if absent == len(replies):
        raise NotThere(
            "nobody answers: JetStream is off, is just starting, or a stream has no leader or is gone"
        )
    if absent:
        raise NoAnswer("JetStream went away between two messages")
    return [payload for _, payload in replies]


def forget(answer: asyncio.Future[Any]) -> None:
    """Nobody will ask what became of it, and the loop shall not complain."""
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())


def _shown(subject: bytes) -> str:
    return subject.decode(errors="replace")


def _look_at(task: asyncio.Task[Link]) -> None:
    """Who asked for the connection may be gone; then nobody asks what became of it, and the loop would complain."""
    if not task.cancelled():
        task.exception()
