"""Cancelling: at once what has not begun, by request what is running, and for good in either case."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskState, Verb

CANCEL = Capability.CANCEL
OK, REQUESTED, FINISHED = Outcome.OK, Outcome.REQUESTED, Outcome.FINISHED


@check(CANCEL)
async def a_pending_task_is_cancelled_at_once(b: Bench) -> None:
    record, other = await b.put(2)
    assert list(await b.queue.cancel([record.id])) == [OK], "cancelling a pending task must be answered OK"
    task = await b.look(record.id)
    assert task.state is TaskState.CANCELLED, f"a cancelled pending task is {task.state}"
    assert task.finished_at is not None, "a cancelled task has no finished_at"
    assert [claim.task_id for claim in await b.claim()] == [other.id], "a cancelled task was handed out"


@check(CANCEL)
async def a_running_tasks_owner_is_told_when_it_extends(b: Bench) -> None:
    claim = await b.running()
    assert list(await b.queue.cancel([claim.task_id])) == [REQUESTED], (
        "cancelling a running task is a request"
    )
    task = await b.look(claim.task_id)
    assert task.state is TaskState.RUNNING, f"a request to cancel made a running task {task.state}"
    assert task.cancel_requested, "get() does not show the request"
    [answer] = await b.extend(claim)
    assert answer.outcome is OK, (
        f"a task that is to be cancelled is still its owner's; extend said {answer.outcome}"
    )
    assert answer.cancel_requested, "extend did not tell the owner that its task is to be cancelled"
    await b.finish(claim, Verb.CANCEL)
    state = await b.state(claim.task_id)
    assert state is TaskState.CANCELLED, f"after CANCEL by the owner the task is {state}"


@check(CANCEL)
async def a_request_concerns_only_its_own_task(b: Bench) -> None:
    await b.put(min(3, b.limits.max_batch))
    claims = await b.claim(max_tasks=3)
    await b.queue.cancel([claims[0].task_id])
    told = [answer.cancel_requested for answer in await b.extend(*claims)]
    assert told == [True] + [False] * (len(claims) - 1), f"of tasks of one claim, extend told {told}"


@check(CANCEL)
async def the_owner_of_a_task_to_be_cancelled_may_still_finish_it(b: Bench) -> None:
    for verb, state in ((Verb.SUCCEED, TaskState.SUCCEEDED), (Verb.DEAD, TaskState.DEAD)):
        claim = await b.running()
        await b.queue.cancel([claim.task_id])
        await b.finish(claim, verb)
        found = await b.state(claim.task_id)
        assert found is state, (
            f"after a request and the owner's {verb.name} the task is {found}: the owner decides"
        )


@check(CANCEL)
async def a_task_to_be_cancelled_does_not_start_again(b: Bench) -> None:
    for verb in (Verb.RETRY, Verb.RELEASE):
        claim = await b.running()
        await b.queue.cancel([claim.task_id])
        await b.finish(claim, verb)
        state = await b.state(claim.task_id)
        assert state is TaskState.CANCELLED, (
            f"a request, then {verb.name}: the task must be cancelled, it is {state}"
        )
        assert await b.claim() == [], f"a task whose cancellation was requested ran again after {verb.name}"


@check(CANCEL)
async def a_lost_task_to_be_cancelled_is_cancelled_by_the_reaper(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s)
    await b.queue.cancel([claim.task_id])
    await b.lose(claim.task_id)
    task = await b.look(claim.task_id)
    assert task.state is TaskState.CANCELLED, (
        f"its owner is lost and it was to be cancelled; it is {task.state}"
    )
    assert task.crashes == 1, f"the reaper counts a crash as always, got {task.crashes}"
    assert await b.claim() == [], "a lost task whose cancellation was requested was handed out"


@check(CANCEL)
async def a_finished_task_is_not_cancelled(b: Bench) -> None:
    for verb, state in (
        (Verb.SUCCEED, TaskState.SUCCEEDED),
        (Verb.DEAD, TaskState.DEAD),
        (Verb.CANCEL, TaskState.CANCELLED),
    ):
        claim = await b.running()
        await b.finish(claim, verb)
        outcomes = list(await b.queue.cancel([claim.task_id]))
        assert outcomes == [FINISHED], f"cancelling a task settled with {verb.name} was answered {outcomes}"
        assert await b.state(claim.task_id) is state, "cancelling changed a finished task"


@check(CANCEL)
async def cancelling_again_gives_the_same_answer_or_finished(b: Bench) -> None:
    pending = await b.put_one(queue="pending")
    running = await b.running(queue="running")
    await b.queue.cancel([pending.id])
    again = list(await b.queue.cancel([pending.id]))
    assert again[0] in (OK, FINISHED), f"cancelling a cancelled task was answered {again}"
    for _ in range(2):
        outcomes = list(await b.queue.cancel([running.task_id]))
        assert outcomes == [REQUESTED], f"cancelling a running task repeatedly was answered {outcomes}"
    await b.finish(running, Verb.CANCEL)


@check(CANCEL)
async def cancellations_are_answered_item_by_item(b: Bench) -> None:
    pending = await b.put_one(queue="pending")
    running = await b.running(queue="running")
    done = await b.running(queue="done")
    await b.finish(done)
    ids = [b.new_id(), pending.id, done.task_id, running.task_id]
    found: list[Outcome] = []
    for task_id in ids if b.limits.max_batch < len(ids) else []:
        found += await b.queue.cancel([task_id])
    outcomes = found or list(await b.queue.cancel(ids))
    assert outcomes == [Outcome.NOT_FOUND, OK, FINISHED, REQUESTED], (
        f"unknown, pending, finished, running were answered {outcomes}"
    )


@check(CANCEL, Capability.DELAYED)
async def a_delayed_or_retrying_task_can_be_cancelled(b: Bench) -> None:
    delayed = await b.put_one(delay_s=b.span_s, queue="delayed")
    retrying = await b.running(queue="retrying")
    await b.finish(retrying, Verb.RETRY, delay_s=b.span_s)
    for task_id in (delayed.id, retrying.task_id):
        assert list(await b.queue.cancel([task_id])) == [OK], "a task that waits for its time is pending: OK"
    await b.pass_span()
    await b.maintain()
    assert await b.claim("delayed", "retrying") == [], "a cancelled task ran when its time had come"
