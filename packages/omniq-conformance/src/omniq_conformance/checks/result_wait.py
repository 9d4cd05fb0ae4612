"""Waiting for results: until one is final, and not much longer."""

from __future__ import annotations

import asyncio
import time

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_conformance.hand import Hand
from omniq_core import Capability, TaskState, Verb

RESULTS, WAIT = Capability.RESULTS, Capability.RESULT_WAIT
NOT_YET_S = 0.15
"""How long a wait that must not end is watched."""


@check(RESULTS)
async def waiting_for_what_is_there_returns_at_once(b: Bench) -> None:
    there, absent = b.new_id(), b.new_id()
    await b.put_result(there, 1, b"result")
    started = time.monotonic()
    found = await b.results.wait([there], timeout_s=5.0)
    assert time.monotonic() - started < 2.0, "waiting for a result that is there took seconds"
    assert [record and record.body for record in found] == [b"result"], f"wait gave {found}"
    if b.limits.max_batch >= 2:
        found = await b.results.wait([absent, there], timeout_s=5.0)
        assert [record and record.body for record in found] == [None, b"result"], f"wait gave {found}"


@check(RESULTS)
async def waiting_no_time_looks_once(b: Bench) -> None:
    started = time.monotonic()
    found = await b.results.wait([b.new_id()], timeout_s=0.0)
    assert list(found) == [None], f"wait gave {found} for an unknown task"
    assert time.monotonic() - started < 1.0, "wait(timeout_s=0) took more than a second"


@check(RESULTS)
async def waiting_in_vain_for_a_result_ends_at_its_time(b: Bench) -> None:
    started = time.monotonic()
    found = await b.results.wait([b.new_id()], timeout_s=0.2)
    took = time.monotonic() - started
    assert list(found) == [None] and 0.15 <= took < 1.7, (
        f"wait(timeout_s=0.2) took {took:.2f} s and gave {found}"
    )


@check(RESULTS)
async def a_provisional_record_does_not_end_the_wait(b: Bench) -> None:
    task_id = b.new_id()
    wait = asyncio.ensure_future(b.results.wait([task_id], timeout_s=8.0))
    await asyncio.sleep(0.02)
    await b.put_result(task_id, 1, b"ahead", final=False)
    done, _ = await asyncio.wait({wait}, timeout=NOT_YET_S)
    assert not done, "wait returned on a provisional record"
    assert [r and r.final for r in await b.results.wait([task_id], timeout_s=0.0)] == [False], (
        "wait leaves out provisional records; it should give what there is"
    )
    await b.put_result(task_id, 1, b"settled")
    found = await wait
    assert [r and (r.body, r.final) for r in found] == [(b"settled", True)], f"wait gave {found}"


@check(RESULTS)
async def a_result_ends_the_wait_for_several_tasks(b: Bench) -> None:
    ids = [b.new_id() for _ in range(min(5, b.limits.max_batch))]
    wait = asyncio.ensure_future(b.results.wait(ids, timeout_s=8.0))
    await asyncio.sleep(0.02)
    await b.put_result(ids[-1], 1, b"the last of them")
    started = time.monotonic()
    found = await wait
    assert time.monotonic() - started < 2.0, "a result did not end the wait within 2 s"
    assert [r and r.body for r in found] == [None] * (len(ids) - 1) + [b"the last of them"], (
        f"wait gave {found}"
    )


@check(RESULTS)
async def a_cancelled_wait_for_a_result_leaves_nothing_behind(b: Bench) -> None:
    task_id = b.new_id()
    waits = [asyncio.ensure_future(b.results.wait([task_id], timeout_s=8.0)) for _ in range(5)]
    await asyncio.sleep(0.02)
    for wait in waits[:4]:
        wait.cancel()
    await asyncio.wait(waits[:4])
    await b.put_result(task_id, 1, b"result")
    found = await waits[4]
    assert [r and r.body for r in found] == [b"result"], (
        "cancelled waits disturbed one that was still waiting"
    )


@check(RESULTS, WAIT)
async def a_result_wakes_those_who_wait_on_other_threads(b: Bench) -> None:
    task_id = b.new_id()
    waiting = asyncio.Event()
    here = asyncio.get_running_loop()

    async def wait(hand: Hand) -> float:
        here.call_soon_threadsafe(waiting.set)
        await hand.results.wait([task_id], timeout_s=5.0)
        return time.monotonic()

    async with b.on_another_thread() as elsewhere:
        woken = asyncio.ensure_future(elsewhere.do(wait))
        await waiting.wait()
        await asyncio.sleep(0.05)
        put = time.monotonic()
        await b.put_result(task_id, 1, b"result")
        took = await woken - put
    assert took < 1.0, f"RESULT_WAIT is declared, and a result woke another thread after {took:.2f} s"


@check(RESULTS, WAIT, Capability.ATOMIC_SETTLE)
async def settling_wakes_those_who_wait_for_the_result(b: Bench) -> None:
    claim = await b.running()
    other = await b.another()
    wait = asyncio.ensure_future(other.results.wait([claim.task_id], timeout_s=5.0))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await b.finish(claim, Verb.SUCCEED, result=b"result")
    [found] = await wait
    took = time.monotonic() - started
    assert took < 1.0, f"a result that was stored by settle ended the wait after {took:.2f} s"
    assert found is not None and found.state is TaskState.SUCCEEDED, f"wait gave {found}"
