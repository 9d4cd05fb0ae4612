"""Several real processes on one storage, some of which die or stand still."""

from __future__ import annotations

import asyncio
import time

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskState, Verb

MULTI = Capability.MULTI_PROCESS
STALE = Outcome.STALE
START = 6.0
"""A new interpreter takes a second or two on a busy machine: these tests may take so many times the usual."""


@check(MULTI, real_time=True, slow=START)
async def three_processes_share_the_tasks_exactly_once(b: Bench) -> None:
    records = await b.put(600)
    workers = await asyncio.gather(*(b.process() for _ in range(3)))
    shares = await asyncio.gather(*(worker.do("work", queue="q", max_tasks=10) for worker in workers))
    done = [task_id for share in shares for task_id in share]
    assert len(done) == len(set(done)), f"{len(done) - len(set(done))} tasks were finished by two processes"
    assert set(done) == {r.id for r in records}, f"three processes finished {len(done)} of 600 tasks"
    states = set(await b.states([r.id for r in records]))
    assert states == {TaskState.SUCCEEDED}, f"after three processes finished them tasks are {states}"


@check(MULTI, real_time=True, slow=START)
async def one_process_sees_at_once_what_another_did(b: Bench) -> None:
    other = await b.process()
    ids = [b.new_id() for _ in range(3)]
    outcomes = await other.do("enqueue", task_ids=ids, queue="q")
    assert outcomes == ["ok"] * 3, f"another process enqueued three new tasks and was answered {outcomes}"
    states = await b.states(ids)
    assert states == [TaskState.PENDING] * 3, f"tasks that another process had stored are {states} here"
    claims = await b.claim_all()
    assert sorted(c.task_id for c in claims) == sorted(ids), "tasks of another process cannot be claimed"
    assert await other.claim("q", max_tasks=3, lease_s=60.0) == [], (
        "what is claimed here was handed out there"
    )
    outcomes = await other.do("enqueue", task_ids=ids, queue="q")
    assert outcomes == ["duplicate"] * 3, f"three ids that are known here were answered {outcomes} there"


@check(MULTI, real_time=True, slow=START)
async def tasks_of_a_killed_process_are_taken_over(b: Bench) -> None:
    records = await b.put(5)
    victim = await b.process()
    held = await victim.claim("q", max_tasks=5, lease_s=b.span_s)
    while len(held) < 5:
        held += await victim.claim("q", max_tasks=5, lease_s=b.span_s)
    await victim.kill()
    assert await b.claim() == [] or b.span_s < 1, (
        "tasks of a killed process were handed out before their lease ended"
    )
    await b.lose(*held)
    claims = await b.claim_all()
    assert {c.task_id for c in claims} == {r.id for r in records}, (
        f"of 5 tasks that a killed process had held, {len(claims)} came back"
    )
    assert {(c.attempt, c.crashes) for c in claims} == {(2, 1)}, (
        "a killed process counts as one crash, no retry"
    )
    outcomes = await b.settle_all([b.settlement(c, Verb.SUCCEED) for c in claims])
    assert set(outcomes) == {Outcome.OK}, f"who took over settled and was answered {outcomes}"


@check(MULTI, Capability.FENCED_SETTLE, real_time=True, slow=START)
async def a_process_that_stood_still_past_its_lease_is_refused(b: Bench) -> None:
    verbs = list(Verb)
    ids = [record.id for record in await b.put(len(verbs) + 1)]
    zombie = await b.process()
    while len(held := await zombie.claim("q", max_tasks=10, lease_s=b.span_s)) < len(ids) and held:
        if await b.states(ids) == [TaskState.RUNNING] * len(ids):
            break
    zombie.stop()
    await b.lose(*ids)
    claims = await b.claim_all()
    assert {c.task_id for c in claims} == set(ids), "tasks of a process that stands still were not taken over"
    finished = [c for c in claims if c.task_id in ids[:3]]
    for claim in finished:
        await b.finish(claim)
    zombie.resume()
    for task_id, verb in zip(ids, verbs, strict=False):
        [outcome] = await zombie.settle([task_id], verb)
        assert outcome is STALE, (
            f"a process that stood still past its lease settled with {verb.name}: {outcome}"
        )
    for task_id in ids:
        [outcome] = await zombie.extend([task_id], lease_s=60.0)
        assert outcome is STALE, f"a process that stood still past its lease extended it: {outcome}"
    for claim in claims:
        if claim not in finished:
            await b.finish(claim)
    states = await b.states(ids)
    assert states == [TaskState.SUCCEEDED] * len(ids), f"after the zombie's writes the tasks are {states}"


@check(MULTI, real_time=True, slow=START)
async def a_writer_that_is_killed_leaves_the_store_whole(b: Bench) -> None:
    writer = await b.process()
    size = min(40, b.limits.max_batch)
    await writer.send("stream", queue="stream", batch=size)
    sent: list[list[str]] = []
    stored: list[list[str]] = []
    while len(stored) < 8:
        answer = await writer.answer()
        sent += [answer["sent"]] if "sent" in answer else []
        stored += [answer["stored"]] if "stored" in answer else []
    await writer.kill()
    for batch in stored:
        states = set(await b.states(batch))
        assert states == {TaskState.PENDING}, f"tasks that were acknowledged before a kill are {states}"
    if b.has(Capability.ATOMIC_BATCH):
        count = sum(state is not None for state in await b.states(sent[-1]))
        assert count in (0, size), (
            f"ATOMIC_BATCH is declared; of a batch whose writer was killed {count} of {size} are there"
        )
    async with asyncio.timeout(5.0):
        await b.put(queue="after")
        await b.finish(await b.claim_one("after"))
    claims = await b.claim_all("stream")
    assert len(claims) >= size * len(stored), (
        f"{size * len(stored)} tasks were acknowledged, {len(claims)} can be claimed"
    )


@check(MULTI, Capability.WAKEUP, real_time=True, slow=START)
async def a_task_wakes_another_process(b: Bench) -> None:
    other = await b.process()
    for _ in range(3):
        await other.send("wait", queues=["q"], timeout_s=8.0)
        await other.answer()
        await asyncio.sleep(0.05)
        put = time.monotonic()
        await b.put()
        await other.answer()
        took = time.monotonic() - put
        assert took < 1.0, (
            f"WAKEUP and MULTI_PROCESS are declared, and a task woke another process after {took:.2f} s"
        )
        await b.finish(await b.claim_one())


@check(MULTI, Capability.RESULTS, Capability.RESULT_WAIT, real_time=True, slow=START)
async def a_result_wakes_another_process(b: Bench) -> None:
    other = await b.process()
    task_id = b.new_id()
    await other.send("wait_result", task_id=task_id, timeout_s=8.0)
    await other.answer()
    await asyncio.sleep(0.05)
    put = time.monotonic()
    await b.put_result(task_id, 1, b"result")
    await other.answer()
    took = time.monotonic() - put
    assert took < 1.0, (
        f"RESULT_WAIT and MULTI_PROCESS are declared, and a result woke another process after {took:.2f} s"
    )


@check(MULTI, Capability.EVENTS, real_time=True, slow=START)
async def a_reader_misses_no_event_of_other_processes(b: Bench) -> None:
    from omniq_core import EventFilter

    writers = await asyncio.gather(*(b.process() for _ in range(2)))
    jobs = [
        asyncio.ensure_future(writer.do("append", count=60, task_id=f"w{number}"))
        for number, writer in enumerate(writers)
    ]
    seen: list[str] = []
    cursor: str | None = None
    finished = False
    while True:
        page = await b.events.read(EventFilter(), after=cursor, limit=5)
        seen += [event.id for event in page.items]
        cursor = page.cursor or cursor
        if finished and not page.items:
            break
        finished = all(job.done() for job in jobs)
        await asyncio.sleep(0)
    wanted = [event_id for job in jobs for event_id in await job]
    assert sorted(seen) == sorted(wanted), (
        f"a reader saw {len(seen)} events ({len(set(seen))} different) of {len(wanted)}"
    )


@check(MULTI, Capability.CANCEL, real_time=True, slow=START)
async def a_request_to_cancel_reaches_the_owners_process(b: Bench) -> None:
    claim = await b.running()
    other = await b.process()
    outcomes = await other.do("cancel", task_ids=[claim.task_id])
    assert outcomes == ["requested"], f"another process cancelled a running task and was answered {outcomes}"
    [answer] = await b.extend(claim)
    assert answer.cancel_requested, "another process asked to cancel, and extend does not tell the owner"
    await b.finish(claim, Verb.CANCEL)
