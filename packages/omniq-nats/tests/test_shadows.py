"""Tasks that a killed server brings back, though they had ended and were deleted: they are none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import patch

import pytest

from omniq_conformance.hand import Hand, ids
from omniq_conformance.load import insist
from omniq_conformance.servers import NatsServer, Profile
from omniq_core import Outcome, TaskFilter, TaskState
from omniq_nats import NatsBackend, shadows

pytestmark = pytest.mark.slow  # servers are killed

Make = Callable[..., NatsBackend]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "FORGET_S", -1.0)


@pytest.mark.parametrize("profile", ["default", "durable"])
@pytest.mark.parametrize("end", ["expired", "purged"])
def test_what_a_killed_server_brings_back_is_not_seen_does_not_run_and_holds_neither_id_nor_key(
    profile: Profile, end: str, backend_at: Make
) -> None:
    async def main(server: NatsServer) -> None:
        retention_s = 1.0 if end == "expired" else 60.0
        async with backend_at(server.url, retention_s=retention_s) as backend:
            hand, queue = Hand(backend), backend.queue()
            ran = [*hand.records(2), hand.record(unique_key="ran")]
            waited = [*hand.records(2, queue="other"), hand.record(queue="other", unique_key="waited")]
            await hand.put_records(ran + waited)
            await hand.finish_all(await hand.claim())
            await queue.cancel(ids(waited))
            if end == "purged":
                assert await queue.purge(TaskFilter(states=[TaskState.SUCCEEDED, TaskState.CANCELLED])) == 6
            async with asyncio.timeout(20):
                while any(await queue.get(ids(ran + waited))):
                    await queue.wait(["nothing"], timeout_s=0.05)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert await insist(backend, lambda: queue.get(ids(ran + waited))) == [None] * 6
            assert (await queue.query(TaskFilter())).items == []
            assert await hand.claim("q", "other") == [], "none of them runs again"
            # Their ids and their keys are free, whether they come alone or in a batch.
            again = [*ran[:2], *waited[:2]]
            for records in ([again[0]], again[1:]):
                assert {answer.outcome for answer in await queue.enqueue(records)} == {Outcome.OK}
            others = [hand.record(unique_key="ran"), hand.record(unique_key="waited")]
            assert {answer.outcome for answer in await queue.enqueue(others)} == {Outcome.OK}
            claims = await hand.claim("q", "other")
            assert sorted(ids(claims)) == sorted(ids([*again, *others]))
            await hand.finish_all(claims)

    with NatsServer(profile) as server:
        asyncio.run(main(server))


def test_a_shadow_is_deleted_when_its_time_is_over(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url, retention_s=1.0) as backend:
            hand, tasks = Hand(backend), backend._opened().tasks
            claim = await hand.running()
            [holding] = await tasks.holdings.all()
            assert await tasks.holdings.end(*holding.now)  # as if it were from before the end of the task
            assert await backend.queue().get([claim.task_id]) == [None]
            assert await backend.queue().get([claim.task_id]) == [None], "to look does not prolong it"
            async with asyncio.timeout(20):
                while await tasks.read([claim.task_id]):
                    await backend.queue().wait(["nothing"], timeout_s=0.05)

    asyncio.run(main())


def test_a_task_that_runs_or_waits_is_no_shadow_though_its_claim_or_hint_was_deleted_with_all_others(
    nats_server: NatsServer, backend_at: Make
) -> None:
    """Somebody has deleted these streams. The next ``open`` mends that: no sooner may another take its id or its key."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            hand, queue = Hand(backend), backend.queue()
            runs, waits = hand.record(unique_key="runs"), hand.record(queue="other", unique_key="waits")
            await hand.put_records([runs, waits])
            await hand.claim_one()
            for stream in (parts.subjects.claims, parts.subjects.lines):
                config = (await parts.streams.api(f"STREAM.INFO.{stream}"))["config"]
                await parts.streams.api(f"STREAM.DELETE.{stream}")
                await parts.streams.api(f"STREAM.CREATE.{stream}", config)
            assert await hand.states(ids([runs, waits])) == [TaskState.RUNNING, TaskState.PENDING]
            answers = await queue.enqueue([hand.record(unique_key="runs"), hand.record(unique_key="waits")])
            assert [(a.outcome, a.task_id) for a in answers] == [
                (Outcome.CONFLICT, runs.id), (Outcome.CONFLICT, waits.id),
            ]  # fmt: skip
            answers = await queue.enqueue([runs, waits])
            assert [a.outcome for a in answers] == [Outcome.DUPLICATE] * 2

    asyncio.run(main())


def test_a_task_whose_hint_is_just_being_replaced_is_no_shadow(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            hand, tasks = Hand(backend), backend._opened().tasks
            record = await hand.put_one(unique_key="k")
            [(_, document)] = (await tasks.read([record.id])).values()
            await tasks.lines.drop([document.hint])
            with patch.object(shadows, "FORGET_S", 60.0):
                [answer] = await backend.queue().enqueue([hand.record(unique_key="k")])
                assert answer.outcome is Outcome.CONFLICT
                await tasks.put_again([record.id])
            assert ids(await hand.claim()) == [record.id]

    asyncio.run(main())
