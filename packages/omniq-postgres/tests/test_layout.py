"""What the tables promise: plans that do not depend on statistics, upkeep that finds its work, counts that stay right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from omniq_conformance.hand import Hand, ids
from omniq_conformance.servers import PostgresServer
from omniq_core import (
    Lease,
    Outcome,
    Settlement,
    TaskFilter,
    TaskState,
    Verb,
)
from omniq_postgres import PostgresBackend


def run(
    server: PostgresServer, schema: str, body: Callable[[PostgresBackend], Awaitable[None]], **settings: Any
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(server.url, schema=schema, **settings) as backend:
            await body(backend)

    asyncio.run(main())


async def _scans(server: PostgresServer, schema: str, tasks: int) -> dict[str, int]:
    """How often each table was read from end to end. Sessions tell that when they end, and a moment later it is seen."""
    async with asyncio.timeout(10.0):
        while True:
            rows = await asyncio.to_thread(
                server.execute,
                f"select relname, seq_scan, n_tup_ins from pg_stat_user_tables where schemaname = '{schema}'",
            )
            if any(name == "task" and int(inserted) >= tasks for name, _, inserted in rows):
                return {name: int(scans) for name, scans, _ in rows}


def test_no_call_of_the_hot_path_reads_a_table_from_end_to_end(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    # Nothing was analysed: the planner believes all tables to be empty, and a scan to be free.
    async def fill(backend: PostgresBackend) -> None:
        for _ in range(5):
            await backend.queue().enqueue(Hand.records(1000, max_crashes=9))
        await backend.queue().enqueue(Hand.records(1000, delay_s=0.05))
        await backend.queue().enqueue(Hand.records(50, ttl_s=0.05, unique_key="k"))

    async def work(backend: PostgresBackend) -> None:
        hand, queue, results = Hand(backend), backend.queue(), backend.result_store()
        await queue.enqueue(Hand.records(10))
        await queue.enqueue(Hand.records(1000))
        await queue.enqueue(Hand.records(20, unique_key="other"))
        for verb in (Verb.SUCCEED, Verb.RETRY, Verb.RELEASE, Verb.DEAD):
            for size in (1, 10, 1000):
                claims = await hand.claim(max_tasks=size)
                assert len(claims) == size
                await queue.extend([c.lease for c in claims], lease_s=60.0)
                ends = [
                    Settlement(c.lease, verb, result=b"r" if verb is Verb.SUCCEED else None) for c in claims
                ]
                await queue.settle(ends[: size // 2])
                await queue.settle(ends)
                await queue.get(ids(claims))
                await results.get(ids(claims))
        await hand.claim(max_tasks=100, lease_s=0.01)
        await queue.maintain()
        held = await hand.claim()
        await queue.cancel(ids(held))
        await queue.requeue(ids(held))
        await queue.wait(["q"], timeout_s=0.01)

    run(postgres_server, postgres_schema, fill)
    before = asyncio.run(_scans(postgres_server, postgres_schema, 6001))
    run(postgres_server, postgres_schema, work)
    after = asyncio.run(_scans(postgres_server, postgres_schema, 7012))
    for table in ("task", "ready", "delayed", "claim", "uniq", "failed"):
        assert after[table] == before[table], (
            f"{table} was read from end to end {after[table] - before[table]} times"
        )


def test_settling_rewrites_a_task_in_place(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand = Hand(backend)
        await hand.put(1000, body=b"b" * 200)
        await hand.finish_all(await hand.claim(max_tasks=1000), result=b"r" * 50)

    run(postgres_server, postgres_schema, body)

    async def hot() -> float:
        async with asyncio.timeout(10.0):
            while True:
                [[updated, in_place]] = await asyncio.to_thread(
                    postgres_server.execute,
                    "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables "
                    f"where schemaname = '{postgres_schema}' and relname = 'task'",
                )
                if int(updated):
                    return int(in_place) / int(updated)

    assert asyncio.run(hot()) > 0.9, "an index of `task` has to follow every settlement"


def test_a_lease_that_lost_its_handle_is_still_good(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand, queue = Hand(backend), backend.queue()
        await hand.put(4)
        first, second, third, fourth = await hand.claim()
        bare = Lease(first.task_id, first.lease.fence)
        [extension] = await queue.extend([bare], lease_s=60.0)
        assert extension.outcome is Outcome.OK
        assert list(await queue.settle([Settlement(bare, Verb.SUCCEED)] * 2)) == [
            Outcome.OK,
            Outcome.DUPLICATE,
        ]
        assert list(await queue.settle([Settlement(bare, Verb.SUCCEED)])) == [Outcome.DUPLICATE]
        by_json = msgspec.json.decode(msgspec.json.encode(second.lease), type=Lease)
        assert list(await queue.settle([Settlement(by_json, Verb.RETRY)])) == [Outcome.OK]

        # Handles that do not fit: of another task, of another claim, of a claim that holds others.
        again = await hand.claim_one()
        assert again.task_id == second.task_id
        wrong = [
            msgspec.structs.replace(third.lease, fence=again.lease.fence),
            msgspec.structs.replace(third.lease, task_id=again.task_id),
            Lease(third.task_id, again.lease.fence),
            Lease(third.task_id, third.lease.fence + 1),
            Lease(third.task_id, 0),
        ]
        for lease in wrong:
            [outcome] = await queue.settle([Settlement(lease, Verb.DEAD)])
            assert outcome in (Outcome.STALE, Outcome.DUPLICATE), f"{lease} was taken"
            [extension] = await queue.extend([lease], lease_s=60.0)
            assert extension.outcome is Outcome.STALE
        missing = Lease("no such task", fourth.lease.fence, handle=fourth.lease.handle)
        assert list(await queue.settle([Settlement(missing, Verb.DEAD)])) == [Outcome.NOT_FOUND]
        states = [s.state for s in await queue.get([third.task_id, fourth.task_id]) if s is not None]
        assert states == [TaskState.RUNNING] * 2

    run(postgres_server, postgres_schema, body)


def test_a_reapers_fence_is_nobodys_settlement(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand, queue = Hand(backend), backend.queue()
        held = await hand.running(lease_s=0.05)
        await asyncio.sleep(0.1)
        [moved] = (await queue.maintain()).moved
        assert moved.fence > held.lease.fence
        for fence in (held.lease.fence, moved.fence):
            assert list(await queue.settle([Settlement(Lease(held.task_id, fence), Verb.SUCCEED)])) == [
                Outcome.STALE
            ]
        again = await hand.claim_one()
        assert again.lease.fence > moved.fence

    run(postgres_server, postgres_schema, body)


def test_what_ended_long_ago_is_deleted_with_everything_about_it(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand, queue, results = Hand(backend), backend.queue(), backend.result_store()
        await hand.put(40)
        await hand.put_one(unique_key="k")
        claims = await hand.claim(max_tasks=50)
        verbs = [Verb.SUCCEED, Verb.DEAD, Verb.CANCEL]
        ends = [Settlement(c.lease, verbs[n % 3], result=b"r") for n, c in enumerate(claims[:-1])]
        ends.append(Settlement(claims[-1].lease, Verb.SUCCEED, result=b"long", result_ttl_s=60.0))
        await queue.settle(ends)
        back = claims[1].task_id
        assert list(await queue.requeue([back])) == [Outcome.OK]
        await asyncio.sleep(0.25)
        pruned = 0
        while True:
            done = await queue.maintain(limit=10)
            pruned += done.pruned
            if not done.more:
                break
        left = [t.id for t in (await queue.query(TaskFilter())).items]
        assert sorted(left) == sorted([back, claims[-1].task_id]), (
            "kept: the one that came back, and a result that lives on"
        )
        assert pruned == 39
        [kept] = await results.get([claims[-1].task_id])
        assert kept is not None
        assert kept.body == b"long"
        [answer] = await queue.enqueue([Hand.record(id=claims[0].task_id)])
        assert answer.outcome is Outcome.OK, "after its retention an id is unknown"
        rows = await asyncio.to_thread(
            postgres_server.execute, f"select (select count(*) from {postgres_schema}.failed)"
        )
        assert rows == [["0"]]

    run(postgres_server, postgres_schema, body, retention_s=0.2)


def test_results_that_came_with_a_settlement_end_at_their_time(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand, queue, results = Hand(backend), backend.queue(), backend.result_store()
        await hand.put(3)
        claims = await hand.claim()
        ttls = (0.1, 0.1, None)
        await queue.settle(
            [
                Settlement(c.lease, Verb.SUCCEED, result=b"r", result_ttl_s=ttl)
                for c, ttl in zip(claims, ttls, strict=True)
            ]
        )
        names = ids(claims)
        assert None not in await results.get(names)
        await asyncio.sleep(0.15)
        found = await results.get(names)
        assert [record is None for record in found] == [True, True, False]
        assert await results.prune() == 2, "expired results stay on the disk"
        assert await results.prune() == 0
        assert None not in await queue.get(names), "a task went with its result"

    run(postgres_server, postgres_schema, body)


def test_counts_stay_right_while_they_are_added_up(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand, queue = Hand(backend), backend.queue()
        stopping = False

        async def tidy() -> None:
            while not stopping:
                await queue.maintain()

        async def churn(number: int) -> None:
            for turn in range(15):
                await hand.put(5, delay_s=60.0 if turn % 5 == 0 else 0.0)
                claims = await hand.claim(max_tasks=4)
                verb = [Verb.SUCCEED, Verb.RETRY, Verb.RELEASE, Verb.DEAD][turn % 4]
                later_s = 60.0 if number % 2 and verb is Verb.RETRY else 0.0
                await queue.settle([Settlement(c.lease, verb, delay_s=later_s) for c in claims[1:]])
                await queue.cancel(ids(claims))

        tidying = asyncio.ensure_future(tidy())
        await asyncio.gather(*(churn(number) for number in range(6)))
        stopping = True
        await tidying
        [stats] = await queue.stats(["q"])
        [[ready, delayed, running]] = await asyncio.to_thread(
            postgres_server.execute,
            f"select (select count(*) from {postgres_schema}.ready), (select count(*) from {postgres_schema}.delayed), "
            f"(select coalesce(sum(open), 0) from {postgres_schema}.claim)",
        )
        assert (stats.ready, stats.delayed, stats.running) == (int(ready), int(delayed), int(running))
        assert int(running) > 0
        assert int(delayed) > 0
        [[left]] = await asyncio.to_thread(
            postgres_server.execute, f"select count(*) from {postgres_schema}.delta"
        )
        assert int(left) < 200, "the changes of counts are never added up"

    run(postgres_server, postgres_schema, body)


def test_ids_of_every_kind_are_kept_apart(postgres_server: PostgresServer, postgres_schema: str) -> None:
    async def body(backend: PostgresBackend) -> None:
        names = [
            "a",
            "A",
            "ä",
            "a\u0308",
            " a",
            "a ",
            "é" * 64,
            "'; drop table task; --",
            "%s",
            "$1",
            "@schema",
            "{}",
            "\\",
        ]
        [*answers] = await backend.queue().enqueue([Hand.record(id=name, queue=name) for name in names])
        assert [a.outcome for a in answers] == [Outcome.OK] * len(names)
        found = await backend.queue().get(names)
        assert [task.id for task in found if task is not None] == names
        assert sorted(await backend.queue().queue_names()) == sorted(names)

    run(postgres_server, postgres_schema, body)


def test_a_reason_that_no_text_column_takes_does_not_keep_a_task_from_ending(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def body(backend: PostgresBackend) -> None:
        hand = Hand(backend)
        await hand.put(2)
        claims = await hand.claim()
        reasons = ["a\0b", "a\ud800é"]
        ends = [Settlement(c.lease, Verb.DEAD, reason=r) for c, r in zip(claims, reasons, strict=True)]
        assert list(await backend.queue().settle(ends)) == [Outcome.OK] * 2
        found = await backend.queue().get(ids(claims))
        assert [task.reason for task in found if task is not None] == ["a\ufffdb", "a?é"]

    run(postgres_server, postgres_schema, body)
