"""Results that travel with the notification of them: quickly, and never a wrong one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from omniq_conformance.hand import Hand
from omniq_conformance.servers import PostgresServer
from omniq_core import Claim, Event, Outcome, ResultRecord, Settlement, TaskRecord, TaskState, Verb
from omniq_postgres import PostgresBackend
from omniq_postgres import notify as notify_module
from omniq_postgres.notify import RESULT, checksum, told_by
from omniq_postgres.statements import GET_RESULTS

Body = Callable[[PostgresBackend, "Client"], Awaitable[None]]


class Client:
    """A backend in which somebody waits, and how often it has asked for results and been answered."""

    def __init__(self, backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend = backend
        self.looks = 0
        self.looked = asyncio.Event()
        run = backend.pool.run

        async def counted(statement: Any, *values: Any) -> Any:
            rows = await run(statement, *values)
            if statement is GET_RESULTS:
                self.looks += 1
                self.looked.set()
            return rows

        monkeypatch.setattr(backend.pool, "run", counted)

    async def wait(self, *task_ids: str) -> asyncio.Task[Any]:
        """Somebody who waits, has looked and found nothing."""
        results = self.backend.result_store()
        await results.wait(task_ids, timeout_s=0.0)
        assert self.backend._listener is not None
        await self.backend._listener.listening.wait()
        self.looked.clear()
        waiting = asyncio.create_task(results.wait(task_ids, timeout_s=20.0))
        await self.looked.wait()
        await asyncio.sleep(0)
        return waiting


def run(server: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch, body: Body) -> None:
    async def main() -> None:
        async with (
            PostgresBackend.from_url(server.url, schema=schema, poll_interval_s=30.0) as worker,
            PostgresBackend.from_url(server.url, schema=schema, poll_interval_s=30.0) as waits,
        ):
            async with asyncio.timeout(20.0):
                await body(worker, Client(waits, monkeypatch))

    asyncio.run(main())


async def claimed(worker: PostgresBackend, *task_ids: str) -> list[Claim]:
    await worker.queue().enqueue([TaskRecord(task_id, "q", "work", b"") for task_id in task_ids])
    return await Hand(worker).claim(max_tasks=len(task_ids))


async def succeed(worker: PostgresBackend, *claims: Claim, result: bytes, **fields: Any) -> list[Outcome]:
    ends = [Settlement(item.lease, Verb.SUCCEED, result=result, **fields) for item in claims]
    return list(await worker.queue().settle(ends))


@pytest.mark.parametrize("task_id", ["plain", "with a space, ümlauts and R0000"])
def test_a_small_result_is_not_asked_for(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch, task_id: str
) -> None:
    async def body(worker: PostgresBackend, client: Client) -> None:
        claims = await claimed(worker, task_id)
        waiting = await client.wait(task_id)
        looks = client.looks
        assert await succeed(worker, *claims, result=b"\x00\xffr") == [Outcome.OK]
        [found] = await waiting
        assert client.looks == looks, "it was asked for"
        assert [found] == await client.backend.result_store().get([task_id])

    run(postgres_server, postgres_schema, monkeypatch, body)


def test_a_few_results_of_one_call_come_together(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(worker: PostgresBackend, client: Client) -> None:
        claims = await claimed(worker, "a", "b", "c")
        waiting = await client.wait("a", "c", "b")
        looks = client.looks
        await succeed(worker, *claims, result=b"r")
        assert [record.task_id for record in await waiting] == ["a", "c", "b"]
        assert client.looks == looks

    run(postgres_server, postgres_schema, monkeypatch, body)


@pytest.mark.parametrize(("count", "size"), [(1, 5_000), (60, 10)], ids=["large", "many"])
def test_large_and_many_results_are_asked_for(
    postgres_server: PostgresServer,
    postgres_schema: str,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    size: int,
) -> None:
    async def body(worker: PostgresBackend, client: Client) -> None:
        task_ids = [str(number) for number in range(count)]
        claims = await claimed(worker, *task_ids)
        waiting = await client.wait(*task_ids)
        looks = client.looks
        await succeed(worker, *claims, result=b"r" * size)
        assert {record.body for record in await waiting} == {b"r" * size}
        assert client.looks > looks

    run(postgres_server, postgres_schema, monkeypatch, body)


def test_what_a_stale_worker_brings_is_told_to_nobody(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_module, "FEW_S", 0.0)
    told: list[ResultRecord] = []

    def noted(payload: str) -> list[ResultRecord]:
        found = told_by(payload)
        told.extend(found)
        return found

    monkeypatch.setattr(notify_module, "told_by", noted)

    async def body(worker: PostgresBackend, client: Client) -> None:
        [late] = await claimed(worker, "t")
        await worker.pool.query("update @schema.claim set until = 0", (), ())
        assert len((await worker.queue().maintain()).moved) == 1
        owner = await Hand(worker).claim_one()
        waiting = await client.wait("t")
        client.looked.clear()
        assert await succeed(worker, late, result=b"late") == [Outcome.STALE]
        await client.looked.wait()
        assert not waiting.done()
        assert await succeed(worker, owner, result=b"owner") == [Outcome.OK]
        [found] = await waiting
        assert found.body == b"owner"
        # The owner's may be seen by a look that is still under way, before it is told.
        assert {record.body for record in told} <= {b"owner"}
        # And afterwards: the row that bears the owner's fence holds what the owner brought.
        waiting = await client.wait("other", "t")
        assert (await waiting)[1].body == b"owner"
        assert await succeed(worker, late, result=b"late") == [Outcome.STALE]
        assert await succeed(worker, owner, result=b"changed") == [Outcome.DUPLICATE]
        assert (await client.backend.result_store().get(["t"]))[0] == found

    run(postgres_server, postgres_schema, monkeypatch, body)


def test_late_news_of_a_result_that_was_deleted_are_not_believed(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(worker: PostgresBackend, client: Client) -> None:
        await succeed(worker, *await claimed(worker, "t"), result=b"deleted")
        [old] = await worker.result_store().get(["t"])
        assert old is not None
        assert await client.backend.result_store().delete(["t"]) == 1
        waiting = await client.wait("t")
        client.looked.clear()
        client.backend.bell.ring((RESULT, checksum("t")), [old])  # as its notification, held up until now
        await client.looked.wait()
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()

    run(postgres_server, postgres_schema, monkeypatch, body)


def test_a_result_that_lives_no_longer_is_not_told(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(worker: PostgresBackend, client: Client) -> None:
        [first] = await claimed(worker, "first")
        [second] = await claimed(worker, "second")
        waiting = await client.wait("first", "second")
        await succeed(worker, first, result=b"r", result_ttl_s=0.0)
        await succeed(worker, second, result=b"r")
        found = await waiting
        assert [record and record.task_id for record in found] == [None, "second"]

    run(postgres_server, postgres_schema, monkeypatch, body)


def test_news_that_are_not_ours_are_passed_over() -> None:
    assert told_by("Rxyz R00 q Rffffffffffffffff e") == []
    assert told_by("R" + bytes(30).hex()) != [], "the empty id of nobody"
    assert told_by("R" + (bytes(8) + b"\x7f\x7f" + bytes(20)).hex()) == [], "a state that we do not know"


def test_the_channel_is_the_schemas_and_cannot_be_guessed(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def channels() -> list[str]:
        found = []
        for schema in (postgres_schema, postgres_schema, f"{postgres_schema}_2"):
            async with PostgresBackend.from_url(postgres_server.url, schema=schema) as backend:
                assert backend.ringer is not None
                found.append(backend.ringer._channel)
        return found

    try:
        first, again, other = asyncio.run(channels())
    finally:
        postgres_server.execute(
            f"set client_min_messages = error; drop schema if exists {postgres_schema}_2 cascade"
        )
    assert first == again != other
    assert uuid.UUID(first.removeprefix("omniq_")).version == 4


@pytest.mark.parametrize("fields", [{}, {"result": b"r"}, {"result": b"r", "result_ttl_s": 60.0}])
@pytest.mark.parametrize("key", [None, "key"])
def test_a_task_that_is_settled_alone_leaves_what_it_would_leave_in_company(
    postgres_server: PostgresServer, postgres_schema: str, fields: dict[str, Any], key: str | None
) -> None:
    left = """
        select (to_jsonb(t) - '{seq,id,fence,enqueued_at,run_at,finished_at,result_until,unique_key}'::text[])::text,
               round((result_until - finished_at)::numeric, 3)::text, (t.fence = {})::text,
               (select count(*) from @schema.uniq)::text, (select count(*) from @schema.claim)::text,
               (select sum(running) from @schema.delta)::text, (select count(*) from @schema.failed)::text,
               (select array_agg(round((l.due - t.finished_at)::numeric, 3) order by 1) from @schema.look l
                 where t.seq = any (l.seqs))::text
          from @schema.task t where t.id = {}"""

    async def main() -> list[Any]:
        found = []
        async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend:
            for count in (1, 2):
                queue = backend.queue()
                task_ids = [str(uuid.uuid4()) for _ in range(count)]
                await queue.enqueue([TaskRecord(task_ids[0], "q", "work", b"", unique_key=key)])
                if count == 2:
                    await queue.enqueue([TaskRecord(task_ids[1], "q", "work", b"")])
                # A record of the result store beside it, which this one replaces.
                await backend.result_store().put([ResultRecord(task_ids[0], 1, TaskState.DEAD, b"old")])
                claims = await Hand(backend).claim()
                ends = [Settlement(item.lease, Verb.SUCCEED, **fields) for item in claims]
                assert await queue.settle(ends) == [Outcome.OK] * count
                assert await queue.settle(ends) == [Outcome.DUPLICATE] * count
                [record] = await backend.result_store().get(task_ids[:1])
                sql = left.replace("'{seq", "'{{seq").replace("key}'", "key}}'")
                rows = await backend.pool.query(sql, ("bigint", "text"), (claims[0].lease.fence, task_ids[0]))
                found.append((rows, record and (record.state, record.body)))
        return found

    alone, in_company = asyncio.run(main())
    assert alone == in_company


def test_a_claim_is_left_by_its_tasks_one_by_one(
    postgres_server: PostgresServer, postgres_schema: str
) -> None:
    async def main() -> None:
        async with PostgresBackend.from_url(postgres_server.url, schema=postgres_schema) as backend:
            claims = await claimed(backend, "a", "b", "c")
            for left in (2, 1, 0):
                assert await succeed(backend, claims[left], result=b"r") == [Outcome.OK]
                rows = await backend.pool.query("select open from @schema.claim", (), ())
                assert rows == ([(left,)] if left else [])

    asyncio.run(main())


def test_a_result_does_not_wait_for_as_long_as_events_do(
    postgres_server: PostgresServer, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_module, "BURST_S", 60.0)
    monkeypatch.setattr(notify_module, "FEW_S", 0.2)

    async def body(worker: PostgresBackend, client: Client) -> None:
        events = worker.event_store()
        claims = await claimed(worker, "a", "b")
        waiting = await client.wait("a"), await client.wait("b")
        await events.append([Event("1", "a", "x", 1.0)])
        await events.append([Event("2", "a", "x", 1.0)])  # to be told in a minute, or with what comes before
        assert worker.ringer is not None
        assert worker.ringer._task is not None
        worker.ringer._not_before = 0.0
        for number in (0, 1):  # the first goes behind its call, the second too soon after it for that
            await succeed(worker, claims[number], result=b"r")
        for wait in waiting:
            [found] = await wait
            assert found is not None

    run(postgres_server, postgres_schema, monkeypatch, body)
