"""Storing tasks: once per id, whole, and in the place that was asked for."""

from __future__ import annotations

import asyncio

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskState, Verb

OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE


@check()
async def an_enqueued_task_is_pending_and_keeps_its_fields(b: Bench) -> None:
    before = b.now()
    record = b.record(queue="mail", name="send", body=b"\x00body\xff", max_attempts=7, max_crashes=2)
    answers = await b.enqueue([record])
    assert [(a.outcome, a.task_id) for a in answers] == [(OK, record.id)], (
        f"a new task was answered {answers}"
    )
    task = await b.look(record.id)
    found = (task.id, task.queue, task.name, task.body, task.max_attempts, task.max_crashes)
    wanted = (record.id, "mail", "send", b"\x00body\xff", 7, 2)
    assert found == wanted, f"stored {found}, sent {wanted}"
    assert task.state is TaskState.PENDING, f"a new task is {task.state}"
    assert (task.attempt, task.crashes, task.worker_id, task.finished_at) == (0, 0, None, None), (
        "a new task has been started or finished already"
    )
    assert (task.cancel_requested, task.reason, task.error) == (False, None, None), (
        f"a new task has a past: {task}"
    )
    assert abs(task.run_at - task.enqueued_at) <= b.limits.time_resolution_s, (
        "a task without delay is due at once"
    )
    if b.moves_time:
        assert abs(task.enqueued_at - before) <= 0.001 + b.limits.time_resolution_s, "enqueued_at is not now"


@check()
async def an_id_that_is_known_is_a_duplicate_and_changes_nothing(b: Bench) -> None:
    record = await b.put_one(body=b"first")
    other = b.record(id=record.id, body=b"second", queue="elsewhere", name="other", max_attempts=9)
    [answer] = await b.enqueue([other])
    assert (answer.outcome, answer.task_id) == (DUPLICATE, record.id), f"a known id was answered {answer}"
    task = await b.look(record.id)
    assert (task.body, task.queue, task.name, task.max_attempts) == (b"first", "q", "work", 1), (
        "enqueuing a known id changed the task"
    )
    assert len(await b.claim_all("q", "elsewhere")) == 1, "one id gave two tasks"


@check()
async def an_id_that_comes_twice_in_a_batch_is_stored_once(b: Bench) -> None:
    first, second = b.record(body=b"first"), b.record()
    again = b.record(id=first.id, body=b"second")
    answers = await b.enqueue([first, again, second])
    assert [a.outcome for a in answers] == [OK, DUPLICATE, OK], f"answered {answers}"
    bodies = sorted(claim.body for claim in await b.claim_all())
    assert bodies == [b"body", b"first"], f"claimed the bodies {bodies}"


@check()
async def the_id_of_a_running_task_is_a_duplicate(b: Bench) -> None:
    claim = await b.running()
    [answer] = await b.enqueue([b.record(id=claim.task_id)])
    assert answer.outcome is DUPLICATE, f"the id of a running task was answered {answer}"
    assert await b.claim() == [], "a running task was handed out again after its id was enqueued again"
    await b.finish(claim)


@check()
async def the_id_of_a_finished_task_is_still_a_duplicate(b: Bench) -> None:
    for verb in (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL):
        claim = await b.running()
        await b.finish(claim, verb)
        [answer] = await b.enqueue([b.record(id=claim.task_id)])
        assert answer.outcome is DUPLICATE, f"the id of a task settled with {verb.name} was answered {answer}"
        assert await b.claim() == [], f"a task that was settled with {verb.name} ran again"


@check()
async def the_id_of_a_task_that_waits_for_its_retry_is_a_duplicate(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim, Verb.RETRY)
    [answer] = await b.enqueue([b.record(id=claim.task_id)])
    assert answer.outcome is DUPLICATE, f"the id of a task that waits was answered {answer}"
    assert len(await b.claim_all()) == 1, "one id gave two tasks"


@check()
async def answers_stand_in_the_places_of_their_records(b: Bench) -> None:
    known = await b.put(2)
    fresh = b.records(3)
    batch = [fresh[0], known[0], fresh[1], known[1], fresh[2]]
    answers = await b.enqueue(batch)
    assert [a.outcome for a in answers] == [OK, DUPLICATE, OK, DUPLICATE, OK], f"answered {answers}"
    assert [a.task_id for a in answers] == [r.id for r in batch], "an answer names another record's id"


@check()
async def one_batch_may_fill_several_queues(b: Bench) -> None:
    records = [b.record(queue=f"q{number % 3}") for number in range(9)]
    await b.put_records(records)
    for name in ("q0", "q1", "q2"):
        found = {claim.task_id for claim in await b.claim_all(name)}
        assert found == {r.id for r in records if r.queue == name}, f"the queue {name} holds others' tasks"


@check()
async def get_answers_by_place_and_none_for_the_unknown(b: Bench) -> None:
    first, second = await b.put(2)
    unknown = b.new_id()
    found = [None if t is None else t.id for t in await b.queue.get([second.id])]
    assert found == [second.id], f"get of one id gave {found}"
    ids = [second.id, unknown, first.id, second.id][: b.limits.max_batch]
    found = [None if t is None else t.id for t in await b.queue.get(ids)]
    assert found == [second.id, None, first.id, second.id][: len(ids)], f"get gave {found} for {ids}"


@check()
async def enqueuing_the_same_batch_again_completes_it(b: Bench) -> None:
    records = b.records(6)
    await b.put_records(records[1:4])
    outcomes = [a.outcome for a in await b.enqueue(records)]
    assert outcomes == [OK, DUPLICATE, DUPLICATE, DUPLICATE, OK, OK], f"answered {outcomes}"
    assert {c.task_id for c in await b.claim_all()} == {r.id for r in records}, (
        "a repeated batch is incomplete"
    )


@check()
async def a_batch_of_the_greatest_size_is_taken(b: Bench) -> None:
    size = min(b.limits.max_batch, 10_000)
    records = b.records(size, body=b"")
    answers = await b.queue.enqueue(records)
    assert [a.outcome for a in answers] == [OK] * size, f"a batch of limits.max_batch = {size} was not stored"


@check(wide=True, slow=6)
async def ten_thousand_tasks_come_out_once_each(b: Bench) -> None:
    records = b.records(10_000, body=b"x" * 100)
    await b.put_records(records)
    seen: list[str] = []
    while claims := await b.claim(max_tasks=b.limits.max_batch):
        seen += [claim.task_id for claim in claims]
        outcomes = await b.settle_all([b.settlement(claim, Verb.SUCCEED) for claim in claims])
        assert set(outcomes) == {OK}, f"settling {len(claims)} tasks gave {set(outcomes)}"
    assert len(seen) == 10_000 and set(seen) == {r.id for r in records}, (
        f"10,000 tasks went in; {len(seen)} came out, {len(set(seen))} of them different"
    )


@check(Capability.ATOMIC_BATCH)
async def a_batch_whose_call_was_cancelled_is_whole_or_absent(b: Bench) -> None:
    size = min(50, b.limits.max_batch)
    for yields in range(12):
        records = b.records(size)
        call = asyncio.ensure_future(b.queue.enqueue(records))
        for _ in range(yields):
            await asyncio.sleep(0)
        if yields > 8:
            await asyncio.sleep(
                0.0005 * yields
            )  # the driver works on a thread or a socket: let it get somewhere
        call.cancel()
        await asyncio.wait({call})
        stored = 0
        for _ in range(20):  # what the cancelled call had sent may take effect while we look
            stored = sum(state is not None for state in await b.states([r.id for r in records]))
            if stored in (0, size):
                break
            await asyncio.sleep(0.02)
        assert stored in (0, size), (
            f"ATOMIC_BATCH is declared, and a cancelled enqueue stored {stored} of {size} records"
        )


@check()
async def a_cancelled_enqueue_can_be_repeated(b: Bench) -> None:
    for yields in range(8):
        records = b.records(5, max_crashes=99)
        call = asyncio.ensure_future(b.enqueue(records))
        for _ in range(yields):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        outcomes = {a.outcome for a in await b.enqueue(records)}
        assert outcomes <= {OK, DUPLICATE}, f"repeating a cancelled enqueue was answered {outcomes}"
        found = sorted(claim.task_id for claim in await b.claim_all())
        assert found == sorted(r.id for r in records), "a repeated enqueue lost or doubled a task"
