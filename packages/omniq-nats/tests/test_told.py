"""Waiting for many results: each call looks at what it does not know yet, and at nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omniq_conformance.load import until
from omniq_conformance.servers import NatsServer, Proxy, Server
from omniq_core import Closed, Outcome, ResultRecord, ResultStore, TaskState
from omniq_nats import NatsBackend, told
from omniq_nats.jetstream import JetStream

Make = Callable[..., NatsBackend]
IDS = [f"task-{number}" for number in range(200)]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At how many tasks each look of this process was."""
    found: list[int] = []
    newest = JetStream.newest

    async def counted(streams: JetStream, stream: str, subjects: list[str], **more: Any) -> Any:
        found.append(sum(".t." in subject for subject in subjects))
        return await newest(streams, stream, subjects, **more)

    monkeypatch.setattr(JetStream, "newest", counted)
    return found


@asynccontextmanager
async def two(make: Make, url: str, other_url: str = "") -> AsyncIterator[tuple[NatsBackend, ResultStore]]:
    async with make(url) as backend, make(other_url or url) as other:
        yield backend, other.result_store()


async def put(store: ResultStore, *task_ids: str, final: bool = True, fence: int = 1) -> None:
    records = [ResultRecord(i, fence, TaskState.SUCCEEDED, b"result", final=final) for i in task_ids]
    assert set(await store.put(records)) == {Outcome.OK}


def test_a_call_that_is_made_again_looks_only_at_what_it_heard_of(
    nats_server: NatsServer, backend_at: Make, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "LOOK_AGAIN_S", 100.0)
    monkeypatch.setattr(told, "KEEP_S", 100.0)

    async def main() -> None:
        async with two(backend_at, nats_server.url) as (backend, theirs):
            ours = backend.result_store()
            assert await ours.wait(IDS, timeout_s=0.01) == [None] * 200
            assert set(looked) == {200}, "at the beginning and at the end"
            looked.clear()
            left = list(IDS)
            for number in range(5):
                waiting = asyncio.ensure_future(ours.wait(left, timeout_s=20))
                await put(theirs, IDS[number])
                found = await waiting
                assert [r and r.task_id for r in found] == [IDS[number]] + [None] * (len(left) - 1)
                left.remove(IDS[number])
            # Each put looks at its one task, and each wait at the one that it heard of.
            assert looked == [1] * 10
            looked.clear()
            await put(theirs, *left)  # nobody waits just now
            seen = 0
            while seen < len(left):
                seen = sum(r is not None for r in await ours.wait(left, timeout_s=20))
            assert sum(looked) < 4 * len(left)

    asyncio.run(main())


def test_at_its_time_out_a_wait_finds_what_it_was_not_told_of(
    nats_server: NatsServer, backend_at: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "LOOK_AGAIN_S", 100.0)
    monkeypatch.setattr(told._Ear, "hear", lambda *_: None)

    async def main() -> None:
        async with two(backend_at, nats_server.url) as (backend, theirs):
            ours = backend.result_store()
            assert await ours.wait(["a"], timeout_s=0.01) == [None]
            await put(theirs, "a")
            [found] = await ours.wait(["a"], timeout_s=0.05)
            assert found is not None

    asyncio.run(main())


def test_a_provisional_record_is_told_and_looked_at_again_each_time(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with two(backend_at, nats_server.url) as (backend, theirs):
            ours = backend.result_store()
            assert await ours.wait(["a"], timeout_s=0.01) == [None]
            await put(theirs, "a", final=False)
            [found] = await ours.wait(["a"], timeout_s=0.1)
            assert found is not None
            assert not found.final
            assert await theirs.delete(["a"]) == 1
            assert await ours.wait(["a"], timeout_s=0.01) == [None]
            waiting = asyncio.ensure_future(ours.wait(["a"], timeout_s=20))
            await put(theirs, "a", final=False, fence=2)
            await put(theirs, "a", fence=2)
            [found] = await waiting
            assert found is not None
            assert found.final

    asyncio.run(main())


def test_two_calls_that_wait_for_one_task_both_get_its_result(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with two(backend_at, nats_server.url) as (backend, theirs):
            ours = backend.result_store()
            waits = [asyncio.ensure_future(ours.wait(["a", name], timeout_s=20)) for name in ("b", "c")]
            assert await ours.wait(["a"], timeout_s=0.05) == [None]
            await put(theirs, "a")
            for found, nothing in await asyncio.gather(*waits):
                assert found is not None
                assert nothing is None

    asyncio.run(main())


def test_a_broken_connection_makes_everything_unknown_again(
    nats_server: NatsServer,
    backend_at: Make,
    server_proxy: Callable[[Server], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(told, "LOOK_AGAIN_S", 100.0)
    monkeypatch.setattr(told, "KEEP_S", 100.0)
    proxy = server_proxy(nats_server)

    async def main() -> None:
        async with two(backend_at, proxy.url_for(nats_server.url), nats_server.url) as (backend, theirs):
            ours = backend.result_store()
            assert await ours.wait(["a", "b"], timeout_s=0.01) == [None, None]
            proxy.cut()
            await until(lambda: not backend._opened().client.is_connected)
            await put(theirs, "a")
            async with asyncio.timeout(5):
                found, nothing = await ours.wait(["a", "b"], timeout_s=20)
            assert found is not None
            assert nothing is None

    asyncio.run(main())


def test_what_nobody_waits_for_any_more_is_unsubscribed(
    nats_server: NatsServer, backend_at: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "KEEP_S", 0.05)

    async def main() -> None:
        async with two(backend_at, nats_server.url) as (backend, theirs):
            ours, subscribed = backend.result_store(), backend._opened().client._subscribed
            before = len(subscribed)
            waiting = asyncio.ensure_future(ours.wait(["slow"], timeout_s=20))
            await put(theirs, "a")
            [found] = await ours.wait(["a"], timeout_s=5)
            assert found is not None
            assert len(subscribed) == before + 1, "of a result that came, at once"
            assert await ours.wait(IDS, timeout_s=0.01) == [None] * 200
            await until(lambda: len(subscribed) == before + 1)
            assert await ours.wait(IDS, timeout_s=0.01) == [None] * 200
            assert not waiting.done()
            await put(theirs, "slow")
            assert (await waiting)[0] is not None
            waiting = asyncio.ensure_future(ours.wait(["never"], timeout_s=20))
            await asyncio.sleep(0.05)
            await backend.close()
            with pytest.raises(Closed):
                await waiting

    asyncio.run(main())
