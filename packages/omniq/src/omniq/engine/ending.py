"""Turning the end of a run into what is written about it.

What an end *means* is decided in :mod:`omniq.lifecycle`; here its bytes are made: the settlement, the failure as text, and
the body of the result record. Every way out of the worker but a lost lease goes through here.
"""

from __future__ import annotations

import random
from typing import Any

from omniq.codec import (
    Failure,
    ResultBody,
    Undecodable,
    encode_failure,
    encode_result,
    encode_success,
    failure_of,
)
from omniq.engine.held import Held
from omniq.errors import TaskTimeout
from omniq.lifecycle import Decision, decide
from omniq.outcome import Ending, Reject, Retry, Snooze
from omniq.retry import DEFAULT_RETRY
from omniq.runners.runner import ChildCrashed, RemoteFailure, frames_above
from omniq_core import Clock, Settlement, TaskState, TooLarge, Verb

__all__ = ["FINAL_STATES", "Endings"]

FINAL_STATES = {
    Verb.SUCCEED: TaskState.SUCCEEDED,
    Verb.DEAD: TaskState.DEAD,
    Verb.CANCEL: TaskState.CANCELLED,
}
LONGEST_REASON = 200


class Endings:
    """Makes settlements.

    Args:
        worker_id: this worker, for the result records.
        clock: for how old a task is.
        keeps_results: there is a result store.
        settles_results: it is the queue's own, so that the settlement carries the result.
        max_result_bytes: the result store's limit.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        clock: Clock,
        keeps_results: bool,
        settles_results: bool,
        max_result_bytes: int,
    ) -> None:
        self._worker_id = worker_id
        self._clock = clock
        self._keeps_results = keeps_results
        self._settles_results = settles_results
        self._max_result_bytes = max_result_bytes

    def returned(self, held: Held, value: Any) -> None:
        """The function returned.

        Raises:
            NotSerializable, TooLarge: the value cannot be kept: the run has failed, see :meth:`raised`.
        """
        claim, options = held.claim, held.options
        if not self._keeps_results or (options is not None and not options.store_result):
            held.settlement = Settlement(claim.lease, Verb.SUCCEED)
            return
        schedule_id, ttl_s = (None, None) if options is None else (options.schedule_id, options.result_ttl_s)
        body = encode_success(
            value, held.started_at, held.ended_at, self._worker_id, claim.attempt, claim.name, claim.queue, schedule_id
        )  # fmt: skip
        if len(body) > self._max_result_bytes:
            raise TooLarge(
                f"the result has {len(body):,} bytes encoded; the result store takes at most "
                f"{self._max_result_bytes:,}. Keep it elsewhere and return a reference"
            )
        if self._settles_results:
            held.settlement = Settlement(claim.lease, Verb.SUCCEED, 0.0, None, None, body, ttl_s)
        else:
            held.settlement = Settlement(claim.lease, Verb.SUCCEED, result_ttl_s=ttl_s)
            held.result, held.result_state = body, TaskState.SUCCEEDED

    def raised(self, held: Held, error: BaseException) -> None:
        """The run ended with an exception: the function's, a signal, our own cancellation, or the death of its process."""
        failure: Failure | None = None
        delay_s: float | None = None
        if isinstance(error, RemoteFailure):
            failure = error.failure
            signal: BaseException = error.signal or error
        else:
            signal = error
        match signal:
            case Retry():
                ending, delay_s, reason = Ending.RETRY, signal.after_s, signal.reason
            case Reject():
                ending, reason = Ending.REJECTED, signal.reason
            case Snooze():
                ending, delay_s, reason = Ending.SNOOZED, signal.delay_s, signal.reason
            case ChildCrashed():
                ending, reason = Ending.CRASHED, signal.reason
            case Undecodable():
                ending, reason = Ending.UNDECODABLE, str(signal)
            case _ if held.interrupted is Ending.TIMED_OUT:
                ending, reason = Ending.TIMED_OUT, f"it ran longer than {held.timeout_s:g} s"
                failure = failure_of(TaskTimeout(reason, task_id=held.claim.task_id))
            case _ if held.interrupted is not None:
                ending, reason = held.interrupted, f"{held.interrupted.value} while it ran"
            case _:
                ending = Ending.RAISED
                failure = failure or failure_of(error, skip_frames=frames_above(error))
                reason = _line(failure)
        if ending is Ending.RETRY and failure is None:
            failure = failure_of(error, skip_frames=frames_above(error))
        self._settle(held, ending, reason=reason, failure=failure, delay_s=delay_s)

    def never_started(self, held: Held, ending: Ending, reason: str, *, delay_s: float = 0.0) -> None:
        """The task is given back, or ended, without a run."""
        self._settle(held, ending, reason=reason, delay_s=delay_s)

    def _settle(
        self,
        held: Held,
        ending: Ending,
        *,
        reason: str,
        failure: Failure | None = None,
        delay_s: float | None = None,
    ) -> None:
        claim, options = held.claim, held.options
        decision = decide(
            ending,
            attempt=claim.attempt,
            crashes=claim.crashes,
            max_attempts=claim.max_attempts,
            max_crashes=claim.max_crashes,
            cancel_requested=held.cancel_requested,
            policy=(options and options.retry) or DEFAULT_RETRY,
            delay_s=delay_s,
            reason=reason[:LONGEST_REASON],
            age_s=self._clock.time() - claim.enqueued_at,
            random=random.random(),
        )
        self.write(held, decision, failure)

    def write(self, held: Held, decision: Decision, failure: Failure | None) -> None:
        """Makes the settlement of a decision."""
        options = held.options
        verb = decision.verb
        ttl_s = None if options is None else options.result_ttl_s
        body: bytes | None = None
        state = FINAL_STATES.get(verb)
        if state is not None and self._keeps_results and (options is None or options.store_result):
            body = self._body(held, decision.reason, failure)
        held.settlement = Settlement(
            held.claim.lease,
            verb,
            decision.delay_s,
            decision.reason,
            None if failure is None or verb is Verb.CANCEL else encode_failure(failure),
            body if self._settles_results else None,
            ttl_s,
            decision.crashed,
        )
        if not self._settles_results:
            held.result, held.result_state = body, state

    def _body(self, held: Held, reason: str | None, failure: Failure | None) -> bytes:
        claim = held.claim
        return encode_result(
            ResultBody(
                failure=failure,
                started_at=held.started_at or None,
                finished_at=held.ended_at or self._clock.time(),
                worker_id=self._worker_id,
                attempt=claim.attempt,
                reason=reason,
                schedule_id=None if held.options is None else held.options.schedule_id,
                name=claim.name,
                queue=claim.queue,
            )
        )


def _line(failure: Failure) -> str:
    name = failure.type_name.removeprefix("builtins.")
    first = failure.message.strip().partition("\n")[0]
    return f"{name}: {first}" if first else name
