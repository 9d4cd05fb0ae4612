"""Waiting for results: one waiter for many, and ends that leave no record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from omniq import AsyncOmniQ
from omniq.codec import ResultBody, encode_result, encode_value
from omniq.results import AsyncResultStore
from omniq_core import BackendError, Closed, Lease, ManualClock, ResultRecord, Settlement, TaskState, Verb
from omniq_memory import MemoryBackend
from omniq_memory.backend import MemoryResultStore


def nothing() -> None:
    pass


def settled(lease: Lease, verb: Verb = Verb.SUCCEED) -> Settlement:
    return Settlement(lease, verb, result=encode_result(ResultBody(value=encode_value("done"))))


async def claim(backend: MemoryBackend, how_many: int = 100) -> list[Lease]:
    claims = await backend.queue().claim(
        ["default"], max_tasks=how_many, lease_s=30, worker_id="w", claim_id=f"c{how_many}"
    )
    return [claim.lease for claim in claims]


def test_many_coroutines_share_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = most = calls = 0
    wait = MemoryResultStore.wait

    async def counted(store: MemoryResultStore, ids: Sequence[str], /, *, timeout_s: float) -> Any:
        nonlocal under_way, most, calls
        calls += 1
        under_way += 1
        most = max(most, under_way)
        try:
            return await wait(store, ids, timeout_s=timeout_s)
        finally:
            under_way -= 1

    monkeypatch.setattr(MemoryResultStore, "wait", counted)

    async def main() -> None:
        backend = MemoryBackend()
        async with AsyncOmniQ(backend=backend) as oq:
            ids = await oq.enqueue_many([nothing] * 1000)
            waiting = []
            for task_id in ids:  # one after the other, each in a turn of its own
                waiting.append(asyncio.create_task(oq.get_result(task_id)))
                await asyncio.sleep(0)
            await backend.queue().settle([settled(lease) for lease in await claim(backend, 1000)])
            results = await asyncio.gather(*waiting)
            assert [result.result for result in results if result] == ["done"] * 1000

    asyncio.run(main())
    assert most <= 12  # log2(1000) and a bit; calls of like size were merged
    assert calls < 3000


@pytest.mark.parametrize("how", ["cancelled", "expired", "dead", "succeeded", "purged"])
def test_the_waiting_ends_also_for_a_task_that_leaves_no_record(how: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        backend = MemoryBackend(clock=clock)
        async with AsyncOmniQ(backend=backend) as oq:
            task_id = await oq.enqueue(nothing, ttl=60, max_crashes=1)
            waiting = asyncio.create_task(oq.get_result(task_id))
            await asyncio.sleep(0)
            if how == "cancelled":
                await backend.queue().cancel([task_id])  # by another program
            elif how == "expired":
                clock.advance(61)
                await backend.queue().maintain()
            elif how == "dead":
                await claim(backend)
                clock.advance(31)
                await backend.queue().maintain()
            elif how == "succeeded":
                [lease] = await claim(backend)
                await backend.queue().settle([Settlement(lease, Verb.SUCCEED)])
            else:
                from omniq_core import TaskFilter

                await backend.queue().purge(TaskFilter())
            async with asyncio.timeout(20):
                result = await waiting
        if how == "purged":
            assert result is None
            return
        assert result is not None
        status = {"dead": "error", "succeeded": "success"}.get(how, how)
        assert (result.status, result.result) == (status, None)
        if how == "dead":
            assert "its worker was lost" in (result.error or "")

    asyncio.run(main())


class TwoBackends:
    """A queue and its results on two backends, after a worker has written its result ahead and claimed the task."""

    def __init__(self) -> None:
        self.queue, self.results = MemoryBackend(), MemoryBackend()
        self.oq = AsyncOmniQ.from_backend(self.queue, self.results)

    async def __aenter__(self) -> TwoBackends:
        await self.oq.open()
        self.task_id = await self.oq.enqueue(nothing)
        [self.lease] = await claim(self.queue)
        await self.put(self.lease.fence)
        return self

    async def put(self, fence: int, *, final: bool = False) -> None:
        body = encode_result(ResultBody(value=encode_value(f"of {fence}")))
        record = ResultRecord(self.task_id, fence, TaskState.SUCCEEDED, body, 60.0, final)
        await self.results.result_store().put([record])

    async def __aexit__(self, *_: object) -> None:
        await self.oq.close()


def test_a_provisional_result_is_not_believed_before_the_queue_has_settled() -> None:
    async def main() -> None:
        async with TwoBackends() as two:
            assert await two.oq.get_result(two.task_id, timeout=0) is None
            assert await two.oq.get_result(two.task_id, timeout=0.15) is None

    asyncio.run(main())


def test_a_provisional_result_is_believed_and_made_final_once_the_queue_has_settled() -> None:
    async def main() -> None:
        async with TwoBackends() as two:
            waiting = asyncio.create_task(two.oq.get_result(two.task_id))
            await asyncio.sleep(0)
            await two.queue.queue().settle([Settlement(two.lease, Verb.SUCCEED)])  # and then the worker dies
            async with asyncio.timeout(20):
                result = await waiting
            assert result is not None
            assert result.result == "of 1"
            [record] = await two.results.result_store().get([two.task_id])
            assert record is not None
            assert record.final

    asyncio.run(main())


def test_a_provisional_result_of_a_worker_that_was_fenced_off_is_passed_over() -> None:
    async def main() -> None:
        async with TwoBackends() as two:
            await two.queue.queue().settle([Settlement(two.lease, Verb.RETRY)])
            claims = await two.queue.queue().claim(
                ["default"], max_tasks=1, lease_s=30, worker_id="w2", claim_id="second"
            )
            await two.queue.queue().settle([Settlement(claims[0].lease, Verb.DEAD, reason="rejected")])
            result = await two.oq.get_result(two.task_id, timeout=20)
            assert result is not None
            assert (result.status, result.error) == ("error", "rejected")

    asyncio.run(main())


def test_a_store_on_its_own_gives_none_after_its_time_and_does_not_call_a_task_unknown() -> None:
    async def main() -> None:
        async with AsyncResultStore("memory://") as store:
            assert await store.get("somewhere-else", timeout=0) is None
            assert await store.get("somewhere-else", timeout=0.06) is None
            waiting = asyncio.create_task(store.get("somewhere-else", timeout=None))
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done
            await store.close()
            with pytest.raises(Closed):
                await waiting

    asyncio.run(main())


def test_results_can_be_deleted_and_expired_ones_cleaned_up() -> None:
    clock = ManualClock()

    async def main() -> None:
        backend = MemoryBackend(clock=clock)
        async with AsyncResultStore(backend) as store:
            records = [
                ResultRecord(name, 1, TaskState.SUCCEEDED, encode_result(ResultBody()), ttl_s)
                for name, ttl_s in (("a", 10.0), ("b", 100.0), ("c", 100.0))
            ]
            await backend.result_store().put(records)
            assert await store.delete("b", "nope") == 1
            clock.advance(11)
            assert await store.cleanup_expired() == 1
            found = await store.get_many(["a", "b", "c"], timeout=0)
            assert [result is not None for result in found] == [False, False, True]

    asyncio.run(main())


def test_a_short_outage_is_waited_out_and_a_long_one_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0
    wait = MemoryResultStore.wait

    async def failing(store: MemoryResultStore, ids: Sequence[str], /, *, timeout_s: float) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionError("away")
        return await wait(store, ids, timeout_s=timeout_s)

    monkeypatch.setattr(MemoryResultStore, "wait", failing)
    monkeypatch.setattr("omniq.waiting.FIRST_PAUSE_S", 0.001)

    async def main() -> None:
        nonlocal failures
        backend = MemoryBackend()
        async with AsyncOmniQ(backend=backend) as oq:
            first, second = await oq.enqueue_many([nothing, nothing])
            failures = 3
            waiting = asyncio.create_task(oq.get_result(first))
            await backend.queue().settle([settled((await claim(backend, 1))[0])])
            assert str(await waiting) == "done"
            failures = 1000
            with pytest.raises(BackendError, match="cannot wait for results on <MemoryBackend"):
                await oq.get_result(second)

    asyncio.run(main())
