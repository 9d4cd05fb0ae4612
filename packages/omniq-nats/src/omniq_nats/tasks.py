"""The tasks of a project: reading their documents, changing them by compare-and-set, and moving them between lines."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from omniq_nats.clock import ServerClock
from omniq_nats.connection import Client
from omniq_nats.documents import PENDING, RUNNING, Document, decode, encode, ttl_of
from omniq_nats.holdings import Holdings
from omniq_nats.jetstream import CONFLICT, JetStream, Write, head
from omniq_nats.lines import Lines, payload
from omniq_nats.options import NatsOptions
from omniq_nats.shadows import Shadows
from omniq_nats.subjects import Subjects

__all__ = ["PATIENCE_S", "Tasks", "Version"]

Version: TypeAlias = tuple[int, Document]
"""A document and its sequence: what a compare-and-set compares."""
PATIENCE_S = 20.0
"""A hint whose document does not come within ``FORGET_S`` is dropped by whoever meets it. So who needed longer than this,
much less, from before the hint until after the document, puts a second hint: the first may be gone."""


class Tasks:
    """What all operations share.

    Args:
        client: the connection.
        streams: JetStream on it.
        subjects: the project's.
        clock: the server's.
        options: the settings.
    """

    def __init__(
        self,
        client: Client,
        streams: JetStream,
        subjects: Subjects,
        clock: ServerClock,
        options: NatsOptions,
    ) -> None:
        self.client = client
        self.js = streams
        self.subjects = subjects
        self.clock = clock
        self.options = options
        self.lines = Lines(streams, subjects, clock)
        self.holdings = Holdings(streams, subjects)
        self.shadows = Shadows(streams, subjects, self.lines, self.holdings, options.retention_s)

    # --- documents ----------------------------------------------------------------------------------------------

    async def read(self, task_ids: Sequence[str], *, fresh: bool = True) -> dict[str, Version]:
        """The documents of those tasks that exist.

        Args:
            task_ids: whose.
            fresh: ``False`` where a compare-and-set follows, so that an old one does no harm.
        """
        if not task_ids:
            return {}
        subjects = [self.subjects.task(task_id) for task_id in task_ids]
        found = await self.js.newest(self.subjects.tasks, subjects, fresh=fresh)
        versions = {}
        for stored in found.values():
            document = decode(stored.payload)
            versions[document.id] = (stored.seq, document)
        return versions

    def write_of(self, document: Document, expected: int, now: float) -> Write:
        """The message that replaces a document; one that has ended is given its time to live."""
        ttl_s = ttl_of(document, now, self.options.retention_s) if document.state > RUNNING else None
        return self.subjects.task(document.id), head(expected, ttl_s), encode(document)

    async def change(
        self, changes: Iterable[tuple[Document, int]], now: float, *, tell: bool = False
    ) -> list[int]:
        """Replaces documents, each if its sequence is still the one given; the new sequences, or ``CONFLICT``.

        Args:
            changes: the documents, and the sequences that they replace.
            now: the time.
            tell: tell those who wait for these tasks' results.
        """
        return await self.js.write(
            (self.write_of(document, expected, now) for document, expected in changes),
            self.subjects.finished if tell else "",
        )

    async def make_pending(
        self, changes: Sequence[tuple[Document, int]], now: float, *, returned: bool, marked: bool = False
    ) -> list[int]:
        """Puts tasks into line, and then replaces their documents by these, which name the new hints.

        Args:
            changes: documents, all pending, and the sequences that they replace.
            now: the time.
            returned: whether they come back, and so go before those that have waited less.
            marked: whether upkeep will come across those that expire as it is.
        """
        started = time.monotonic()
        hints = []
        for document, _ in changes:
            subject, due_ms = self.lines.place_for(
                document.queue, document.priority, document.run_at, now, returned=returned
            )
            hints.append((subject, payload(document.id, document.born, due_ms)))
        marks = [
            self.lines.expiry_mark(document.id, document.expires_at, now)
            for document, _ in changes
            if document.expires_at is not None and not marked
        ]
        places = await self.lines.put(hints + marks)
        for (document, _), place in zip(changes, places, strict=False):
            document.hint = place
            document.born = document.born or place
        answers = await self.change(changes, now)
        lost = [place for place, answer in zip(places, answers, strict=False) if answer == CONFLICT]
        if lost:
            await self.lines.drop(lost)
        if time.monotonic() - started > PATIENCE_S:
            await self.put_again([document.id for document, _ in changes])
        return answers

    async def put_again(self, task_ids: Iterable[str]) -> None:
        """Gives pending tasks a second hint where the first may have been dropped."""
        now = await self.lines.now()
        for seq, document in (await self.read(list(task_ids))).values():
            if document.state == PENDING:
                await self.make_pending([(copy.copy(document), seq)], now, returned=False)

    def wake(self, queues: Iterable[str]) -> None:
        """Tells those who wait for tasks of these queues."""
        self.client.publish_all(
            [(self.subjects.wake(queue).encode(), b"") for queue in dict.fromkeys(queues)]
        )
