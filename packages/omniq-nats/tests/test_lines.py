"""Places in line, ghosts, buckets of time and half-done writes: what the layout must get right beyond the suite."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import pytest

from omniq_conformance.hand import Hand, ids
from omniq_conformance.servers import NatsServer
from omniq_core import (
    Claim,
    Outcome,
    Queue,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskState,
    Verb,
)
from omniq_nats import NatsBackend, NatsOptions, claiming
from omniq_nats.connection import Client
from omniq_nats.distance import Distance
from omniq_nats.errors import Refused
from omniq_nats.jetstream import CONFLICT, JetStream, Stored, head
from omniq_nats.lines import DEAL_S, bucket_of, payload

pytestmark = pytest.mark.slow  # deliveries have to end

Make = Callable[..., NatsBackend]


class Died(BaseException):
    """A claimer did, in the midst of it."""


async def die(*_: object, **__: object) -> None:
    raise Died


async def ready(queue: Queue) -> tuple[int, int, int]:
    [stats] = await queue.stats(["q"])
    return stats.ready, stats.delayed, stats.running


# --- order -------------------------------------------------------------------------------------------------------


def test_tasks_that_came_back_stand_where_they_stood_in_whatever_order_they_came(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        chance = random.Random(3)
        async with backend_at(nats_server.url) as backend:
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


def test_far_times_stand_in_few_buckets_and_none_is_early() -> None:
    now = 1_700_000_000_000
    chance = random.Random(5)
    found = set()
    for _ in range(20_000):
        due = now + int(chance.random() ** 4 * 40 * 86_400_000)
        start, length = bucket_of(due, now)
        assert start <= due < start + length
        assert length <= max(100, (due - now) // 5), "a bucket is much shorter than the time until it"
        found.add((start, length))
    assert len(found) < 1500


def test_a_far_delay_is_moved_to_ever_finer_buckets_and_comes_on_time(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand, queue, clock = Hand(backend), backend.queue(), parts.clock
            # In the middle of its first bucket: a bucket is not looked into before it begins.
            delay_s = 5050.0 - await parts.tasks.lines.now() % 100
            await hand.put_one(delay_s=delay_s)
            due = clock.now() + delay_s
            lengths = []
            for left_s in (4000.0, 10.0, 1.0, 0.05, -0.01):
                with patch.object(type(clock), "now", lambda self, at=due - left_s: at):
                    found = await hand.claim()
                    looks = await parts.tasks.lines.look(["q"])
                    lengths.append([bucket.length_ms for bucket in looks[0].buckets])
                    assert len(found) == (left_s < 0), f"{left_s} s before"
                    assert await ready(queue) == ((0, 0, 1) if found else (0, 1, 0))
            assert lengths[0] == [100_000]
            assert lengths[-1] == []
            finer = [length for [length] in lengths[:-1]]
            assert finer == sorted(finer, reverse=True)
            assert finer[2] <= 1000

    asyncio.run(main())


# --- hints that do not hold ----------------------------------------------------------------------------------------


def test_a_hint_without_a_task_is_dropped_and_harms_nobody(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand, queue = Hand(backend), backend.queue()
            line = parts.subjects.line("q", 0)
            # A producer died between the hint and the document.
            await parts.tasks.lines.put([(line, payload("never came"))])
            record = await hand.put_one()
            assert ids(await hand.claim()) == [record.id]
            assert await hand.claim() == []
            with patch.object(claiming, "FORGET_S", 0.0):
                async with asyncio.timeout(10):
                    while (await ready(queue))[0]:  # given up once it is old
                        assert await hand.claim() == []
            assert await queue.get(["never came"]) == [None]

    asyncio.run(main())


def test_a_second_hint_of_a_task_starts_it_no_second_time(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand = Hand(backend)
            records = await hand.put(3)
            for record in records:
                places = [
                    (parts.subjects.line("q", 0), payload(record.id)),
                    (parts.subjects.returned("q", 0), payload(record.id, 1)),
                    (parts.subjects.line("other", 3), payload(record.id)),
                ]
                await parts.tasks.lines.put(places)
            found = await hand.claim()
            assert ids(found) == ids(records)
            assert await hand.claim() == []
            assert await hand.claim("other") == []
            await hand.finish_all(found)
            assert await hand.claim() == []

    asyncio.run(main())


def test_a_writer_that_stood_still_between_hint_and_document_puts_a_second_hint(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand, queue = Hand(backend), backend.queue()
            streams = parts.streams
            write_one = type(streams).write_one

            async def slow(self: object, subject: str, header: bytes, data: bytes) -> int:
                if subject.startswith(parts.subjects.root + "t."):
                    # Meanwhile somebody came across the hint, and gave it up.
                    with patch.object(claiming, "FORGET_S", -1.0):
                        assert await hand.claim() == []
                return await write_one(streams, subject, header, data)

            record = hand.record()
            with (
                patch.object(type(streams), "write_one", slow),
                patch("omniq_nats.enqueueing.PATIENCE_S", -1.0),
            ):
                await queue.enqueue([record])
            assert ids(await hand.claim()) == [record.id], "it waits under its second hint"

    asyncio.run(main())


@pytest.mark.parametrize("step", ["claim", "documents"])
def test_a_claimer_that_died_in_between_leaves_no_task_behind(
    nats_server: NatsServer, backend_at: Make, step: str
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand, queue = Hand(backend), backend.queue()
            records = await hand.put(5)

            where = (type(parts.tasks), "change") if step == "claim" else (type(parts.tasks.lines), "done")
            with patch.object(*where, die), pytest.raises(Died):
                await hand.claim(lease_s=0.05)
            found: list[Claim] = []
            async with asyncio.timeout(20):
                while len(found) < 5:
                    await queue.maintain()
                    found += await hand.claim()
                    await asyncio.sleep(0.02)
            assert sorted(ids(found)) == sorted(ids(records))
            await hand.finish_all(found)
            assert await parts.tasks.holdings.all() == []

    asyncio.run(main())


def test_a_claim_that_is_repeated_hands_out_no_more_than_was_asked_for(
    nats_server: NatsServer, backend_at: Make
) -> None:
    """Behind hints that do not hold it looks at many more, and dies before it has taken any."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand = Hand(backend)
            line = parts.subjects.line("q", 0)
            await parts.tasks.lines.put([(line, payload(f"never came {n}")) for n in range(5)])
            records = await hand.put(20)

            claim = partial(hand.claim, max_tasks=5, claim_id="one")
            with (
                patch.object(claiming, "FORGET_S", -1.0),
                patch.object(type(parts.tasks), "change", die),
                pytest.raises(Died),
            ):
                await claim()
            assert ids(await claim()) == ids(records)[:5]
            assert ids(await claim()) == ids(records)[:5]
            assert ids(await hand.claim(max_tasks=100)) == ids(records)[5:], "the others were given back"

    asyncio.run(main())


@pytest.mark.parametrize("dies", [False, True])
def test_a_claim_that_names_a_task_twice_hands_it_out_once(
    nats_server: NatsServer, backend_at: Make, dies: bool
) -> None:
    """A task has two hints now and then, of which one holds."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand, lines = Hand(backend), parts.tasks.lines
            records = await hand.put(2)
            await lines.put([(parts.subjects.line("q", 0), payload(record.id)) for record in records])
            claim = partial(hand.claim, claim_id="one")

            if dies:  # it has taken the tasks, and nobody is told
                with patch.object(type(parts.tasks.holdings), "close", die), pytest.raises(Died):
                    await claim()
            found = await claim()
            assert ids(found) == ids(records)
            await hand.finish_all(found)
            assert await parts.tasks.holdings.all() == []

    asyncio.run(main())


@pytest.mark.usefixtures("hints_come_back_soon")
def test_what_others_took_of_a_claim_is_not_counted_as_running_under_it(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            hand = Hand(backend)
            records = await hand.put(3)

            claim = partial(hand.claim, claim_id="one")
            with patch.object(type(backend._opened().tasks), "change", die), pytest.raises(Died):
                await claim()
            taken: list[Claim] = []
            async with asyncio.timeout(20):
                while not taken:  # once the hints that the first call was dealt are dealt again
                    await asyncio.sleep(0.02)
                    taken = await hand.claim(max_tasks=2)
            assert ids(await claim()) == ids(records)[2:], "what was left"
            assert await ready(hand.queue) == (0, 0, 3)
            await hand.finish_all(taken)
            assert await ready(hand.queue) == (0, 0, 1)
            await hand.finish_all(await claim())
            assert await ready(hand.queue) == (0, 0, 0)
            assert await backend._opened().tasks.holdings.all() == []

    asyncio.run(main())


def test_a_claimer_that_slept_before_it_took_its_tasks_takes_none(
    nats_server: NatsServer, backend_at: Make
) -> None:
    """Its lease ended before its tasks ran under it: others must get them, and it must not take them after all."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            hand, queue = Hand(backend), backend.queue()
            records = await hand.put(3)
            change = type(backend._opened().tasks).change
            taken: list[Claim] = []

            async def slow(self: object, changes: object, now: float) -> list[int]:
                patched.stop()
                await asyncio.sleep(0.2)
                await other.queue().maintain()
                taken.extend(await Hand(other).claim())
                return await change(self, changes, now)  # type: ignore[arg-type]

            patched = patch.object(type(backend._opened().tasks), "change", slow)
            patched.start()
            assert await hand.claim(lease_s=0.1) == [], "it came too late"
            assert sorted(ids(taken)) == sorted(ids(records))
            await Hand(other).finish_all(taken)
            for task in await queue.get(ids(records)):
                assert task is not None
                assert task.state is TaskState.SUCCEEDED

    asyncio.run(main())


def test_what_a_late_claimer_takes_while_its_claim_is_taken_over_is_not_forgotten(
    nats_server: NatsServer, backend_at: Make
) -> None:
    """As when a server thaws: what a worker sent long ago is carried out in the midst of what others do about it."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            hand, upkeep = Hand(backend), Hand(other)
            records = await hand.put(3)
            kind = type(backend._opened().tasks)
            change, make_pending = kind.change, kind.make_pending
            taken: list[int] = []

            async def slow(ours: object, changes: object, now: float) -> list[int]:
                patched.stop()
                await asyncio.sleep(0.2)

                async def between(theirs: object, pending: object, at: float, **more: bool) -> list[int]:
                    taken.extend(await change(ours, changes, now))  # type: ignore[arg-type]
                    return await make_pending(theirs, pending, at, **more)  # type: ignore[arg-type]

                with patch.object(kind, "make_pending", between):
                    await upkeep.queue.maintain()
                return taken

            patched = patch.object(kind, "change", slow)
            patched.start()
            late = await hand.claim(lease_s=0.1)
            assert ids(late) == ids(records)
            found: list[Claim] = []
            async with asyncio.timeout(20):
                while len(found) < 3:
                    await upkeep.queue.maintain()
                    found += await upkeep.claim()
            ends = [hand.settlement(claim, Verb.SUCCEED) for claim in late]
            assert await hand.settle_all(ends) == [Outcome.STALE] * 3
            await upkeep.finish_all(found)
            assert await ready(hand.queue) == (0, 0, 0)

    asyncio.run(main())


# --- what is done for many at once ---------------------------------------------------------------------------------


def test_a_claims_hints_go_and_nobody_elses(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            hand, queue, lines = Hand(backend), backend.queue(), backend._opened().tasks.lines
            await hand.put(2, delay_s=1000.0)  # older
            await hand.put(2, queue="other")  # and elsewhere
            records = await hand.put(500)
            # The first hundred are dealt to somebody who is slow to claim them.
            held = await other._opened().tasks.lines.deal("q", 0, 100)
            found = await hand.claim(max_tasks=200)
            assert ids(found) == ids(records[100:300])
            assert await ready(queue) == (300, 2, 200)
            await other._opened().tasks.lines.give_back(held)
            assert ids(await hand.claim(max_tasks=100)) == ids(records[:100])
            assert await ready(queue) == (200, 2, 300)
            # One in between that is not ours: a task that was cancelled, and another that came instead.
            await queue.cancel([records[350].id])
            found = await hand.claim(max_tasks=199)
            assert ids(found) == ids(records[300:350] + records[351:])
            await hand.finish_all(found, Verb.RELEASE)
            assert await ready(queue) == (199, 2, 300)
            [stats] = await queue.stats(["other"])
            assert stats.ready == 2
            await lines.settle_counts()

    asyncio.run(main())


def test_hints_that_were_given_back_come_again_at_once_whatever_others_take_out(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            hand = Hand(backend)
            records = await hand.put(300)
            first = await backend._opened().tasks.lines.deal("q", 0, 150)
            theirs = await other._opened().tasks.lines.deal("q", 0, 150)
            await other._opened().tasks.lines.give_back(theirs)
            await backend._opened().tasks.lines.done(first)
            async with asyncio.timeout(DEAL_S / 2):
                found: list[Claim] = []
                while len(found) < 150:
                    found += await hand.claim(max_tasks=50)
            assert sorted(ids(found)) == sorted(ids(records[150:]))

    asyncio.run(main())


def test_acknowledgements_that_did_not_reach_start_no_task_twice(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def lost(*_: object, **__: object) -> None:
        pass

    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            hand, queue, lines = Hand(backend), backend.queue(), other._opened().tasks.lines
            records = await hand.put(100)
            with patch.object(JetStream, "acknowledge", lost):
                found = await hand.claim(max_tasks=1000)
                assert ids(found) == ids(records)
            # They are dealt again, to somebody else, who finds their tasks running, or over, and drops them.
            await hand.finish_all(found[:50])
            async with asyncio.timeout(20):
                while (await lines.look(["q"]))[0].lines:
                    assert await Hand(other).claim(max_tasks=1000) == []
            await hand.finish_all(found[50:])
            assert await ready(queue) == (0, 0, 0)

    with patch("omniq_nats.lines.DEAL_S", 1):
        asyncio.run(main())


def test_documents_lie_as_far_from_their_hints_as_those_before_or_nobody_can_tell() -> None:
    distance = Distance()
    assert distance.likely is None
    distance.learn([(10, 110), (11, 111)])
    assert distance.likely is None, "once may be chance"
    distance.learn([(15, 115)])
    assert distance.likely == 100
    distance.learn([])
    assert distance.likely == 100
    distance.learn([(16, 117)])
    assert distance.likely is None
    distance.learn([(17, 118)])
    assert distance.likely == 101
    distance.learn([(18, 119), (19, 121)])
    assert distance.likely is None


@pytest.mark.parametrize("wrong", [-3, -1, 1, 7, 10_000])
def test_a_document_that_does_not_lie_where_it_was_guessed_is_found_all_the_same(
    nats_server: NatsServer, backend_at: Make, wrong: int
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            hand, queue, parts = Hand(backend), backend.queue(), backend._opened()
            # Beside documents lie queues, unique keys and results, and the documents of other tasks.
            records = (
                hand.records(30)
                + hand.records(1, unique_key="k")
                + hand.records(30, queue="other")
                + hand.records(30)
            )
            for record in records:
                await queue.enqueue([record])
            await backend.result_store().put([ResultRecord("else", 1, TaskState.SUCCEEDED, b"result")])
            [hint] = await parts.tasks.lines.inside(parts.subjects.line("q", 0), 1)
            [(seq, _)] = (await parts.tasks.read([hint.task_id])).values()
            with patch.object(Distance, "likely", seq - hint.seq + wrong):
                found = await hand.claim(max_tasks=1000)
            mine = [record for record in records if record.queue == "q"]
            assert ids(found) == ids(mine)
            await hand.finish_all(found)
            assert {task and task.state for task in await queue.get(ids(mine))} == {TaskState.SUCCEEDED}
            assert await ready(queue) == (0, 0, 0)

    asyncio.run(main())


def test_tasks_of_one_batch_are_read_by_their_places_and_not_by_their_names(
    nats_server: NatsServer, backend_at: Make
) -> None:
    asked: list[int] = []
    newest = JetStream.newest

    async def counted(
        streams: JetStream, stream: str, subjects: Sequence[str], **more: bool
    ) -> dict[str, Stored]:
        asked.append(len(subjects))
        return await newest(streams, stream, subjects, **more)

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            hand = Hand(backend)
            records = await hand.put(400)
            with patch.object(JetStream, "newest", counted):
                found = [task for _ in range(4) for task in await hand.claim(max_tasks=100)]
            assert ids(found) == ids(records)
            assert sum(asked) < 300, "after two readings of a hundred, it is known where the others lie"
            await hand.finish_all(found)

    asyncio.run(main())


# --- many --------------------------------------------------------------------------------------------------------


def test_eight_workers_share_what_came_back_and_what_fell_due(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            hand = Hand(backend)
            records = await hand.put(400)
            records += await hand.put(200, delay_s=0.3)
            records += await hand.put(100, priority=5, delay_s=0.2)
            await hand.finish_all(await hand.claim(max_tasks=300), Verb.RELEASE)
            await asyncio.sleep(0.5)
            taken: list[str] = []

            async def work(hand: Hand) -> None:
                while claims := await hand.claim(max_tasks=13):
                    taken.extend(ids(claims))
                    await hand.finish_all(claims)

            async with asyncio.timeout(30):
                while len(taken) < len(records):
                    await asyncio.gather(*(work(Hand((backend, other)[n % 2])) for n in range(8)))
            assert sorted(taken) == sorted(ids(records)), "each once"
            assert await ready(hand.queue) == (0, 0, 0)

    asyncio.run(main())


def test_a_query_of_many_pages_is_whole_while_tasks_move(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            records = [record for _ in range(5) for record in await hand.put(500, queue="stays")]
            found: list[str] = []
            cursor = None
            while True:
                page = await queue.query(TaskFilter(queues=["stays"]), limit=900, cursor=cursor)
                found += ids(page.items)
                cursor = page.cursor
                await hand.put(50)
                await hand.finish_all(await hand.claim(max_tasks=25))
                if cursor is None:
                    break
            assert found == ids(records)[::-1]

    asyncio.run(main())


def test_finished_tasks_and_results_go_by_themselves(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url, retention_s=0.5) as backend:
            hand, queue, results = Hand(backend), backend.queue(), backend.result_store()
            short, long = await hand.put(2)
            first, second = await hand.claim()
            ends = [
                Settlement(first.lease, Verb.SUCCEED, result=b"short"),
                Settlement(second.lease, Verb.SUCCEED, result=b"long", result_ttl_s=60.0),
            ]
            assert await queue.settle(ends) == [Outcome.OK] * 2
            assert [a.outcome for a in await queue.enqueue([short])] == [Outcome.DUPLICATE]
            end = time.monotonic() + 10
            while await queue.get([short.id]) != [None]:
                assert time.monotonic() < end, "a finished task is kept for ever"
                await asyncio.sleep(0.1)
            assert [a.outcome for a in await queue.enqueue([short])] == [Outcome.OK], "its id is free again"
            [kept] = await results.get([long.id])
            assert kept is not None, "a result lives as long as it was asked to"

    asyncio.run(main())


@pytest.mark.parametrize("which", [("lines",), ("claims",), ("lines", "claims")])
def test_lines_or_claims_that_somebody_deleted_are_made_anew_from_the_tasks(
    nats_server: NatsServer, backend_at: Make, which: tuple[str, ...]
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            hand, queue, names = Hand(backend), backend.queue(), backend._opened().subjects
            running, pending, done = hand.record(priority=3), hand.record(), hand.record(priority=5)
            late = hand.record(delay_s=60.0)
            await queue.enqueue([running, pending, done, late])
            claims = await hand.claim(max_tasks=2)
            await hand.finish_all(claims[:1])
            for name in which:
                assert "error" not in nats_server.api(f"STREAM.DELETE.{getattr(names, name)}")
        async with backend_at(nats_server.url) as backend:
            hand, queue = Hand(backend), backend.queue()
            wanted = [pending.id] if which == ("lines",) else [running.id, pending.id]
            found = await hand.claim()
            assert ids(found) == wanted
            outcome = await queue.settle([Settlement(claims[1].lease, Verb.SUCCEED)])
            assert outcome == [Outcome.OK if which == ("lines",) else Outcome.STALE]
            assert (await queue.stats(["q"]))[0].delayed == 1
            await hand.finish_all(found)

    asyncio.run(main())


def test_a_message_that_the_stream_refuses_is_not_taken_for_a_lost_race(nats_server: NatsServer) -> None:
    """JetStream names a sequence, 0, in its errors too; a hint that is noted by it would never be found."""

    async def main() -> None:
        name = f"NARROW-{uuid.uuid4().hex[:8]}"
        client = Client(NatsOptions(servers=nats_server.url))
        streams = JetStream(client, is_replicated=False)
        try:
            await streams.api(
                f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.>"], "max_msg_size": 100}
            )
            stored = (f"{name}.a", head(0), b"")
            assert await streams.write([stored]) == [1]
            assert await streams.write([stored]) == [CONFLICT]
            with pytest.raises(Refused, match="size exceeds"):
                await streams.write([(f"{name}.b", b"", b""), (f"{name}.c", b"", bytes(200))])
            with pytest.raises(Refused, match="size exceeds"):
                await streams.write_one(f"{name}.c", head(0), bytes(200))
        finally:
            await streams.api(f"STREAM.DELETE.{name}")
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["nats_server", "nats_server_durable", "nats_cluster"])
def test_an_atomic_batch_stands_in_one_piece_among_other_writers(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Hints are stored so where the server syncs each message, and their sequences are counted back from the last."""
    servers = request.getfixturevalue(kind).url.removeprefix("nats://")
    replicas = 3 if kind == "nats_cluster" else 1

    async def main() -> None:
        name = f"BATCHES-{uuid.uuid4().hex[:8]}"
        clients = [Client(NatsOptions(servers=servers)) for _ in range(4)]
        streams = [JetStream(client, is_replicated=replicas > 1) for client in clients]
        config = {"name": name, "subjects": [f"{name}.>"], "allow_direct": True, "allow_atomic": True}
        await streams[0].api(f"STREAM.CREATE.{name}", {**config, "num_replicas": replicas})
        wanted: dict[int, bytes] = {}

        async def batches(number: int) -> None:
            for turn in range(10):
                items = [(f"{name}.b", b"", b"%d %d %d" % (number, turn, place)) for place in range(50)]
                last = await streams[number].write_atomically(items)
                wanted.update((last - 49 + place, data) for place, (_, _, data) in enumerate(items))

        async def singles(number: int) -> None:
            for _ in range(100):
                await streams[number].write_one(f"{name}.s", b"", b"")

        try:
            await asyncio.gather(batches(0), batches(1), singles(2), singles(3))
            found = {
                s.seq: s.payload
                for s in [s async for page in streams[0].walk(name) for s in page]
                if s.payload
            }
            assert found == wanted
        finally:
            await streams[0].api(f"STREAM.DELETE.{name}")
            for client in clients:
                await client.close()

    asyncio.run(main())


def test_a_server_that_syncs_each_message_is_written_to_in_batches(
    nats_server_durable: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with (
            backend_at(nats_server_durable.url) as backend,
            backend_at(nats_server_durable.url) as other,
        ):
            hand, queue, streams = Hand(backend), backend.queue(), backend._opened().streams
            # As if it had been found slow: this disk may be quick.
            streams._pace_s, streams._probe_in = 1.0, 50
            records = await hand.put(200)
            # A conflict in the middle: the batch is refused, and each is written by itself.
            await other.queue().cancel([records[50].id])
            streams._pace_s, streams._probe_in = 1.0, 50
            found = await hand.claim(max_tasks=1000)
            assert ids(found) == [r.id for r in records if r is not records[50]]
            await other.queue().cancel([records[60].id])
            streams._pace_s, streams._probe_in = 1.0, 50
            await hand.finish_all(found[:150], Verb.RETRY)
            assert await ready(queue) == (149, 0, 49)
            streams._pace_s, streams._probe_in = 1.0, 50
            again = await hand.claim(max_tasks=1000)
            assert ids(again) == [c.task_id for c in found[:150] if c.task_id != records[60].id]
            await hand.finish_all(again + found[150:])
            assert await ready(queue) == (0, 0, 0)

    asyncio.run(main())
