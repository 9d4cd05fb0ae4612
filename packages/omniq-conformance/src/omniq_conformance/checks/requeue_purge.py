"""What an operator does with tasks that have ended."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskFilter, TaskState, Verb

REQUEUE, PURGE = Capability.REQUEUE, Capability.PURGE
OK = Outcome.OK


@check(REQUEUE)
async def a_dead_task_starts_afresh_when_requeued(b: Bench) -> None:
    claim = await b.running(max_crashes=9)
    await b.finish(claim, Verb.RETRY, crashed=True)
    claim = await b.claim_one()
    await b.finish(claim, Verb.DEAD, error=b"error", reason="dead")
    outcomes = list(await b.queue.requeue([claim.task_id]))
    assert outcomes == [OK], f"requeuing a dead task was answered {outcomes}"
    task = await b.look(claim.task_id)
    found = (task.state, task.attempt, task.crashes, task.error, task.finished_at)
    assert found == (TaskState.PENDING, 0, 0, None, None), f"a requeued task is {found}"
    again = await b.claim_one()
    assert (again.task_id, again.attempt, again.crashes) == (claim.task_id, 1, 0), (
        "a requeued task is not due at once"
    )
    assert again.lease.fence > claim.lease.fence, "requeue set the fence back"


@check(REQUEUE, Capability.CANCEL)
async def a_cancelled_task_forgets_the_request_when_requeued(b: Bench) -> None:
    claim = await b.running()
    await b.queue.cancel([claim.task_id])
    await b.finish(claim, Verb.RETRY)
    assert list(await b.queue.requeue([claim.task_id])) == [OK], (
        "requeuing a cancelled task must be answered OK"
    )
    again = await b.claim_one()
    [answer] = await b.extend(again)
    assert not answer.cancel_requested, "the old request to cancel survived the requeue"
    await b.finish(again, Verb.RETRY)
    assert await b.state(claim.task_id) is TaskState.PENDING, "the old request to cancel survived the requeue"


@check(REQUEUE, Capability.EXPIRY)
async def an_expired_task_forgets_its_expiry_when_requeued(b: Bench) -> None:
    record = await b.put_one(ttl_s=b.span_s)
    await b.pass_span()
    await b.expired(record.id)
    assert list(await b.queue.requeue([record.id])) == [OK], "requeuing an expired task must be answered OK"
    await b.pass_span()
    await b.maintain()
    task = await b.look(record.id)
    assert (task.state, task.expires_at) == (TaskState.PENDING, None), (
        f"a requeued task is {task.state} again"
    )
    claim = await b.claim_one()
    assert claim.task_id == record.id, "a requeued task was not claimed"


@check(REQUEUE)
async def a_task_that_succeeded_is_not_requeued(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim)
    outcomes = list(await b.queue.requeue([claim.task_id]))
    assert outcomes == [Outcome.FINISHED], f"requeuing a task that succeeded was answered {outcomes}"
    assert await b.claim() == [], "a task that succeeded ran again"


@check(REQUEUE)
async def a_task_that_is_pending_or_running_is_a_duplicate(b: Bench) -> None:
    pending, running = await b.put_one(queue="pending"), await b.running(queue="running")
    for task_id in (pending.id, running.task_id):
        outcomes = list(await b.queue.requeue([task_id]))
        assert outcomes == [Outcome.DUPLICATE], f"requeuing a task that has not ended was answered {outcomes}"
    await b.finish(running)
    assert len(await b.claim_all("pending")) == 1, "requeuing a pending task doubled it"


@check(REQUEUE)
async def an_unknown_task_is_not_found_by_requeue(b: Bench) -> None:
    outcomes = list(await b.queue.requeue([b.new_id()]))
    assert outcomes == [Outcome.NOT_FOUND], f"requeuing an unknown task was answered {outcomes}"


@check(REQUEUE, Capability.FENCED_SETTLE)
async def the_former_owner_of_a_requeued_task_stays_out(b: Bench) -> None:
    old = await b.running()
    await b.finish(old, Verb.DEAD)
    await b.queue.requeue([old.task_id])
    new = await b.claim_one(worker_id="new")
    for verb in Verb:
        outcome = await b.settle(old, verb)
        assert outcome in (Outcome.DUPLICATE, Outcome.STALE), f"its {verb.name} was answered {outcome}"
    assert (await b.look(old.task_id)).worker_id == "new", "the owner before the requeue changed the task"
    await b.finish(new)


@check(REQUEUE, Capability.UNIQUE)
async def a_requeued_task_takes_its_key_again_or_conflicts(b: Bench) -> None:
    claim = await b.running(unique_key="key")
    await b.finish(claim, Verb.DEAD)
    rival = await b.running(unique_key="key", queue="rival")
    outcomes = list(await b.queue.requeue([claim.task_id]))
    assert outcomes == [Outcome.CONFLICT], f"requeue while another holds the key was answered {outcomes}"
    assert await b.state(claim.task_id) is TaskState.DEAD, "a refused requeue changed the task"
    await b.finish(rival)
    outcomes = list(await b.queue.requeue([claim.task_id]))
    assert outcomes == [OK], f"requeue when its key is free again was answered {outcomes}"
    [answer] = await b.enqueue([b.record(unique_key="key")])
    assert (answer.outcome, answer.task_id) == (Outcome.CONFLICT, claim.task_id), (
        f"a requeued task does not hold its key: {answer}"
    )


@check(REQUEUE, Capability.RESULTS, Capability.ATOMIC_SETTLE)
async def requeuing_deletes_the_result(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim, Verb.DEAD, result=b"failed")
    await b.queue.requeue([claim.task_id])
    assert await b.result(claim.task_id) is None, "a requeued task still has the result of its last end"


@check(PURGE)
async def purging_deletes_what_matches_and_nothing_else(b: Bench) -> None:
    dead = [await b.running() for _ in range(3)]
    for claim in dead:
        await b.finish(claim, Verb.DEAD)
    succeeded = await b.running()
    await b.finish(succeeded)
    pending = await b.put_one(queue="pending")
    count = await b.queue.purge(TaskFilter(queues=["q"], states=[TaskState.DEAD]))
    assert count == 3, f"purging three dead tasks returned {count}"
    ids = [claim.task_id for claim in dead] + [succeeded.task_id, pending.id]
    states = await b.states(ids)
    assert states == [None, None, None, TaskState.SUCCEEDED, TaskState.PENDING], f"after the purge: {states}"


@check(PURGE)
async def purging_leaves_running_tasks_alone(b: Bench) -> None:
    running = await b.running()
    pending = await b.put_one()
    count = await b.queue.purge(TaskFilter(queues=["q"]))
    assert count == 1, f"purging one pending and one running task returned {count}"
    states = await b.states([running.task_id, pending.id])
    assert states == [TaskState.RUNNING, None], f"after the purge: {states}"
    assert await b.claim() == [], "a purged task was handed out"
    await b.finish(running)


@check(PURGE)
async def purging_keeps_to_its_limit(b: Bench) -> None:
    await b.put(5)
    counts = [await b.queue.purge(TaskFilter(queues=["q"]), limit=2) for _ in range(4)]
    assert counts == [2, 2, 1, 0], f"purging five tasks two at a time returned {counts}"


@check(PURGE)
async def a_purged_id_is_unknown_and_may_be_used_again(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim, Verb.DEAD)
    await b.queue.purge(TaskFilter(queues=["q"]))
    outcome = await b.settle(claim, Verb.SUCCEED)
    assert outcome is Outcome.NOT_FOUND, f"settling a purged task was answered {outcome}"
    await b.put_records([b.record(id=claim.task_id, body=b"anew")])
    again = await b.claim_one()
    assert (again.body, again.attempt) == (b"anew", 1), (
        "a new task under a purged id has the old one's history"
    )


@check(PURGE, Capability.FENCED_SETTLE)
async def a_lease_from_before_a_purge_is_good_for_nothing(b: Bench) -> None:
    old = await b.running()
    await b.finish(old, Verb.DEAD)
    await b.queue.purge(TaskFilter(queues=["q"]))
    await b.put_records([b.record(id=old.task_id)])
    new = await b.claim_one(worker_id="new")
    assert new.lease.fence > old.lease.fence, (
        f"under an id that was purged and used again the fence went from {old.lease.fence} to {new.lease.fence}"
    )
    for verb in Verb:
        outcome = await b.settle(old, verb)
        assert outcome in (Outcome.STALE, Outcome.DUPLICATE), (
            f"an old lease's {verb.name} was answered {outcome}"
        )
    assert (await b.look(old.task_id)).worker_id == "new", (
        "a lease from before the purge changed the new task"
    )
    await b.finish(new)


@check(PURGE, Capability.RESULTS)
async def purging_deletes_the_results(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim)
    await b.put_result(claim.task_id, claim.lease.fence, b"result")
    await b.queue.purge(TaskFilter(queues=["q"]))
    assert await b.result(claim.task_id) is None, "a purged task still has a result"


@check(PURGE, Capability.STATS)
async def purging_pending_tasks_is_seen_in_the_counts(b: Bench) -> None:
    await b.put(3)
    await b.queue.purge(TaskFilter(queues=["q"]), limit=2)
    [stats] = await b.queue.stats(["q"])
    assert stats.ready == 1, f"after purging two of three pending tasks stats say {stats}"
