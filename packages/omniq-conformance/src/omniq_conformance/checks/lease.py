"""Who owns a task, for how long, and how it is taken over: time makes a take-over possible, the fence decides."""

from __future__ import annotations

import asyncio
import itertools

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Lease, Outcome, TaskState, Verb

OK, STALE = Outcome.OK, Outcome.STALE


@check()
async def a_task_whose_lease_ended_is_taken_over(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s, worker_id="old")
    await b.pass_span()
    new = await b.until_claimed(old.task_id, worker_id="new")
    assert (new.attempt, new.crashes) == (2, 1), (
        f"a task that was lost once starts with attempt 2 and 1 crash, got {new.attempt} and {new.crashes}"
    )
    assert new.lease.fence > old.lease.fence, f"the fence went from {old.lease.fence} to {new.lease.fence}"
    assert new.body == b"body", "a take-over changed the body"
    assert (await b.look(old.task_id)).worker_id == "new", "worker_id still names the lost worker"
    await b.finish(new)


@check()
async def upkeep_leaves_a_lease_alone_before_its_end(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s * 2)
    await b.advance(b.span_s * 0.5)
    await b.maintain()
    assert await b.claim() == [], "a task was taken over before its lease ended"
    assert await b.state(claim.task_id) is TaskState.RUNNING, "a task was reaped before its lease ended"
    await b.finish(claim)


@check()
async def fences_rise_across_claim_reap_release_retry_and_requeue(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s, max_crashes=10)
    fences = [claim.lease.fence]
    await b.lose(claim.task_id)
    claim = await b.until_claimed(claim.task_id)
    fences.append(claim.lease.fence)
    for verb in (Verb.RELEASE, Verb.RETRY):
        await b.finish(claim, verb)
        claim = await b.claim_one()
        fences.append(claim.lease.fence)
    if b.has(Capability.REQUEUE):
        await b.finish(claim, Verb.DEAD)
        await b.queue.requeue([claim.task_id])
        claim = await b.claim_one()
        fences.append(claim.lease.fence)
    assert all(low < high for low, high in itertools.pairwise(fences)), (
        f"the fences of one task's owners were {fences}: a fence must rise and never repeat"
    )


@check()
async def a_reaped_task_is_due_at_once_and_says_why(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s)
    await b.lose(claim.task_id)
    if not b.reaps_in_maintain:
        return
    task = await b.look(claim.task_id)
    assert task.state is TaskState.PENDING, f"a task that was reaped once of three times is {task.state}"
    assert (task.crashes, task.attempt) == (1, 1), (
        f"after one lost lease crashes is 1 and attempt stays 1, got {task.crashes} and {task.attempt}"
    )
    assert task.reason, "a reaped task's reason must say that its worker was lost"
    assert (task.worker_id, task.lease_expires_at) == (None, None), "a reaped task still names an owner"
    assert task.fence > claim.lease.fence, "reaping did not raise the fence: a zombie could still write"
    again = await b.claim_one()
    assert again.task_id == claim.task_id, "a reaped task is not due at once"


@check()
async def a_task_dies_when_its_crash_budget_is_spent(b: Bench) -> None:
    record = await b.put_one(max_crashes=3, max_attempts=100)
    for crash in (1, 2):
        await b.claim_one(lease_s=b.span_s)
        await b.lose(record.id)
        state = await b.state(record.id)
        assert state is TaskState.PENDING, f"after {crash} of 3 lost leases the task is {state}"
    await b.claim_one(lease_s=b.span_s)
    await b.lose(record.id)
    task = await b.look(record.id)
    assert task.state is TaskState.DEAD, f"after 3 lost leases with max_crashes=3 the task is {task.state}"
    assert task.crashes == 3, f"it counts {task.crashes} crashes"
    assert task.finished_at is not None, "a dead task has no finished_at"
    assert await b.claim() == [], "a task that was dead of crashes was handed out"


@check()
async def one_crash_is_enough_for_a_task_that_may_run_at_most_once(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s, max_crashes=1)
    await b.lose(claim.task_id)
    state = await b.state(claim.task_id)
    assert state is TaskState.DEAD, f"with max_crashes=1 a lost lease makes a task dead, not {state}"
    assert await b.claim() == [], "a task with max_crashes=1 was started a second time"


@check()
async def a_lost_lease_never_spends_the_retry_budget(b: Bench) -> None:
    record = await b.put_one(max_attempts=1, max_crashes=5)
    for number in range(1, 4):
        claim = await b.claim_one(lease_s=b.span_s)
        assert (claim.attempt, claim.crashes) == (number, number - 1), (
            f"start {number} shows attempt {claim.attempt} and {claim.crashes} crashes"
        )
        await b.lose(record.id)
        state = await b.state(record.id)
        assert state is TaskState.PENDING, (
            f"with max_attempts=1 and max_crashes=5 lost lease {number} made the task {state}: the store compares "
            "only max_crashes, max_attempts is the worker's"
        )


@check()
async def upkeep_tells_what_it_reaped(b: Bench) -> None:
    if not b.reaps_in_maintain:
        return
    claim = await b.running(lease_s=b.span_s, queue="mail", name="send", worker_id="lost one")
    await b.pass_span()
    moved = []
    for _ in range(200):
        moved = [m for m in await b.maintain() if m.task_id == claim.task_id]
        if moved:
            break
        await asyncio.sleep(max(b.limits.reclaim_delay_s, 0.1) / 50)
    assert len(moved) == 1, f"maintain told of {len(moved)} moves of a task whose lease ended"
    told = moved[0]
    assert (told.queue, told.name, told.state) == ("mail", "send", TaskState.PENDING), f"maintain told {told}"
    assert (told.attempt, told.crashes, told.worker_id) == (1, 1, "lost one"), f"maintain told {told}"
    assert told.fence > claim.lease.fence and told.reason, f"maintain told {told}"
    assert not [m for m in await b.maintain() if m.task_id == claim.task_id], (
        "maintain reaped one lease twice"
    )


@check()
async def upkeep_by_many_at_once_counts_one_crash(b: Bench) -> None:
    await b.put(5)
    claims = await b.claim(max_tasks=5, lease_s=b.span_s)
    ids = [claim.task_id for claim in claims]
    other = await b.another()
    await b.pass_span()
    rounds = await asyncio.gather(*(hand.queue.maintain() for hand in [b, other] * 4))
    await b.reaped(*ids)
    for task in [await b.look(task_id) for task_id in ids]:
        assert task.crashes == 1, (
            f"eight rounds of upkeep at once counted {task.crashes} crashes for one lost lease"
        )
    told = [moved.task_id for done in rounds for moved in done.moved]
    assert len(told) == len(set(told)), "two rounds of upkeep both say that they reaped one task"


@check()
async def upkeep_keeps_to_its_limit_and_says_that_there_is_more(b: Bench) -> None:
    if not b.reaps_in_maintain:
        return
    ids = [record.id for record in await b.put(9)]
    for _ in ids:
        await b.claim_one(lease_s=b.span_s)
    await b.pass_span()
    if b.limits.reclaim_delay_s:
        await asyncio.sleep(b.limits.reclaim_delay_s)
    done = await b.queue.maintain(limit=3)
    assert len(done.moved) <= 6, f"maintain(limit=3) reaped {len(done.moved)} of nine tasks"
    left = (await b.states(ids)).count(TaskState.RUNNING)
    assert done.more or left == 0, (
        f"maintain(limit=3) left {left} ended leases and said that there is no more to do"
    )
    await b.reaped(*ids)


# --- extend ------------------------------------------------------------------------------------------------------


@check()
async def an_extended_lease_lasts_longer(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s)
    [answer] = await b.extend(claim, lease_s=b.span_s * 10)
    assert answer.outcome is OK, f"the owner's extend was answered {answer.outcome}"
    assert answer.expires_at > claim.lease.expires_at, "extend did not move expires_at"
    assert answer.cancel_requested is False, "extend tells of a cancellation that nobody asked for"
    await b.pass_span()
    await b.maintain()
    assert await b.claim() == [], "a task was taken over at the end of its first lease though it was extended"
    await b.finish(claim)


@check()
async def an_extended_lease_ends_as_well(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s)
    await b.extend(claim, lease_s=b.span_s * 1.5)
    await b.pass_span(1.5)
    await b.until_claimed(claim.task_id)


@check()
async def extending_never_shortens_a_lease(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s * 20)
    [answer] = await b.extend(claim, lease_s=b.span_s)
    assert answer.outcome is OK, f"extend was answered {answer.outcome}"
    assert answer.expires_at >= claim.lease.expires_at - b.limits.time_resolution_s, (
        "extend by less than what is left of the lease made it end earlier"
    )
    await b.pass_span(1.2)
    await b.maintain()
    assert await b.claim() == [], "a lease was shortened by extend"


@check()
async def a_late_owner_that_was_not_reaped_extends_and_keeps_its_task(b: Bench) -> None:
    if not b.reaps_in_maintain:
        return
    claim = await b.running(lease_s=b.span_s)
    await b.pass_span()
    [answer] = await b.extend(claim, lease_s=b.span_s * 10)
    assert answer.outcome is OK, (
        f"a lease that ended and was not reaped is its owner's; extend said {answer.outcome}"
    )
    await b.maintain()
    assert await b.claim() == [], "a task was reaped although its late owner had extended it"
    await b.finish(claim)


@check()
async def extending_a_reaped_task_is_stale(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s)
    await b.lose(old.task_id)
    [answer] = await b.extend(old)
    assert answer.outcome is STALE, f"extend on a reaped task was answered {answer.outcome}"
    new = await b.until_claimed(old.task_id)
    assert new.lease.fence > old.lease.fence, "the new owner's fence is no higher than the former one's"


@check()
async def extending_a_task_that_another_owns_is_stale_and_changes_nothing(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s, max_crashes=9)
    await b.lose(old.task_id)
    new = await b.until_claimed(old.task_id, lease_s=b.span_s)
    [answer] = await b.extend(old, lease_s=b.span_s * 100)
    assert answer.outcome is STALE, f"a former owner's extend was answered {answer.outcome}"
    await b.pass_span()
    third = await b.until_claimed(old.task_id)
    assert third.lease.fence > new.lease.fence, "a former owner's extend lengthened the new owner's lease"


@check()
async def extending_a_settled_or_unknown_task_is_stale(b: Bench) -> None:
    for verb in (Verb.SUCCEED, Verb.DEAD, Verb.RETRY, Verb.RELEASE):
        claim = await b.running(queue=f"q-{verb}")
        await b.finish(claim, verb)
        [answer] = await b.extend(claim)
        assert answer.outcome is STALE, (
            f"extend after settling with {verb.name} was answered {answer.outcome}"
        )
    handle = claim.lease.handle
    [unknown] = await b.queue.extend([Lease("no-such-task", claim.lease.fence, 0.0, handle)], lease_s=60.0)
    assert unknown.outcome is STALE, (
        f"extend on a task that the store does not know was answered {unknown.outcome}"
    )


@check()
async def a_batch_of_extensions_is_answered_item_by_item(b: Bench) -> None:
    lost = await b.running(lease_s=b.span_s, queue="lost")
    await b.lose(lost.task_id)
    first, second = await b.running(queue="first"), await b.running(queue="second")
    done = await b.running(queue="done")
    await b.finish(done)
    outcomes = [answer.outcome for answer in await b.extend(first, lost, second, done)]
    assert outcomes == [OK, STALE, OK, STALE], f"extend of mine, lost, mine, settled was answered {outcomes}"


# --- late, but not too late --------------------------------------------------------------------------------------


@check()
async def a_late_owner_that_was_not_reaped_may_still_settle(b: Bench) -> None:
    if not b.reaps_in_maintain:
        return
    for verb, state in (
        (Verb.SUCCEED, TaskState.SUCCEEDED),
        (Verb.DEAD, TaskState.DEAD),
        (Verb.RETRY, TaskState.PENDING),
        (Verb.RELEASE, TaskState.PENDING),
    ):
        claim = await b.running(lease_s=b.span_s, queue=f"q-{verb}")
        await b.pass_span()
        outcome = await b.settle(claim, verb)
        assert outcome is OK, (
            f"a late owner's {verb.name} was answered {outcome}; the end of the lease decides nothing"
        )
        found = await b.state(claim.task_id)
        assert found is state, f"after a late {verb.name} the task is {found}"
        task = await b.look(claim.task_id)
        assert task.crashes == 0, "a late settle counted a crash"
