"""Tasks that the server brought back from the dead.

A message that replaces another on its subject and is then deleted should leave nothing. A server (2.15) that is killed within
some two minutes of that brings the *replaced* one back (nats-server issue 8505). So a task that had ended, and was purged or
kept no longer, is there again as it was when it ran or waited; and so it would stay, holding its id and its unique key.

What gives it away: a running task has a claim and a waiting one has a hint, each stored before the document that names it and
deleted after that document was replaced. A shadow has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import msgspec

from omniq_nats.documents import PENDING, RUNNING, Document, encode, ttl_of
from omniq_nats.holdings import Holdings, Lease
from omniq_nats.jetstream import JetStream, Stored, head, seconds_of
from omniq_nats.lines import FORGET_S, Lines
from omniq_nats.subjects import Subjects

__all__ = ["Shadows"]

LET_GO = "the server brought it back, as it was before it ended"


class Shadows:
    """Finds them.

    Args:
        streams: JetStream.
        subjects: the project's.
        lines: where its tasks wait.
        holdings: its claims.
        retention_s: how long a shadow is kept once it was seen.
    """

    def __init__(
        self,
        streams: JetStream,
        subjects: Subjects,
        lines: Lines,
        holdings: Holdings,
        retention_s: float,
    ) -> None:
        self._js = streams
        self._subjects = subjects
        self._lines = lines
        self._holdings = holdings
        self._retention_s = retention_s

    async def among(
        self, versions: Iterable[tuple[int, Document]], leases: Mapping[str, Lease] | None = None
    ) -> set[str]:
        """The ids of those documents, as just read from the leader, that are shadows.

        Args:
            versions: the documents with their sequences.
            leases: of the claims that they name, if they were read since.
        """
        versions = list(versions)
        waiting = [v for v in versions if v[1].state == PENDING]
        running = [v for v in versions if v[1].state == RUNNING]
        if leases is None:
            leases = await self._holdings.leases(
                {document.claim for _, document in running if document.claim}
            )
        lines, claims = self._subjects.lines, self._subjects.claims
        suspects = [(v, claims) for v in running if (v[1].claim or "") not in leases]
        hints = await self._js.bare(lines, [document.hint for _, document in waiting]) if waiting else []
        suspects += [(v, lines) for v, hint in zip(waiting, hints, strict=True) if hint is None]
        if not suspects:
            return set()
        now = await self._lines.now()
        made = {stream: await self._made_at(stream) for stream in {stream for _, stream in suspects}}
        proofs = await asyncio.gather(
            *(self._is_shadow(v, stream, made[stream], now) for v, stream in suspects)
        )
        return {version[1].id for (version, _), proof in zip(suspects, proofs, strict=True) if proof}

    async def _is_shadow(
        self, version: tuple[int, Document], stream: str, made_at: float, now: float
    ) -> bool:
        seq, document = version
        if document.state == PENDING and await self._js.at(stream, document.hint) is not None:
            return False  # only a replica that lags did not have it
        # Still the same: so it was when its claim or hint was looked for.
        stored = await self._js.at(self._subjects.tasks, seq)
        if stored is None or stored.at < made_at:
            return False  # it is older than all claims or hints that could be there: they were deleted, and will be made anew
        return document.state == RUNNING or _has_waited(stored, now)

    async def _made_at(self, stream: str) -> float:
        return seconds_of(str((await self._js.api(f"STREAM.INFO.{stream}"))["created"]))

    async def let_go(self, versions: Iterable[tuple[int, Document]]) -> None:
        """Has shadows deleted after a while, as finished tasks are."""
        now = await self._lines.now()
        await self._js.write(
            [
                (
                    self._subjects.task(document.id),
                    head(seq, ttl_of(document, now, self._retention_s)),
                    encode(msgspec.structs.replace(document, reason=LET_GO)),
                )
                for seq, document in versions
                if document.reason != LET_GO
            ]
        )


def _has_waited(stored: Stored, now: float) -> bool:
    """Whether its hint is not just being replaced: see ``Tasks.put_again``."""
    return now - stored.at > FORGET_S
