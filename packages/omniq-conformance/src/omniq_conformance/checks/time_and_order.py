"""When tasks are due, and which one goes first."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, TaskState, Verb

DELAYED, PRIORITY, FIFO = Capability.DELAYED, Capability.PRIORITY, Capability.FIFO


@check(DELAYED)
async def a_delayed_task_is_not_claimed_before_its_time(b: Bench) -> None:
    record = await b.put_one(delay_s=b.span_s * 2)
    assert await b.claim() == [], "a delayed task was claimed at once"
    await b.pass_span(0.5)
    await b.maintain()
    assert await b.claim() == [], "a delayed task was claimed before its time"
    task = await b.look(record.id)
    assert task.state is TaskState.PENDING, f"a delayed task is {task.state}"
    waits = task.run_at - task.enqueued_at
    assert abs(waits - b.span_s * 2) <= 0.001 + 2 * b.limits.time_resolution_s, (
        f"run_at is {waits:g} s after enqueued_at, not {b.span_s * 2:g} s"
    )


@check(DELAYED)
async def a_delayed_task_is_claimed_when_its_time_has_come(b: Bench) -> None:
    record = await b.put_one(delay_s=b.span_s)
    await b.pass_span()
    claim = await b.claim_one()
    assert claim.task_id == record.id, "another task than the delayed one was claimed"


@check(DELAYED)
async def a_delayed_task_does_not_hold_up_the_others(b: Bench) -> None:
    await b.put_one(delay_s=b.span_s * 100)
    due = await b.put_one()
    assert [claim.task_id for claim in await b.claim()] == [due.id], (
        "a delayed task stood before one that is due"
    )


@check(DELAYED)
async def delayed_tasks_come_one_after_the_other_as_they_fall_due(b: Bench) -> None:
    late = await b.put_one(delay_s=b.span_s * 2)
    early = await b.put_one(delay_s=b.span_s)
    await b.pass_span()
    assert [claim.task_id for claim in await b.claim()] == [early.id], (
        "not just the first delayed task was due"
    )
    await b.pass_span()
    assert [claim.task_id for claim in await b.claim()] == [late.id], (
        "the second delayed task did not fall due"
    )


@check(DELAYED)
async def a_retry_waits_for_its_delay(b: Bench) -> None:
    for verb in (Verb.RETRY, Verb.RELEASE):
        queue = f"q-{verb}"
        claim = await b.running(queue=queue)
        await b.finish(claim, verb, delay_s=b.span_s)
        assert await b.claim(queue) == [], f"a task settled with {verb.name} and a delay was claimed at once"
        task = await b.look(claim.task_id)
        assert task.state is TaskState.PENDING, f"it is {task.state}"
        await b.pass_span()
        again = await b.claim_one(queue)
        assert again.task_id == claim.task_id, (
            f"a task settled with {verb.name} did not come back after its delay"
        )


@check(PRIORITY)
async def a_higher_priority_goes_first(b: Bench) -> None:
    for priority in (0, 5, -5, 32767, -32768, 1):
        await b.put_records([b.record(priority=priority, body=str(priority).encode())])
    order = [int((await b.claim_one()).body) for _ in range(6)]
    assert order == [32767, 5, 1, 0, -5, -32768], f"six priorities were claimed in the order {order}"


@check(PRIORITY)
async def a_higher_priority_goes_first_within_one_claim(b: Bench) -> None:
    for priority in (1, 3, 2):
        await b.put_records([b.record(priority=priority, body=str(priority).encode())])
    taken = await b.claim(max_tasks=2)
    if b.limits.max_batch >= 2:
        assert {int(claim.body) for claim in taken} == {3, 2}, (
            "a claim of two left the higher priorities behind"
        )
    assert (await b.look(taken[0].task_id)).priority == int(taken[0].body), "get() shows another priority"


@check(PRIORITY)
async def the_order_of_the_queues_stands_above_priority(b: Bench) -> None:
    low = await b.put_one(queue="first", priority=-100)
    await b.put_one(queue="second", priority=100)
    claim = await b.claim_one("first", "second")
    assert claim.task_id == low.id, "a high priority in a later queue went before the first queue"


@check(FIFO)
async def equal_tasks_go_in_the_order_of_their_arrival(b: Bench) -> None:
    records = []
    for _ in range(4):
        records += await b.put(1)
        records += await b.put(5)
        await b.advance(0.0 if not b.moves_time else 0.25)
    order = []
    while claims := await b.claim(max_tasks=5):
        order += [claim.task_id for claim in claims]
    assert order == [record.id for record in records], (
        "tasks of one queue were not claimed first in, first out"
    )


@check(FIFO)
async def each_queue_keeps_its_own_order(b: Bench) -> None:
    records = [b.record(queue=f"q{number % 3}") for number in range(30)]
    await b.put_records(records)
    for name in ("q2", "q0", "q1"):
        order = [claim.task_id for claim in await b.claim_all(name)]
        assert order == [r.id for r in records if r.queue == name], (
            f"the queue {name} was not first in, first out"
        )


@check(FIFO, PRIORITY)
async def equal_priorities_go_in_the_order_of_their_arrival(b: Bench) -> None:
    records = [b.record(priority=number % 2) for number in range(20)]
    await b.put_records(records)
    order = [claim.task_id for claim in await b.claim_all()]
    wanted = [r.id for r in records if r.priority] + [r.id for r in records if not r.priority]
    assert order == wanted, "tasks of one priority were not claimed first in, first out"


@check(FIFO)
async def a_task_given_back_goes_before_those_that_waited_less(b: Bench) -> None:
    for verb in (Verb.RELEASE, Verb.RETRY):
        queue = f"q-{verb}"
        first, second, third = await b.put(3, queue=queue)
        claim = await b.claim_one(queue)
        assert claim.task_id == first.id, "tasks of one queue were not claimed first in, first out"
        await b.finish(claim, verb)
        order = [c.task_id for c in await b.claim_all(queue)]
        assert order == [first.id, second.id, third.id], (
            f"a task settled with {verb.name} and delay 0 must go before tasks that have waited less"
        )
