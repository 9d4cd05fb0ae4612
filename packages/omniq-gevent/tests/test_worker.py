"""The worker type itself, mostly in a process that is not patched (this one)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import gevent
import pytest

from omniq import AsyncOmniQ, OmniQ, current_task
from omniq.workers import worker_class
from omniq_core import WORKERS
from omniq_gevent import GeventWorker

pytestmark = pytest.mark.slow  # each test patches a process of its own


def nap(seconds: float) -> str:
    gevent.sleep(seconds)
    return current_task().task_id


async def anap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return current_task().task_id


def test_it_is_found_by_its_name() -> None:
    assert worker_class("gevent") is GeventWorker
    assert WORKERS.load("gevent") is GeventWorker
    from omniq.workers import GeventPoolWorker  # type: ignore[attr-defined]

    assert GeventPoolWorker is GeventWorker


def test_it_runs_a_hundred_greenlets_at_once_by_default() -> None:
    with OmniQ("memory://", worker_type="gevent") as oq:
        oq.start_worker()
        assert oq.worker is not None
        assert oq.worker.max_workers == 100
        began = time.monotonic()
        ids = [oq.enqueue(func, 0.3) for func in (nap, anap) for _ in range(100)]
        results = [oq.get_result(one, timeout=30) for one in ids]
        assert [one.result for one in results if one] == ids
        assert time.monotonic() - began < 200 * 0.3 / 10


def test_a_process_that_is_not_patched_is_told_what_that_means(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "omniq.worker"), OmniQ("memory://", worker_type="gevent") as oq:
        oq.start_worker()
    assert "start the worker with omniq-gevent worker, or call gevent.monkey.patch_all()" in caplog.text


def test_with_the_async_face_the_callers_loop_goes_on_while_it_starts_works_and_stops() -> None:
    async def main() -> None:
        async with AsyncOmniQ("memory://", worker_type="gevent") as oq:
            await oq.start_worker()
            ids = [await oq.enqueue(func, 0.2) for func in (nap, anap)]
            for one in ids:
                found = await oq.get_result(one, timeout=20)
                assert found is not None
                assert found.result == one
            await oq.enqueue(nap, 0.5)
            while not (await oq.stats())[0].running:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            stopping = asyncio.ensure_future(oq.stop_worker())
            turns = 0
            while not stopping.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 5
            assert oq.client.worker is not None
            assert not oq.client.worker.is_running
            assert oq.client.worker.report is not None
            assert oq.client.worker.report.succeeded == 3

    asyncio.run(main())


def test_run_works_until_it_is_stopped_or_cancelled_and_a_burst_ends_by_itself() -> None:
    async def main() -> None:
        async with AsyncOmniQ("memory://") as oq:
            await oq.enqueue(nap, 0)
            report = await oq.make_worker("gevent").run(burst=True)
            assert report.succeeded == 1
            for end in ("stop", "cancel"):
                worker = oq.make_worker("gevent", worker_config={"shutdown_timeout": 0})
                running = asyncio.ensure_future(worker.run())
                task_id = await oq.enqueue(nap, 60)
                while (await oq.get_task(task_id)).status != "running":  # type: ignore[union-attr]  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if end == "stop":
                    await worker.stop()
                    assert (await running).released == 1
                else:
                    running.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await running
                info = await oq.get_task(task_id)
                assert info is not None
                assert (info.status, info.attempts) == ("pending", 0)
                await oq.cancel(task_id)

    asyncio.run(main())


@pytest.mark.parametrize("why", ["cancelled", "out of time"])
def test_a_greenlet_is_stopped_where_it_waits_and_can_clean_up(why: str) -> None:
    seen: list[Any] = []
    started = threading.Event()

    def never() -> None:
        started.set()
        try:
            gevent.sleep(60)
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            seen.append(current_task().cancelled)

    with OmniQ("memory://", worker_type="gevent") as oq:
        oq.start_worker()
        task_id = oq.enqueue(never, timeout=0.3 if why == "out of time" else None, max_retries=0)
        assert started.wait(10)
        if why == "cancelled":
            assert oq.cancel(task_id)
        found = oq.get_result(task_id, timeout=20)
        assert found is not None
        assert found.status == ("cancelled" if why == "cancelled" else "error")
    assert seen == [gevent.GreenletExit, True]


def test_a_greenlet_that_is_cancelled_before_it_began_never_runs() -> None:
    ran: list[int] = []
    with OmniQ("memory://", worker_type="gevent", worker_config={"max_workers": 2}) as oq:
        oq.start_worker()
        hub_is_busy = threading.Event()

        def busy() -> None:
            hub_is_busy.set()
            time.sleep(1.0)  # this process is not patched: nothing else runs on the hub meanwhile

        oq.enqueue(busy)
        assert hub_is_busy.wait(10)
        task_id = oq.enqueue(lambda: ran.append(1))
        while oq.get_task(task_id).status != "running":  # type: ignore[union-attr]
            time.sleep(0.01)
        assert oq.cancel(task_id)
        found = oq.get_result(task_id, timeout=20)
        assert found is not None
        assert found.status == "cancelled"
    assert ran == []


@pytest.mark.slow
def test_a_function_that_never_waits_cannot_be_stopped_and_is_left_to_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.WARNING, "omniq.worker"),
        OmniQ("memory://", worker_type="gevent") as oq,
    ):
        oq.start_worker()

        def stubborn() -> None:
            time.sleep(8)

        task_id = oq.enqueue(stubborn, timeout=0.5, max_retries=0)
        found = oq.get_result(task_id, timeout=20)
        assert found is not None
        assert "ran longer than 0.5 s" in str(found.error)
        assert oq.get_result(oq.enqueue(nap, 0), timeout=20)  # the hub is free again
    assert "does not let gevent's hub run" in caplog.text


def test_threads_and_hubs_are_gone_when_the_worker_has_stopped() -> None:
    def ours() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("omniq-")}

    with OmniQ("memory://", worker_type="gevent") as oq:
        for _ in range(2):
            oq.start_worker()
            assert oq.get_result(oq.enqueue(nap, 0), timeout=20)
            assert oq.get_result(oq.enqueue(anap, 0), timeout=20)
            assert {"omniq-worker", "omniq-greenlets", "omniq-coroutines"} <= ours()
            oq.stop_worker()
    end = time.monotonic() + 10
    while ours() - {"omniq-portal", "omniq-exit"}:
        assert time.monotonic() < end, ours()
        time.sleep(0.01)
