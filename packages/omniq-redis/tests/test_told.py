"""Results that come to who waits for them without being asked for, and those that are too large for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from omniq_conformance.load import until
from omniq_conformance.servers.redis import SpeaksRedis
from omniq_core import Outcome, ResultRecord, Settlement, TaskRecord, TaskState, Verb
from omniq_redis import RedisBackend
from omniq_redis.keys import prefix
from omniq_redis.results import RedisResultStore

Make = Callable[..., RedisBackend]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The ids of each look for results."""
    looks: list[Sequence[str]] = []
    get = RedisResultStore.get

    async def noted(self: RedisResultStore, task_ids: Sequence[str], /) -> Sequence[ResultRecord | None]:
        looks.append(list(task_ids))
        return await get(self, task_ids)

    monkeypatch.setattr(RedisResultStore, "get", noted)
    return looks


async def waiting(
    backend: RedisBackend, server: SpeaksRedis, project: str, names: Sequence[str]
) -> asyncio.Task[Sequence[ResultRecord | None]]:
    """A wait that has left its name everywhere, on a connection that is subscribed."""
    store = backend.result_store()
    await store.wait(["nothing"], timeout_s=0.2)  # subscribes
    task = asyncio.ensure_future(store.wait(names, timeout_s=10))
    await until(lambda: server.command("EXISTS", f"{prefix(project)}wt:{names[-1]}"))
    await backend.queue().get(["x"])  # answers come in order: all that the wait has asked is answered
    return task


def test_a_result_that_is_waited_for_comes_whole_and_is_not_asked_for(
    server: SpeaksRedis, backend_at: Make, project: str, asked: list[Sequence[str]]
) -> None:
    body = bytes(range(256))

    async def main() -> None:
        async with backend_at(server.url) as waiter, backend_at(server.url) as other:
            queue = other.queue()
            await queue.enqueue([TaskRecord("a", "q", "n", b"")])
            task = await waiting(waiter, server, project, ["a"])
            asked.clear()
            [claimed] = await queue.claim(["q"], max_tasks=1, lease_s=9, worker_id="w", claim_id="c")
            settlement = Settlement(claimed.lease, Verb.SUCCEED, result=body, result_ttl_s=60)
            assert await queue.settle([settlement]) == [Outcome.OK]
            [told] = await task
            assert asked == []
            assert told is not None
            [looked] = await waiter.result_store().get(["a"])
            assert told == looked
            assert (told.body, told.final, told.state) == (body, True, TaskState.SUCCEEDED)

    asyncio.run(main())


def test_results_that_do_not_fit_into_the_message_are_asked_for_and_only_those(
    server: SpeaksRedis, backend_at: Make, project: str, asked: list[Sequence[str]]
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as waiter, backend_at(server.url) as other:
            names = ["small", "large", "another", "missing"]
            task = await waiting(waiter, server, project, names)
            asked.clear()
            bodies = {"small": b"s", "large": b"l" * 100_000, "another": b"a" * 1000}
            records = [ResultRecord(name, 1, TaskState.SUCCEEDED, body) for name, body in bodies.items()]
            await other.result_store().put(records)
            found = await task
            assert asked == [["large", "missing"]]
            assert [record and record.body for record in found] == [*bodies.values(), None]

    asyncio.run(main())


def test_a_settlement_that_comes_after_a_later_result_tells_the_later_one(
    server: SpeaksRedis, backend_at: Make, project: str
) -> None:
    async def main() -> None:
        async with backend_at(server.url) as waiter, backend_at(server.url) as other:
            queue = other.queue()
            await queue.enqueue([TaskRecord("a", "q", "n", b"")])
            [claimed] = await queue.claim(["q"], max_tasks=1, lease_s=9, worker_id="w", claim_id="c")
            later = ResultRecord("a", claimed.lease.fence + 1, TaskState.SUCCEEDED, b"later", final=False)
            await other.result_store().put([later])
            task = await waiting(waiter, server, project, ["a"])
            await queue.settle([Settlement(claimed.lease, Verb.SUCCEED, result=b"earlier")])
            # A provisional record ends no wait, so it goes on until the final one of that fence is there.
            final = ResultRecord("a", later.fence, TaskState.SUCCEEDED, b"later")
            await other.result_store().put([final])
            [told] = await task
            assert told is not None
            assert (told.body, told.fence) == (b"later", later.fence)

    asyncio.run(main())
