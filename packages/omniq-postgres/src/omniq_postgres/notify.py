"""Waking those who wait, in this process and in others, by ``LISTEN`` and ``NOTIFY``.

``NOTIFY`` takes a lock of the whole server while its transaction commits, so none is ever a part of an enqueue or a settle:
in a measurement that cut 32 producers to a third. Instead each process tells once and then once per 10 ms at most (1 ms
where there is little to tell), after the commits. The first notification travels with the call that it is about, behind
it, as a transaction of its own: the server need not be asked twice. What comes too soon after that is collected, and goes
with a later call or by itself, on a connection of its own (through a pooler, always so).

What is lost between a commit and its notification (a killed process), and what was enqueued inside the caller's own
transaction, is found by the waiters themselves, who look every ``poll_interval_s``.

A notification names nobody: it holds a 4-byte checksum of each queue that got something and of each task whose result
came. So any name fits, 1200 results fit into one, and a false alarm costs a look.

A few small results travel with the notification that is sent behind their settlement, so that their waiters need not ask
for them. The server puts them in, from what was committed. A notification may be late, so who waits believes only what was
settled after it had looked itself. All processes of a schema get them, so many or large ones are not sent; and nobody else,
as the channel's name is random and stands in the schema.
"""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import psycopg

from omniq_core import Closed, ResultRecord
from omniq_postgres.connection import Link, Row
from omniq_postgres.leases import STATES
from omniq_postgres.options import PostgresOptions
from omniq_postgres.pool import Pool, open_session
from omniq_postgres.statements import NOTIFY, TELL, Statement

__all__ = ["Bell", "Ended", "Listener", "Ringer", "checksum"]

QUEUE, RESULT, EVENTS, RECORD = "q", "r", "e", "R"
Key = tuple[str, int]
ANY_EVENT: Key = (EVENTS, 0)

FEW = 8
FEW_S, BURST_S = 0.001, 0.01
"""How long after a notification the next one may follow: soon where there was little to tell, as for a lone producer that
waits for each result, and once per 10 ms under load. One that tells of events alone follows 10 ms after any other."""
GRACE_S = 0.0005
"""How much longer to wait for a call that takes a notification along."""
LARGEST = 1200
"""Checksums in one notification: 6.4 kB in base64, of the 8 kB that PostgreSQL allows."""
LARGEST_TOLD = 1000
"""Bytes of results, with ids and the like, that travel with a notification: 2 kB in hexadecimal digits."""
HEARTBEAT_S = 5.0
"""How often a listening connection that hears nothing is asked whether it still lives."""
LATER_S = (0.01, 0.1, 0.5)
"""When to tell of a transaction of the caller's, whose commit nobody tells us of."""


_RECORD = struct.Struct(">qhddi")  # fence, state, stored at, until; length of the id


def checksum(name: str) -> int:
    """The same in every process."""
    return zlib.crc32(name.encode())


class Ended(NamedTuple):
    """A settlement with a result."""

    seq: int
    fence: int
    size: int
    """Of its id and its result, in bytes."""


class Bell:
    """The coroutines of this process that wait, and how often each queue was rung.

    A waiter that looks, finds nothing and then waits must not sleep through what came in between: it remembers the count
    from before its look.
    """

    def __init__(self) -> None:
        self._rings: dict[int, int] = {}  # of the queues that are known here; others are nobody's business
        self._all = 0
        self._waiting: dict[Key, set[asyncio.Future[Sequence[ResultRecord]]]] = {}
        self.is_closed = False

    def count(self, queue: int) -> int:
        return self._rings.setdefault(queue, 0) + self._all

    def ring(self, key: Key, told: Sequence[ResultRecord] = ()) -> None:
        """Wakes who waits for a key, with what came along."""
        if key[0] == QUEUE and key[1] in self._rings:
            self._rings[key[1]] += 1
        for waiter in self._waiting.pop(key, ()):
            if not waiter.done():
                waiter.set_result(told)

    def ring_all(self) -> None:
        """After a time in which notifications may have been missed."""
        self._all += 1
        for key in list(self._waiting):
            self.ring(key)

    def close(self) -> None:
        self.is_closed = True
        self.ring_all()

    def awaits(self, keys: Iterable[Key]) -> bool:
        """Whether anybody waits for one of these."""
        return not self._waiting.keys().isdisjoint(keys)

    def waiter(self, keys: Iterable[Key]) -> asyncio.Future[Sequence[ResultRecord]]:
        """A future that the next ring of one of the keys sets. Give it to :meth:`forget` in the end."""
        future: asyncio.Future[Sequence[ResultRecord]] = asyncio.get_running_loop().create_future()
        for key in keys:
            self._waiting.setdefault(key, set()).add(future)
        return future

    def forget(self, future: asyncio.Future[Sequence[ResultRecord]], keys: Iterable[Key]) -> None:
        for key in keys:
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[key]

    async def sleep(self, future: asyncio.Future[Sequence[ResultRecord]], timeout_s: float) -> bool:
        """Waits for a waiter; whether it was rung.

        Raises:
            Closed: the backend was closed.
        """
        if timeout_s > 0 and not future.done():
            try:
                async with asyncio.timeout(timeout_s):
                    await future
            except TimeoutError:
                pass
        if self.is_closed:
            raise Closed("postgres")
        return future.done() and not future.cancelled()


class Ringer:
    """Tells other processes, in bursts.

    Args:
        bell: of this process, which is rung at once.
        pool: for the settings.
        channel: of the schema.
    """

    def __init__(self, bell: Bell, pool: Pool, channel: str) -> None:
        self._bell = bell
        self._pool = pool
        self._channel = channel
        self._link: Link | None = None
        self._untold: set[Key] = set()
        self._not_before = self._events_not_before = 0.0
        self._task: asyncio.Task[None] | None = None
        self._sleeps_until = 0.0
        self._wake = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()

    def queues(self, names: Iterable[str]) -> None:
        self._ring([(QUEUE, checksum(name)) for name in names])

    def results(self, task_ids: Iterable[str]) -> None:
        self._ring([(RESULT, checksum(task_id)) for task_id in task_ids])

    def queues_later(self, names: Collection[str]) -> None:
        """For what a transaction of the caller's may commit soon."""
        loop = asyncio.get_running_loop()
        for delay_s in LATER_S:
            timer = loop.call_later(delay_s, self.queues, names)
            self._timers.add(timer)
        self._timers = {timer for timer in self._timers if timer.when() > loop.time()}

    def is_own(self, server_pid: int) -> bool:
        """Whether a notification from that session is one of ours."""
        return self._pool.is_own(server_pid) or (
            self._link is not None and self._link.server_pid == server_pid
        )

    async def run(
        self, statement: Statement, values: Sequence[Any], keys: list[Key], ended: Sequence[Ended] = ()
    ) -> list[Row]:
        """Runs a call of the pool, and tells that these keys may have got something by it.

        The notification goes out with the call, to be sent by the server after the commit, unless one was sent just now.

        Args:
            statement: the call.
            values: its parameters.
            keys: what to tell of.
            ended: what the call settles; few and small results are told.
        """
        due = self._due_with(keys)
        if due is None:
            rows = await self._pool.run(statement, *values)
            self._ring(keys)
            return rows
        told, payload = due
        tail: Statement = NOTIFY
        tail_values: list[Any] = [self._channel, payload]
        if ended and _fits(ended, payload):
            tail = TELL
            tail_values += [[item.seq for item in ended], [item.fence for item in ended]]
        try:
            rows = await self._pool.run_before(tail, tail_values, statement, values)
        except BaseException:
            # Whether they were told is unknown, and among them may be those of other calls, which succeeded.
            self._ring(list(told))
            raise
        for key in keys:
            self._bell.ring(key)
        return rows

    def _due_with(self, keys: list[Key]) -> tuple[set[Key], str] | None:
        """These and what else is to be told, and the notification; if now is the time, and if it fits into one."""
        now = asyncio.get_running_loop().time()
        if not keys or now < self._may_tell_at(keys) or self._pool.options.is_pooled or self._bell.is_closed:
            return None
        told = self._untold.union(keys)
        found = payloads(told)
        if len(found) > 1:
            return None
        self._untold = set()
        self._told(told, now)
        return told, found[0]

    def _may_tell_at(self, keys: Collection[Key]) -> float:
        if ANY_EVENT in keys and len(keys) == 1:
            return self._events_not_before
        return self._not_before

    def _told(self, keys: Collection[Key], now: float) -> None:
        self._events_not_before = now + BURST_S
        # Events come while a task runs: they must not keep its result waiting.
        if ANY_EVENT not in keys or len(keys) > 1:
            self._not_before = now + (FEW_S if len(keys) <= FEW else BURST_S)

    def _ring(self, keys: list[Key]) -> None:
        if not keys or self._bell.is_closed:
            return
        for key in keys:
            self._bell.ring(key)
        self._untold.update(keys)
        if self._task is None:
            self._task = asyncio.create_task(self._tell())
        elif self._may_tell_at(self._untold) < self._sleeps_until:  # until now there were only events to tell
            self._wake.set()

    async def _tell(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._untold:
                self._sleeps_until = self._may_tell_at(self._untold)
                pause_s = self._sleeps_until - clock()
                if pause_s > 0:
                    self._wake.clear()
                    try:
                        async with asyncio.timeout(pause_s + GRACE_S):  # the next call may take them along
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                    continue
                keys, self._untold = self._untold, set()
                try:
                    for payload in payloads(keys):
                        await self._send(payload)
                except psycopg.Error:
                    pass  # a wake-up that is lost; the waiters look by themselves
                self._told(keys, clock())
        finally:
            self._task = None

    async def _send(self, payload: str) -> None:
        if self._link is None or not self._link.is_open:
            self._link = await open_session(self._pool.options)
        await self._pool.run_on(self._link, NOTIFY, (self._channel, payload))

    async def close(self) -> None:
        """Tells what is left, if that is quick."""
        for timer in self._timers:
            timer.cancel()
        if self._task is not None:
            task = self._task
            await asyncio.wait([task], timeout=0.5)
            task.cancel()
            await asyncio.wait([task])
        if self._link is not None:
            self._link.close()


def _fits(ended: Sequence[Ended], payload: str) -> bool:
    size = sum(item.size for item in ended) + _RECORD.size * len(ended)
    return len(ended) <= FEW and size <= LARGEST_TOLD and len(payload) < 5000


def payloads(keys: Collection[Key]) -> list[str]:
    """The notifications that tell of some keys."""
    found = []
    for kind in (QUEUE, RESULT):
        numbers = [number for which, number in keys if which == kind]
        for start in range(0, len(numbers), LARGEST):
            part = numbers[start : start + LARGEST]
            found.append(kind + base64.b64encode(struct.pack(f">{len(part)}I", *part)).decode())
    if ANY_EVENT in keys:
        found.append(EVENTS)
    if len(found) > 1 and sum(map(len, found)) < 7000:
        return [" ".join(found)]
    return found


def keys_of(payload: str) -> list[Key]:
    """What a notification tells; nothing, if it is not one of ours."""
    found: list[Key] = []
    for part in payload.split():
        if part == EVENTS:
            found.append(ANY_EVENT)
        elif part[0] in (QUEUE, RESULT):
            try:
                found += [
                    (part[0], number) for (number,) in struct.iter_unpack(">I", base64.b64decode(part[1:]))
                ]
            except (ValueError, struct.error):
                return []
    return found


def told_by(payload: str) -> list[ResultRecord]:
    """The results that came with a notification."""
    found = []
    for part in payload.split():
        if part[0] == RECORD:
            try:
                raw = bytes.fromhex(part[1:])
                fence, state, stored_at, until, length = _RECORD.unpack_from(raw)
                body_at = _RECORD.size + length
                task_id = raw[_RECORD.size : body_at].decode()
                found.append(
                    ResultRecord(task_id, fence, STATES[state], raw[body_at:], None, True, stored_at, until)
                )
            except (ValueError, KeyError, struct.error):
                continue  # not one of ours
    return found


class Listener:
    """A connection that listens, for as long as the backend is open.

    It is made when somebody waits for the first time, and again whenever it breaks; each time it stands, everybody who
    waits is woken, as something may have been missed.

    Args:
        bell: that it rings.
        options: of the backend.
        channel: of the schema.
        ringer: whose notifications it passes over, since they were rung here at once.
    """

    def __init__(self, bell: Bell, options: PostgresOptions, channel: str, ringer: Ringer) -> None:
        self._bell = bell
        self._options = options
        self._channel = channel
        self._ringer = ringer
        self._task: asyncio.Task[None] | None = None
        self.listening = asyncio.Event()
        """Set while the connection stands."""

    def start(self) -> None:
        """Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        pause_s = 0.05
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError):
                pass
            if self.listening.is_set():
                self.listening.clear()
                pause_s = 0.05
            await asyncio.sleep(
                pause_s * (0.5 + random.random())
            )  # not all clients of a server that comes back at once
            pause_s = min(pause_s * 2, 2.0)

    async def _listen(self) -> None:
        link = await open_session(self._options, listen=True)
        broken = asyncio.Event()
        heard = False

        def hear(payload: str, sender: int) -> None:
            nonlocal heard
            heard = True
            if not self._ringer.is_own(sender):
                keys = keys_of(payload)
                told = told_by(payload) if RECORD in payload and self._bell.awaits(keys) else ()
                for key in keys:
                    self._bell.ring(key, told)

        link.on_notify = hear
        link.on_close = lambda _: broken.set()
        try:
            await link.script(f'listen "{self._channel}"', timeout_s=self._options.connect_timeout_s)
            self.listening.set()
            self._bell.ring_all()
            while not broken.is_set():
                heard = False
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await broken.wait()
                except TimeoutError:
                    if not heard:
                        await link.script("select 1", timeout_s=self._options.connect_timeout_s)
        finally:
            link.close()
