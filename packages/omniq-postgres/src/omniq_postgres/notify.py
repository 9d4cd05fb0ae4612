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
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import struct
import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import psycopg

from omniq_core import Closed
from omniq_postgres.connection import Link, Row
from omniq_postgres.options import PostgresOptions
from omniq_postgres.pool import Pool, open_session
from omniq_postgres.statements import NOTIFY, Statement

__all__ = ["Bell", "Listener", "Ringer", "checksum"]

QUEUE, RESULT, EVENTS = "q", "r", "e"
Key = tuple[str, int]
ANY_EVENT: Key = (EVENTS, 0)

FEW = 8
FEW_S, BURST_S = 0.001, 0.01
"""How long after a notification the next one may follow: soon where there was little to tell, as for a lone producer that
waits for each result, and once per 10 ms under load."""
GRACE_S = 0.0005
"""How much longer to wait for a call that takes a notification along."""
LARGEST = 1200
"""Checksums in one notification: 6.4 kB in base64, of the 8 kB that PostgreSQL allows."""
HEARTBEAT_S = 5.0
"""How often a listening connection that hears nothing is asked whether it still lives."""
LATER_S = (0.01, 0.1, 0.5)
"""When to tell of a transaction of the caller's, whose commit nobody tells us of."""


def checksum(name: str) -> int:
    """The same in every process."""
    return zlib.crc32(name.encode())


class Bell:
    """The coroutines of this process that wait, and how often each queue was rung.

    A waiter that looks, finds nothing and then waits must not sleep through what came in between: it remembers the count
    from before its look.
    """

    def __init__(self) -> None:
        self._rings: dict[int, int] = {}  # of the queues that are known here; others are nobody's business
        self._all = 0
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}
        self.is_closed = False

    def count(self, queue: int) -> int:
        return self._rings.setdefault(queue, 0) + self._all

    def ring(self, key: Key) -> None:
        if key[0] == QUEUE and key[1] in self._rings:
            self._rings[key[1]] += 1
        for waiter in self._waiting.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def ring_all(self) -> None:
        """After a time in which notifications may have been missed."""
        self._all += 1
        for key in list(self._waiting):
            self.ring(key)

    def close(self) -> None:
        self.is_closed = True
        self.ring_all()

    def waiter(self, keys: Iterable[Key]) -> asyncio.Future[None]:
        """A future that the next ring of one of the keys sets. Give it to :meth:`forget` in the end."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for key in keys:
            self._waiting.setdefault(key, set()).add(future)
        return future

    def forget(self, future: asyncio.Future[None], keys: Iterable[Key]) -> None:
        for key in keys:
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[key]

    async def sleep(self, future: asyncio.Future[None], timeout_s: float) -> bool:
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
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None
        self._timers: set[asyncio.TimerHandle] = set()

    def queues(self, names: Iterable[str]) -> None:
        self._ring([(QUEUE, checksum(name)) for name in names])

    def results(self, task_ids: Iterable[str]) -> None:
        self._ring([(RESULT, checksum(task_id)) for task_id in task_ids])

    def events(self) -> None:
        self._ring([ANY_EVENT])

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

    async def run(self, statement: Statement, values: Sequence[Any], keys: list[Key]) -> list[Row]:
        """Runs a call of the pool, and tells that these keys may have got something by it.

        The notification goes out with the call, to be sent by the server after the commit, unless one was sent just now.
        """
        due = self._due_with(keys)
        if due is None:
            rows = await self._pool.run(statement, *values)
            self._ring(keys)
            return rows
        told, payload = due
        try:
            rows = await self._pool.run_before(NOTIFY, (self._channel, payload), statement, values)
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
        if not keys or now < self._not_before or self._pool.options.is_pooled or self._bell.is_closed:
            return None
        told = self._untold.union(keys)
        found = payloads(told)
        if len(found) > 1:
            return None
        self._untold = set()
        self._not_before = now + _pause_after(told)
        return told, found[0]

    def _ring(self, keys: list[Key]) -> None:
        if not keys or self._bell.is_closed:
            return
        for key in keys:
            self._bell.ring(key)
        self._untold.update(keys)
        if self._task is None:
            self._task = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._untold:
                pause_s = self._not_before - clock()
                if pause_s > 0:
                    await asyncio.sleep(pause_s + GRACE_S)  # the next call may take them along
                    continue
                keys, self._untold = self._untold, set()
                try:
                    for payload in payloads(keys):
                        await self._send(payload)
                except psycopg.Error:
                    pass  # a wake-up that is lost; the waiters look by themselves
                self._not_before = clock() + _pause_after(keys)
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


def _pause_after(keys: Collection[Key]) -> float:
    return FEW_S if len(keys) <= FEW else BURST_S


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


def channel_of(schema: str) -> str:
    """Of any schema's name, as a channel has at most 63 bytes."""
    return f"omniq_{hashlib.blake2b(schema.encode(), digest_size=12).hexdigest()}"


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
                for key in keys_of(payload):
                    self._bell.ring(key)

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
