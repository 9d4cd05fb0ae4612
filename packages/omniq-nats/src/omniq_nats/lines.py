"""The lines in which tasks wait: putting hints into them and taking them out. See ``subjects`` for what a hint is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import msgspec

from omniq_nats.clock import ServerClock
from omniq_nats.errors import ConnectionLost, NotThere
from omniq_nats.jetstream import AT_ONCE, JetStream, Stored
from omniq_nats.subjects import Subjects, text_of

__all__ = ["FORGET_S", "Bucket", "Hint", "Line", "Lines", "Look", "bucket_of"]

DEAL_S = 10
"""How long somebody may take from being dealt a hint to acknowledging it. Then it is dealt to another, which does no harm."""
FORGET_S = 60.0
"""A hint whose document has not come after so long is dropped. Its writer has ended, or puts another: see ``PATIENCE_S``."""
STEPS_MS = (
    (10_000, 100),
    (100_000, 1_000),
    (1_000_000, 10_000),
    (10_000_000, 100_000),
    (100_000_000, 1_000_000),
)
FARTHEST_STEP_MS = 10_000_000
PEEK = 256
"""How many of those that came back are looked at together, to take the oldest first."""


class Hint(msgspec.Struct, frozen=True, gc=False):
    """A hint, as it stands in a line."""

    seq: int
    task_id: str
    born: int
    due_ms: int
    """0: at once."""
    place: bytes = b""
    """Where to acknowledge it, if a consumer dealt it."""
    stored_at: float = 0.0
    """By the server's clock."""


class Bucket(msgspec.Struct, frozen=True, gc=False):
    """Hints that fall due within a span of time."""

    subject: str
    priority: int
    start_ms: int
    length_ms: int
    count: int

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.length_ms


class Line(msgspec.Struct):
    """What waits in a queue under one priority."""

    fresh: int = 0
    returned: int = 0


class Look(msgspec.Struct):
    """What waits in a queue."""

    queue: str
    lines: dict[int, Line]
    buckets: list[Bucket]
    is_paused: bool


def bucket_of(due_ms: int, now_ms: int) -> tuple[int, int]:
    """Start and length of the bucket for a time: the farther, the longer, so that there are a few hundred at most."""
    away = due_ms - now_ms
    length = next((step for limit, step in STEPS_MS if away < limit), FARTHEST_STEP_MS)
    return due_ms // length * length, length


def payload(task_id: str, born: int = 0, due_ms: int = 0) -> bytes:
    return b"%d %d %s" % (born, due_ms, task_id.encode())


def parse(seq: int, data: bytes, place: bytes = b"", stored_at: float = 0.0) -> Hint:
    if data.startswith(b"0 0 "):  # new, and due at once: nearly all
        return Hint(seq, data[4:].decode(), 0, 0, place, stored_at)
    born, due, task_id = data.split(b" ", 2)
    return Hint(seq, task_id.decode(), int(born), int(due), place, stored_at)


class Lines:
    """The lines of a project."""

    def __init__(self, streams: JetStream, subjects: Subjects, clock: ServerClock) -> None:
        self._js = streams
        self._subjects = subjects
        self._stream = subjects.lines
        self._clock = clock
        self._dealers: dict[str, str] = {}
        self._unheard: dict[bytes, bytes] = {}

    # --- time ---------------------------------------------------------------------------------------------------

    async def now(self) -> float:
        """The server's time."""
        if not self._clock.is_fresh:
            await self._count(self._subjects.root + "x.none")
        return self._clock.now()

    async def _count(self, pattern: str) -> dict[str, int]:
        counts, theirs, asked, answered = await self._js.counts(self._stream, pattern)
        self._clock.read(theirs, asked, answered)
        return counts

    # --- putting in ---------------------------------------------------------------------------------------------

    def place_for(
        self, queue: str, priority: int, due: float, now: float, *, returned: bool = False
    ) -> tuple[str, int]:
        """The subject for a hint, and its due time in milliseconds (0: at once)."""
        if due <= now:
            line = self._subjects.returned if returned else self._subjects.line
            return line(queue, priority), 0
        due_ms = -int(-round(due * 1000, 3) // 1)  # rounded up: nothing is due early
        return self._subjects.delayed(queue, priority, *bucket_of(due_ms, int(now * 1000))), due_ms

    async def put(self, hints: Sequence[tuple[str, bytes]]) -> list[int]:
        """Stores hints, and returns their sequences."""
        places = await self._js.write([(subject, b"", data) for subject, data in hints])
        if self._js.is_slow and len(places) > 1:
            # Batches are told their last sequence only. A task whose hint stood elsewhere would never be found, so this is
            # not taken for granted.
            for index in range(0, len(places), AT_ONCE):
                stored = await self._js.at(self._stream, places[index])
                if stored is not None and (stored.subject, stored.payload) != hints[index]:
                    raise ConnectionLost("a batch of hints was not stored in one piece")
        return places

    def expiry_mark(self, task_id: str, ends: float, now: float) -> tuple[str, bytes]:
        """The hint that a task expires."""
        ends_ms = int(ends * 1000) + 1
        return self._subjects.expiring(*bucket_of(ends_ms, int(now * 1000))), payload(task_id, 0, ends_ms)

    async def drop(self, sequences: Sequence[int]) -> None:
        """Takes hints out."""
        if sequences:
            await self._js.delete(self._stream, sequences)

    # --- looking ------------------------------------------------------------------------------------------------

    async def look(self, queues: Sequence[str]) -> list[Look]:
        """What waits in some queues. One request each, however much waits."""
        if len(queues) > 64:
            counts = await self._count(self._subjects.root + "l.>")
            return self._sort(queues, counts)
        found = await asyncio.gather(*(self._count(self._subjects.lines_of(queue)) for queue in queues))
        return [
            look for queue, counts in zip(queues, found, strict=True) for look in self._sort([queue], counts)
        ]

    def _sort(self, queues: Iterable[str], counts: dict[str, int]) -> list[Look]:
        looks = {queue: Look(queue, {}, [], False) for queue in queues}
        start = len(self._subjects.root) + 2
        for subject, count in counts.items():
            name, kind, *rest = subject[start:].split(".")
            look = looks.get(text_of(name))
            if look is None:
                continue
            if kind == "x":
                look.is_paused = True
            elif kind == "d":
                look.buckets.append(Bucket(subject, int(rest[0]), int(rest[1]), int(rest[2]), count))
            else:
                line = look.lines.setdefault(int(rest[0]), Line())
                if kind == "p":
                    line.fresh = count
                else:
                    line.returned = count
        return list(looks.values())

    async def expiring(self) -> list[Bucket]:
        """The buckets of tasks that expire, first first."""
        counts = await self._count(self._subjects.root + "x.>")
        found = []
        for subject, count in counts.items():
            start, length = subject.split(".")[-2:]
            found.append(Bucket(subject, 0, int(start), int(length), count))
        return sorted(found, key=lambda bucket: bucket.start_ms)

    async def inside(self, subject: str, limit: int, after: int = 0) -> list[Hint]:
        """The first hints of a bucket, or of those that came back."""
        found, _ = await self._js.page(self._stream, subject, after, limit, timed=True)
        return [_parse_stored(stored) for stored in found]

    async def due_in(self, look: Look, now_ms: int) -> int | None:
        """In how many milliseconds something falls due in a queue; 0: now; ``None``: nothing waits for its time."""
        soonest: int | None = None
        for bucket in look.buckets:
            if bucket.end_ms <= now_ms or (bucket.start_ms <= now_ms and bucket.length_ms > STEPS_MS[0][1]):
                return 0
            if bucket.start_ms > now_ms:
                wait = bucket.start_ms - now_ms
            else:
                hints = await self.inside(bucket.subject, 1000)
                wait = max(0, min((hint.due_ms for hint in hints), default=bucket.end_ms) - now_ms)
            soonest = wait if soonest is None else min(soonest, wait)
        return soonest

    # --- taking out ---------------------------------------------------------------------------------------------

    async def deal(self, queue: str, priority: int, count: int) -> list[Hint]:
        """At most so many new hints, in order, that nobody else is dealt for a while. Acknowledge them."""
        name = self._subjects.dealer(queue, priority)
        if name not in self._dealers:
            await self._make_dealer(name, queue, priority)
        try:
            found = await self._js.pull(self._stream, name, count)
        except NotThere:
            found = None
        if found is None:
            await self._make_dealer(name, queue, priority)
            found = await self._js.pull(self._stream, name, count) or []
        hints = []
        for _, place, _, data in found:
            words = place.split(b".")
            # $JS.ACK.[domain.account.]stream.consumer.delivered.sequence.order.stored.pending[.token]
            at = 5 if len(words) < 11 else 7
            hints.append(parse(int(words[at]), data, place, int(words[at + 2]) / 1e9))
        return hints

    async def _make_dealer(self, name: str, queue: str, priority: int) -> None:
        line = self._subjects.line(queue, priority)
        config = {
            "durable_name": name,
            "filter_subject": line,
            "ack_policy": "explicit",
            "ack_wait": DEAL_S * 10**9,
            "max_ack_pending": 100_000,
            "max_deliver": -1,
            "deliver_policy": "all",
            # One for a line that nobody has asked for in a day; it is made again when somebody does.
            "inactive_threshold": 86_400 * 10**9,
        }
        body = {"stream_name": self._stream, "config": config}
        await self._js.api(f"CONSUMER.DURABLE.CREATE.{self._stream}.{name}", body)
        self._dealers[name] = line

    def forget_dealers(self) -> None:
        """After a new connection: the server may be another, or have forgotten them."""
        self._dealers.clear()
        self._unheard.clear()

    async def done(self, hints: Iterable[Hint]) -> None:
        """Takes hints out for good that were dealt or read.

        Each is acknowledged. To purge those that are the oldest of their line would be a little cheaper; but a server (2.15)
        that purges anything of a consumer's also forgets what was given back to that consumer, until its time is over.
        """
        by_dealer, read = _by_dealer(hints)
        for dealer, dealt in by_dealer.items():
            await self._js.acknowledge([hint.place for hint in dealt], wait=False)
            self._unheard[dealer] = dealt[-1].place
        await self.drop(read)

    async def settle_counts(self) -> None:
        """Returns when the server has heard what we took out: then its counts are right."""
        while self._unheard:
            _, place = self._unheard.popitem()
            await self._js.acknowledge([place])

    async def not_yet(self, hints: Iterable[Hint], now: float) -> None:
        """Gives hints back whose documents are still on their way: they come again soon."""
        places: dict[int, list[bytes]] = {}
        for hint in hints:
            if hint.place:
                # 5 ms at first, and later about as long again as it has waited already.
                delay_ms = min(1000, max(5, int((now - hint.stored_at) * 1000)))
                places.setdefault(delay_ms, []).append(hint.place)
        for delay_ms, some in places.items():
            await self._js.acknowledge(some, b'-NAK {"delay": %d}' % (delay_ms * 1_000_000))

    async def give_back(self, hints: Sequence[Hint]) -> None:
        """Gives dealt hints back: they are dealt first again, in this order."""
        by_dealer, _ = _by_dealer(hints)
        await asyncio.gather(
            *(self._js.acknowledge([hint.place for hint in dealt], b"-NAK") for dealt in by_dealer.values())
        )

    # --- pausing ------------------------------------------------------------------------------------------------

    async def pause(self, queues: Sequence[str]) -> None:
        await self._js.write([(self._subjects.paused(queue), b"", b"") for queue in queues])

    async def resume(self, queues: Sequence[str]) -> None:
        await asyncio.gather(
            *(self._js.purge(self._stream, self._subjects.paused(queue)) for queue in queues)
        )


def _by_dealer(hints: Iterable[Hint]) -> tuple[dict[bytes, list[Hint]], list[int]]:
    """Dealt hints, by who dealt them; and the sequences of those that were read."""
    found: dict[bytes, list[Hint]] = {}
    read: list[int] = []
    dealer, dealt = b".", []  # of the hint before: they come in long runs
    for hint in hints:
        place = hint.place
        if not place:
            read.append(hint.seq)
            continue
        if not place.startswith(dealer):
            dealer = place.rsplit(b".", 5)[0] + b"."
            dealt = found.setdefault(dealer, [])
        dealt.append(hint)
    return found, read


def _parse_stored(stored: Stored) -> Hint:
    return parse(stored.seq, stored.payload, b"", stored.at)


def since(started: float) -> float:
    """Seconds on the monotonic clock."""
    return time.monotonic() - started
