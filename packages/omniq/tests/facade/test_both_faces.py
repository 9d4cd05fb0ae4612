"""OmniQ and AsyncOmniQ: one vocabulary, the same behaviour."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import threading
import uuid

import pytest

from omniq import AsyncOmniQ, OmniQ, TaskCancelled, TaskError
from omniq.errors import ArgumentError, PartMissing
from omniq.events import AsyncEventStore, EventStore
from omniq.handles import AsyncTask, AsyncTaskHandle, Task, TaskHandle
from omniq.queue import AsyncTaskQueue, TaskQueue
from omniq.results import AsyncResultStore, ResultStore


def double(number: int) -> int:
    return 2 * number


async def double_slowly(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def fail(text: str) -> None:
    raise LookupError(text)


def public(cls: type) -> dict[str, inspect.Signature | None]:
    found: dict[str, inspect.Signature | None] = {}
    for name in dir(cls):
        if not name.startswith("_"):
            member = inspect.getattr_static(cls, name)
            member = getattr(member, "__func__", member)
            found[name] = inspect.signature(member) if callable(member) else None
    return found


INSIDE = {
    AsyncOmniQ: {
        "client",
        "close_stores",
        "make_worker_of",
        "open_stores",
        "prepare_worker",
        "starts_worker",
    },
    # What the faces and the client use of one another.
    AsyncTaskQueue: {"definition", "record", "records", "send_records", "complete_within"},
    AsyncResultStore: {"look_again"},
}


@pytest.mark.parametrize(
    ("asynchronous", "sync"),
    [
        (AsyncOmniQ, OmniQ),
        (AsyncTaskQueue, TaskQueue),
        (AsyncResultStore, ResultStore),
        (AsyncEventStore, EventStore),
        (AsyncTaskHandle, TaskHandle),
        (AsyncTask, Task),
    ],
)
def test_both_faces_have_the_same_methods_with_the_same_parameters(asynchronous: type, sync: type) -> None:
    left, right = public(asynchronous), public(sync)
    for name in INSIDE.get(asynchronous, set()):
        left.pop(name, None)
    for name in ("wrap", "backend", "registry", "queues", "id", "created", "project_name"):
        left.pop(name, None), right.pop(name, None)
    assert left.keys() == right.keys()
    for name, signature in left.items():
        other = right[name]
        if signature is not None and other is not None and "task" not in name:
            parameters = [(p.name, p.kind, p.default) for p in signature.parameters.values()]
            assert parameters == [(p.name, p.kind, p.default) for p in other.parameters.values()], name
    assert (
        list(inspect.signature(asynchronous.__init__).parameters)
        == list(inspect.signature(sync.__init__).parameters)
        or asynchronous is AsyncTaskHandle
    )


def test_a_value_comes_back_through_the_sync_face() -> None:
    with OmniQ("memory://", worker_type="async") as oq:
        for func in (double, double_slowly):
            result = oq.get_result(oq.enqueue(func, 21), timeout=10)
            assert result is not None
            assert (result.status, result.result, str(result)) == ("success", 42, "42")


def test_a_value_comes_back_through_the_async_face() -> None:
    async def main() -> None:
        async with AsyncOmniQ("memory://", worker_type="async") as oq:
            for func in (double, double_slowly):
                result = await oq.get_result(await oq.enqueue(func, 21), timeout=10)
                assert result is not None
                assert result.unwrap() == 42

    asyncio.run(main())


def test_local_functions_and_lambdas_run_in_the_program_that_enqueued_them() -> None:
    seen = []
    with OmniQ("memory://", worker_type="thread_pool") as oq:
        ids = [oq.enqueue(lambda n: n + 1, 1), oq.enqueue(lambda n: seen.append(n), 2)]
        results = oq.get_results(ids, timeout=10)
    assert [result.result for result in results if result] == [2, None]
    assert seen == [2]


def test_a_falsy_value_is_a_true_result() -> None:
    with OmniQ("memory://", worker_type="async") as oq:
        result = oq.get_result(oq.enqueue(double, 0), timeout=10)
    assert result
    assert result.result == 0


def test_a_timeout_gives_none_and_an_unknown_id_does_not_hang() -> None:
    oq = OmniQ("memory://")
    waiting = oq.enqueue(double, 1)  # no worker
    assert oq.get_result(waiting, timeout=0) is None
    assert oq.get_result(waiting, timeout=datetime.timedelta(milliseconds=10)) is None
    assert oq.get_result(uuid.uuid4()) is None  # without a time-out
    oq.close()


def test_an_id_may_be_a_uuid_object() -> None:
    chosen = uuid.uuid4()
    with OmniQ("memory://", worker_type="async") as oq:
        assert oq.enqueue(double, 4, task_id=chosen) == str(chosen)
        assert str(oq.get_result(chosen, timeout=10)) == "8"
        task = oq.get_task(chosen)
        assert task is not None
        assert (task.status, task.attempts, task.name) == ("success", 1, f"{__name__}:double")


def test_a_failed_task_is_a_result_and_raises_where_it_is_unwrapped() -> None:
    with OmniQ("memory://", worker_type="async") as oq:
        result = oq.get_result(oq.enqueue(fail, "gone", max_retries=0), timeout=10)
    assert result is not None
    assert (result.status, result.result, result.error) == ("error", None, "LookupError: gone")
    with pytest.raises(LookupError, match="gone") as raised:
        result.unwrap()
    assert "in fail" in str(raised.value.__cause__)


def test_a_handle_gives_the_value_as_the_annotation_wants_it() -> None:
    oq = OmniQ("memory://", worker_type="async")

    @oq.task
    def letters(text: str) -> set[str]:
        return set(text)

    with oq:
        handle = letters.enqueue("aba")
        assert handle.result(timeout=10) == {"a", "b"}
        assert handle.created
        assert handle.status() == "success"
        assert letters("xx") == {"x"}  # calling it calls the function


def test_a_handle_can_be_awaited() -> None:
    oq = AsyncOmniQ("memory://", worker_type="async")

    @oq.task
    async def letters(text: str) -> frozenset[str]:
        return frozenset(text)

    async def main() -> None:
        async with oq:
            assert await (await letters.enqueue("aba")) == {"a", "b"}
            handles = await letters.enqueue_many([("a",), {"text": "b"}])
            assert [await handle.result(10) for handle in handles] == [{"a"}, {"b"}]
            assert await letters("x") == {"x"}

    asyncio.run(main())


def test_a_handle_raises_the_tasks_own_error_or_timeout_error() -> None:
    oq = OmniQ("memory://")

    @oq.task(max_retries=0)
    def divide(number: int) -> float:
        return number / 0

    class Odd(Exception):
        pass

    @oq.task(max_retries=0)
    def odd() -> None:
        raise Odd("strange")

    handle, other = divide.enqueue(1), odd.enqueue()
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
        handle.result(timeout=0.01)
    with oq:
        oq.start_worker()
        with pytest.raises(ZeroDivisionError) as raised:
            handle.result(timeout=10)
        assert "in divide" in str(raised.value.__cause__)
        with pytest.raises(TaskError, match="Odd: strange"):
            other.result(timeout=10)


def test_wrong_arguments_fail_where_they_are_enqueued() -> None:
    oq = OmniQ("memory://")
    task = oq.task(double)
    with pytest.raises(
        ArgumentError, match=r"double\(number: 'int'\) -> 'int' cannot be called so: .*test_both_faces.py:\d+"
    ):
        task.enqueue(1, 2)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError):
        oq.enqueue(double)
    assert oq.get_queue_size() == 0
    oq.close()


def test_a_cancelled_task_ends_the_waiting_for_it() -> None:
    oq = OmniQ("memory://")
    task = oq.task(double)
    handle = task.with_options(run_in=3600).enqueue(1)
    caught: list[str] = []

    def wait() -> None:
        try:
            handle.result()
        except TaskCancelled as error:
            caught.append(error.task_id)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert handle.cancel()
    waiting.join(30)
    assert caught == [handle.id]
    assert not handle.cancel()  # it has ended
    assert oq.requeue(handle.id)
    assert handle.status() == "pending"
    oq.close()


def test_entering_starts_a_worker_only_if_one_was_configured() -> None:
    with OmniQ("memory://") as oq:
        assert oq.worker is None
    with OmniQ("memory://", worker_type="thread_pool", worker_config={"max_workers": 3}) as oq:
        assert oq.worker is not None
        assert (oq.worker.is_running, oq.worker.max_workers) == (True, 3)
        with oq.client_only():
            pass
    assert not oq.worker.is_running


def test_entering_twice_in_turn_works_and_starting_twice_does_nothing() -> None:
    oq = OmniQ("memory://here", worker_type="async")
    for number in (1, 2):
        with oq:
            oq.start_worker()
            worker = oq.worker
            oq.start_worker()
            assert oq.worker is worker
            assert str(oq.get_result(oq.enqueue(double, number), timeout=10)) == str(2 * number)
            oq.stop_worker()
            oq.stop_worker()


def test_the_same_object_serves_one_event_loop_after_the_other() -> None:
    oq = AsyncOmniQ("memory://", worker_type="async")
    for number in (1, 2):

        async def main(number: int = number) -> None:
            async with oq:
                assert str(await oq.get_result(await oq.enqueue(double, number), 10)) == str(2 * number)

        asyncio.run(main())


def test_the_sync_face_works_inside_a_running_event_loop_as_in_a_notebook() -> None:
    async def cell() -> object:
        with OmniQ("memory://", worker_type="async") as oq:
            return oq.get_result(oq.enqueue(double_slowly, 3), timeout=10)

    assert str(asyncio.run(cell())) == "6"


def test_a_part_that_is_missing_is_named() -> None:
    oq = OmniQ("memory://", events=False)
    with pytest.raises(PartMissing, match="event_store="):
        oq.get_events()
    oq.close()


def test_what_was_enqueued_is_in_the_event_log_at_once_and_the_rest_follows() -> None:
    with OmniQ("memory://", worker_type="async") as oq:
        later = oq.enqueue(double, 1, run_in=60)
        assert [event.event_type for event in oq.get_events(later)] == ["enqueued"]
        oq.cancel(later)
        assert [event.event_type for event in oq.get_events(later)] == ["enqueued", "cancelled"]
        done = oq.enqueue(double, 1)
        oq.get_result(done, timeout=10)
        oq.stop_worker()  # which writes what it noted
        kinds = [event.event_type for event in oq.get_events(done)]
        kinds.remove("enqueued")  # the producer wrote it, and two writers promise each other no order
        assert kinds == ["executing", "completed"]
        assert [event.task_id for event in oq.get_events(event_type="COMPLETE")] == [done]


def test_queues_can_be_listed_counted_paused_and_resumed() -> None:
    with OmniQ("memory://", queues=["high", "low"]) as oq:
        paused = oq.enqueue(double, 1, queue_name="low")
        oq.enqueue(double, 1, queue_name="aside")
        oq.enqueue(double, 1)
        assert oq.list_queues() == ["high", "low", "default", "aside"]
        assert oq.get_queue_size("low") == 1
        oq.pause_queue("low")
        oq.start_worker()
        assert oq.get_result(oq.enqueue(double, 1, queue_name="high"), timeout=10)
        assert oq.get_result(paused, timeout=0.05) is None
        oq.resume_queue("low")
        assert oq.get_result(paused, timeout=10)
        assert {stats.queue for stats in oq.stats()} == {"high", "low", "default", "aside"}
        assert oq.check()["task_queue"].server
        assert oq.cleanup_expired() == 0


def test_what_a_program_is_made_of_can_be_printed_without_secrets() -> None:
    oq = OmniQ(backend="memory")
    assert repr(oq) == "<OmniQ on <MemoryBackend memory://>>"
    assert repr(oq.task_queue) == "<TaskQueue on <MemoryBackend memory://>>"
