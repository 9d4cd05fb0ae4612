"""Deleting many tasks: each purge goes on where the last one has swept."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from omniq_conformance.servers import ValkeyServer
from omniq_core import Outcome, TaskFilter, TaskRecord, TaskState
from omniq_redis import RedisBackend
from omniq_redis.connection import Client

PENDING = TaskFilter(states=[TaskState.PENDING])


def batch(count: int, name: str = "work") -> list[TaskRecord]:
    return [TaskRecord(uuid.uuid4().hex, "q", name, b"body") for _ in range(count)]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each segment that was looked through."""
    found: list[str] = []
    script = Client.script

    async def counted(client: Client, name: str, *arguments: Any) -> Any:
        if name == "scan":
            found.append(name)
        return await script(client, name, *arguments)

    monkeypatch.setattr(Client, "script", counted)
    return found


def test_a_purge_does_not_step_over_what_the_purges_before_it_have_deleted(
    valkey_server: ValkeyServer, backend_at: Callable[..., RedisBackend], scans: list[str]
) -> None:
    async def main() -> None:
        async with backend_at(valkey_server.url) as backend:
            queue = backend.queue()
            for _ in range(20):
                await queue.enqueue(batch(1000))
            sizes = []
            while purged := await queue.purge(PENDING):
                sizes.append(purged)
            assert sizes == [1000] * 20
            assert len(scans) <= 3 * len(sizes)
            assert (await queue.query(TaskFilter())).items == []

    asyncio.run(main())


def test_what_a_purge_leaves_in_a_segment_is_found_and_can_be_enqueued_again(
    valkey_server: ValkeyServer, backend_at: Callable[..., RedisBackend]
) -> None:
    async def main() -> None:
        async with backend_at(valkey_server.url) as backend:
            queue = backend.queue()
            doomed, kept = batch(700), batch(200, "kept")
            await queue.enqueue(kept + doomed)
            assert await queue.purge(TaskFilter(names=["work"]), limit=600) == 600
            assert await queue.purge(TaskFilter(names=["work"])) == 100
            page = await queue.query(TaskFilter(), limit=1000)
            assert [task.id for task in page.items] == [record.id for record in reversed(kept)]
            answers = await queue.enqueue(doomed + kept)
            assert [answer.outcome for answer in answers] == [Outcome.OK] * 700 + [Outcome.DUPLICATE] * 200
            page = await queue.query(TaskFilter(), limit=1000)
            assert len(page.items) == 900
            assert await queue.purge(TaskFilter()) == 900
            assert (await queue.query(TaskFilter())).items == []

    asyncio.run(main())
