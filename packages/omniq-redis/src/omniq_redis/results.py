"""Result records, and waiting for them by being told.

Who waits for a result leaves its client's name at ``wt:<id>`` and looks once, in one script, so nothing falls between. Who
stores a final record finds the name there and publishes the id to that client's own channel, all ids of a batch in one
message. So a result that nobody waits for costs one look at ``wt``, and nobody is told what others wait for.

The subscription is one connection per backend, made by the first wait. A name is left for two minutes and renewed while
somebody waits; after the connection was lost all names are left anew, which looks again.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

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
_decode_ids = msgspec.msgpack.Decoder(list[str]).decode


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
            if left_s > 0 and not look_first:
                await self._told.wait(task_ids, left_s)
            look_first = False
            found = await self.get(task_ids)
            left_s = end - asyncio.get_running_loop().time()
            if not task_ids or left_s <= 0 or any(record is not None and record.final for record in found):
                return found


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
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._left: dict[str, float] = {}  # ids at which our name stands, and since when
        self._confirmed: asyncio.Future[None] | None = None
        self._is_closed = False

    def attach(self, subscribed: Client) -> None:
        """Gives the connection to subscribe on. It calls back, so it is made after this object."""
        self._subscribed = subscribed

    @property
    def is_subscribed(self) -> bool:
        return self._confirmed is not None and self._confirmed.done()

    async def wait(self, task_ids: Sequence[str], timeout_s: float) -> None:
        """Returns when one of the tasks may have a final record, or when it is time to look again."""
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._await(task_ids, news)
        try:
            async with asyncio.timeout(timeout_s):
                await self._subscribe()
                if not await self._leave_name(task_ids):
                    await asyncio.wait({news}, timeout=RENEW_S)
        except TimeoutError:
            return
        finally:
            self._forget(task_ids, news)
            if not news.cancel():
                news.exception()  # asked for, should something else have been raised first
        if not news.cancelled():
            news.result()

    def _await(self, task_ids: Iterable[str], news: asyncio.Future[None]) -> None:
        for task_id in task_ids:
            self._waiting.setdefault(task_id, set()).add(news)

    def _forget(self, task_ids: Iterable[str], news: asyncio.Future[None]) -> None:
        for task_id in task_ids:
            waiting = self._waiting.get(task_id)
            if waiting is not None:
                waiting.discard(news)
                if not waiting:
                    del self._waiting[task_id]

    async def _leave_name(self, task_ids: Sequence[str]) -> bool:
        """Leaves our name where it is missing or old; whether one of those has a final record."""
        now = asyncio.get_running_loop().time()
        if len(self._left) > 10_000:
            self._left = {task_id: since for task_id, since in self._left.items() if now - since < RENEW_S}
        missing = [task_id for task_id in task_ids if now - self._left.get(task_id, -KEEP_S) >= RENEW_S]
        if not missing:
            return False
        # Noted before the answer comes: its news may come first.
        self._left.update(dict.fromkeys(missing, now))
        try:
            found = await self._client.script("watch", self._name, millis(KEEP_S), *missing)
        except BaseException:
            for task_id in missing:
                self._left.pop(task_id, None)
            raise
        records = map(_record, missing, found)
        return any(record is not None and record.final for record in records)

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
            for task_id in _decode_ids(message[2]):
                self._left.pop(task_id, None)
                for news in self._waiting.get(task_id, ()):
                    if not news.done():
                        news.set_result(None)
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
                if not news.done():
                    news.set_result(None)

    async def close(self) -> None:
        """Ends all waits with ``Closed``."""
        self._is_closed = True
        for waiting in self._waiting.values():
            for news in waiting:
                if not news.done():
                    news.set_exception(Closed("redis"))
