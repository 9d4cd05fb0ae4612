"""Keeping results: the record with the highest fence stays, whoever comes last."""

from __future__ import annotations

import asyncio

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, ResultRecord, TaskState, Verb

RESULTS, ATOMIC, TTL = Capability.RESULTS, Capability.ATOMIC_SETTLE, Capability.RESULT_TTL
OK, DUPLICATE, STALE = Outcome.OK, Outcome.DUPLICATE, Outcome.STALE


async def _shows(b: Bench, task_id: str, fence: int, body: bytes, *, final: bool = True) -> None:
    record = await b.result(task_id)
    assert record is not None, "a result that was stored is not there"
    found = (record.fence, record.body, record.final)
    assert found == (fence, body, final), f"the store keeps {found}, and should keep {(fence, body, final)}"


@check(RESULTS)
async def a_result_comes_back_as_it_was_stored(b: Bench) -> None:
    for state in (TaskState.SUCCEEDED, TaskState.DEAD, TaskState.CANCELLED, TaskState.EXPIRED):
        task_id = b.new_id()
        assert await b.put_result(task_id, 3, b"\x00\xff", state=state) is OK, (
            "a new result must be answered OK"
        )
        record = await b.result(task_id)
        assert record is not None, "a result that was stored is not there"
        found = (record.task_id, record.fence, record.state, record.body, record.final)
        assert found == (task_id, 3, state, b"\x00\xff", True), f"stored as {found}"
        if b.moves_time:
            assert abs(record.stored_at - b.now()) <= 0.001 + b.limits.time_resolution_s, (
                "stored_at is not now"
            )


@check(RESULTS)
async def a_missing_result_is_none(b: Bench) -> None:
    known = b.new_id()
    await b.put_result(known, 1, b"here")
    ids = [b.new_id(), known, b.new_id()][: b.limits.max_batch]
    found = [None if record is None else record.body for record in await b.results.get(ids)]
    assert found == [None, b"here", None][: len(ids)], f"get of unknown, known, unknown gave {found}"


@check(RESULTS)
async def the_same_fence_again_is_a_duplicate_and_the_first_stays(b: Bench) -> None:
    task_id = b.new_id()
    await b.put_result(task_id, 2, b"first")
    outcome = await b.put_result(task_id, 2, b"second")
    assert outcome is DUPLICATE, f"a second record of one fence was answered {outcome}"
    await _shows(b, task_id, 2, b"first")


@check(RESULTS)
async def a_lower_fence_never_replaces_a_higher_one(b: Bench) -> None:
    task_id = b.new_id()
    await b.put_result(task_id, 5, b"newer owner")
    for final in (True, False):
        outcome = await b.put_result(task_id, 4, b"former owner", final=final)
        assert outcome is STALE, f"a record of a lower fence was answered {outcome}"
    await _shows(b, task_id, 5, b"newer owner")
    provisional = b.new_id()
    await b.put_result(provisional, 5, b"newer owner", final=False)
    outcome = await b.put_result(provisional, 4, b"former owner", final=True)
    assert outcome is STALE, f"a final record of a lower fence than a provisional one was answered {outcome}"
    await _shows(b, provisional, 5, b"newer owner", final=False)


@check(RESULTS)
async def a_higher_fence_replaces_a_lower_one(b: Bench) -> None:
    task_id = b.new_id()
    await b.put_result(task_id, 4, b"former owner", state=TaskState.DEAD)
    outcome = await b.put_result(task_id, 5, b"newer owner")
    assert outcome is OK, f"a record of a higher fence was answered {outcome}"
    await _shows(b, task_id, 5, b"newer owner")
    record = await b.result(task_id)
    assert record is not None and record.state is TaskState.SUCCEEDED, "the old record's state stayed"


@check(RESULTS)
async def a_provisional_record_is_made_final_by_its_own_fence(b: Bench) -> None:
    task_id = b.new_id()
    outcome = await b.put_result(task_id, 2, b"ahead", final=False)
    assert outcome is OK, f"a new provisional record was answered {outcome}"
    await _shows(b, task_id, 2, b"ahead", final=False)
    outcome = await b.put_result(task_id, 2, b"ahead, again", final=False)
    assert outcome is DUPLICATE, f"a provisional record of the same fence again was answered {outcome}"
    await _shows(b, task_id, 2, b"ahead", final=False)
    outcome = await b.put_result(task_id, 2, b"settled", final=True)
    assert outcome is OK, f"making a provisional record of the same fence final was answered {outcome}"
    await _shows(b, task_id, 2, b"settled")


@check(RESULTS)
async def a_final_record_is_never_made_provisional(b: Bench) -> None:
    task_id = b.new_id()
    await b.put_result(task_id, 2, b"settled")
    outcome = await b.put_result(task_id, 2, b"ahead", final=False)
    assert outcome is DUPLICATE, (
        f"a provisional record after the final one of its fence was answered {outcome}"
    )
    await _shows(b, task_id, 2, b"settled")


@check(RESULTS)
async def puts_are_answered_item_by_item(b: Bench) -> None:
    known, fresh = b.new_id(), b.new_id()
    await b.put_result(known, 5, b"known")

    def record(task_id: str, fence: int) -> ResultRecord:
        return ResultRecord(task_id, fence, TaskState.SUCCEEDED, b"batch")

    batch = [record(known, 4), record(fresh, 1), record(fresh, 1), record(known, 6)]
    if b.limits.max_batch < len(batch):
        return
    outcomes = list(await b.results.put(batch))
    assert outcomes == [STALE, OK, DUPLICATE, OK], f"lower, new, new again, higher were answered {outcomes}"


@check(RESULTS)
async def deleting_counts_and_may_be_repeated(b: Bench) -> None:
    ids = [b.new_id() for _ in range(3)]
    for task_id in ids[:2]:
        await b.put_result(task_id, 5, b"here")
    counts = []
    for _ in range(2):
        counts.append(sum([await b.results.delete([task_id]) for task_id in ids]))
    assert counts == [2, 0], f"deleting two results and an unknown one, twice, counted {counts}"
    assert await b.result(ids[0]) is None, "a deleted result is still there"
    outcome = await b.put_result(ids[0], 1, b"anew")
    assert outcome is OK, f"after its deletion a record of a lower fence was answered {outcome}"


@check(RESULTS)
async def results_are_seen_by_every_backend_of_the_storage(b: Bench) -> None:
    task_id = b.new_id()
    other = await b.another()
    await other.put_result(task_id, 1, b"from the other")
    await _shows(b, task_id, 1, b"from the other")


@check(RESULTS)
async def many_puts_at_once_leave_the_highest_fence(b: Bench) -> None:
    other = await b.another()
    for _ in range(5):
        task_id = b.new_id()
        fences = [7, 1, 9, 3, 8, 2, 6, 4, 5, 9]
        outcomes = await asyncio.gather(
            *((b, other)[n % 2].put_result(task_id, f, b"%d" % f) for n, f in enumerate(fences))
        )
        nines = [o for o, f in zip(outcomes, fences, strict=True) if f == 9]
        assert sorted(nines) == [DUPLICATE, OK], f"two records of the highest fence were answered {nines}"
        await _shows(b, task_id, 9, b"9")


# --- together with the queue -------------------------------------------------------------------------------------


@check(ATOMIC)
async def settling_stores_the_result_with_the_state(b: Bench) -> None:
    for verb, state in (
        (Verb.SUCCEED, TaskState.SUCCEEDED),
        (Verb.DEAD, TaskState.DEAD),
        (Verb.CANCEL, TaskState.CANCELLED),
    ):
        claim = await b.running()
        await b.finish(claim, verb, result=b"\x00" + verb.encode())
        record = await b.result(claim.task_id)
        assert record is not None, f"{verb.name} with a result stored no record"
        found = (record.state, record.fence, record.body, record.final)
        wanted = (state, claim.lease.fence, b"\x00" + verb.encode(), True)
        assert found == wanted, f"{verb.name} stored the record {found}, not {wanted}"


@check(ATOMIC)
async def settling_without_a_result_stores_no_record(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim)
    assert await b.result(claim.task_id) is None, "a settlement with result=None stored a record"
    empty = await b.running()
    await b.finish(empty, result=b"")
    record = await b.result(empty.task_id)
    assert record is not None and record.body == b"", "an empty result is a result, and was not stored"


@check(ATOMIC)
async def a_former_owner_stores_no_result(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s)
    await b.lose(old.task_id)
    new = await b.until_claimed(old.task_id)
    outcome = await b.settle(old, Verb.SUCCEED, result=b"zombie")
    assert outcome is STALE, f"a former owner's SUCCEED with a result was answered {outcome}"
    assert await b.result(old.task_id) is None, "a former owner's settle was refused and its result stored"
    await b.finish(new, result=b"live")
    outcome = await b.settle(old, Verb.SUCCEED, result=b"zombie")
    assert outcome is STALE, f"a former owner's SUCCEED with a result was answered {outcome}"
    await _shows(b, old.task_id, new.lease.fence, b"live")


@check(ATOMIC)
async def settling_again_leaves_the_first_result(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim, result=b"first")
    await b.settle(claim, Verb.SUCCEED, result=b"second")
    await b.settle(claim, Verb.DEAD, result=b"third")
    await _shows(b, claim.task_id, claim.lease.fence, b"first")
    record = await b.result(claim.task_id)
    assert record is not None and record.state is TaskState.SUCCEEDED, (
        "settling again changed the record's state"
    )


@check(ATOMIC)
async def the_result_is_there_as_soon_as_the_state_is(b: Bench) -> None:
    other = await b.another()
    for _ in range(10):
        claim = await b.running()
        call = asyncio.ensure_future(b.settle(claim, Verb.SUCCEED, result=b"result"))
        # Another backend's write sets no event of ours: look until it is there.
        while await other.state(claim.task_id) is not TaskState.SUCCEEDED:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await other.result(claim.task_id) is not None, (
            "a task was seen succeeded before its result was there"
        )
        await call


@check(ATOMIC)
async def a_cancelled_settle_leaves_both_or_neither(b: Bench) -> None:
    for yields in range(10):
        claim = await b.running(queue=f"q{yields}")
        call = asyncio.ensure_future(b.settle(claim, Verb.SUCCEED, result=b"result"))
        for _ in range(yields):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        state, record = TaskState.RUNNING, None
        for _ in range(20):  # what the cancelled call had sent may take effect between our two looks
            state = await b.state(claim.task_id)
            record = await b.result(claim.task_id)
            if (state is TaskState.SUCCEEDED) == (record is not None):
                break
            await asyncio.sleep(0.02)
        assert (state is TaskState.SUCCEEDED) == (record is not None), (
            f"after a cancelled settle the task is {state} and its result is {'there' if record else 'not there'}"
        )


# --- for a time --------------------------------------------------------------------------------------------------


@check(RESULTS, TTL)
async def a_result_goes_when_its_time_is_over(b: Bench) -> None:
    short, long, forever = b.new_id(), b.new_id(), b.new_id()
    await b.put_result(short, 1, b"short", ttl_s=b.span_s)
    await b.put_result(long, 1, b"long", ttl_s=b.span_s * 100)
    await b.put_result(forever, 1, b"forever")
    record = await b.result(short)
    assert record is not None, "a result went before its time"
    assert record.expires_at is not None, "expires_at of a result with a time to live is missing"
    lives = record.expires_at - record.stored_at
    assert abs(lives - b.span_s) <= 0.001 + 2 * b.limits.time_resolution_s, (
        f"it lives {lives:g} s, not {b.span_s:g} s"
    )
    await b.pass_span()
    assert await b.result(short) is None, "a result is there after its time"
    assert await b.result(long) is not None and await b.result(forever) is not None, (
        "a result went before its time"
    )


@check(RESULTS, TTL)
async def an_expired_result_counts_as_absent(b: Bench) -> None:
    task_id = b.new_id()
    await b.put_result(task_id, 9, b"expired", ttl_s=b.span_s)
    await b.pass_span()
    assert await b.results.delete([task_id]) == 0, "deleting an expired result counted it"
    await b.put_result(task_id, 9, b"expired", ttl_s=b.span_s)
    await b.pass_span()
    outcome = await b.put_result(task_id, 1, b"lower")
    assert outcome is OK, (
        f"a lower fence after an expired record was answered {outcome}; expired counts as absent"
    )
    await _shows(b, task_id, 1, b"lower")


@check(RESULTS, TTL)
async def pruning_deletes_only_what_expired(b: Bench) -> None:
    ids = [b.new_id() for _ in range(5)]
    for task_id in ids:
        await b.put_result(task_id, 1, b"short", ttl_s=b.span_s)
    kept = b.new_id()
    await b.put_result(kept, 1, b"kept")
    assert await b.results.prune() == 0, "prune deleted a result before its time"
    await b.pass_span()
    counts = [await b.results.prune(limit=3) for _ in range(3)]
    assert max(counts) <= 3 and sum(counts) in (0, 5), (
        f"pruning five expired results three at a time gave {counts}"
    )
    assert await b.result(kept) is not None, "prune deleted a result that has no time to live"


@check(ATOMIC, TTL)
async def a_settled_result_keeps_its_time_to_live(b: Bench) -> None:
    claim = await b.running()
    await b.finish(claim, result=b"short", result_ttl_s=b.span_s)
    await _shows(b, claim.task_id, claim.lease.fence, b"short")
    await b.pass_span()
    assert await b.result(claim.task_id) is None, "a result that was stored by settle outlived result_ttl_s"
    assert await b.state(claim.task_id) is TaskState.SUCCEEDED, "the task went with its result"
