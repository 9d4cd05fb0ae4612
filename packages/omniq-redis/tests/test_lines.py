"""Places in line, ghosts, upkeep and wake-ups: what the key layout must get right beyond the suite."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from unittest.mock import patch

from omniq_conformance.hand import Hand, ids
from omniq_conformance.servers import ValkeyServer
from omniq_conformance.servers.redis import SpeaksRedis
from omniq_core import (
    Lease,
    Outcome,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskState,
    Verb,
)
from omniq_redis import RedisBackend, wakeup
from omniq_redis.keys import prefix
from omniq_redis.scripts import SCRIPTS

Make = Callable[..., RedisBackend]
Blocked = Callable[..., Awaitable[None]]


# --- order -------------------------------------------------------------------------------------------------------


def test_tasks_that_came_back_stand_where_they_stood_in_whatever_order_they_came(
    server: SpeaksRedis, backend_at: Make
) -> None:
    async def main() -> None:
        chance = random.Random(3)
        async with backend_at(server.url) as backend:
            hand = Hand(backend)
            records = await hand.put(60)
            for _ in range(20):
                found = await hand.claim(max_tasks=chance.randint(1, 40))
                assert ids(found) == ids(records)[: len(found)]
                chance.shuffle(found)
                for start in range(0, len(found), 7):
                    await hand.finish_all(found[start : start + 7], chance.choice([Verb.RELEASE, Verb.RETRY]))
            assert ids(await hand.claim(max_tasks=1000)) == ids(records)

    asyncio.run(main())


def test_delayed_tasks_that_fell_due_merge_with_the_line_by_their_arrival(
    server: SpeaksRedis, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            records = []
            for number in range(30):
                some = hand.records(2, delay_s=0.001) if number % 3 == 1 else hand.records(3)
                await queue.enqueue(some)
                records += some
            while (await queue.stats(["q"]))[0].delayed:
                await queue.wait(["q"], timeout_s=0.01)
            found = []
            while some_claims := await hand.claim(max_tasks=4):
                found += ids(some_claims)
            assert found == ids(records)

    asyncio.run(main())


def test_more_tasks_than_a_script_moves_at_once_all_fall_due(server: SpeaksRedis, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            for _ in range(3):
                await queue.enqueue(hand.records(1000, delay_s=0.001, priority=random.randint(-3, 3)))
            found: list[str] = []
            while len(found) < 3000:
                assert await queue.wait(["q"], timeout_s=5)
                while some := await hand.claim(max_tasks=700):
                    found += ids(some)
            assert len(set(found)) == 3000

    asyncio.run(main())


# --- ghosts ------------------------------------------------------------------------------------------------------


def test_an_id_that_is_purged_and_enqueued_again_and_again_is_handed_out_once(
    server: SpeaksRedis, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            [first, record, last] = await hand.put(3)
            for priority in (0, 0, 5, 0, 5):
                await queue.cancel([record.id])
                await queue.purge(TaskFilter(states=[TaskState.CANCELLED]))
                again = TaskRecord(record.id, "q", "work", str(priority).encode(), priority=priority)
                assert (await queue.enqueue([again]))[0].outcome is Outcome.OK
                [stats] = await queue.stats(["q"])
                assert stats.ready == 3, "a ghost is counted"
            assert ids(await hand.claim()) == [record.id, first.id, last.id]
            [stats] = await queue.stats(["q"])
            assert (stats.ready, stats.running) == (0, 3)
            page = await queue.query(TaskFilter())
            assert ids(page.items) == [record.id, last.id, first.id], "each once, newest first"

    asyncio.run(main())


def test_a_cancelled_task_that_is_requeued_is_not_taken_for_its_ghost(
    server: SpeaksRedis, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            records = await hand.put(4)
            for _ in range(3):
                assert set(await queue.cancel(ids(records[1:3]))) == {Outcome.OK}
                assert set(await queue.requeue(ids(records[1:3]))) == {Outcome.OK}
            assert ids(await hand.claim()) == ids(records)

    asyncio.run(main())


def test_nothing_is_left_of_tasks_that_came_and_went(
    server: SpeaksRedis, backend_at: Make, project: str
) -> None:
    async def main() -> None:
        async with backend_at(server.url, retention_s=0.05) as backend:
            hand, queue = Hand(backend), backend.queue()
            records = (
                hand.records(50)
                + hand.records(10, delay_s=0.001)
                + hand.records(10, ttl_s=0.02)
                + hand.records(1, unique_key="k")
            )
            await queue.enqueue(records)
            await queue.cancel(ids(records[3:8]))
            await hand.put(1, queue="kept")
            pruned = moved = 0
            verbs = [Verb.SUCCEED, Verb.DEAD, Verb.CANCEL, Verb.RETRY]
            while pruned < len(records):
                found = await hand.claim(max_tasks=7)
                await queue.settle(
                    [
                        Settlement(
                            c.lease, Verb.SUCCEED if c.attempt > 2 else verbs[n % 4], reason="x", result=b"r"
                        )
                        for n, c in enumerate(found)
                    ]
                )
                done = await queue.maintain(limit=100)
                pruned, moved = pruned + done.pruned, moved + len(done.moved)
                await queue.wait(["nothing"], timeout_s=0.01)
            assert pruned == len(records)
            assert await queue.get(ids(records)) == [None] * len(records)
            [answer] = await queue.enqueue([records[0]])
            assert answer.outcome is Outcome.OK, "after its retention an id is new"
            await queue.purge(TaskFilter())
            while await backend.result_store().get([records[20].id]) != [None]:
                await queue.wait(["nothing"], timeout_s=0.01)
        keys = server.command("KEYS", prefix(project).replace("{", "?").replace("}", "?") + "*")
        assert isinstance(keys, list)
        left = sorted(key.removeprefix(prefix(project).encode()) for key in keys if isinstance(key, bytes))
        bookkeeping = {b"v", b"q", b"seq", b"tok", b"rn", b"segs", b"due"}
        places = [
            key
            for key in left
            if key not in bookkeeping and not key.startswith((b"w:", b"lv:", b"i:", b"x:", b"l:"))
        ]
        assert places == [], "what belonged to single tasks is gone"

    asyncio.run(main())


# --- pages and upkeep --------------------------------------------------------------------------------------------


def test_a_query_walks_thousands_page_by_page(server: SpeaksRedis, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            records = []
            for size in (1000, 1000, 1000, 500, 1):
                records += await hand.put(size, body=b"")
            rare = await hand.put(1, name="rare")
            found: list[str] = []
            cursor = None
            while True:
                page = await queue.query(TaskFilter(names=["work"]), limit=700, cursor=cursor)
                found += ids(page.items)
                cursor = page.cursor
                if cursor is None:
                    break
            assert found == ids(reversed(records))
            page = await queue.query(TaskFilter(names=["rare"]), limit=1)
            assert ids(page.items) == ids(rare)
            assert page.cursor is None
            assert await queue.purge(TaskFilter(names=["work"]), limit=3400) == 3400
            page = await queue.query(TaskFilter(), limit=1000)
            assert ids(page.items) == ids(rare) + ids(reversed(records[:101])), "purged from the newest"

    asyncio.run(main())


def test_a_lease_can_be_used_without_a_handle_and_a_claim_larger_than_one_settlement(
    server: SpeaksRedis, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            await hand.put(1000)
            found = await hand.claim(max_tasks=1000)
            assert len(found) == 1000
            chance = random.Random(1)
            chance.shuffle(found)
            verbs = list(Verb)
            for start in range(0, 1000, 130):
                some = [
                    Settlement(Lease(c.task_id, c.lease.fence), chance.choice(verbs), delay_s=0.0)
                    for c in found[start : start + 130]
                ]
                assert set(await queue.settle(some)) == {Outcome.OK}
                assert set(await queue.settle(some)) == {Outcome.DUPLICATE}
            [stats] = await queue.stats(["q"])
            assert stats.running == 0
            assert (await queue.maintain()).moved == []

    asyncio.run(main())


def test_results_with_many_times_to_live_are_stored_each_with_its_own(
    server: SpeaksRedis, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as backend:
            hand, queue, results = Hand(backend), backend.queue(), backend.result_store()
            await hand.put(6)
            found = await hand.claim()
            # A record of a later fence is there already, from wherever: it stays.
            await results.put([ResultRecord(found[5].task_id, 10**15, TaskState.DEAD, b"later")])
            ttls: list[float | None] = [1.0, None, 2.5, 0.0, 1.0, 9.0]
            await queue.settle(
                [
                    Settlement(c.lease, Verb.SUCCEED, result=b"%d" % n, result_ttl_s=ttls[n])
                    for n, c in enumerate(found)
                ]
            )
            records = await results.get(ids(found))
            assert [r and r.body for r in records[:3]] == [b"0", b"1", b"2"]
            lives = [round(r.expires_at - r.stored_at, 3) for r in records[:3] if r and r.expires_at]
            assert lives == [1.0, 3600.0, 2.5]
            assert records[5] is not None
            assert records[5].body == b"later"

    asyncio.run(main())


# --- waking ------------------------------------------------------------------------------------------------------


def test_one_of_several_idle_workers_wakes_and_wakes_the_next_if_it_leaves_something(
    server: SpeaksRedis, backend_at: Make, blocked: Blocked
) -> None:
    async def main() -> None:
        backends = [backend_at(server.url) for _ in range(4)]
        for backend in backends:
            await backend.open()
        try:
            waits = [asyncio.ensure_future(b.queue().wait(["q"], timeout_s=20)) for b in backends[1:]]
            await blocked(server, 3)
            await Hand(backends[0]).put(3)
            woken = 0
            while woken < 3:
                done, _ = await asyncio.wait([w for w in waits if w], return_when=asyncio.FIRST_COMPLETED)
                assert len(done) == 1, "a herd"
                woken += 1
                for number, wait in enumerate(waits):
                    if wait in done:
                        waits.remove(wait)
                        await Hand(backends[1 + number]).claim_one()
                        break
        finally:
            for backend in backends:
                await backend.close()

    asyncio.run(main())


def test_a_wait_for_another_queue_interrupts_the_one_that_blocks(
    server: SpeaksRedis, backend_at: Make, blocked: Blocked
) -> None:
    async def main() -> None:
        with patch.object(wakeup, "BLOCK_S", 30.0):
            async with backend_at(server.url) as backend, backend_at(server.url) as other:
                first = asyncio.ensure_future(backend.queue().wait(["one"], timeout_s=20))
                await blocked(server)
                second = asyncio.ensure_future(backend.queue().wait(["two"], timeout_s=20))
                await Hand(other).put_one(queue="two")
                async with asyncio.timeout(2):
                    assert await second is True
                assert not first.done()
                await Hand(other).put_one(queue="one")
                async with asyncio.timeout(2):
                    assert await first is True

    asyncio.run(main())


def test_a_wake_up_that_comes_when_nobody_waits_any_more_is_given_back(
    server: SpeaksRedis, backend_at: Make, blocked: Blocked
) -> None:
    async def main() -> None:
        with patch.object(wakeup, "BLOCK_S", 30.0):
            async with (
                backend_at(server.url) as gone,
                backend_at(server.url) as other,
                backend_at(server.url) as third,
            ):
                assert await gone.queue().wait(["q"], timeout_s=0.05) is False  # it blocks on, for nobody
                waiting = asyncio.ensure_future(other.queue().wait(["q"], timeout_s=20))
                await blocked(server, 2)
                await Hand(third).put_one()
                async with asyncio.timeout(2):
                    assert await waiting is True

    asyncio.run(main())


def test_an_idle_worker_wakes_within_milliseconds(
    valkey_server: ValkeyServer, backend_at: Make, blocked: Blocked
) -> None:
    async def main() -> list[float]:
        took = []
        async with backend_at(valkey_server.url) as worker, backend_at(valkey_server.url) as producer:
            for _ in range(40):
                waiting = asyncio.ensure_future(worker.queue().wait(["q"], timeout_s=20))
                await blocked(valkey_server)
                started = time.perf_counter()
                await Hand(producer).put_one()
                await waiting
                took.append(time.perf_counter() - started)
                await Hand(worker).claim()
        return took

    took = sorted(asyncio.run(main()))
    assert took[len(took) // 2] < 0.05, f"half of all wake-ups took over {took[len(took) // 2] * 1e3:.1f} ms"


def test_every_script_is_one_that_the_server_accepts(server: SpeaksRedis) -> None:
    for name, script in SCRIPTS.items():
        assert server.command("SCRIPT", "LOAD", script.text) == script.sha, name
