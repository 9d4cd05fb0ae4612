"""Unique keys: one pending or running task each, and free again whenever that task has ended, however it did."""

from __future__ import annotations

import asyncio

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability, Outcome, TaskFilter, TaskState, Verb

UNIQUE = Capability.UNIQUE
OK, CONFLICT, DUPLICATE = Outcome.OK, Outcome.CONFLICT, Outcome.DUPLICATE


async def _held(b: Bench, holder: str, when: str, key: str = "key") -> None:
    rival = b.record(queue="rival", unique_key=key)
    [answer] = await b.enqueue([rival])
    assert (answer.outcome, answer.task_id) == (CONFLICT, holder), (
        f"{when} its key is held; answered {answer}"
    )
    assert list(await b.queue.get([rival.id])) == [None], "a task that was refused for its key is stored"


async def _free(b: Bench, when: str, key: str = "key") -> None:
    record = b.record(queue="next", unique_key=key)
    [answer] = await b.enqueue([record])
    assert answer.outcome is OK, f"{when} the key must be free; answered {answer}"
    await b.finish(await b.claim_one("next"))


@check(UNIQUE)
async def a_key_is_held_by_one_task_and_the_answer_names_it(b: Bench) -> None:
    holder = await b.put_one(unique_key="key")
    await _held(b, holder.id, "while a task is pending")
    assert (await b.look(holder.id)).unique_key == "key", "get() does not show the key"
    await b.put_one(unique_key="another key")


@check(UNIQUE)
async def a_key_stays_held_while_its_task_runs_and_retries(b: Bench) -> None:
    claim = await b.running(unique_key="key", lease_s=b.span_s)
    await _held(b, claim.task_id, "while a task is running")
    await b.finish(claim, Verb.RETRY)
    await _held(b, claim.task_id, "while a task waits for its retry")
    claim = await b.claim_one(lease_s=b.span_s)
    await b.finish(claim, Verb.RELEASE)
    await _held(b, claim.task_id, "after a release")
    claim = await b.claim_one(lease_s=b.span_s)
    await b.lose(claim.task_id)
    await _held(b, claim.task_id, "after a lost lease")


@check(UNIQUE)
async def every_end_that_an_owner_gives_frees_the_key(b: Bench) -> None:
    for verb in (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL):
        claim = await b.running(unique_key="key")
        await b.finish(claim, verb)
        await _free(b, f"after {verb.name}")


@check(UNIQUE)
async def a_task_that_died_of_crashes_frees_the_key(b: Bench) -> None:
    claim = await b.running(unique_key="key", lease_s=b.span_s, max_crashes=1)
    await b.lose(claim.task_id)
    state = await b.state(claim.task_id)
    assert state is TaskState.DEAD, f"with max_crashes=1 a lost lease makes a task dead, not {state}"
    await _free(b, "after the reaper made its task dead")


@check(UNIQUE, Capability.CANCEL)
async def a_cancelled_task_frees_the_key(b: Bench) -> None:
    pending = await b.put_one(unique_key="key")
    await b.queue.cancel([pending.id])
    await _free(b, "after a pending task was cancelled")
    claim = await b.running(unique_key="key", lease_s=b.span_s)
    await b.queue.cancel([claim.task_id])
    await _held(b, claim.task_id, "while a task that is to be cancelled still runs")
    await b.finish(claim, Verb.RETRY)
    await _free(b, "after a task that was to be cancelled was given back")
    claim = await b.running(unique_key="key", lease_s=b.span_s)
    await b.queue.cancel([claim.task_id])
    await b.lose(claim.task_id)
    await _free(b, "after the reaper cancelled its task")


@check(UNIQUE, Capability.EXPIRY)
async def an_expired_task_frees_the_key(b: Bench) -> None:
    record = await b.put_one(unique_key="key", ttl_s=b.span_s)
    await b.pass_span()
    await b.expired(record.id)
    await _free(b, "after its task expired")


@check(UNIQUE, Capability.PURGE)
async def a_purged_task_frees_the_key(b: Bench) -> None:
    await b.put_one(unique_key="key", queue="purged")
    await b.queue.purge(TaskFilter(queues=["purged"]))
    await _free(b, "after its task was purged")


@check(UNIQUE)
async def the_id_is_looked_at_before_the_key(b: Bench) -> None:
    record = await b.put_one(unique_key="key")
    [answer] = await b.enqueue([b.record(id=record.id, unique_key="key")])
    assert (answer.outcome, answer.task_id) == (DUPLICATE, record.id), (
        f"the same task with the same key, sent again, is a DUPLICATE; answered {answer}"
    )
    await b.finish(await b.claim_one())
    [answer] = await b.enqueue([b.record(id=record.id, unique_key="key")])
    assert answer.outcome is DUPLICATE, f"a finished task's id and key, sent again, was answered {answer}"
    await _free(b, "after a finished task was sent again")


@check(UNIQUE)
async def a_key_twice_in_a_batch_is_given_to_the_first(b: Bench) -> None:
    first, second, third = b.record(unique_key="key"), b.record(unique_key="key"), b.record()
    answers = await b.enqueue([first, second, third])
    assert [a.outcome for a in answers] == [OK, CONFLICT, OK], f"answered {answers}"
    assert answers[1].task_id == first.id, f"the conflict names {answers[1].task_id!r} instead of the first"
    assert {c.task_id for c in await b.claim_all()} == {first.id, third.id}, "the wrong tasks were stored"


@check(UNIQUE)
async def a_key_is_one_across_all_queues(b: Bench) -> None:
    holder = await b.put_one(queue="one", unique_key="key")
    await _held(b, holder.id, "in another queue")


@check(UNIQUE)
async def keys_are_data_and_told_apart_exactly(b: Bench) -> None:
    keys = [
        "key",
        "Key",
        "key ",
        "k%",
        "%",
        "*",
        "'",
        "clé",
        "cle\u0301",
        "🔑" * 63,
        "k" * 255,
        "../key",
        "{key}",
    ]
    for key in keys:
        holder = await b.put_one(queue="held", unique_key=key)
        await _held(b, holder.id, f"for {key!r}", key)


@check(UNIQUE)
async def a_key_that_many_want_at_once_is_given_to_one(b: Bench) -> None:
    other = await b.another()
    for round_ in range(5):
        key = f"key {round_}"
        records = [b.record(unique_key=key) for _ in range(16)]
        answers = await asyncio.gather(
            *((b, other)[number % 2].enqueue([record]) for number, record in enumerate(records))
        )
        flat = [answer for [answer] in answers]
        winners = [a.task_id for a in flat if a.outcome is OK]
        assert len(winners) == 1, f"{len(winners)} of 16 tasks got the same key"
        assert {a.task_id for a in flat if a.outcome is CONFLICT} == set(winners), (
            "a conflict names another task"
        )
