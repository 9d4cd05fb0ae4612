"""Starting and stopping workers, from sync and async code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from omniq import AsyncOmniQ, AsyncWorker, OmniQ, ProcessPoolWorker, ThreadPoolWorker
from omniq.queue import AsyncTaskQueue, TaskQueue
from omniq.results import AsyncResultStore, ResultStore
from omniq.testing import run_until_idle
from omniq.workers import ThreadWorker, Worker, worker_class
from omniq_core import Capability, MissingCapability, OptionError, UnknownPlugin
from omniq_memory import MemoryBackend

TYPES = [AsyncWorker, ThreadPoolWorker]


def where(order: list[str] | None = None) -> str:
    return threading.current_thread().name


async def where_async() -> str:
    return threading.current_thread().name


@pytest.mark.parametrize("kind", TYPES)
def test_a_worker_of_sync_components_has_a_thread_of_its_own_and_runs_both_kinds_of_functions(
    kind: type[Worker],
) -> None:
    backend = MemoryBackend()
    queue, results = TaskQueue.from_backend(backend), ResultStore.from_backend(backend)
    worker = kind(queue, results, max_workers=2)
    worker.start()
    worker.start()
    assert worker.is_running
    for func in (where, where_async):
        result = results.get(queue.enqueue(func))
        assert result is not None
        assert result.result != threading.current_thread().name
    assert worker.get_result(queue.enqueue(where)).status == "success"
    worker.stop()
    worker.stop()
    assert not worker.is_running
    assert worker.report is not None
    assert worker.report.succeeded == 3
    with worker:  # it may start again
        assert results.get(queue.enqueue(where))


@pytest.mark.parametrize("kind", TYPES)
def test_a_worker_of_async_components_runs_on_the_callers_loop(kind: type[Worker]) -> None:
    async def main() -> None:
        backend = MemoryBackend()
        async with (
            AsyncTaskQueue.from_backend(backend) as queue,
            AsyncResultStore.from_backend(backend) as results,
        ):
            worker = kind(queue, results)
            await worker.start()
            await worker.start()
            result = await results.get(await queue.enqueue(where_async))
            assert result is not None
            if kind is AsyncWorker:
                assert result.result == threading.current_thread().name
            assert (await worker.get_result(await queue.enqueue(where))).status == "success"
            await worker.stop()
            await worker.stop()
            assert not worker.is_running
            async with worker:
                assert await results.get(await queue.enqueue(where))

    asyncio.run(main())


def test_start_and_stop_act_at_once_even_if_nobody_awaits_them() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        queue = AsyncTaskQueue.from_backend(backend)
        worker = AsyncWorker(queue)
        worker.start()  # type: ignore[unused-awaitable]
        assert worker.is_running
        assert await worker.get_result(await queue.enqueue(where))
        stopping = worker.stop()
        await worker.stop()
        assert not worker.is_running
        await stopping
        await queue.close()

    asyncio.run(main())


@pytest.mark.parametrize("face", [OmniQ, AsyncOmniQ])
def test_a_worker_that_cannot_work_says_so_where_it_is_started(face: type[Any]) -> None:
    backend = MemoryBackend()

    async def weaken() -> None:
        await backend.open()
        backend.capabilities = backend.capabilities - {Capability.FENCED_SETTLE, Capability.ATOMIC_SETTLE}

    async def main() -> None:
        await weaken()
        oq = AsyncOmniQ(backend=backend)
        with pytest.raises(MissingCapability, match="FENCED_SETTLE"):
            await oq.start_worker()
        await oq.close()

    if face is AsyncOmniQ:
        asyncio.run(main())
        return
    with (
        OmniQ(backend=backend, worker_config={"lease": 0.01}) as oq,
        pytest.raises(ValueError, match="lease_s must be"),
    ):
        oq.start_worker()
    assert not oq.worker or not oq.worker.is_running


def order_of(run: Callable[[OmniQ, Callable[[str], None]], None], **settings: Any) -> list[str]:
    """In which order one worker starts what was enqueued before it came."""
    seen: list[str] = []
    oq = OmniQ("memory://", **settings)
    run(oq, lambda name: oq.enqueue(seen.append, name, queue_name=name) and None)
    run_until_idle(oq, max_workers=1, max_prefetch=0)
    oq.close()
    return seen


def test_declared_queues_go_first_in_their_order_then_default_then_the_others_by_name() -> None:
    def enqueue(oq: OmniQ, add: Callable[[str], None]) -> None:
        for name in ("b", "low", "a", "default", "high", "low"):
            add(name)

    assert order_of(enqueue, queues=["high", "low"]) == ["high", "low", "low", "default", "a", "b"]


def test_a_worker_with_queues_of_its_own_takes_from_no_others() -> None:
    oq = OmniQ("memory://", queues=["high", "low"])
    ids = [oq.enqueue(where, queue_name=name) for name in ("high", "low", "default")]
    report = run_until_idle(oq, queues=["low"])
    assert report.succeeded == 1
    assert oq.get_result(ids[1], timeout=0)
    assert oq.get_queue_size("high") == oq.get_queue_size() == 1
    oq.close()


def test_a_queue_that_is_new_to_the_worker_of_the_same_program_is_served_at_once() -> None:
    with OmniQ("memory://", worker_type="async") as oq:
        for number in range(20):
            assert oq.get_result(oq.enqueue(where, queue_name=f"new-{number}"), timeout=10)


def test_a_running_task_is_cancelled_at_once_by_the_same_program() -> None:
    started = threading.Event()

    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    with OmniQ("memory://", worker_type="async") as oq:
        task_id = oq.enqueue(endless)
        started.wait(10)
        assert oq.cancel(task_id)
        result = oq.get_result(task_id, timeout=5)  # the lease thread would tell after ten seconds
    assert result is not None
    assert result.status == "cancelled"


def test_two_programs_in_one_process_find_what_only_one_of_them_enqueued() -> None:
    backend = MemoryBackend()
    producer = TaskQueue.from_backend(backend)
    with ThreadPoolWorker(TaskQueue.from_backend(backend)), ResultStore.from_backend(backend) as results:
        assert str(results.get(producer.enqueue(lambda: "here"))) == "here"
    producer.close()


def test_worker_types_go_by_their_old_names_too() -> None:
    assert worker_class("thread") is worker_class("thread_pool") is ThreadPoolWorker is ThreadWorker
    assert worker_class("process") is ProcessPoolWorker
    assert worker_class("async") is AsyncWorker


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"worker_type": "tread_pool"}, UnknownPlugin, "Did you mean 'thread_pool'"),
        (
            {"worker_config": {"max_worker": 3}},
            OptionError,
            "no parameter 'max_worker'; did you mean 'max_workers'",
        ),
        ({"worker_config": {"max_workers": 0}}, OptionError, "max_workers must be at least 1"),
        ({"worker_config": {"max_workers": "4"}}, OptionError, "max_workers must be a whole number"),
        ({"worker_config": {"lease": -1}}, OptionError, "lease_s must be more than 0"),
    ],
)
def test_a_wrong_worker_setting_is_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    oq = OmniQ("memory://", **settings)
    with pytest.raises(error, match=message):
        oq.make_worker()


def test_the_number_of_workers_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = TaskQueue.from_backend("memory")
    assert [kind(queue).max_workers for kind in (AsyncWorker, ThreadPoolWorker, ProcessPoolWorker)] == [
        10,
        4,
        2,
    ]
    monkeypatch.setenv("OMNIQ_MAX_WORKERS", "7")
    monkeypatch.setenv("OMNIQ_PROCESS_WORKERS", "3")
    assert [kind(queue).max_workers for kind in (AsyncWorker, ThreadPoolWorker, ProcessPoolWorker)] == [
        7,
        7,
        3,
    ]
    assert AsyncWorker(queue, max_workers=1).max_workers == 1
    monkeypatch.setenv("OMNIQ_MAX_WORKERS", "many")
    with pytest.raises(OptionError, match="OMNIQ_MAX_WORKERS must be a whole number, got 'many'"):
        AsyncWorker(queue)


def test_a_program_may_be_given_its_worker() -> None:
    queue = TaskQueue.from_backend("memory")
    worker = ThreadPoolWorker(queue, max_workers=1)
    with OmniQ(worker=worker) as oq:
        assert oq.worker is worker
        assert worker.is_running
        assert oq.task_queue is queue
        assert oq.get_result(oq.enqueue(where), timeout=10)
    assert not worker.is_running


def test_running_until_idle_leaves_what_is_not_due() -> None:
    oq = OmniQ("memory://")
    later = oq.enqueue(where, run_in=3600)
    oq.enqueue(lambda: oq.enqueue(where))  # what tasks enqueue is run as well
    assert run_until_idle(oq).succeeded == 2
    task = oq.get_task(later)
    assert task is not None
    assert task.status == "pending"
    oq.close()

    async def main() -> None:
        async with AsyncOmniQ("memory://") as aio:
            await aio.enqueue(where)
            assert (await run_until_idle(aio)).succeeded == 1

    asyncio.run(main())
