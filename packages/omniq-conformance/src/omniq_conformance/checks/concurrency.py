"""Many at once, in one process: nothing twice, nothing lost, and a call that is cancelled leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_conformance.hand import Hand, chunks
from omniq_core import Capability, Event, Outcome, TaskState, Verb

OK = Outcome.OK


async def _drain(hand: Hand, taken: list[str]) -> list[str]:
    """Claims and succeeds until nothing more comes; the ids that were settled ``OK``. ``taken`` gets all that came."""
    done: list[str] = []
    while claims := await hand.claim(max_tasks=7):
        taken += [claim.task_id for claim in claims]
        await asyncio.sleep(0)
        outcomes = await hand.settle_all([hand.settlement(claim, Verb.SUCCEED) for claim in claims])
        done += [c.task_id for c, outcome in zip(claims, outcomes, strict=True) if outcome is OK]
    return done


@check()
async def eight_claimers_share_the_tasks_exactly_once(b: Bench) -> None:
    records = await b.put(200)
    other = await b.another()
    taken: list[str] = []
    shares = await asyncio.gather(*(_drain((b, other)[n % 2], taken) for n in range(8)))
    done = [task_id for share in shares for task_id in share]
    twice = len(taken) - len(set(taken))
    assert twice == 0, f"{twice} tasks were handed to two of eight claimers"
    assert len(done) == len(set(done)), "two of eight claimers settled one task"
    assert set(done) == {r.id for r in records}, (
        f"eight claimers finished {len(set(done))} of {len(records)} tasks"
    )


@check()
async def claimers_on_several_threads_share_the_tasks_exactly_once(b: Bench) -> None:
    records = await b.put(120)
    taken: list[str] = []

    async def drain(hand: Hand) -> list[str]:
        return await _drain(hand, taken)

    async with b.on_another_thread() as first, b.on_another_thread() as second:
        shares = await asyncio.gather(first.do(drain), second.do(drain), drain(b))
    assert len(taken) == len(set(taken)), "a task was handed to two of three threads"
    done = [task_id for share in shares for task_id in share]
    assert sorted(done) == sorted(r.id for r in records), (
        f"three threads finished {len(done)} times a task, {len(set(done))} different ones of {len(records)}"
    )


@check()
async def one_id_from_sixteen_producers_makes_one_task(b: Bench) -> None:
    other = await b.another()
    for _ in range(5):
        record = b.record()
        answers = await asyncio.gather(*((b, other)[n % 2].enqueue([record]) for n in range(16)))
        outcomes = [answer.outcome for [answer] in answers]
        assert outcomes.count(OK) == 1 and outcomes.count(Outcome.DUPLICATE) == 15, (
            f"sixteen producers of one id were answered {outcomes}"
        )
        assert [c.task_id for c in await b.claim_all()] == [record.id], "one id gave several tasks"


@check()
async def producers_and_claimers_work_at_once(b: Bench) -> None:
    ids: list[str] = []

    async def produce(hand: Hand) -> None:
        for _ in range(10):
            ids.extend(record.id for record in await hand.put(5))
            await asyncio.sleep(0)

    other = await b.another()
    producing = asyncio.gather(produce(b), produce(other), produce(b))
    done: list[str] = []
    taken: list[str] = []
    while not producing.done():
        for share in await asyncio.gather(_drain(b, taken), _drain(other, taken)):
            done += share
        await asyncio.sleep(0)
    await producing
    done += await _drain(b, taken)
    assert len(taken) == len(set(taken)), "a task was handed out twice while others were enqueued"
    assert sorted(done) == sorted(ids), (
        f"{len(ids)} tasks went in while claimers worked, {len(done)} came out"
    )


@check()
async def two_claims_with_one_claim_id_at_once_take_the_same(b: Bench) -> None:
    await b.put(10)
    other = await b.another()
    claim_id = str(uuid.uuid4())
    both = await asyncio.gather(
        b.claim(max_tasks=3, claim_id=claim_id), other.claim(max_tasks=3, claim_id=claim_id)
    )
    taken = [{(c.task_id, c.lease.fence) for c in claims} for claims in both]
    assert taken[0] == taken[1], "a claim and its repetition at the same moment took different tasks"
    rest = await b.claim_all()
    assert len(rest) + len(taken[0]) == 10, "a repeated claim took further tasks"


@check()
async def two_settlements_of_one_lease_at_once_take_effect_once(b: Bench) -> None:
    other = await b.another()
    for _ in range(10):
        claim = await b.running()
        outcomes = await asyncio.gather(
            b.settle(claim, Verb.SUCCEED), other.settle(claim, Verb.DEAD), b.settle(claim, Verb.CANCEL)
        )
        assert outcomes.count(OK) == 1, f"three settlements of one lease at once were answered {outcomes}"


@check()
async def a_late_owner_and_the_reaper_do_not_both_win(b: Bench) -> None:
    if not b.reaps_in_maintain or b.limits.reclaim_delay_s:
        return
    other = await b.another()
    await b.put(10, max_crashes=99)
    claims = [await b.claim_one(lease_s=b.span_s) for _ in range(10)]
    await b.pass_span()
    if not b.has(Capability.FENCED_SETTLE):
        return
    upkeep = asyncio.ensure_future(b.queue.maintain())
    outcomes = await asyncio.gather(*(other.settle(claim, Verb.SUCCEED) for claim in claims))
    reaped = {moved.task_id for moved in (await upkeep).moved}
    for claim, outcome in zip(claims, outcomes, strict=True):
        state = await b.state(claim.task_id)
        settled = outcome is OK
        assert settled != (claim.task_id in reaped), (
            "the reaper and the late owner both got the task, or neither"
        )
        wanted = TaskState.SUCCEEDED if settled else TaskState.PENDING
        assert state is wanted, f"a late owner's SUCCEED was answered {outcome}, and the task is {state}"


@check(Capability.CANCEL)
async def a_claim_and_a_cancellation_at_once_agree(b: Bench) -> None:
    other = await b.another()
    for _ in range(20):
        record = await b.put_one()
        claims, [outcome] = await asyncio.gather(b.claim(max_tasks=1), other.queue.cancel([record.id]))
        wanted = Outcome.REQUESTED if claims else OK
        assert outcome is wanted, (
            f"claim took {len(claims)} tasks, and cancel of the same task said {outcome}"
        )
        if claims:
            [answer] = await b.extend(claims[0])
            assert answer.cancel_requested, "a request to cancel that came with the claim was lost"
            await b.finish(claims[0], Verb.CANCEL)


# --- cancelled calls ---------------------------------------------------------------------------------------------


@check()
async def a_cancelled_claim_loses_no_task_and_keeps_no_lock(b: Bench) -> None:
    records = await b.put(30, max_crashes=1000)
    other = await b.another()
    for round_ in range(24):
        call = asyncio.ensure_future(b.claim(max_tasks=2, lease_s=b.span_s))
        for _ in range(round_ % 8):
            await asyncio.sleep(0)
        if round_ % 3 == 2:
            await asyncio.sleep(0.0003 * round_)
        call.cancel()
        await asyncio.wait({call})
    await _still_works(b, other, "claim")
    found: set[str] = set()
    for _ in range(4):
        await b.pass_span()
        await b.maintain()
        claims = await other.claim_all()
        found |= {claim.task_id for claim in claims}
        if len(found) == len(records):
            break
    assert found == {r.id for r in records}, (
        f"after cancelled claims {len(records) - len(found)} of {len(records)} tasks never came back"
    )


async def _still_works(b: Bench, other: Hand, what: str) -> None:
    """Fails if a lock, transaction or connection stayed behind: both backends must do a whole round quickly."""
    for number, hand in enumerate((other, b, other)):
        try:
            async with asyncio.timeout(3.0):
                queue = f"after {what} {number}"
                await hand.put(queue=queue)
                await hand.finish(await hand.claim_one(queue))
                await hand.queue.maintain()
        except TimeoutError:
            raise AssertionError(
                f"after a cancelled {what} another call hangs: the cancelled one kept a lock or a connection"
            ) from None


@check()
async def no_cancelled_call_keeps_a_lock(b: Bench) -> None:
    other = await b.another()
    await b.put(60, queue="taken", max_crashes=1000)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "enqueue": lambda: b.put(3, queue="more"),
        "claim": lambda: b.claim("taken", max_tasks=1),
        "get": lambda: b.queue.get(["no such task"]),
        "wait": lambda: b.queue.wait(["nothing here"], timeout_s=5.0),
        "maintain": lambda: b.queue.maintain(),
    }
    if b.has(Capability.CANCEL):
        calls["cancel"] = lambda: b.queue.cancel(["no such task"])
    if b.has(Capability.STATS):
        calls["stats"] = lambda: b.queue.stats(["taken"])
    if b.has(Capability.RESULTS):
        calls["put of a result"] = lambda: b.put_result(b.new_id(), 1)
        calls["wait for a result"] = lambda: b.results.wait(["no such task"], timeout_s=5.0)
    if b.has(Capability.EVENTS):
        calls["append"] = lambda: b.events.append([Event(b.new_id("e"), "t", "x", 0.0)])
    for what, make in calls.items():
        for yields in range(6):
            call = asyncio.ensure_future(make())
            for _ in range(yields):
                await asyncio.sleep(0)
            if yields == 5:
                await asyncio.sleep(0.002)
            call.cancel()
            await asyncio.wait({call})
        await _still_works(b, other, what)


@check()
async def a_cancelled_open_can_be_repeated(b: Bench) -> None:
    for yields in (1, 2, 3, 5):
        async with b.unopened() as backend:
            call = asyncio.ensure_future(backend.open())
            for _ in range(yields):
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            await backend.open()
            await Hand(backend).put(queue="opened")
            await backend.close()
    await b.put(queue="opened")


@check()
async def closing_under_load_ends_every_call(b: Bench) -> None:
    other = await b.another()
    await b.put(50)
    records = b.records(200)
    calls = [asyncio.ensure_future(other.enqueue(batch)) for batch in chunks(records, 10)]
    calls += [asyncio.ensure_future(other.claim(max_tasks=3)) for _ in range(20)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await other.backend.close()
    done, left = await asyncio.wait(calls, timeout=3.0)
    for call in left:
        call.cancel()
    assert not left, f"{len(left)} of {len(calls)} calls neither finished nor raised after close()"
    await b.put(queue="after")
    await b.finish(await b.claim_one("after"))
    for call in done:
        call.exception()  # whatever it was: asked for, so that the loop does not complain that nobody did
