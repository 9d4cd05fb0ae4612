"""Waiting for tasks: nobody sleeps through one, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_conformance.hand import Hand
from omniq_core import Capability, Claim, Closed, Queue, Verb

WAKEUP = Capability.WAKEUP
WAKE_S = 1.0
"""A backend that declares WAKEUP wakes within this time."""


def _covered_s(b: Bench) -> float:
    """How soon a wait must end after something came: by a wake-up, or by a poll."""
    return WAKE_S if b.has(WAKEUP) else WAKE_S + 2 * b.limits.poll_interval_s


async def _ends_within(wait: asyncio.Future[bool], seconds: float, what: str) -> None:
    started = time.monotonic()
    done, _ = await asyncio.wait({wait}, timeout=seconds)
    if not done:
        wait.cancel()
        await asyncio.wait({wait})
    assert done, f"{what} did not end a wait within {seconds:g} s"
    assert wait.result() is True, (
        f"{what} ended a wait after {time.monotonic() - started:.2f} s, answered False"
    )


@check()
async def waiting_in_vain_ends_at_its_time(b: Bench) -> None:
    await b.claim("nothing here")
    started = time.monotonic()
    answer = await b.queue.wait(["nothing here"], timeout_s=0.2)
    took = time.monotonic() - started
    assert took < 0.2 + _covered_s(b), f"wait(timeout_s=0.2) took {took:.2f} s"
    assert isinstance(answer, bool), f"wait answered {answer!r}"


@check()
async def what_came_between_an_empty_claim_and_the_wait_is_not_slept_through(b: Bench) -> None:
    other = await b.another()
    for round_ in range(4):
        queue = f"q{round_}"
        assert await b.claim(queue, "quiet") == [], "an empty queue gave a task"
        await (b, other)[round_ % 2].put(queue=queue)
        wait = asyncio.ensure_future(b.queue.wait([queue, "quiet"], timeout_s=8.0))
        await _ends_within(wait, _covered_s(b), "a task that came between an empty claim and the wait")
        assert len(await b.claim(queue)) == 1, "after a wake-up there is nothing to claim"


@check()
async def a_task_that_comes_during_the_wait_ends_it(b: Bench) -> None:
    for queue in ("first", "second"):
        assert await b.claim("first", "second") == [], "an empty queue gave a task"
        wait = asyncio.ensure_future(b.queue.wait(["first", "second"], timeout_s=8.0))
        await asyncio.sleep(0.03)
        await b.put(queue=queue)
        await _ends_within(wait, _covered_s(b), f"a task in the {queue} of two queues")
        await b.finish(await b.claim_one("first", "second"))


@check()
async def a_cancelled_wait_disturbs_nobody(b: Bench) -> None:
    assert await b.claim() == [], "there is something to claim too early"
    waits = [asyncio.ensure_future(b.queue.wait(["q"], timeout_s=8.0)) for _ in range(5)]
    await asyncio.sleep(0.02)
    for wait in waits[:4]:
        wait.cancel()
    await asyncio.wait(waits[:4])
    await b.put()
    await _ends_within(waits[4], _covered_s(b), "a task that came after other waits were cancelled")


async def _wakes(b: Bench, what: str, act: Callable[[], Awaitable[object]], queue: str = "q") -> None:
    other = await b.another()
    assert await other.claim(queue) == [], f"before {what} there is something to claim already"
    wait = asyncio.ensure_future(other.queue.wait([queue], timeout_s=8.0))
    await asyncio.sleep(0.05)
    await act()
    await _ends_within(wait, WAKE_S, what)


@check(WAKEUP)
async def a_task_wakes_another_backend(b: Bench) -> None:
    await _wakes(b, "a task that was enqueued", b.put)


@check(WAKEUP)
async def a_released_or_retried_task_wakes_another_backend(b: Bench) -> None:
    for verb in (Verb.RELEASE, Verb.RETRY):
        queue = f"q-{verb}"
        claim = await b.running(queue=queue)

        async def give_back(claim: Claim = claim, verb: Verb = verb) -> None:
            await b.finish(claim, verb)

        await _wakes(b, f"a task settled with {verb.name}", give_back, queue)


@check(WAKEUP)
async def a_reaped_task_wakes_another_backend(b: Bench) -> None:
    if not b.reaps_in_maintain:
        return
    claim = await b.running(lease_s=b.span_s)
    await b.pass_span()
    await _wakes(b, "a task that was reaped", lambda: b.reaped(claim.task_id))


@check(WAKEUP, Capability.PAUSE)
async def a_resumed_queue_wakes_another_backend(b: Bench) -> None:
    await b.put()
    await b.queue.pause(["q"])
    await _wakes(b, "a queue that was resumed", lambda: b.queue.resume(["q"]))


@check(WAKEUP, Capability.DELAYED, real_time=True)
async def a_task_that_falls_due_ends_the_wait(b: Bench) -> None:
    await b.put(delay_s=b.span_s)
    assert await b.claim() == [], "there is something to claim too early"
    wait = asyncio.ensure_future(b.queue.wait(["q"], timeout_s=8.0))
    await _ends_within(wait, b.span_s + WAKE_S, f"a task with a delay of {b.span_s:g} s")
    while not (claims := await b.claim()):  # a false alarm is allowed
        await b.queue.wait(["q"], timeout_s=b.span_s)
    assert len(claims) == 1, f"one task fell due and {len(claims)} were claimed"


@check(WAKEUP)
async def a_task_wakes_a_twin_on_another_thread(b: Bench) -> None:
    here = asyncio.get_running_loop()
    for round_ in range(3):
        queue = f"q{round_}"
        waiting = asyncio.Event()

        async def wait(hand: Hand, queue: str = queue, waiting: asyncio.Event = waiting) -> float:
            await hand.claim(queue)
            here.call_soon_threadsafe(waiting.set)
            await hand.queue.wait([queue], timeout_s=5.0)
            return time.monotonic()

        async with b.on_another_thread() as elsewhere:
            woken = asyncio.ensure_future(elsewhere.do(wait))
            await waiting.wait()
            await asyncio.sleep(0.01 * round_)  # at once, and when it surely sleeps
            put = time.monotonic()
            await b.put(queue=queue)
            took = await woken - put
        assert took < WAKE_S, f"WAKEUP is declared, and a task woke another thread after {took:.2f} s"


@check()
async def closing_ends_waits_within_a_second(b: Bench) -> None:
    other = await b.another()
    if type(other.queue).wait is Queue.wait:
        return  # the default body only sleeps, and not long
    wait = asyncio.ensure_future(other.queue.wait(["q"], timeout_s=60.0))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await other.backend.close()
    await asyncio.wait({wait}, timeout=3.0)
    took = time.monotonic() - started
    if not wait.done():
        wait.cancel()
    assert wait.done() and took < 1.5, f"a wait went on for {took:.1f} s after its backend was closed"
    error = wait.exception()
    assert error is None or isinstance(error, Closed), f"a wait of a closed backend raised {error!r}"
