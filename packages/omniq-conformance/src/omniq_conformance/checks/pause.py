"""Pausing queues: nothing new starts, what runs goes on, in every process."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, Verb

PAUSE = Capability.PAUSE


@check(PAUSE)
async def a_paused_queue_gives_nothing_until_it_is_resumed(b: Bench) -> None:
    record = await b.put_one()
    await b.queue.pause(["q"])
    assert await b.claim() == [], "a paused queue gave a task"
    later = await b.put_one()
    assert await b.claim() == [], "a paused queue gave a task that came after the pause"
    await b.queue.resume(["q"])
    found = {claim.task_id for claim in await b.claim_all()}
    assert found == {record.id, later.id}, f"after resume {len(found)} of 2 tasks were claimed"


@check(PAUSE)
async def pausing_one_queue_leaves_the_others(b: Bench) -> None:
    await b.put_one(queue="paused")
    other = await b.put_one(queue="other")
    await b.queue.pause(["paused"])
    found = [claim.task_id for claim in await b.claim("paused", "other")]
    assert found == [other.id], "a claim on a paused and another queue must give the other's tasks"


@check(PAUSE)
async def running_tasks_go_on_in_a_paused_queue(b: Bench) -> None:
    claim, second = await b.running(), await b.running(queue="second")
    await b.queue.pause(["q", "second"][: b.limits.max_batch])
    [answer] = await b.extend(claim)
    assert answer.outcome is Outcome.OK, f"extend in a paused queue was answered {answer.outcome}"
    await b.finish(claim)
    await b.finish(second, Verb.RETRY)
    if b.limits.max_batch > 1:
        assert await b.claim("second") == [], "a paused queue gave a task that was retried"


@check(PAUSE)
async def a_queue_may_be_paused_before_its_first_task(b: Bench) -> None:
    await b.queue.pause(["new"])
    record = await b.put_one(queue="new")
    assert await b.claim("new") == [], "a queue that was paused before its first task gave it away"
    await b.queue.resume(["new"])
    claim = await b.claim_one("new")
    assert claim.task_id == record.id, "after resume another task than the one that waited was claimed"


@check(PAUSE)
async def pausing_and_resuming_twice_is_as_once(b: Bench) -> None:
    await b.put_one()
    await b.queue.resume(["q"])
    await b.queue.pause(["q"])
    await b.queue.pause(["q"])
    assert await b.claim() == [], "pausing twice resumed the queue"
    await b.queue.resume(["q"])
    await b.queue.resume(["q"])
    assert len(await b.claim()) == 1, "after resume the queue gives nothing"


@check(PAUSE)
async def a_pause_holds_for_every_backend_of_the_storage(b: Bench) -> None:
    await b.put_one()
    other = await b.another()
    await b.queue.pause(["q"])
    assert await other.claim() == [], "another backend claims from a paused queue"
    third = await b.another()
    assert await third.claim() == [], "a backend that was opened later claims from a paused queue"
    await other.queue.resume(["q"])
    assert len(await b.claim()) == 1, "a resume by another backend was not seen"


@check(PAUSE)
async def a_task_lost_in_a_paused_queue_waits_for_resume(b: Bench) -> None:
    claim = await b.running(lease_s=b.span_s)
    await b.queue.pause(["q"])
    await b.lose(claim.task_id)
    assert await b.claim() == [], "a paused queue gave a task that had been reaped"
    await b.queue.resume(["q"])
    await b.until_claimed(claim.task_id)
