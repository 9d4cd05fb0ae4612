"""JetStream's requests, in batches: publish with a condition, read, pull, delete."""

from __future__ import annotations

import asyncio
import base64
import datetime
import itertools
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from omniq_nats.connection import Client, Message, Outgoing, Reply, answers_of, forget
from omniq_nats.errors import ConnectionLost, Refused

__all__ = ["CONFLICT", "JetStream", "Stored", "Write", "head", "seconds_of"]

CONFLICT = 0
"""Instead of a sequence: the condition did not hold, and nothing was stored."""
WRONG_SEQUENCE = frozenset({10071, 10164, 10163})
"""The subject has another last message; or another write to it is just on its way."""
NOT_FOUND = 404
AT_ONCE = 1000
"""Most subjects of one reading, and messages of one atomic batch."""
WINDOW, WINDOW_BYTES, FLYING = 100, 2 * 1024 * 1024, 10
"""Messages and bytes that are sent together, and how many such windows are on their way at once."""
READ_AT_ONCE = 125
BATCH_BYTES = 16 * 1024 * 1024
PROBE, PROBE_EVERY, MANY, SLOW_S = 16, 50, 12, 200e-6
"""The first messages tell how long one takes. If it is longer than this, the server syncs each, and so many or more are sent
as an atomic batch: it costs the server a few milliseconds, and each message in it half as much again, but only one sync. Now
and then some are sent by themselves again, to see."""
EXPECTED = b"Nats-Expected-Last-Subject-Sequence: "
SEQUENCE, SUBJECT = b"Nats-Sequence: ", b"Nats-Subject: "
Write = tuple[str, bytes, bytes]
"""Subject, header (see :func:`head`) and payload."""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message as a stream keeps it."""

    seq: int
    subject: str
    payload: bytes
    at: float = 0.0
    """When it was stored, by the server's clock; only from :meth:`JetStream.page` and :meth:`JetStream.at`."""


def head(expected: int | None = None, ttl_s: int | None = None) -> bytes:
    """The header of a write.

    Args:
        expected: the sequence of the subject's last message; 0: it has none.
        ttl_s: after so many seconds the server deletes it.
    """
    if ttl_s is None:
        return b"" if expected is None else b"NATS/1.0\r\n%s%d\r\n\r\n" % (EXPECTED, expected)
    if expected is None:
        return b"NATS/1.0\r\nNats-TTL: %ds\r\n\r\n" % ttl_s
    return b"NATS/1.0\r\n%s%d\r\nNats-TTL: %ds\r\n\r\n" % (EXPECTED, expected, ttl_s)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _check(answer: Mapping[str, Any], what: str) -> None:
    error = answer.get("error")
    if error is not None:
        raise Refused(
            f"{what}: {error.get('description', error)}",
            int(error.get("code", 0)),
            int(error.get("err_code", 0)),
        )


def _sequence(payload: bytes) -> int:
    """What a publish was answered with: the sequence, or ``CONFLICT``."""
    if payload.startswith(b'{"stream":'):  # an error has a sequence too, but comes first
        try:
            return int(payload[payload.find(b'"seq":') + 6 : -1])  # {"stream":"NAME","seq":17}
        except ValueError:
            pass  # more follows
    answer = _decode(payload)
    if "error" in answer and answer["error"].get("err_code") in WRONG_SEQUENCE:
        return CONFLICT
    _check(answer, "publish")
    return int(answer["seq"])


class _Gathered:
    """Collects what a direct get finds."""

    def __init__(self, *, timed: bool = False) -> None:
        self.found: list[Stored] = []
        self.more = False
        self._timed = timed

    def take(self, message: Message) -> bool:
        header = message[2]
        if header[8:9] != b" ":  # no status: a message
            at = seconds_of(_word(header, b"Nats-Time-Stamp: ")) if self._timed else 0.0
            # Not by way of _word: thousands of these come at once.
            seq, subject = header.find(SEQUENCE), header.find(SUBJECT)
            if seq < 0 or subject < 0:
                raise ConnectionLost("a direct get was answered without a sequence and a subject")
            self.found.append(
                Stored(
                    int(header[seq + len(SEQUENCE) : header.find(b"\r", seq)]),
                    header[subject + len(SUBJECT) : header.find(b"\r", subject)].decode(),
                    message[3],
                    at,
                )
            )
            return False
        status = header[9:12]
        if status == b"204":
            self.more = b"Nats-Num-Pending: 0" not in header
            return True
        if status == b"404":
            return True
        code = int(status) if status.isdigit() else 0
        raise Refused("direct get: " + header[9:80].partition(b"\r")[0].decode(errors="replace"), code)


class _Pulled:
    """Collects what a consumer deals out."""

    def __init__(self, most: int) -> None:
        self.found: list[Message] = []
        self._most = most
        self.is_absent = False

    def take(self, message: Message) -> bool:
        if not message[1]:
            self.is_absent = message[2].startswith((b"NATS/1.0 503", b"NATS/1.0 409 Consumer Deleted"))
            return True
        self.found.append(message)
        return len(self.found) >= self._most


def _word(header: bytes, name: bytes) -> str:
    at = header.find(name)
    if at < 0:
        raise ConnectionLost(f"a direct get was answered without {name.decode()}")
    at += len(name)
    return header[at : header.find(b"\r\n", at)].decode()


def _number(header: bytes, name: bytes) -> int:
    return int(_word(header, name))


class JetStream:
    """The streams of one account, by way of one connection.

    Args:
        client: the connection.
        is_replicated: whether the streams have replicas; then what must not be stale is read from their leader.
    """

    def __init__(self, client: Client, *, is_replicated: bool) -> None:
        self.client = client
        self.is_replicated = is_replicated
        self._batches = itertools.count(1)
        self._batch_name = secrets.token_hex(6).encode()
        self._batching = asyncio.Semaphore(8)  # a stream takes 50 batches at once, of all clients
        self._pace_s = 0.0
        self._probe_in = 0

    async def api(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request to ``$JS.API``.

        Raises:
            Refused: it was answered with an error.
        """
        _, payload = await self.client.ask(f"$JS.API.{path}".encode(), _encode(body) if body else b"")
        answer = _decode(payload)
        _check(answer, path.lower())
        return answer

    # --- writing ------------------------------------------------------------------------------------------------

    async def write(self, items: Iterable[Write], share: str = "") -> list[int]:
        """Publishes each message by itself, in this order; the sequences, or ``CONFLICT``, by position.

        To a server that syncs each message, many are sent as one atomic batch, which is synced once. Only if a condition in
        it does not hold, each is sent by itself.

        Args:
            items: the messages.
            share: a message is said under ``<share>.<last token of its subject>.>`` for each that is stored, and maybe for
                others.
        """
        if self._probe_in == 0:
            made = list(items)
            found = await self._write_each(made[:PROBE], share)
            if len(made) <= PROBE:
                return found
            self._probe_in = PROBE_EVERY
            return found + await self.write(made[PROBE:], share)
        if not self.is_slow:
            return await self._write_each(items, share)
        self._probe_in -= 1
        found = []
        for part in _batches(items):
            stored = await self._write_many(part)
            if stored is None:
                stored = await self._write_each(part, share)
            elif share:  # only the last message of a batch is answered
                self.client.publish_all(
                    [(f"{share}.{subject.rpartition('.')[2]}.0".encode(), b"") for subject, _, _ in part]
                )
            found += stored
        return found

    @property
    def is_slow(self) -> bool:
        """Whether the server seems to sync each message."""
        return self._pace_s > SLOW_S

    async def _write_many(self, items: Sequence[Write]) -> list[int] | None:
        """All or none; ``None``: none."""
        if len(items) < MANY:
            return None
        try:
            last = await self.write_atomically(items)
        except Refused:  # too many batches at once, by all clients: nothing was stored
            return None
        return list(range(last - len(items) + 1, last + 1)) if last != CONFLICT else None

    async def _write_each(self, items: Iterable[Write], share: str = "") -> list[int]:
        began = time.monotonic()
        found = [_sequence(payload) for payload in await self._send(items, share)]
        if len(found) >= PROBE:
            # The quickest counts: a busy machine makes some slow, and a sync makes all.
            pace_s = (time.monotonic() - began) / len(found)
            self._pace_s = min(pace_s, self._pace_s * 1.1) if self._pace_s else pace_s
        return found

    async def _send(self, items: Iterable[Write], share: str = "") -> list[bytes]:
        found: list[bytes] = []
        shared = share.encode()
        waiting: deque[asyncio.Future[list[Reply]]] = deque()
        try:
            for window in _windows(items):
                if len(waiting) == FLYING:
                    found += answers_of(await waiting.popleft())
                waiting.append(await self.client.begin_all(window, shared))
            while waiting:
                found += answers_of(await waiting.popleft())
        except BaseException:
            for answer in waiting:
                forget(answer)
            raise
        return found

    async def write_one(self, subject: str, header: bytes, payload: bytes) -> int:
        """One message; its sequence, or ``CONFLICT``."""
        return _sequence((await self.client.ask(subject.encode(), payload, header))[1])

    async def write_once(self, items: Sequence[Write]) -> list[bool]:
        """Publishes messages that carry ids; for each whether its id was known already, and so nothing was stored."""
        known = []
        for payload in await self._send(items):
            _sequence(payload)
            known.append(b'"duplicate"' in payload)
        return known

    async def write_atomically(self, items: Sequence[Write]) -> int:
        """Publishes all messages or none; the sequence of the last, or ``CONFLICT`` if one condition did not hold.

        Args:
            items: at most 1000, of one stream. Their sequences follow each other.
        """
        async with self._batching:
            name = b"%s-%d" % (self._batch_name, next(self._batches))
            link = await self.client.link()
            self.client.check([(b"", header, payload) for _, header, payload in items])

            def head_of(number: int, header: bytes, more: bytes = b"") -> bytes:
                return b"%sNats-Batch-Id: %s\r\nNats-Batch-Sequence: %d\r\n%s\r\n" % (
                    header[:-2] or b"NATS/1.0\r\n",
                    name,
                    number,
                    more,
                )

            parts = []
            for number, (subject, header, payload) in enumerate(items[:-1], 1):
                head = head_of(number, header)
                parts.append(
                    b"HPUB %s %d %d\r\n%s%s\r\n"
                    % (subject.encode(), len(head), len(head) + len(payload), head, payload)
                )
                if len(parts) == WINDOW:
                    link.send(b"".join(parts))
                    parts.clear()
            link.send(b"".join(parts))
            subject, header, payload = items[-1]
            head = head_of(len(items), header, b"Nats-Batch-Commit: 1\r\n")
            replies = await link.ask([(subject.encode(), head, payload)])
            return _sequence(answers_of(replies)[0])

    # --- reading ------------------------------------------------------------------------------------------------

    async def newest(self, stream: str, subjects: Sequence[str], *, fresh: bool = False) -> dict[str, Stored]:
        """The last message of each subject that has one.

        Args:
            stream: its name.
            subjects: without wildcards.
            fresh: never from a replica that lags behind.
        """
        if fresh and self.is_replicated:
            return await self._newest_of_leader(stream, subjects)
        if len(subjects) == 1:
            header, payload = await self.client.ask(f"$JS.API.DIRECT.GET.{stream}.{subjects[0]}".encode())
            if header.startswith(b"NATS/1.0 404"):
                return {}
            stored = Stored(_number(header, b"Nats-Sequence: "), subjects[0], payload)
            return {stored.subject: stored}
        found: dict[str, Stored] = {}
        wanted = list(dict.fromkeys(subjects))
        target = f"$JS.API.DIRECT.GET.{stream}".encode()
        while wanted:
            link = await self.client.link()
            asked = []
            for start in range(0, len(wanted), READ_AT_ONCE):
                part = wanted[start : start + READ_AT_ONCE]
                gathered = _Gathered()
                body = _encode({"multi_last": part, "batch": len(part)})
                asked.append((gathered, part, link.collect(target, body, gathered)))
            wanted = []
            try:
                for gathered, part, answer in asked:
                    await answer
                    found.update([(stored.subject, stored) for stored in gathered.found])
                    # The server stops when it has sent enough bytes.
                    if gathered.more and gathered.found:
                        wanted += [subject for subject in part if subject not in found]
            except BaseException:
                for _, _, answer in asked:
                    forget(answer)
                raise
        return found

    async def bare(self, stream: str, sequences: Sequence[int]) -> list[bytes | None]:
        """The payloads of messages by their sequences, ``None`` where there is none; maybe from a replica that lags."""
        target = f"$JS.API.DIRECT.GET.{stream}".encode()
        replies = await self.client.ask_all(
            [(target, b"", b'{"seq":%d,"no_hdr":true}' % seq) for seq in sequences]
        )
        return [None if header else payload for header, payload in replies]  # only a refusal has a header

    async def at(self, stream: str, seq: int) -> Stored | None:
        """The message of a sequence, from the stream's leader."""
        _, payload = await self.client.ask(f"$JS.API.STREAM.MSG.GET.{stream}".encode(), b'{"seq":%d}' % seq)
        answer = _decode(payload)
        if answer.get("error", {}).get("code") == NOT_FOUND:
            return None
        _check(answer, "read")
        message = answer["message"]
        data = base64.b64decode(message.get("data", ""))
        return Stored(message["seq"], message["subject"], data, seconds_of(message["time"]))

    async def _newest_of_leader(self, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        target = f"$JS.API.STREAM.MSG.GET.{stream}".encode()
        for start in range(0, len(subjects), AT_ONCE):
            part = subjects[start : start + AT_ONCE]
            replies = await self.client.ask_all([(target, b"", _encode({"last_by_subj": s})) for s in part])
            for subject, (_, payload) in zip(part, replies, strict=True):
                answer = _decode(payload)
                error = answer.get("error")
                if error is not None and error.get("code") == NOT_FOUND:
                    continue
                _check(answer, "read")
                message = answer["message"]
                found[subject] = Stored(message["seq"], subject, base64.b64decode(message.get("data", "")))
        return found

    async def matching(self, stream: str, pattern: str) -> list[Stored]:
        """The last message of each subject that matches; for small streams."""
        found: dict[str, Stored] = {}
        async for page in self.walk(stream, pattern=pattern):
            found.update((stored.subject, stored) for stored in page)
        return list(found.values())

    async def page(
        self, stream: str, pattern: str, after: int, limit: int, *, timed: bool = False
    ) -> tuple[list[Stored], bool]:
        """Messages that match, in the order of the stream, and whether more may follow.

        Args:
            stream: its name.
            pattern: a subject, with wildcards or without.
            after: the sequence after which to begin.
            limit: at most so many.
            timed: tell when each was stored.
        """
        gathered = _Gathered(timed=timed)
        body = _encode({"seq": after + 1, "next_by_subj": pattern, "batch": limit})
        await self.client.collect(f"$JS.API.DIRECT.GET.{stream}".encode(), body, gathered)
        return gathered.found, gathered.more

    async def walk(self, stream: str, *, pattern: str = ">") -> AsyncIterator[list[Stored]]:
        """All messages, page by page. One that is written anew meanwhile comes again, as it is then.

        With a pattern the server looks through an index for each single message: only for small streams.
        """
        after = 0
        while True:
            found, more = await self.page(stream, pattern, after, AT_ONCE)
            if found:
                after = found[-1].seq
                yield found
            if not more or not found:
                return

    async def counts(self, stream: str, pattern: str) -> tuple[dict[str, int], float, float, float]:
        """How many messages each matching subject has; and the server's time, with when we asked and were answered (on the
        monotonic clock)."""
        asked = time.monotonic()
        answer = await self.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        answered = time.monotonic()
        subjects: dict[str, int] = answer["state"].get("subjects") or {}
        total = int(answer.get("total", 0))
        while len(subjects) < total:
            more = await self.api(
                f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": len(subjects)}
            )
            found = more["state"].get("subjects") or {}
            if not found:
                break
            subjects.update(found)
        return subjects, seconds_of(str(answer["ts"])), asked, answered

    # --- dealing ------------------------------------------------------------------------------------------------

    async def pull(self, stream: str, consumer: str, count: int) -> list[Message] | None:
        """At most ``count`` messages that nobody else is given now. ``None``: there is no such consumer."""
        pulled = _Pulled(count)
        body = b'{"batch":%d,"no_wait":true}' % count
        await self.client.collect(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode(), body, pulled)
        return None if pulled.is_absent and not pulled.found else pulled.found

    async def acknowledge(self, places: Sequence[bytes], word: bytes = b"+ACK", *, wait: bool = True) -> None:
        """Answers dealt messages.

        Args:
            places: their reply subjects, of one consumer.
            word: what to answer.
            wait: return when the server has heard it.
        """
        if not places:
            return
        link = await self.client.link()
        link.publish_same(places[:-1] if wait else places, word)
        if wait:
            await link.ask([(places[-1], b"", word)])

    # --- deleting -----------------------------------------------------------------------------------------------

    async def delete(self, stream: str, sequences: Sequence[int]) -> list[bool]:
        """Deletes messages by their sequence; whether each was there. A compare-and-delete: a newer one of that subject
        has another sequence."""
        target = f"$JS.API.STREAM.MSG.DELETE.{stream}".encode()
        found: list[bool] = []
        for start in range(0, len(sequences), AT_ONCE):
            part = sequences[start : start + AT_ONCE]
            replies = await self.client.ask_all(
                [(target, b"", b'{"seq":%d,"no_erase":true}' % seq) for seq in part]
            )
            for _, payload in replies:
                answer = _decode(payload)
                error = answer.get("error")
                # "no message found" has a number of its own, and the code of a server error.
                if error is not None and error.get("err_code") not in (10037, 10043, 10057):
                    _check(answer, "delete")
                found.append(error is None and bool(answer.get("success")))
        return found

    def purge_soon(self, stream: str, subject: str) -> None:
        """Deletes all messages of a subject. Nobody waits for it."""
        self.client.ask_and_forget(f"$JS.API.STREAM.PURGE.{stream}".encode(), _encode({"filter": subject}))

    async def purge(self, stream: str, subject: str, before: int | None = None) -> int:
        """Deletes all messages of a subject, up to a sequence if one is given; how many."""
        body: dict[str, Any] = {"filter": subject}
        if before is not None:
            body["seq"] = before
        return int((await self.api(f"STREAM.PURGE.{stream}", body)).get("purged", 0))


def _batches(items: Iterable[Write]) -> Iterable[Sequence[Write]]:
    """Cut so that a batch is not too large for the server."""
    part: list[Write] = []
    size = 0
    for item in items:
        if part and (len(part) == AT_ONCE or size > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item[2])
    if part:
        yield part


def _windows(items: Iterable[Write]) -> Iterable[list[Outgoing]]:
    """Cut so that what is on its way fits into the server's buffer for one stream."""
    window: list[Outgoing] = []
    size = 0
    for subject, header, payload in items:
        if window and (len(window) == WINDOW or size > WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append((subject.encode(), header, payload))
        size += len(payload)
    if window:
        yield window


def seconds_of(stamp: str) -> float:
    """A server's time stamp, RFC 3339 with up to nanoseconds, as seconds since the epoch."""
    whole, _, rest = stamp.rstrip("Z").partition(".")
    at = datetime.datetime.fromisoformat(whole + "+00:00").timestamp()
    return at + (float("0." + rest) if rest else 0.0)
