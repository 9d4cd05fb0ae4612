"""Tasks that are not worth starting after a while."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, TaskState, Verb

EXPIRY = Capability.EXPIRY


@check(EXPIRY)
async def a_task_whose_time_has_passed_is_not_claimed(b: Bench) -> None:
    await b.put(2, ttl_s=b.span_s)
    fresh = await b.put_one(ttl_s=b.span_s * 100)
    forever = await b.put_one()
    await b.pass_span()
    found = {claim.task_id for claim in await b.claim_all()}
    assert found == {fresh.id, forever.id}, f"of 2 expired and 2 fresh tasks, {len(found)} were claimed"


@check(EXPIRY)
async def a_task_is_claimed_before_its_time_has_passed(b: Bench) -> None:
    record = await b.put_one(ttl_s=b.span_s * 10)
    await b.maintain()
    task = await b.look(record.id)
    assert task.state is TaskState.PENDING, f"before its time a task is {task.state}"
    assert task.expires_at is not None, "expires_at is missing"
    lives = task.expires_at - task.enqueued_at
    assert abs(lives - b.span_s * 10) <= 0.001 + 2 * b.limits.time_resolution_s, (
        f"expires_at is {lives:g} s after enqueued_at, not {b.span_s * 10:g} s"
    )
    claim = await b.claim_one()
    assert claim.task_id == record.id, "a task whose time has not passed was not claimed"


@check(EXPIRY)
async def upkeep_makes_such_a_task_expired_and_tells(b: Bench) -> None:
    record = await b.put_one(ttl_s=b.span_s, queue="mail", name="send")
    await b.pass_span()
    moved = [m for m in await b.maintain() if m.task_id == record.id]
    if not b.reaps_in_maintain:
        await b.expired(record.id)
    task = await b.look(record.id)
    assert task.state is TaskState.EXPIRED, f"after its time and upkeep the task is {task.state}"
    assert task.finished_at is not None and task.attempt == 0, (
        "an expired task has an end and was never started"
    )
    if b.reaps_in_maintain:
        assert [(m.queue, m.name, m.state) for m in moved] == [("mail", "send", TaskState.EXPIRED)], (
            f"maintain told {moved}"
        )


@check(EXPIRY)
async def expired_tasks_do_not_hold_up_those_behind_them(b: Bench) -> None:
    await b.put(20, ttl_s=b.span_s)
    due = await b.put_one()
    await b.pass_span()
    found = [claim.task_id for claim in await b.claim(max_tasks=1)]
    assert found == [due.id], (
        "twenty expired tasks stood before one that is due, and claim(max_tasks=1) missed it"
    )


@check(EXPIRY)
async def a_running_task_does_not_expire(b: Bench) -> None:
    claim = await b.running(ttl_s=b.span_s, lease_s=b.span_s * 100)
    behind = await b.put_one(ttl_s=b.span_s, queue="behind")
    await b.pass_span()
    await b.maintain()
    state = await b.state(claim.task_id)
    assert state is TaskState.RUNNING, f"a running task was made {state} when its time had passed"
    if b.reaps_in_maintain:
        state = await b.state(behind.id)
        assert state is TaskState.EXPIRED, f"a running task kept another from expiring: it is {state}"
    await b.finish(claim)


@check(EXPIRY)
async def a_task_given_back_after_its_time_is_not_started_again(b: Bench) -> None:
    for verb in (Verb.RETRY, Verb.RELEASE):
        claim = await b.running(ttl_s=b.span_s, lease_s=b.span_s * 100)
        await b.pass_span()
        await b.finish(claim, verb)
        assert await b.claim() == [], f"a task was started after its time, given back with {verb.name}"
        await b.expired(claim.task_id)


@check(EXPIRY, Capability.DELAYED)
async def a_delayed_task_can_expire_before_it_is_due(b: Bench) -> None:
    record = await b.put_one(delay_s=b.span_s * 2, ttl_s=b.span_s)
    await b.pass_span(2)
    assert await b.claim() == [], "a task was started after its time because it had been delayed"
    await b.expired(record.id)


@check(EXPIRY, Capability.CANCEL)
async def an_expired_task_cannot_be_cancelled(b: Bench) -> None:
    record = await b.put_one(ttl_s=b.span_s)
    await b.pass_span()
    await b.expired(record.id)
    outcomes = [str(outcome) for outcome in await b.queue.cancel([record.id])]
    assert outcomes == ["finished"], f"cancelling an expired task was answered {outcomes}"
