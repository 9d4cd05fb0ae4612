"""Handing out tasks: whole, in the order of the queues, to one owner at a time, and again if the reply was lost."""

from __future__ import annotations

import itertools
import time
import uuid

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskState, Verb


@check()
async def a_claim_hands_over_everything_that_was_sent(b: Bench) -> None:
    record = b.record(queue="mail", name="send", body=b"\x00\xff body", max_attempts=5, max_crashes=4)
    await b.put_records([record])
    claim = await b.claim_one("mail")
    found = (claim.task_id, claim.queue, claim.name, claim.body, claim.max_attempts, claim.max_crashes)
    assert found == (record.id, "mail", "send", b"\x00\xff body", 5, 4), f"claimed {found}, sent {record}"
    assert (claim.attempt, claim.crashes) == (1, 0), (
        f"a first start is attempt 1 with 0 crashes, got {claim.attempt} and {claim.crashes}"
    )
    assert claim.lease.task_id == record.id, "the lease is on another task"
    enqueued_at = (await b.look(record.id)).enqueued_at
    assert abs(claim.enqueued_at - enqueued_at) <= b.limits.time_resolution_s, (
        "enqueued_at differs from get()"
    )


@check()
async def a_claim_takes_at_most_max_tasks(b: Bench) -> None:
    await b.put(7)
    sizes = []
    while claims := await b.claim(max_tasks=3):
        sizes.append(len(claims))
    assert sum(sizes) == 7 and max(sizes) <= 3, f"7 tasks came in claims of {sizes} with max_tasks=3"


@check()
async def a_claim_takes_as_much_as_there_is(b: Bench) -> None:
    records = await b.put(min(5, b.limits.max_batch))
    claims = await b.claim(max_tasks=10)
    assert len(claims) == len(records), (
        f"{len(records)} tasks are due, and claim(max_tasks=10) took {len(claims)}"
    )


@check()
async def a_claim_takes_nothing_from_queues_that_it_was_not_given(b: Bench) -> None:
    await b.put(2, queue="theirs")
    mine = await b.put_one(queue="mine")
    found = [claim.task_id for claim in await b.claim("mine", max_tasks=10)]
    assert found == [mine.id], f"a claim on 'mine' took {len(found)} tasks"
    assert len(await b.claim_all("theirs")) == 2, "tasks of another queue are gone"


@check()
async def a_claim_with_nothing_to_take_returns_at_once(b: Bench) -> None:
    started = time.monotonic()
    assert await b.claim("never used", "also not") == [], "a queue that never existed gave a task"
    took = time.monotonic() - started
    assert took < 2.0, f"a claim without tasks took {took:.1f} s: it must not wait, wait() does"


@check()
async def a_claimed_task_is_claimed_by_nobody_until_its_lease_ends(b: Bench) -> None:
    await b.running(worker_id="a")
    other = await b.another()
    assert await b.claim(worker_id="b") == [], "another worker got a task that is leased"
    assert await b.claim(worker_id="a") == [], "the same worker got its own task twice"
    assert await other.claim(worker_id="c") == [], "another backend handed out a task that is leased"
    await b.maintain()
    assert await b.claim(worker_id="b") == [], "maintain gave back a task whose lease has not ended"


@check()
async def queues_are_emptied_strictly_in_the_order_given(b: Bench) -> None:
    for name in ("c", "a", "b"):
        await b.put(3, queue=name)
    order = []
    while claims := await b.claim("b", "c", "a", max_tasks=1):
        order.append(claims[0].queue)
    assert order == ["b"] * 3 + ["c"] * 3 + ["a"] * 3, f"claim(['b', 'c', 'a']) went through {order}"


@check()
async def one_claim_goes_on_to_the_next_queue_when_the_first_is_empty(b: Bench) -> None:
    await b.put(2, queue="first")
    await b.put(2, queue="second")
    claims = await b.claim("first", "empty", "second", max_tasks=3)
    if b.limits.max_batch < 3:
        return
    queues = sorted(claim.queue for claim in claims)
    assert queues == ["first", "first", "second"], f"claim took {queues} of two tasks in each of two queues"


@check()
async def a_later_queue_is_served_while_the_first_has_only_running_tasks(b: Bench) -> None:
    await b.running(queue="first")
    second = await b.put_one(queue="second")
    claim = await b.claim_one("first", "second")
    assert claim.task_id == second.id, "a running task of the first queue kept the second from being served"


@check()
async def every_claim_raises_attempt_and_fence(b: Bench) -> None:
    claim = await b.running()
    seen = [(claim.attempt, claim.lease.fence)]
    for _ in range(3):
        await b.finish(claim, Verb.RETRY)
        claim = await b.claim_one()
        seen.append((claim.attempt, claim.lease.fence))
    assert [attempt for attempt, _ in seen] == [1, 2, 3, 4], f"attempts were {seen}"
    fences = [fence for _, fence in seen]
    assert all(low < high for low, high in itertools.pairwise(fences)), (
        f"the fences of four claims were {fences}: each must be higher than the one before"
    )


@check()
async def a_running_task_shows_its_worker_and_its_lease(b: Bench) -> None:
    before = b.now()
    claim = await b.running(lease_s=60.0, worker_id="worker 7 on host-a")
    task = await b.look(claim.task_id)
    assert task.state is TaskState.RUNNING, f"a claimed task is {task.state}"
    assert task.worker_id == "worker 7 on host-a", f"worker_id is {task.worker_id!r}"
    assert (task.attempt, task.fence) == (1, claim.lease.fence), "attempt or fence differ from the claim's"
    assert task.lease_expires_at is not None, "a running task has no lease_expires_at"
    assert abs(task.lease_expires_at - claim.lease.expires_at) <= b.limits.time_resolution_s, (
        "lease_expires_at differs from the claim's"
    )
    if b.moves_time:
        lasts = claim.lease.expires_at - before
        assert abs(lasts - 60.0) <= 0.001 + b.limits.time_resolution_s, f"a lease of 60 s lasts {lasts:g} s"


@check()
async def repeating_a_claim_gives_the_same_tasks_and_nothing_new(b: Bench) -> None:
    await b.put(6)
    claim_id = str(uuid.uuid4())
    first = await b.claim(max_tasks=3, claim_id=claim_id)
    again = await b.claim(max_tasks=3, claim_id=claim_id)
    shown = [(c.task_id, c.lease.fence, c.attempt, c.body) for c in first]
    assert sorted((c.task_id, c.lease.fence, c.attempt, c.body) for c in again) == sorted(shown), (
        f"the repeated claim_id gave {len(again)} tasks with other ids, fences or attempts"
    )
    for claim in again:
        await b.finish(claim)
    rest = await b.claim_all()
    assert len(rest) == 6 - len(first), "repeating a claim took further tasks"


@check()
async def repeating_a_claim_works_from_another_backend(b: Bench) -> None:
    await b.put(2)
    claim_id = str(uuid.uuid4())
    first = await b.claim(max_tasks=1, claim_id=claim_id)
    other = await b.another()
    again = await other.claim(max_tasks=1, claim_id=claim_id)
    assert [(c.task_id, c.lease.fence) for c in again] == [(c.task_id, c.lease.fence) for c in first], (
        "after a reconnect the same claim_id gave other tasks"
    )
    await other.finish(again[0])


@check()
async def repeating_a_claim_leaves_out_what_was_settled_since(b: Bench) -> None:
    if b.limits.max_batch < 3:
        return
    await b.put(5)
    claim_id = str(uuid.uuid4())
    done, released, open_ = await b.claim(max_tasks=3, claim_id=claim_id)
    await b.finish(done)
    await b.finish(released, Verb.RELEASE)
    again = await b.claim(max_tasks=3, claim_id=claim_id)
    assert [(c.task_id, c.lease.fence) for c in again] == [(open_.task_id, open_.lease.fence)], (
        f"one of three tasks of the claim is open, and repeating it gave {[c.task_id for c in again]}"
    )


@check()
async def repeating_a_claim_does_not_give_back_what_was_taken_over(b: Bench) -> None:
    await b.put(1)
    claim_id = str(uuid.uuid4())
    [old] = await b.claim(max_tasks=1, claim_id=claim_id, lease_s=b.span_s)
    await b.lose(old.task_id)
    new = await b.until_claimed(old.task_id, worker_id="new owner")
    again = await b.claim(max_tasks=1, claim_id=claim_id)
    assert again == [], "the old claim_id gave out a task that another worker owns now"
    await b.finish(new)


@check()
async def another_claim_id_takes_other_tasks(b: Bench) -> None:
    await b.put(4)
    first = await b.claim(max_tasks=2)
    second = await b.claim(max_tasks=2)
    taken = [c.task_id for c in first + second]
    assert len(first) >= 1 and len(second) >= 1, "a second claim found nothing though tasks are pending"
    assert len(set(taken)) == len(taken), "two claims took the same task"


@check()
async def one_claim_may_be_settled_piece_by_piece(b: Bench) -> None:
    await b.put(min(4, b.limits.max_batch))
    claims = await b.claim(max_tasks=4, lease_s=b.span_s)
    for number, claim in enumerate(claims):
        assert await b.settle(claim, Verb.SUCCEED) is Outcome.OK, (
            f"settling task {number} of one claim failed"
        )
    await b.pass_span()
    await b.maintain()
    states = set(await b.states([c.task_id for c in claims]))
    assert states == {TaskState.SUCCEEDED}, f"after its claim's lease ended, settled tasks are {states}"


@check(Capability.FENCED_SETTLE)
async def settling_one_task_of_a_claim_leaves_the_others_owned(b: Bench) -> None:
    if b.limits.max_batch < 3:
        return
    await b.put(3)
    first, second, third = await b.claim(max_tasks=3, lease_s=b.span_s)
    await b.finish(first)
    assert await b.claim() == [], "settling one task of a claim gave back the others"
    await b.lose(second.task_id, third.task_id)
    outcomes = [await b.settle(c, Verb.SUCCEED) for c in (first, second, third)]
    assert outcomes == [Outcome.DUPLICATE, Outcome.STALE, Outcome.STALE], (
        f"of a claim with one settled and two reaped tasks, settling again was answered {outcomes}"
    )
