"""When a failed task is tried again. Policy is data that travels with the task; nothing here waits."""

from __future__ import annotations

import msgspec

__all__ = ["DEFAULT_RETRY", "RetryPolicy"]


class RetryPolicy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Exponential backoff with jitter: ``delay_s * backoff ** (failures - 1)``, at most ``max_delay_s``, plus a random
    part of up to ``jitter`` of that, so that tasks that failed together do not come back together (Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; the jitter is added rather than "full", as a delay
    that was asked for is kept as a minimum)."""

    max_retries: int = 3
    """Tries after the first one."""
    delay_s: float = 1.0
    backoff: float = 2.0
    max_delay_s: float = 3600.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries must not be negative, got {self.max_retries}")
        if self.delay_s < 0 or self.max_delay_s < 0:
            raise ValueError(f"a retry delay must not be negative, got {min(self.delay_s, self.max_delay_s)}")
        if self.backoff < 1:
            raise ValueError(f"backoff must be at least 1, got {self.backoff}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be from 0 to 1, got {self.jitter}")

    def delay_before_retry(self, failures: int, random: float) -> float:
        """Seconds to wait after a failure.

        Args:
            failures: how many runs have failed so far, at least 1.
            random: a number from 0 to 1, made by the caller.
        """
        try:
            delay_s = min(self.max_delay_s, self.delay_s * self.backoff ** (failures - 1))
        except OverflowError:
            delay_s = self.max_delay_s
        return delay_s * (1.0 + self.jitter * random)


DEFAULT_RETRY = RetryPolicy()
