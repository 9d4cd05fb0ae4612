"""Writes that join the caller's own transaction."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskState, Verb

TX = Capability.TX_ENQUEUE


class _Undone(Exception):
    """Raised by a check to roll back."""


@check(TX)
async def a_task_is_seen_when_its_transaction_commits(b: Bench) -> None:
    record = b.record()
    async with b.suite.transaction(b.env) as transaction:
        answers = await b.queue.enqueue_within(transaction, [record])
        assert [a.outcome for a in answers] == [Outcome.OK], f"enqueue_within answered {answers}"
    assert (await b.claim_one()).task_id == record.id, "a task whose transaction committed is not there"


@check(TX)
async def a_task_is_gone_when_its_transaction_rolls_back(b: Bench) -> None:
    record = b.record()
    try:
        async with b.suite.transaction(b.env) as transaction:
            await b.queue.enqueue_within(transaction, [record])
            raise _Undone
    except _Undone:
        pass
    assert list(await b.queue.get([record.id])) == [None], "a task outlived the rollback of its transaction"
    assert await b.claim() == [], "a task whose transaction was rolled back was handed out"
    await b.put_records([record])


@check(TX)
async def enqueuing_within_a_transaction_is_idempotent_as_ever(b: Bench) -> None:
    known, fresh = await b.put_one(), b.record()
    async with b.suite.transaction(b.env) as transaction:
        answers = await b.queue.enqueue_within(transaction, [known, fresh, fresh])
    assert [a.outcome for a in answers] == [Outcome.DUPLICATE, Outcome.OK, Outcome.DUPLICATE], (
        f"answered {answers}"
    )


@check(TX)
async def a_settlement_joins_the_transaction(b: Bench) -> None:
    claim = await b.running()
    try:
        async with b.suite.transaction(b.env) as transaction:
            outcomes = await b.queue.settle_within(transaction, [b.settlement(claim, Verb.SUCCEED)])
            assert list(outcomes) == [Outcome.OK], f"settle_within answered {outcomes}"
            raise _Undone
    except _Undone:
        pass
    assert await b.state(claim.task_id) is TaskState.RUNNING, (
        "a settlement outlived the rollback of its transaction"
    )
    async with b.suite.transaction(b.env) as transaction:
        await b.queue.settle_within(transaction, [b.settlement(claim, Verb.SUCCEED)])
    assert await b.state(claim.task_id) is TaskState.SUCCEEDED, (
        "a settlement whose transaction committed is not there"
    )


@check(TX, Capability.WAKEUP)
async def a_commit_wakes_those_who_wait_or_they_poll(b: Bench) -> None:
    other = await b.another()
    assert await other.claim() == [], "an empty queue gave a task"
    async with b.suite.transaction(b.env) as transaction:
        await b.queue.enqueue_within(transaction, [b.record()])
    for _ in range(40):  # the driver may not see a commit that the caller makes: then a poll covers it
        if await other.claim():
            return
        await other.queue.wait(["q"], timeout_s=0.1)
    raise AssertionError("a committed task was not claimable")
