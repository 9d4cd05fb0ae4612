"""Result records, and waiting for them by being told.

Who waits for a result leaves its client's name at ``wt:<id>`` and looks once, in one script, so nothing falls between. Who
stores a final record finds the name there and publishes id and record to that client's own channel, all of a batch in one
message; of a message's 64 KiB and more, the ids alone, and the records are asked for. So a result that nobody waits for
costs one look, one that is waited for comes without being asked for, and nobody is told what others wait for.

The subscription is one connection per backend, made by the first wait. A name is left for two minutes and renewed while
somebody waits; after the connection was lost all names are left anew, which looks again.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omniq_core import Closed, Outcome, ResultRecord, ResultStore
from omniq_redis.connection import Client
from omniq_redis.envelope import STATE_OF, millis
from omniq_redis.errors import Refused
from omniq_redis.options import RedisOptions

__all__ = ["RedisResultStore", "Told"]

PUT = {"o": Outcome.OK, "d": Outcome.DUPLICATE, "s": Outcome.STALE}
LETTER_OF = {state: letter for letter, state in STATE_OF.items()}
_HEAD = struct.Struct(">ddd2s")  # stored, expires (ms), fence, then a letter for the state and '1' if final
KEEP_S, RENEW_S = 120.0, 30.0
"""How long a name is left, and when it is renewed, in seconds."""
_LENGTHS = struct.Struct(">HI")  # of an id and of its record, in a message


def _record(task_id: str, raw: bytes | None) -> ResultRecord | None:
    if raw is None:
        return None
    stored, expires, fence, kind = _HEAD.unpack_from(raw)
    return ResultRecord(
        task_id,
        int(fence),
        STATE_OF[chr(kind[0])],
        raw[_HEAD.size :],
        (expires - stored) / 1000,
        kind[1:] == b"1",
        stored / 1000,
        expires / 1000,
    )


def _told_of(message: bytes) -> Iterator[tuple[str, bytes]]:
    """The ids and records of a message; a record that did not come along is empty."""
    at = 0
    while at < len(message):
        of_id, of_record = _LENGTHS.unpack_from(message, at)
        id_at = at + _LENGTHS.size
        record_at = id_at + of_id
        at = record_at + of_record
        yield message[id_at:record_at].decode(), message[record_at:at]


class RedisResultStore(ResultStore):
    """See :class:`omniq_core.ResultStore`."""

    def __init__(self, client: Client, told: Told, options: RedisOptions) -> None:
        self._client = client
        self._told = told
        self._retention_ms = max(1, millis(options.retention_s))

    async def put(self, records: Sequence[ResultRecord], /) -> Sequence[Outcome]:
        if not records:
            return []
        words: list[Any] = []
        for record in records:
            ttl_ms = self._retention_ms if record.ttl_s is None else max(1, millis(record.ttl_s))
            words += (
                record.task_id, record.fence, "1" if record.final else "0", ttl_ms, LETTER_OF[record.state], record.body,
            )  # fmt: skip
        return [PUT[letter] for letter in (await self._client.script("put", *words)).decode()]

    async def get(self, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        if not task_ids:
            return []
        found = await self._client.call("MGET", *(self._client.key(f"r:{task_id}") for task_id in task_ids))
        return list(map(_record, task_ids, found))

    async def delete(self, task_ids: Sequence[str], /) -> int:
        if not task_ids:
            return 0
        count: int = await self._client.call(
            "UNLINK", *(self._client.key(f"r:{task_id}") for task_id in task_ids)
        )
        return count

    async def wait(self, task_ids: Sequence[str], /, *, timeout_s: float) -> Sequence[ResultRecord | None]:
        end = asyncio.get_running_loop().time() + timeout_s
        left_s = timeout_s if task_ids else 0.0
        # Who is subscribed looks when it leaves its name; before that a look may save the subscription.
        look_first = not self._told.is_subscribed
        while True:
            known: dict[str, ResultRecord | None] = {}
            if left_s > 0 and not look_first:
                known = await self._told.wait(task_ids, left_s)
            look_first = False
            rest = [task_id for task_id in task_ids if task_id not in known] if known else task_ids
            if rest:
                known.update(zip(rest, await self.get(rest), strict=True))
            left_s = end - asyncio.get_running_loop().time()
            if (
                not task_ids
                or left_s <= 0
                or any(record is not None and record.final for record in known.values())
            ):
                return [known[task_id] for task_id in task_ids]


class _News:
    """What one wait is told."""

    __slots__ = ("came", "records")

    def __init__(self) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.records: dict[str, ResultRecord | None] = {}
        """As they were when the server told of them, the latest of each."""

    def tell(self) -> None:
        if not self.came.done():
            self.came.set_result(None)


class Told:
    """The subscription of one backend, and who waits for what.

    Args:
        client: the backend's common connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name = secrets.token_hex(8)
        self._channel = client.key(f"n:{self._name}")
        self._subscribed: Client | None = None
        self._waiting: dict[str, set[_News]] = {}
        self._left: dict[str, float] = {}  # ids at which our name stands, and since when
        self._confirmed: asyncio.Future[None] | None = None
        self._is_closed = False

    def attach(self, subscribed: Client) -> None:
        """Gives the connection to subscribe on. It calls back, so it is made after this object."""
        self._subscribed = subscribed

    @property
    def is_subscribed(self) -> bool:
        return self._confirmed is not None and self._confirmed.done()

    async def wait(self, task_ids: Sequence[str], timeout_s: float) -> dict[str, ResultRecord | None]:
        """Returns when one of the tasks may have a final record, or when it is time to look again; with what is known of
        some of the tasks, if they need not be looked at."""
        news = _News()
        self._await(task_ids, news)
        try:
            async with asyncio.timeout(min(timeout_s, RENEW_S)):
                await self._subscribe()
                found = await self._leave_name(task_ids)
                if any(record is not None and record.final for record in found.values()):
                    return found
                await news.came
        except TimeoutError:
            return {}
        finally:
            self._forget(task_ids, news)
            if not news.came.cancel() and not news.came.cancelled():
                news.came.exception()  # asked for, should something else have been raised first
        return news.records

    def _await(self, task_ids: Iterable[str], news: _News) -> None:
        for task_id in task_ids:
            self._waiting.setdefault(task_id, set()).add(news)

    def _forget(self, task_ids: Iterable[str], news: _News) -> None:
        for task_id in task_ids:
            waiting = self._waiting.get(task_id)
            if waiting is not None:
                waiting.discard(news)
                if not waiting:
                    del self._waiting[task_id]

    async def _leave_name(self, task_ids: Sequence[str]) -> dict[str, ResultRecord | None]:
        """Leaves our name where it is missing or old; what there is of those."""
        now = asyncio.get_running_loop().time()
        if len(self._left) > 10_000:
            self._left = {task_id: since for task_id, since in self._left.items() if now - since < RENEW_S}
        missing = [task_id for task_id in task_ids if now - self._left.get(task_id, -KEEP_S) >= RENEW_S]
        if not missing:
            return {}
        # Noted before the answer comes: its news may come first.
        self._left.update(dict.fromkeys(missing, now))
        try:
            found = await self._client.script("watch", self._name, millis(KEEP_S), *missing)
        except BaseException:
            for task_id in missing:
                self._left.pop(task_id, None)
            raise
        return dict(zip(missing, map(_record, missing, found), strict=True))

    async def _subscribe(self) -> None:
        if self._is_closed or self._subscribed is None:
            raise Closed("redis")
        confirmed = self._confirmed
        if confirmed is None:
            link = await self._subscribed.connect()
            confirmed = self._confirmed
            if confirmed is None:
                confirmed = self._confirmed = asyncio.get_running_loop().create_future()
                link.post("SSUBSCRIBE", self._channel)
        if not confirmed.done():
            await asyncio.wait({confirmed})
        if not confirmed.cancelled():
            confirmed.result()

    def pushed(self, message: list[Any]) -> None:
        """Takes what the server pushes."""
        kind = message[0]
        if kind == b"smessage":
            for task_id, raw in _told_of(message[2]):
                self._left.pop(task_id, None)
                waiting = self._waiting.get(task_id)
                if waiting:
                    record = _record(task_id, raw) if raw else None
                    for news in waiting:
                        if record is not None:
                            news.records[task_id] = record
                        else:
                            news.records.pop(task_id, None)
                        news.tell()
        elif kind == b"ssubscribe" and self._confirmed is not None and not self._confirmed.done():
            self._confirmed.set_result(None)
        elif kind == b"sunsubscribe" and self._subscribed is not None:
            self._subscribed.drop("the project's slot moved to another node, and its channels with it")

    def lost(self, error: Exception) -> None:
        """The connection broke: whoever waits leaves its name and looks again."""
        confirmed, self._confirmed = self._confirmed, None
        if confirmed is not None and not confirmed.done():
            if isinstance(error, Refused):  # no right to subscribe: trying again would not help
                confirmed.set_exception(error)
            else:
                confirmed.cancel()
        self._left.clear()
        for waiting in self._waiting.values():
            for news in waiting:
                news.tell()

    async def close(self) -> None:
        """Ends all waits with ``Closed``."""
        self._is_closed = True
        for waiting in self._waiting.values():
            for news in waiting:
                if not news.came.done():
                    news.came.set_exception(Closed("redis"))
