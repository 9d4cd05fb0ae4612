"""A server that restarts and connections that break: run where the author says how to cause it."""

from __future__ import annotations

import asyncio

from omniq_conformance.bench import Bench, NotOffered
from omniq_conformance.catalogue import check
from omniq_conformance.hand import Hand
from omniq_core import BackendError, Capability, Outcome, TaskState, Verb

RECOVER_S = 15.0
"""How soon an opened backend must work again without being reopened."""


async def _restart(b: Bench) -> None:
    try:
        await b.suite.restart(b.env)
    except NotImplementedError:
        raise NotOffered("restart()") from None


async def _drop(b: Bench) -> None:
    try:
        await b.suite.drop_connections(b.env)
    except NotImplementedError:
        raise NotOffered("drop_connections()") from None


async def _works_again(hand: Hand) -> None:
    """Calls until one succeeds; every failure on the way must be one that may be repeated."""
    async with asyncio.timeout(RECOVER_S):
        while True:
            try:
                await hand.queue.get(["no such task"])
                return
            except Exception as error:
                code = error.error_code if isinstance(error, BackendError) else hand.backend.classify(error)
                assert code.is_retryable, (
                    f"while the server was away a call raised {error!r}, classified as {code}"
                )
                await asyncio.sleep(0.05)


@check(slow=6)
async def an_opened_backend_works_again_after_a_restart(b: Bench) -> None:
    await b.put()
    await _restart(b)
    await _works_again(b)
    await b.put(queue="after")
    await b.finish(await b.claim_one("after"))


@check(Capability.DURABLE, slow=6)
async def what_was_acknowledged_survives_a_restart(b: Bench) -> None:
    pending = await b.put_one(queue="pending", body=b"\x00keep")
    done = await b.running(queue="done")
    await b.finish(done)
    running = await b.running(queue="running")
    await _restart(b)
    await _works_again(b)
    states = [await b.state(task_id) for task_id in (pending.id, done.task_id, running.task_id)]
    assert states == [TaskState.PENDING, TaskState.SUCCEEDED, TaskState.RUNNING], (
        f"after a restart they are {states}"
    )
    assert await b.settle(running, Verb.SUCCEED) is Outcome.OK, "a lease did not survive the restart"
    claim = await b.claim_one("pending")
    assert claim.body == b"\x00keep", f"after a restart a body is {claim.body!r}"


@check(Capability.DURABLE)
async def what_was_acknowledged_survives_every_close(b: Bench) -> None:
    async with b.unopened() as backend, backend:
        hand = Hand(backend)
        record = await hand.put_one(body=b"\x00keep")
        claim = await hand.running(queue="running")
    await b.backend.close()
    other = await b.another()
    assert (await other.claim_one()).task_id == record.id, "a task is gone after every backend was closed"
    assert await other.settle(claim, Verb.SUCCEED) is Outcome.OK, (
        "a lease is gone after every backend was closed"
    )
    await b.backend.open()


@check(slow=6)
async def a_dropped_connection_is_replaced(b: Bench) -> None:
    claim = await b.running()
    await _drop(b)
    await _works_again(b)
    outcome = await b.settle(claim, Verb.SUCCEED)
    assert outcome is Outcome.OK, f"a lease did not survive a dropped connection: {outcome}"


@check(slow=6)
async def calls_under_a_dropped_connection_can_be_repeated(b: Bench) -> None:
    records = b.records(200)

    async def store(record_index: int) -> None:
        while True:
            try:
                await b.enqueue([records[record_index]])
                return
            except Exception as error:
                code = error.error_code if isinstance(error, BackendError) else b.backend.classify(error)
                assert code.is_retryable, f"a dropped connection raised {error!r}, classified as {code}"
                await asyncio.sleep(0.02)

    jobs = asyncio.gather(*(store(index) for index in range(len(records))))
    try:
        await _drop(b)
    finally:
        await jobs
    claims = await b.claim_all()
    assert sorted(c.task_id for c in claims) == sorted(r.id for r in records), (
        "a repeated call lost or doubled a task"
    )


@check(Capability.WAKEUP, slow=6)
async def waking_survives_a_dropped_connection(b: Bench) -> None:
    assert await b.claim() == [], "an empty queue gave a task"
    await _drop(b)
    await _works_again(b)
    other = await b.another()
    assert await b.claim() == [], "an empty queue gave a task"
    wait = asyncio.ensure_future(b.queue.wait(["q"], timeout_s=RECOVER_S))
    await asyncio.sleep(0.1)
    await other.put()
    done, _ = await asyncio.wait({wait}, timeout=5.0)
    assert done, "after a dropped connection a waiting worker sleeps through a new task"
