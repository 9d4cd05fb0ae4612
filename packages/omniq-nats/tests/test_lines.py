"""Places in line, ghosts, buckets of time and half-done writes: what the layout must get right beyond the suite."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from unittest.mock import patch

import pytest

from omniq_conformance.servers import NatsServer
from omniq_core import (
    Claim,
    Outcome,
    Queue,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskState,
    Verb,
)
from omniq_nats import NatsBackend, NatsOptions, claiming
from omniq_nats.connection import Client
from omniq_nats.distance import Distance
from omniq_nats.errors import Refused
from omniq_nats.jetstream import CONFLICT, JetStream, Stored, head
from omniq_nats.lines import DEAL_S, bucket_of, payload

Make = Callable[..., NatsBackend]
Tasks = Callable[..., list[TaskRecord]]


async def claim(queue: Queue, count: int = 1000, lease_s: float = 60.0) -> list[Claim]:
    return list(
        await queue.claim(["q"], max_tasks=count, lease_s=lease_s, worker_id="w", claim_id=str(uuid.uuid4()))
    )


def ids(items: object) -> list[str]:
    return [getattr(item, "task_id", None) or item.id for item in items]  # type: ignore[attr-defined]


async def give_back(queue: Queue, claims: list[Claim], verb: Verb = Verb.RELEASE, **fields: float) -> None:
    ends = [Settlement(c.lease, verb, **fields) for c in claims]  # type: ignore[arg-type]
    assert set(await queue.settle(ends)) <= {Outcome.OK}


async def ready(queue: Queue) -> tuple[int, int, int]:
    [stats] = await queue.stats(["q"])
    return stats.ready, stats.delayed, stats.running


# --- order -------------------------------------------------------------------------------------------------------


def test_tasks_that_came_back_stand_where_they_stood_in_whatever_order_they_came(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        chance = random.Random(3)
        async with backend_at(nats_server.url) as backend:
            queue = backend.queue()
            records = tasks(60)
            await queue.enqueue(records)
            for _ in range(20):
                found = await claim(queue, chance.randint(1, 40))
                assert ids(found) == ids(records)[: len(found)]
                chance.shuffle(found)
                for start in range(0, len(found), 7):
                    await give_back(
                        queue, found[start : start + 7], chance.choice([Verb.RELEASE, Verb.RETRY])
                    )
            assert ids(await claim(queue)) == ids(records)

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
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            queue, clock = backend.queue(), parts.clock
            # In the middle of its first bucket: a bucket is not looked into before it begins.
            delay_s = 5050.0 - await parts.tasks.lines.now() % 100
            [record] = tasks(1, delay_s=delay_s)
            await queue.enqueue([record])
            due = clock.now() + delay_s
            lengths = []
            for left_s in (4000.0, 10.0, 1.0, 0.05, -0.01):
                with patch.object(type(clock), "now", lambda self, at=due - left_s: at):
                    found = await claim(queue)
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


def test_a_hint_without_a_task_is_dropped_and_harms_nobody(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            queue = backend.queue()
            line = parts.subjects.line("q", 0)
            # A producer died between the hint and the document.
            await parts.tasks.lines.put([(line, payload("never came"))])
            [record] = tasks(1)
            await queue.enqueue([record])
            assert ids(await claim(queue)) == [record.id]
            assert await claim(queue) == []
            with patch.object(claiming, "FORGET_S", 0.0):
                async with asyncio.timeout(10):
                    while (await ready(queue))[0]:  # given up once it is old
                        assert await claim(queue) == []
            assert await queue.get(["never came"]) == [None]

    asyncio.run(main())


def test_a_second_hint_of_a_task_starts_it_no_second_time(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            queue = backend.queue()
            records = tasks(3)
            await queue.enqueue(records)
            for record in records:
                places = [
                    (parts.subjects.line("q", 0), payload(record.id)),
                    (parts.subjects.returned("q", 0), payload(record.id, 1)),
                    (parts.subjects.line("other", 3), payload(record.id)),
                ]
                await parts.tasks.lines.put(places)
            found = await claim(queue)
            assert ids(found) == ids(records)
            assert await claim(queue) == []
            assert await queue.claim(["other"], max_tasks=9, lease_s=9, worker_id="w", claim_id="x") == []
            await give_back(queue, found, Verb.SUCCEED)
            assert await claim(queue) == []

    asyncio.run(main())


def test_a_writer_that_stood_still_between_hint_and_document_puts_a_second_hint(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            queue = backend.queue()
            streams = parts.streams
            write_one = type(streams).write_one

            async def slow(self: object, subject: str, header: bytes, data: bytes) -> int:
                if subject.startswith(parts.subjects.root + "t."):
                    # Meanwhile somebody came across the hint, and gave it up.
                    with patch.object(claiming, "FORGET_S", -1.0):
                        assert await claim(queue) == []
                return await write_one(streams, subject, header, data)

            [record] = tasks(1)
            with (
                patch.object(type(streams), "write_one", slow),
                patch("omniq_nats.enqueueing.PATIENCE_S", -1.0),
            ):
                await queue.enqueue([record])
            assert ids(await claim(queue)) == [record.id], "it waits under its second hint"

    asyncio.run(main())


@pytest.mark.parametrize("step", ["claim", "documents"])
def test_a_claimer_that_died_in_between_leaves_no_task_behind(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks, step: str
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            queue = backend.queue()
            records = tasks(5)
            await queue.enqueue(records)

            class Died(BaseException):
                pass

            async def die(*_: object, **__: object) -> None:
                raise Died

            where = (type(parts.tasks), "change") if step == "claim" else (type(parts.tasks.lines), "done")
            with patch.object(*where, die), pytest.raises(Died):
                await claim(queue, lease_s=0.05)
            found: list[Claim] = []
            async with asyncio.timeout(20):
                while len(found) < 5:
                    await queue.maintain()
                    found += await claim(queue)
                    await asyncio.sleep(0.02)
            assert sorted(ids(found)) == sorted(ids(records))
            await give_back(queue, found, Verb.SUCCEED)
            assert await parts.tasks.holdings.all() == []

    asyncio.run(main())


def test_a_claimer_that_slept_before_it_took_its_tasks_takes_none(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    """Its lease ended before its tasks ran under it: others must get them, and it must not take them after all."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue = backend.queue()
            records = tasks(3)
            await queue.enqueue(records)
            change = type(backend._opened().tasks).change
            taken: list[Claim] = []

            async def slow(self: object, changes: object, now: float) -> list[int]:
                patched.stop()
                await asyncio.sleep(0.2)
                await other.queue().maintain()
                taken.extend(await claim(other.queue()))
                return await change(self, changes, now)  # type: ignore[arg-type]

            patched = patch.object(type(backend._opened().tasks), "change", slow)
            patched.start()
            assert await claim(queue, lease_s=0.1) == [], "it came too late"
            assert sorted(ids(taken)) == sorted(ids(records))
            await give_back(other.queue(), taken, Verb.SUCCEED)
            for task in await queue.get(ids(records)):
                assert task is not None
                assert task.state is TaskState.SUCCEEDED

    asyncio.run(main())


def test_what_a_late_claimer_takes_while_its_claim_is_taken_over_is_not_forgotten(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    """As when a server thaws: what a worker sent long ago is carried out in the midst of what others do about it."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue, upkeep = backend.queue(), other.queue()
            records = tasks(3)
            await queue.enqueue(records)
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
                    await upkeep.maintain()
                return taken

            patched = patch.object(kind, "change", slow)
            patched.start()
            late = await claim(queue, lease_s=0.1)
            assert ids(late) == ids(records)
            found: list[Claim] = []
            async with asyncio.timeout(20):
                while len(found) < 3:
                    await upkeep.maintain()
                    found += await claim(upkeep)
            ends = [Settlement(c.lease, Verb.SUCCEED) for c in late]
            assert await queue.settle(ends) == [Outcome.STALE] * 3
            await give_back(upkeep, found, Verb.SUCCEED)
            assert await ready(queue) == (0, 0, 0)

    asyncio.run(main())


# --- what is done for many at once ---------------------------------------------------------------------------------


def test_a_claims_hints_go_and_nobody_elses(nats_server: NatsServer, backend_at: Make, tasks: Tasks) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue, lines = backend.queue(), backend._opened().tasks.lines
            await queue.enqueue(tasks(2, delay_s=1000.0) + tasks(2, queue="other"))  # older, and elsewhere
            records = tasks(500)
            await queue.enqueue(records)
            # The first hundred are dealt to somebody who is slow to claim them.
            held = await other._opened().tasks.lines.deal("q", 0, 100)
            found = await claim(queue, 200)
            assert ids(found) == ids(records[100:300])
            assert await ready(queue) == (300, 2, 200)
            await other._opened().tasks.lines.give_back(held)
            assert ids(await claim(queue, 100)) == ids(records[:100])
            assert await ready(queue) == (200, 2, 300)
            # One in between that is not ours: a task that was cancelled, and another that came instead.
            await queue.cancel([records[350].id])
            found = await claim(queue, 199)
            assert ids(found) == ids(records[300:350] + records[351:])
            await give_back(queue, found)
            assert await ready(queue) == (199, 2, 300)
            [stats] = await queue.stats(["other"])
            assert stats.ready == 2
            await lines.settle_counts()

    asyncio.run(main())


def test_hints_that_were_given_back_come_again_at_once_whatever_others_take_out(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue = backend.queue()
            records = tasks(300)
            await queue.enqueue(records)
            first = await backend._opened().tasks.lines.deal("q", 0, 150)
            theirs = await other._opened().tasks.lines.deal("q", 0, 150)
            await other._opened().tasks.lines.give_back(theirs)
            await backend._opened().tasks.lines.done(first)
            async with asyncio.timeout(DEAL_S / 2):
                found: list[Claim] = []
                while len(found) < 150:
                    found += await claim(queue, 50)
            assert sorted(ids(found)) == sorted(ids(records[150:]))

    asyncio.run(main())


def test_acknowledgements_that_did_not_reach_start_no_task_twice(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def lost(*_: object, **__: object) -> None:
        pass

    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue, lines = backend.queue(), other._opened().tasks.lines
            records = tasks(100)
            await queue.enqueue(records)
            with patch.object(JetStream, "acknowledge", lost):
                found = await claim(queue)
                assert ids(found) == ids(records)
            # They are dealt again, to somebody else, who finds their tasks running, or over, and drops them.
            await give_back(queue, found[:50], Verb.SUCCEED)
            async with asyncio.timeout(20):
                while (await lines.look(["q"]))[0].lines:
                    assert await claim(other.queue()) == []
            await give_back(queue, found[50:], Verb.SUCCEED)
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
    nats_server: NatsServer, backend_at: Make, tasks: Tasks, wrong: int
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            queue, parts = backend.queue(), backend._opened()
            # Beside documents lie queues, unique keys and results, and the documents of other tasks.
            records = tasks(30) + tasks(1, unique_key="k") + tasks(30, queue="other") + tasks(30)
            for record in records:
                await queue.enqueue([record])
            await backend.result_store().put([ResultRecord("else", 1, TaskState.SUCCEEDED, b"result")])
            [hint] = await parts.tasks.lines.inside(parts.subjects.line("q", 0), 1)
            [(seq, _)] = (await parts.tasks.read([hint.task_id])).values()
            with patch.object(Distance, "likely", seq - hint.seq + wrong):
                found = await claim(queue)
            mine = [record for record in records if record.queue == "q"]
            assert ids(found) == ids(mine)
            await give_back(queue, found, Verb.SUCCEED)
            assert {task and task.state for task in await queue.get(ids(mine))} == {TaskState.SUCCEEDED}
            assert await ready(queue) == (0, 0, 0)

    asyncio.run(main())


def test_tasks_of_one_batch_are_read_by_their_places_and_not_by_their_names(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
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
            queue = backend.queue()
            records = tasks(400)
            await queue.enqueue(records)
            with patch.object(JetStream, "newest", counted):
                found = [task for _ in range(4) for task in await claim(queue, 100)]
            assert ids(found) == ids(records)
            assert sum(asked) < 300, "after two readings of a hundred, it is known where the others lie"
            await give_back(queue, found, Verb.SUCCEED)

    asyncio.run(main())


# --- many --------------------------------------------------------------------------------------------------------


def test_eight_workers_share_what_came_back_and_what_fell_due(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue = backend.queue()
            records = tasks(400) + tasks(200, delay_s=0.3) + tasks(100, priority=5, delay_s=0.2)
            await queue.enqueue(records)
            await give_back(queue, await claim(queue, 300))
            await asyncio.sleep(0.5)
            taken: list[str] = []

            async def work(queue: Queue) -> None:
                while claims := await claim(queue, 13):
                    taken.extend(ids(claims))
                    await give_back(queue, claims, Verb.SUCCEED)

            async with asyncio.timeout(30):
                while len(taken) < len(records):
                    await asyncio.gather(*(work((backend, other)[n % 2].queue()) for n in range(8)))
            assert sorted(taken) == sorted(ids(records)), "each once"
            assert await ready(queue) == (0, 0, 0)

    asyncio.run(main())


def test_a_query_of_many_pages_is_whole_while_tasks_move(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            queue = backend.queue()
            records = tasks(2500, queue="stays")
            for start in range(0, 2500, 500):
                await queue.enqueue(records[start : start + 500])
            found: list[str] = []
            cursor = None
            while True:
                page = await queue.query(TaskFilter(queues=["stays"]), limit=900, cursor=cursor)
                found += ids(page.items)
                cursor = page.cursor
                await queue.enqueue(tasks(50))
                await give_back(queue, await claim(queue, 25), Verb.SUCCEED)
                if cursor is None:
                    break
            assert found == ids(records)[::-1]

    asyncio.run(main())


def test_finished_tasks_and_results_go_by_themselves(
    nats_server: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url, retention_s=0.5) as backend:
            queue, results = backend.queue(), backend.result_store()
            short, long = tasks(1)[0], tasks(1)[0]
            await queue.enqueue([short, long])
            first, second = await claim(queue)
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
    nats_server: NatsServer, backend_at: Make, tasks: Tasks, which: tuple[str, ...]
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            queue, names = backend.queue(), backend._opened().subjects
            running, pending, done = tasks(1, priority=3)[0], tasks(1)[0], tasks(1, priority=5)[0]
            late = tasks(1, delay_s=60.0)[0]
            await queue.enqueue([running, pending, done, late])
            claims = await claim(queue, 2)
            await give_back(queue, claims[:1], Verb.SUCCEED)
            for name in which:
                assert "error" not in nats_server.api(f"STREAM.DELETE.{getattr(names, name)}")
        async with backend_at(nats_server.url) as backend:
            queue = backend.queue()
            wanted = [pending.id] if which == ("lines",) else [running.id, pending.id]
            found = await claim(queue)
            assert ids(found) == wanted
            outcome = await queue.settle([Settlement(claims[1].lease, Verb.SUCCEED)])
            assert outcome == [Outcome.OK if which == ("lines",) else Outcome.STALE]
            assert (await queue.stats(["q"]))[0].delayed == 1
            await give_back(queue, found, Verb.SUCCEED)

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
    nats_server_durable: NatsServer, backend_at: Make, tasks: Tasks
) -> None:
    async def main() -> None:
        async with (
            backend_at(nats_server_durable.url) as backend,
            backend_at(nats_server_durable.url) as other,
        ):
            queue, streams = backend.queue(), backend._opened().streams
            # As if it had been found slow: this disk may be quick.
            streams._pace_s, streams._probe_in = 1.0, 50
            records = tasks(200)
            await queue.enqueue(records)
            # A conflict in the middle: the batch is refused, and each is written by itself.
            await other.queue().cancel([records[50].id])
            streams._pace_s, streams._probe_in = 1.0, 50
            found = await claim(queue)
            assert ids(found) == [r.id for r in records if r is not records[50]]
            await other.queue().cancel([records[60].id])
            streams._pace_s, streams._probe_in = 1.0, 50
            await give_back(queue, found[:150], Verb.RETRY)
            assert await ready(queue) == (149, 0, 49)
            streams._pace_s, streams._probe_in = 1.0, 50
            again = await claim(queue)
            assert ids(again) == [c.task_id for c in found[:150] if c.task_id != records[60].id]
            await give_back(queue, again + found[150:], Verb.SUCCEED)
            assert await ready(queue) == (0, 0, 0)

    asyncio.run(main())
