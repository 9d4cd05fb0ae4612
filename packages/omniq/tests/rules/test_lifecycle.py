"""The rules: what the end of a run means, and when a failed task is tried again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq.lifecycle import UNKNOWN_MAX_DELAY_S, UNKNOWN_MIN_DELAY_S, Decision, decide
from omniq.outcome import Ending
from omniq.retry import RetryPolicy
from omniq_core import Verb

FAILURES = (Ending.RAISED, Ending.TIMED_OUT, Ending.RETRY)
policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 20),
    delay_s=st.floats(0, 100),
    backoff=st.floats(1, 10),
    max_delay_s=st.floats(0, 10_000),
    jitter=st.floats(0, 1),
)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    crashes = draw(st.integers(0, 5))
    return {
        "attempt": crashes + draw(st.integers(1, 20)),
        "crashes": crashes,
        "max_attempts": draw(st.integers(1, 20)),
        "max_crashes": draw(st.integers(1, 6)),
        "cancel_requested": draw(st.booleans()),
        "policy": draw(policies),
        "delay_s": draw(st.none() | st.floats(0, 1000)),
        "reason": draw(st.sampled_from([None, "", "gone", "\N{SNOWMAN}"])),
        "age_s": draw(st.floats(0, 1e6)),
        "random": draw(st.floats(0, 1)),
    }


@given(st.sampled_from(Ending), runs())
def test_every_ending_of_every_run_has_a_meaning(ending: Ending, run: dict[str, Any]) -> None:
    decision = decide(ending, **run)
    assert decision.delay_s >= 0
    assert decision.crashed == (ending is Ending.CRASHED)
    assert decision.verb in (Verb.RETRY, Verb.RELEASE) or decision.delay_s == 0


@given(runs())
def test_what_returned_has_succeeded_even_if_its_cancellation_was_asked_for(run: dict[str, Any]) -> None:
    assert decide(Ending.RETURNED, **run) == Decision(Verb.SUCCEED)


@given(st.sampled_from(FAILURES), runs())
def test_a_failure_is_retried_while_its_failures_are_fewer_than_its_attempts(
    ending: Ending, run: dict[str, Any]
) -> None:
    verb = decide(ending, **run).verb
    if run["cancel_requested"]:
        assert verb is Verb.CANCEL
    else:
        assert verb is (Verb.RETRY if run["attempt"] - run["crashes"] < run["max_attempts"] else Verb.DEAD)


@given(runs(), st.integers(1, 5))
def test_crashes_are_not_charged_to_the_retries(run: dict[str, Any], more: int) -> None:
    later = {**run, "attempt": run["attempt"] + more, "crashes": run["crashes"] + more}
    assert decide(Ending.RAISED, **run).verb is decide(Ending.RAISED, **later).verb


@given(runs())
def test_a_crash_is_charged_to_the_crashes_whatever_the_retries(run: dict[str, Any]) -> None:
    run = {**run, "cancel_requested": False}
    spent = run["crashes"] + 1 >= run["max_crashes"]
    assert decide(Ending.CRASHED, **run).verb is (Verb.DEAD if spent else Verb.RETRY)


@given(st.sampled_from([Ending.STOPPED, Ending.SNOOZED, Ending.UNKNOWN_TASK]), runs())
def test_what_did_not_fail_is_given_back_uncounted(ending: Ending, run: dict[str, Any]) -> None:
    assert decide(ending, **{**run, "cancel_requested": False}).verb is Verb.RELEASE


@given(runs())
def test_an_unknown_task_is_offered_again_at_least_once_a_minute(run: dict[str, Any]) -> None:
    decision = decide(Ending.UNKNOWN_TASK, **{**run, "cancel_requested": False})
    assert UNKNOWN_MIN_DELAY_S <= decision.delay_s <= UNKNOWN_MAX_DELAY_S
    assert decision.reason


@given(st.sampled_from([Ending.REJECTED, Ending.UNDECODABLE]), runs())
def test_what_can_never_succeed_is_dead_at_once(ending: Ending, run: dict[str, Any]) -> None:
    assert decide(ending, **run).verb is Verb.DEAD


@given(policies, st.integers(1, 1000), st.floats(0, 1))
def test_a_delay_grows_with_the_failures_and_stays_within_its_bounds(
    policy: RetryPolicy, failures: int, random: float
) -> None:
    delay_s = policy.delay_before_retry(failures, random)
    assert 0 <= delay_s <= policy.max_delay_s * (1 + policy.jitter) + 1e-9
    assert delay_s <= policy.delay_before_retry(failures + 1, random) + 1e-9
    assert delay_s >= policy.delay_before_retry(failures, 0)


@pytest.mark.parametrize(
    "bad", [{"max_retries": -1}, {"delay_s": -1}, {"max_delay_s": -1}, {"backoff": 0.5}, {"jitter": 2}]
)
def test_a_policy_out_of_range_is_refused_when_it_is_made(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|from"):
        RetryPolicy(**bad)
