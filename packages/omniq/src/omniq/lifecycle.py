"""What the end of a run means: the one place where it is decided, as a pure function.

==============  ==================================================================================================
ending          the task becomes
==============  ==================================================================================================
returned        succeeded, also when its cancellation was asked for too late
raised, timed   retried after the policy's delay while failures < ``max_attempts``, else dead; cancelled instead of
out, retry      retried if that was asked for
rejected        dead
cancelled       cancelled
snoozed         pending again after the delay, this start not counted
stopped         pending again at once, this start not counted
crashed         retried, charged to the crash budget, not to the retries; dead once that is spent
unknown task    pending again after a delay that grows with the task's age, so that a worker that knows it can take it
undecodable     dead, with its bytes kept
==============  ==================================================================================================
"""

from __future__ import annotations

import msgspec

from omniq.outcome import Ending
from omniq.retry import DEFAULT_RETRY, RetryPolicy
from omniq_core import Verb

__all__ = ["Decision", "decide"]

UNKNOWN_MIN_DELAY_S = 1.0
UNKNOWN_MAX_DELAY_S = 60.0
"""A rolling deploy lasts minutes: an unknown task is offered again at least once a minute."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What is written about a run that ended."""

    verb: Verb
    delay_s: float = 0.0
    reason: str | None = None
    crashed: bool = False


SUCCEEDED = Decision(Verb.SUCCEED)
_FAILURES = frozenset({Ending.RAISED, Ending.TIMED_OUT, Ending.RETRY})


def decide(
    ending: Ending,
    *,
    attempt: int,
    crashes: int,
    max_attempts: int,
    max_crashes: int,
    cancel_requested: bool = False,
    policy: RetryPolicy = DEFAULT_RETRY,
    delay_s: float | None = None,
    reason: str | None = None,
    age_s: float = 0.0,
    random: float = 0.5,
) -> Decision:
    """What the end of a run means for its task.

    Args:
        ending: how it ended.
        attempt: which start this was, from 1, crashed ones included.
        crashes: how many earlier starts crashed.
        max_attempts: how often the task may fail.
        max_crashes: how many crashes make it dead.
        cancel_requested: somebody asked to cancel the task while it ran.
        policy: its retry policy.
        delay_s: a delay that the task itself asked for, in seconds.
        reason: a line about the ending, for people.
        age_s: how long ago the task was enqueued, in seconds.
        random: from 0 to 1, for the jitter.
    """
    if ending is Ending.RETURNED:
        return SUCCEEDED
    if ending is Ending.UNDECODABLE:
        return Decision(Verb.DEAD, reason=reason or "its body cannot be decoded")
    if ending is Ending.REJECTED:
        return Decision(Verb.DEAD, reason=reason)
    if cancel_requested or ending is Ending.CANCELLED:
        return Decision(Verb.CANCEL, reason="cancelled on request", crashed=ending is Ending.CRASHED)
    if ending in _FAILURES:
        failures = attempt - crashes
        if failures >= max_attempts:
            return Decision(Verb.DEAD, reason=reason)
        wait_s = policy.delay_before_retry(max(1, failures), random) if delay_s is None else delay_s
        return Decision(Verb.RETRY, wait_s, reason)
    if ending is Ending.CRASHED:
        if crashes + 1 >= max_crashes:
            return Decision(Verb.DEAD, reason=reason or "its process died", crashed=True)
        wait_s = policy.delay_before_retry(crashes + 1, random)
        return Decision(Verb.RETRY, wait_s, reason or "its process died", crashed=True)
    if ending is Ending.UNKNOWN_TASK:
        wait_s = min(UNKNOWN_MAX_DELAY_S, max(UNKNOWN_MIN_DELAY_S, age_s / 4))
        return Decision(Verb.RELEASE, wait_s, reason or "no worker that knows it has seen it yet")
    return Decision(Verb.RELEASE, delay_s or 0.0, reason)
