"""Waiting and logging while a backend does not answer.

A worker never gives up on its backend: it waits longer each time, up to two seconds, so that it is back within seconds once
the server is, and a fleet does not hammer a server that comes up. The log gets one line when trouble starts or changes, and
one when it is over.
"""

from __future__ import annotations

import logging
import random

from omniq_core import Backend, Clock, ErrorCode, redact

__all__ = ["Trouble"]

log = logging.getLogger("omniq.worker")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class Trouble:
    """The health of one kind of call.

    Args:
        doing: what the call does, for the log: "claim tasks".
        backend: whose call it is.
        clock: for how long it took.
    """

    def __init__(self, doing: str, backend: Backend, clock: Clock) -> None:
        self._doing = doing
        self._backend = backend
        self._clock = clock
        self._pause_s = FIRST_PAUSE_S
        self._since: float | None = None
        self._said = ""
        self.failures = 0
        """In a row."""

    @property
    def is_on(self) -> bool:
        return self._since is not None

    def failed(self, error: BaseException) -> float:
        """Notes a failed call; how long to wait before the next one, in seconds."""
        self.failures += 1
        if self._since is None:
            self._since = self._clock.monotonic()
        said = redact(f"{type(error).__name__}: {error}".rstrip(": "))
        if said != self._said:
            self._said = said
            log.warning("cannot %s on %r (%s); trying again", self._doing, self._backend, said)
        pause_s = self._pause_s * random.uniform(0.75, 1.25)
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
        return pause_s

    def worked(self) -> None:
        """Notes a call that went through."""
        if self._since is not None:
            seconds = self._clock.monotonic() - self._since
            log.warning("can %s on %r again, after %.1f s", self._doing, self._backend, seconds)
            self._since, self._said, self._pause_s, self.failures = None, "", FIRST_PAUSE_S, 0

    def is_lasting(self, error: BaseException) -> bool:
        """Whether the store refused the request itself, so that repeating it will not help."""
        if isinstance(error, TimeoutError):
            return False
        return self._backend.classify(error) in (
            ErrorCode.INVALID,
            ErrorCode.TOO_LARGE,
            ErrorCode.UNSUPPORTED,
        )
