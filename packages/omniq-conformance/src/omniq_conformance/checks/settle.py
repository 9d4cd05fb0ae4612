"""What the ends of runs do to their tasks: each verb, in batches, once per lease, and never by a former owner."""

from __future__ import annotations

import asyncio

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Lease, Outcome, TaskState, Verb

OK, DUPLICATE, STALE = Outcome.OK, Outcome.DUPLICATE, Outcome.STALE
ENDS = {
    Verb.SUCCEED: TaskState.SUCCEEDED,
    Verb.DEAD: TaskState.DEAD,
    Verb.CANCEL: TaskState.CANCELLED,
    Verb.RETRY: TaskState.PENDING,
    Verb.RELEASE: TaskState.PENDING,
}


async def _ends(b: Bench, verb: Verb) -> None:
    before = b.now()
    claim = await b.running()
    await b.finish(claim, verb, reason="because", error=b"\x00error")
    task = await b.look(claim.task_id)
    assert task.state is ENDS[verb], f"{verb.name} made the task {task.state}"
    assert (task.reason, task.error) == ("because", b"\x00error"), (
        f"{verb.name} stored reason {task.reason!r} and error {task.error!r}"
    )
    assert (task.worker_id, task.lease_expires_at) == (None, None), f"after {verb.name} the task has an owner"
    assert task.finished_at is not None, f"after {verb.name} finished_at is missing"
    if b.moves_time:
        assert abs(task.finished_at - before) <= 0.001 + b.limits.time_resolution_s, "finished_at is not now"
    assert (task.attempt, task.crashes) == (1, 0), f"{verb.name} changed attempt or crashes"
    assert await b.claim() == [], f"a task that was settled with {verb.name} was handed out again"


@check()
async def succeed_makes_a_task_succeeded(b: Bench) -> None:
    await _ends(b, Verb.SUCCEED)


@check()
async def dead_makes_a_task_dead_and_keeps_its_error(b: Bench) -> None:
    await _ends(b, Verb.DEAD)


@check()
async def cancel_by_the_owner_makes_a_task_cancelled(b: Bench) -> None:
    await _ends(b, Verb.CANCEL)


@check()
async def retry_makes_a_task_pending_and_spends_the_attempt(b: Bench) -> None:
    claim = await b.running(max_attempts=5)
    await b.finish(claim, Verb.RETRY, reason="first try", error=b"error 1")
    task = await b.look(claim.task_id)
    assert task.state is TaskState.PENDING, f"RETRY made the task {task.state}"
    assert (task.attempt, task.crashes) == (1, 0), (
        f"after RETRY attempt is {task.attempt}, crashes {task.crashes}"
    )
    assert (task.reason, task.error) == ("first try", b"error 1"), "RETRY lost the reason or the error"
    assert (task.worker_id, task.lease_expires_at, task.finished_at) == (None, None, None), (
        "a task that waits for its retry has an owner or an end"
    )
    again = await b.claim_one()
    assert (again.task_id, again.attempt) == (claim.task_id, 2), f"the retry is attempt {again.attempt}"


@check()
async def the_store_never_compares_max_attempts(b: Bench) -> None:
    claim = await b.running(max_attempts=1)
    for number in range(2, 5):
        await b.finish(claim, Verb.RETRY)
        claim = await b.claim_one()
        assert claim.attempt == number, f"start {number} of a task shows attempt {claim.attempt}"


@check()
async def release_gives_the_attempt_back_and_never_the_fence(b: Bench) -> None:
    claim = await b.running()
    fence = claim.lease.fence
    for _ in range(3):
        await b.finish(claim, Verb.RELEASE)
        task = await b.look(claim.task_id)
        assert (task.state, task.attempt) == (TaskState.PENDING, 0), (
            f"RELEASE must make the task pending with attempt 0, got {task.state} with {task.attempt}"
        )
        claim = await b.claim_one()
        assert claim.attempt == 1, f"a released task starts as attempt {claim.attempt}"
        assert claim.lease.fence > fence, "the fence did not rise after RELEASE"
        fence = claim.lease.fence


@check()
async def every_settlement_replaces_reason_and_error(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim, Verb.RETRY, reason="first", error=b"first")
    claim = await b.claim_one()
    await b.finish(claim, Verb.SUCCEED)
    task = await b.look(claim.task_id)
    assert (task.reason, task.error) == (None, None), (
        f"a settlement with reason=None and error=None left {task.reason!r} and {task.error!r}"
    )


@check()
async def a_settlement_may_count_a_crash(b: Bench) -> None:
    claim = await b.running(max_crashes=9)
    await b.finish(claim, Verb.RETRY, crashed=True)
    claim = await b.claim_one()
    assert claim.crashes == 1, f"after RETRY with crashed=True the claim shows {claim.crashes} crashes"
    await b.finish(claim, Verb.DEAD, crashed=True)
    task = await b.look(claim.task_id)
    assert task.crashes == 2, f"after DEAD with crashed=True the task counts {task.crashes} crashes"


# --- batches -----------------------------------------------------------------------------------------------------


@check()
async def one_batch_may_mix_verbs_and_claims(b: Bench) -> None:
    claims = [await b.running(queue=f"q-{verb}") for verb in ENDS]
    items = [b.settlement(claim, verb) for claim, verb in zip(claims, ENDS, strict=True)]
    outcomes = await b.settle_all(items)
    assert outcomes == [OK] * len(items), f"a mixed batch of own tasks was answered {outcomes}"
    states = await b.states([claim.task_id for claim in claims])
    assert states == list(ENDS.values()), f"the verbs {[v.name for v in ENDS]} made the tasks {states}"


@check()
async def a_bad_item_never_stops_the_others(b: Bench) -> None:
    done = await b.running(queue="done")
    await b.finish(done)
    first, last = await b.running(queue="first"), await b.running(queue="last")
    unknown = Lease("no-such-task", 1, 0.0, first.lease.handle)
    outcomes = await b.settle_all(
        [
            b.settlement(unknown, Verb.SUCCEED),
            b.settlement(first, Verb.SUCCEED),
            b.settlement(done, Verb.SUCCEED),
            b.settlement(last, Verb.DEAD),
        ]
    )
    assert outcomes == [Outcome.NOT_FOUND, OK, DUPLICATE, OK], (
        f"unknown, mine, settled before, mine were answered {outcomes}"
    )
    states = await b.states([first.task_id, done.task_id, last.task_id])
    assert states == [TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.DEAD], f"the tasks are {states}"


@check()
async def a_task_that_the_store_does_not_know_is_not_found(b: Bench) -> None:
    claim = await b.running()
    unknown = Lease("no-such-task", claim.lease.fence, 0.0, claim.lease.handle)
    for verb in ENDS:
        outcome = await b.settle(unknown, verb)
        assert outcome is Outcome.NOT_FOUND, f"{verb.name} of a task that the store does not know: {outcome}"
    await b.finish(claim)


@check()
async def one_lease_twice_in_a_batch_is_settled_once(b: Bench) -> None:
    claim = await b.running()
    outcomes = await b.settle_all([b.settlement(claim, Verb.DEAD), b.settlement(claim, Verb.SUCCEED)])
    assert outcomes[0] is OK and outcomes[1] is DUPLICATE, (
        f"one lease twice in a batch was answered {outcomes}"
    )
    state = await b.state(claim.task_id)
    assert state is TaskState.DEAD, f"the second item of the same lease took effect: the task is {state}"


# --- again -------------------------------------------------------------------------------------------------------


@check()
async def settling_again_after_a_lost_reply_is_a_duplicate(b: Bench) -> None:
    for verb in (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL):
        claim = await b.running()
        await b.finish(claim, verb, reason="first")
        for again in ENDS:
            outcome = await b.settle(claim, again, reason="second")
            assert outcome is DUPLICATE, (
                f"{again.name} after the same lease's {verb.name} was answered {outcome}"
            )
        task = await b.look(claim.task_id)
        assert (task.state, task.reason) == (ENDS[verb], "first"), (
            f"settling again changed a task from {ENDS[verb]} to {task.state}, its reason to {task.reason!r}"
        )


@check(Capability.FENCED_SETTLE)
async def settling_again_after_a_retry_changes_nothing(b: Bench) -> None:
    for verb in (Verb.RETRY, Verb.RELEASE):
        claim = await b.running(queue=f"q-{verb}")
        await b.finish(claim, verb)
        attempt = (await b.look(claim.task_id)).attempt
        for again in ENDS:
            outcome = await b.settle(claim, again)
            assert outcome in (DUPLICATE, STALE), (
                f"{again.name} after the same lease's {verb.name} was answered {outcome}"
            )
        task = await b.look(claim.task_id)
        assert (task.state, task.attempt) == (TaskState.PENDING, attempt), (
            f"settling again after {verb.name} changed the task to {task.state}, attempt {task.attempt}"
        )


@check(Capability.FENCED_SETTLE)
async def a_lease_that_was_settled_cannot_touch_the_next_owner(b: Bench) -> None:
    for verb in (Verb.RETRY, Verb.RELEASE):
        old = await b.running(queue=f"q-{verb}")
        await b.finish(old, verb)
        new = await b.claim_one(f"q-{verb}", worker_id="next")
        for again in ENDS:
            outcome = await b.settle(old, again)
            assert outcome in (DUPLICATE, STALE), (
                f"{again.name} under a lease that was given up with {verb.name} was answered {outcome}"
            )
        task = await b.look(old.task_id)
        assert (task.state, task.worker_id) == (TaskState.RUNNING, "next"), (
            f"a lease given up with {verb.name} changed the next owner's task to {task.state}"
        )
        await b.finish(new)


@check()
async def a_cancelled_settle_can_be_repeated(b: Bench) -> None:
    for yields in range(8):
        claim = await b.running()
        call = asyncio.ensure_future(b.settle(claim, Verb.SUCCEED))
        for _ in range(yields):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        outcome = await b.settle(claim, Verb.SUCCEED)
        assert outcome in (OK, DUPLICATE), f"repeating a cancelled settle was answered {outcome}"
        state = await b.state(claim.task_id)
        assert state is TaskState.SUCCEEDED, f"after a cancelled and a repeated SUCCEED the task is {state}"


# --- zombies -----------------------------------------------------------------------------------------------------


@check(Capability.FENCED_SETTLE)
async def a_former_owner_cannot_settle_with_any_verb(b: Bench) -> None:
    for verb in ENDS:
        old = await b.running(lease_s=b.span_s, queue=f"q-{verb}")
        await b.lose(old.task_id)
        new = await b.until_claimed(old.task_id, f"q-{verb}", worker_id="new")
        outcome = await b.settle(old, verb, reason="zombie", error=b"zombie")
        assert outcome is STALE, f"after a take-over the former owner's {verb.name} was answered {outcome}"
        task = await b.look(old.task_id)
        found = (task.state, task.worker_id, task.attempt, task.error)
        assert found == (TaskState.RUNNING, "new", 2, None), (
            f"a former owner's {verb.name} changed the task: {found}"
        )
        await b.finish(new)
        outcome = await b.settle(old, verb)
        assert outcome is STALE, (
            f"after the new owner's SUCCEED the former owner's {verb.name} said {outcome}"
        )
        state = await b.state(old.task_id)
        assert state is TaskState.SUCCEEDED, (
            f"a former owner's {verb.name} changed a finished task to {state}"
        )


@check(Capability.FENCED_SETTLE)
async def an_owner_that_was_reaped_cannot_settle_though_nobody_took_over(b: Bench) -> None:
    if not b.reaps_in_maintain:
        return
    for verb in ENDS:
        old = await b.running(lease_s=b.span_s, queue=f"q-{verb}")
        await b.lose(old.task_id)
        outcome = await b.settle(old, verb)
        assert outcome is STALE, (
            f"after reaping {verb.name} was answered {outcome}; the owner no longer owns it"
        )
        task = await b.look(old.task_id)
        assert (task.state, task.attempt) == (TaskState.PENDING, 1), (
            f"{verb.name} changed a reaped task: {task.state}"
        )


@check(Capability.FENCED_SETTLE)
async def a_zombie_in_a_batch_changes_nothing_and_stops_nobody(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s, queue="old")
    await b.lose(old.task_id)
    new = await b.until_claimed(old.task_id, "old")
    mine = await b.running(queue="mine")
    outcomes = await b.settle_all(
        [b.settlement(old, Verb.DEAD), b.settlement(mine, Verb.SUCCEED), b.settlement(new, Verb.SUCCEED)]
    )
    assert outcomes == [STALE, OK, OK], f"former owner, mine, new owner were answered {outcomes}"
    states = await b.states([old.task_id, mine.task_id])
    assert states == [TaskState.SUCCEEDED] * 2, f"the tasks are {states}"


@check(Capability.FENCED_SETTLE)
async def a_zombie_of_a_dead_task_stays_out(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s, max_crashes=1)
    await b.lose(old.task_id)
    outcome = await b.settle(old, Verb.SUCCEED)
    assert outcome is STALE, (
        f"the reaper made the task dead; its former owner's SUCCEED was answered {outcome}"
    )
    state = await b.state(old.task_id)
    assert state is TaskState.DEAD, f"a former owner revived a dead task: it is {state}"


@check()
async def a_settled_task_never_returns(b: Bench) -> None:
    claims = [
        await b.running(lease_s=b.span_s, queue=f"q-{verb}")
        for verb in (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL)
    ]
    for claim, verb in zip(claims, (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL), strict=True):
        await b.finish(claim, verb)
    await b.pass_span(1.5)
    await b.maintain()
    queues = [claim.queue for claim in claims]
    assert await b.claim(*queues) == [], "a task came back after it was settled, at the end of its old lease"
    states = await b.states([claim.task_id for claim in claims])
    assert states == [TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED], f"upkeep made them {states}"
