"""How a run can end, and what becomes of its task."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from omniq.codec import Envelope, decode_result, decode_value
from omniq.context import TaskContext, current_task
from omniq.engine import Engine
from omniq.models import TaskStatus
from omniq.outcome import Reject, Retry, Snooze
from omniq.retry import RetryPolicy
from omniq.task import TaskRegistry
from omniq_core import Capability, ManualClock, MissingCapability, TaskRecord, TaskState
from omniq_memory import MemoryBackend

NOW = RetryPolicy(max_retries=2, delay_s=0)
KINDS = ["async", "thread_pool"]


async def test_a_value_is_stored_with_its_circumstances(lab: Any) -> None:
    async def double(x: int) -> int:
        return 2 * x

    task_id = await lab.enqueue(double, 21)
    report = await lab.engine(name="w1").run(burst=True)
    result = await lab.result(task_id)
    assert (report.claimed, report.succeeded, report.stale) == (1, 1, 0)
    assert (result.status, result.result, result.worker_id, result.attempts) == (
        TaskStatus.SUCCESS,
        42,
        "w1",
        1,
    )
    assert result.started_at is not None
    assert result.started_at <= result.completed_at
    assert result.queue_name == "default"


@pytest.mark.parametrize("worker_type", KINDS)
async def test_sync_and_async_functions_run_on_either_worker(lab: Any, worker_type: str) -> None:
    async def here(x: int) -> list[Any]:
        await asyncio.sleep(0)
        return [x, current_task().attempt]

    def there(x: int) -> list[Any]:
        return [x, current_task().attempt]

    ids = [await lab.enqueue(here, 1), await lab.enqueue(there, 2)]
    await lab.engine(worker_type).run(burst=True)
    assert [await lab.value(one) for one in ids] == [[1, 1], [2, 1]]


@pytest.mark.parametrize("worker_type", KINDS)
async def test_arguments_are_what_the_annotations_say(lab: Any, worker_type: str) -> None:
    async def here(items: set[int], pair: tuple[int, str]) -> list[str]:
        return [type(items).__name__, type(pair).__name__]

    def there(items: set[int], pair: tuple[int, str]) -> list[str]:
        return [type(items).__name__, type(pair).__name__]

    here.__annotations__ = there.__annotations__ = {"items": set[int], "pair": tuple[int, str]}
    ids = [await lab.enqueue(func, [1], [1, "a"]) for func in (here, there)]
    await lab.engine(worker_type).run(burst=True)
    assert [await lab.value(one) for one in ids] == [["set", "tuple"]] * 2


async def test_a_failure_is_retried_after_its_policys_delay_and_then_dead(lab: Any) -> None:
    clock = ManualClock()
    lab.backend = lab.results = MemoryBackend(clock=clock)
    runs = []

    async def fail() -> None:
        runs.append(clock.time())
        raise KeyError("no such thing")

    task_id = await lab.enqueue(fail, retry=RetryPolicy(max_retries=2, delay_s=10, jitter=0))
    for expected in (10.0, 20.0, None):
        report = await lab.engine().run(burst=True)
        task = await lab.task(task_id)
        if expected is not None:
            assert (task.state, task.run_at - clock.time()) == (TaskState.PENDING, pytest.approx(expected))
            assert task.reason == "KeyError: 'no such thing'"
            assert report.retried == 1
            assert (await lab.engine().run(burst=True)).claimed == 0
            clock.advance(expected)
    assert len(runs) == 3
    assert task.state is TaskState.DEAD
    result = await lab.result(task_id)
    assert (result.status, result.attempts) == (TaskStatus.ERROR, 3)
    assert "KeyError" in result.error
    assert "in fail" in result.error_traceback
    assert "omniq/engine" not in result.error_traceback
    with pytest.raises(KeyError):
        result.unwrap()


async def test_the_traceback_of_a_thread_shows_the_function_alone(lab: Any) -> None:
    def fail() -> None:
        raise ValueError("x")

    task_id = await lab.enqueue(fail, retry=RetryPolicy(max_retries=0))
    await lab.engine("thread_pool").run(burst=True)
    trace = (await lab.result(task_id)).error_traceback
    assert "in fail" in trace
    assert "omniq/runners" not in trace


async def test_reject_retry_and_snooze_do_what_they_say(lab: Any) -> None:
    async def reject() -> None:
        raise Reject("never")

    async def retry() -> None:
        raise Retry(100, reason="later")

    async def snooze() -> None:
        raise Snooze(100, reason="tired")

    ids = [await lab.enqueue(func, retry=NOW) for func in (reject, retry, snooze)]
    await lab.engine().run(burst=True)
    rejected, retried, snoozed = [await lab.task(one) for one in ids]
    assert (rejected.state, rejected.reason) == (TaskState.DEAD, "never")
    assert (retried.state, retried.attempt, retried.reason) == (TaskState.PENDING, 1, "later")
    assert retried.run_at - time.time() == pytest.approx(100, abs=10)
    assert (snoozed.state, snoozed.attempt, snoozed.reason) == (TaskState.PENDING, 0, "tired")


@pytest.mark.parametrize("worker_type", KINDS)
async def test_a_run_that_takes_too_long_is_ended_and_has_failed(lab: Any, worker_type: str) -> None:
    async def slow() -> None:
        await asyncio.sleep(30)

    task_id = await lab.enqueue(slow, timeout_s=0.05, retry=RetryPolicy(max_retries=0))
    await lab.engine(worker_type).run(burst=True)
    result = await lab.result(task_id)
    assert result.status is TaskStatus.ERROR
    assert result.failure.type_name == "omniq.errors.TaskTimeout"
    assert result.execution_time < 10


async def test_the_workers_own_time_out_holds_for_tasks_without_one(lab: Any) -> None:
    async def slow() -> None:
        await asyncio.sleep(30)

    task_id = await lab.enqueue(slow, retry=RetryPolicy(max_retries=0))
    await lab.engine(task_timeout_s=0.05).run(burst=True)
    assert (await lab.task(task_id)).reason == "it ran longer than 0.05 s"


async def test_a_thread_that_takes_too_long_is_left_to_itself_and_another_takes_its_place(lab: Any) -> None:
    go, seen = threading.Event(), threading.Event()

    def stubborn() -> None:
        context = current_task()
        while not context.cancelled:
            time.sleep(0.005)
        seen.set()
        go.wait(30)

    def quick() -> str:
        return threading.current_thread().name

    slow = await lab.enqueue(stubborn, timeout_s=0.1, retry=RetryPolicy(max_retries=0))
    other = await lab.enqueue(quick)
    engine = lab.engine("thread_pool", max_workers=1)
    await engine.run(burst=True)
    assert (await lab.task(slow)).reason == "it ran longer than 0.1 s"
    assert await lab.value(other)
    assert seen.wait(10), "it was asked to stop"
    go.set()


async def test_the_time_outs_of_runs_that_have_ended_are_forgotten(lab: Any) -> None:
    async def quick() -> None:
        await asyncio.sleep(0)

    definition = lab.define(quick, timeout_s=3600)
    await lab.backend.open()
    await lab.backend.queue().enqueue([definition.record(f"t{x}", (), {}) for x in range(3000)])
    engine = lab.engine()
    async with lab.running(engine):
        await lab.eventually(lambda: lab.is_idle(engine))
        assert len(engine._parts.slots._watchdog._heap) <= 1001


async def test_a_slot_that_rests_keeps_nothing_of_its_last_run_alive(lab: Any) -> None:
    class Large:
        pass

    seen: list[weakref.ref[Large]] = []

    async def func() -> None:
        large = Large()
        seen.append(weakref.ref(large))

    async with lab.running(lab.engine()):
        await lab.until(await lab.enqueue(func, store_result=False))
        await lab.eventually(lambda: seen[0]() is None)


@pytest.mark.parametrize("worker_type", KINDS)
async def test_a_pending_task_that_is_cancelled_never_runs(lab: Any, worker_type: str) -> None:
    ran = []

    async def func() -> None:
        ran.append(1)

    task_id = await lab.enqueue(func)
    await lab.backend.queue().cancel([task_id])
    await lab.engine(worker_type).run(burst=True)
    assert not ran
    assert (await lab.task(task_id)).state is TaskState.CANCELLED


@pytest.mark.parametrize("told", ["by the lease thread", "by this process"])
@pytest.mark.parametrize("worker_type", KINDS)
async def test_a_running_task_is_stopped_when_somebody_asks_for_it(
    lab: Any, worker_type: str, told: str
) -> None:
    started, stopped = threading.Event(), threading.Event()

    async def func() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()

    task_id = await lab.enqueue(func)
    async with lab.running(lab.engine(worker_type, lease_s=0.3)) as engine:
        await asyncio.to_thread(started.wait)
        await lab.backend.queue().cancel([task_id])
        if told == "by this process":
            engine.cancel_soon(task_id)
        await lab.until(task_id)
    assert stopped.is_set()
    assert (await lab.task(task_id)).state is TaskState.CANCELLED
    result = await lab.result(task_id)
    assert (result.status, result.error) == (TaskStatus.CANCELLED, "cancelled on request")


async def test_a_thread_whose_task_is_cancelled_can_see_it(lab: Any) -> None:
    started = threading.Event()

    def func() -> None:
        started.set()
        while True:
            current_task().check()
            time.sleep(0.002)

    task_id = await lab.enqueue(func)
    async with lab.running(lab.engine("thread_pool")) as engine:
        await asyncio.to_thread(started.wait)
        await lab.backend.queue().cancel([task_id])
        engine.cancel_soon(task_id)
        assert (await lab.until(task_id)).state is TaskState.CANCELLED


async def test_a_task_that_finished_before_its_cancellation_was_heard_of_has_succeeded(lab: Any) -> None:
    go = asyncio.Event()

    async def func() -> str:
        await go.wait()
        return "done"

    task_id = await lab.enqueue(func)
    async with lab.running(lab.engine()):
        await lab.until(task_id, TaskState.RUNNING)
        await lab.backend.queue().cancel([task_id])
        go.set()
        await lab.until(task_id)
    assert await lab.value(task_id) == "done"


async def test_an_unknown_task_is_kept_and_nothing_is_imported_for_it(lab: Any) -> None:
    await lab.backend.open()
    other = TaskRegistry()

    async def known() -> None: ...

    record = other.adopt(known).record("t1", (), {})
    record = TaskRecord("t1", "default", "antigravity:fly", record.body)
    await lab.backend.queue().enqueue([record])
    before = set(sys.modules)
    engine = lab.engine(name="w1")
    report = await engine.run(burst=True)
    task = await lab.task("t1")
    assert (task.state, task.attempt, report.released) == (TaskState.PENDING, 0, 1)
    assert task.run_at > time.time() + 0.5
    assert "antigravity:fly" in task.reason
    assert "w1" in task.reason
    assert {name for name in set(sys.modules) - before if not name.startswith("omniq")} == set()
    assert "antigravity" not in sys.modules


async def test_an_unknown_task_is_taken_by_a_worker_that_knows_it(lab: Any) -> None:
    clock = ManualClock()
    lab.backend = lab.results = MemoryBackend(clock=clock)

    async def func() -> int:
        return 1

    task_id = await lab.enqueue(lab.define(func, "app:func"))
    await lab.engine(registry=TaskRegistry()).run(burst=True)
    clock.advance(60)
    await lab.engine().run(burst=True)
    assert await lab.value(task_id) == 1
    assert (await lab.task(task_id)).attempt == 1


@pytest.mark.parametrize("body", [b"", b"\xff\xff", b"\x93\x01\xa7msgpack\x90", b"not msgpack at all"])
async def test_an_undecodable_task_is_dead_with_its_bytes_kept(lab: Any, body: bytes) -> None:
    async def func() -> None: ...

    name = lab.define(func).name
    await lab.backend.open()
    await lab.backend.queue().enqueue([TaskRecord("t1", "default", name, body, max_attempts=9)])
    report = await lab.engine().run(burst=True)
    task = await lab.task("t1")
    assert (task.state, task.body, report.dead) == (TaskState.DEAD, body, 1)
    assert "cannot be decoded" in task.reason or "no call" in task.reason


@pytest.mark.parametrize("worker_type", KINDS)
async def test_a_value_that_cannot_be_kept_is_a_failure_that_says_so(lab: Any, worker_type: str) -> None:
    async def strange() -> object:
        return object()

    def large() -> str:
        return "x" * (5 * 1024 * 1024)

    ids = [await lab.enqueue(func, retry=RetryPolicy(max_retries=0)) for func in (strange, large)]
    await lab.engine(worker_type).run(burst=True)
    one, two = [await lab.task(task_id) for task_id in ids]
    assert one.state is two.state is TaskState.DEAD
    assert "cannot encode a builtins.object" in one.reason
    assert "result store takes at most" in two.reason


async def test_nothing_is_stored_for_a_task_that_wants_no_result(lab: Any) -> None:
    async def func() -> int:
        return 1

    task_id = await lab.enqueue(func, store_result=False)
    await lab.engine().run(burst=True)
    assert (await lab.task(task_id)).state is TaskState.SUCCEEDED
    assert await lab.result(task_id) is None


async def test_a_worker_without_a_result_store_works(lab: Any) -> None:
    async def func() -> object:
        return object()  # nobody encodes it

    task_id = await lab.enqueue(func)
    lab.results = None
    report = await lab.engine().run(burst=True)
    assert report.succeeded == 1
    assert (await lab.task(task_id)).state is TaskState.SUCCEEDED


async def test_context_variables_do_not_leak_from_one_task_into_another(lab: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def func(x: int, suspend: bool) -> list[int]:
        before = variable.get()
        variable.set(x)
        if suspend:
            await asyncio.sleep(0)
        during = variable.get()
        during_in_child = await asyncio.create_task(read())
        return [before, during, during_in_child, current_task().attempt]

    async def read() -> int:
        return variable.get()

    ids = [await lab.enqueue(func, x, bool(x % 2)) for x in range(1, 21)]
    await lab.engine(max_workers=2).run(burst=True)
    assert [await lab.value(one) for one in ids] == [[0, x, x, 1] for x in range(1, 21)]
    assert variable.get() == 0


async def test_asyncio_time_outs_and_task_groups_work_inside(lab: Any) -> None:
    async def func() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(30)
        except TimeoutError:
            return "timed out"
        return "not"

    task_id = await lab.enqueue(func)
    await lab.engine(max_workers=1).run(burst=True)
    assert await lab.value(task_id) == "timed out"


async def test_a_function_that_cancels_its_own_asyncio_task_harms_no_other(lab: Any) -> None:
    async def suicidal(how: str) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if how == "at once":
            await asyncio.sleep(30)
        if how == "caught":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                pass
        return how

    async def bystander(x: int) -> int:
        await asyncio.sleep(0)
        return x

    retry = RetryPolicy(max_retries=0)
    bad = [await lab.enqueue(suicidal, how, retry=retry) for how in ("at once", "caught", "too late")]
    good = [await lab.enqueue(bystander, x, retry=retry) for x in range(20)]
    await lab.engine(max_workers=1).run(burst=True)
    assert [await lab.value(one) for one in good] == list(range(20))
    at_once, caught, too_late = bad
    assert (await lab.task(at_once)).reason == "asyncio.exceptions.CancelledError"
    assert await lab.value(caught) == "caught"
    assert await lab.value(too_late) == "too late"


@pytest.mark.parametrize("worker_type", KINDS)
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(1), BaseException("odd")])
async def test_no_exception_that_a_function_raises_ends_the_worker(
    lab: Any, worker_type: str, error: BaseException
) -> None:
    async def odd() -> None:
        raise error

    def odd_in_thread() -> None:
        raise error

    retry = RetryPolicy(max_retries=0)
    ids = [await lab.enqueue(func, retry=retry) for func in (odd, odd_in_thread)]
    report = await lab.engine(worker_type, max_workers=2).run(burst=True)
    assert report.dead == 2
    assert [(await lab.task(one)).state for one in ids] == [TaskState.DEAD] * 2


async def test_middleware_surrounds_a_run_from_the_outside_in(lab: Any) -> None:
    seen: list[str] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")

    async def outer(task: TaskContext, call: Any, call_next: Any) -> Any:
        seen.append(f"outer {task.name}")
        variable.set("set by middleware")
        try:
            return await call_next()
        finally:
            seen.append("outer ends")

    async def inner(task: TaskContext, call: Any, call_next: Any) -> Any:
        assert isinstance(call.envelope, Envelope)
        assert current_task() is task
        return [await call_next(), "changed"]

    async def func() -> str:
        return variable.get()

    def sync_func() -> str:
        return variable.get()

    ids = [await lab.enqueue(lab.define(one, one.__name__)) for one in (func, sync_func)]
    await lab.engine(middleware=[outer, inner], max_workers=1).run(burst=True)
    assert [await lab.value(one) for one in ids] == [["set by middleware", "changed"]] * 2
    assert seen == ["outer func", "outer ends", "outer sync_func", "outer ends"]
    assert variable.get() == ""


async def test_an_exception_in_middleware_is_the_tasks(lab: Any) -> None:
    async def refuse(task: TaskContext, call: Any, call_next: Any) -> Any:
        raise Reject("not on my watch")

    async def func() -> None: ...

    task_id = await lab.enqueue(func)
    await lab.engine(middleware=[refuse]).run(burst=True)
    assert (await lab.task(task_id)).reason == "not on my watch"


async def test_hooks_see_claims_and_ends_and_one_that_fails_harms_nothing(lab: Any) -> None:
    from omniq_core.hooks import hookimpl

    seen: list[Any] = []
    durations_s: list[float] = []

    class Plugin:
        @hookimpl
        def omniq_tasks_claimed(self, claims: Any, worker_id: str) -> None:
            seen.append(("claimed", len(claims), worker_id))

        @hookimpl
        def omniq_task_finished(self, claim: Any, verb: Any, error: Any, duration_s: float) -> None:
            seen.append((claim.name, str(verb), type(error).__name__))
            # Looked at below: an assertion here would be swallowed like any failure of a plugin.
            durations_s.append(duration_s)

        @hookimpl
        def omniq_worker_started(self, worker: Engine) -> None:
            seen.append("started")

        @hookimpl
        def omniq_worker_stopped(self, report: Any) -> None:
            seen.append(("stopped", report.claimed))

    class Broken:
        @hookimpl
        def omniq_tasks_claimed(self) -> None:
            raise RuntimeError("broken")

        omniq_task_finished = hookimpl(lambda self: 1 / 0, specname="omniq_task_finished")

    async def good() -> None: ...

    async def bad() -> None:
        raise ValueError

    lab.hooks.register(Broken())
    lab.hooks.register(Plugin())
    await lab.enqueue(lab.define(good, "good"))
    await lab.enqueue(lab.define(bad, "bad"), retry=RetryPolicy(max_retries=0))
    await lab.engine(name="w1").run(burst=True)
    assert seen == [
        "started",
        ("claimed", 2, "w1"),
        ("good", "succeed", "NoneType"),
        ("bad", "dead", "ValueError"),
        ("stopped", 2),
    ]
    assert len(durations_s) == 2
    assert min(durations_s) >= 0


async def test_events_tell_the_story_of_a_task(lab: Any) -> None:
    lab.events = lab.backend

    async def flaky() -> int:
        if current_task().attempt == 1:
            raise ValueError("once")
        return 1

    async def dead() -> None:
        raise Reject("no")

    good, bad = await lab.enqueue(flaky, retry=NOW), await lab.enqueue(dead)
    await lab.engine(name="w1").run(burst=True)
    assert await lab.event_types(good) == ["executing", "retry", "executing", "completed"]
    assert await lab.event_types(bad) == ["executing", "error"]
    first, retry, second, completed = await lab.all_events(good)
    assert (first.attempt, second.attempt, completed.attempt) == (1, 2, 2)
    assert retry.error == "ValueError: once"
    assert completed.execution_time is not None
    assert completed.worker_id == "w1"
    assert first.timestamp <= completed.timestamp


async def test_a_backend_that_does_not_fence_is_refused_before_anything_is_taken(lab: Any) -> None:
    class Unfenced(MemoryBackend):
        async def open(self) -> None:
            await super().open()
            self.capabilities = self.capabilities - {Capability.FENCED_SETTLE, Capability.ATOMIC_SETTLE}

    lab.backend = lab.results = Unfenced()

    async def func() -> int:
        return 1

    task_id = await lab.enqueue(func)
    with pytest.raises(MissingCapability, match="FENCED_SETTLE"):
        await lab.engine().run(burst=True)
    assert (await lab.task(task_id)).state is TaskState.PENDING
    await lab.engine(allow_unfenced=True).run(burst=True)
    assert await lab.value(task_id) == 1


async def test_a_store_without_due_times_keeps_retries_waiting_in_the_worker(lab: Any) -> None:
    class Undelayed(MemoryBackend):
        async def open(self) -> None:
            await super().open()
            self.capabilities = self.capabilities - {Capability.DELAYED}

    lab.backend = lab.results = Undelayed()
    times = []

    async def func() -> int:
        times.append(time.monotonic())
        if len(times) == 1:
            raise ValueError
        return 1

    task_id = await lab.enqueue(func, retry=RetryPolicy(delay_s=0.1, jitter=0))
    await lab.engine().run(burst=True)
    assert await lab.value(task_id) == 1
    assert times[1] - times[0] >= 0.09


@pytest.mark.parametrize("worker_type", ["async", "thread_pool", "process_pool"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_thousand_tasks_run_exactly_once(lab: Any, worker_type: str, kind: str) -> None:
    def plain(x: int) -> list[int]:
        return [x, current_task().attempt]

    async def coroutine(x: int) -> list[int]:
        return [x, current_task().attempt]

    definition = lab.define(plain if kind == "sync" else coroutine)
    await lab.backend.open()
    records = [definition.record(f"t{x}", (x,), {}) for x in range(1000)]
    await lab.backend.queue().enqueue(records)
    report = await lab.engine(worker_type, max_workers=4).run(burst=True)
    assert (report.claimed - report.released, report.succeeded, report.stale) == (1000, 1000, 0)
    await lab.backend.open()
    stored = await lab.backend.result_store().get([record.id for record in records])

    assert [decode_value(decode_result(one.body).value) for one in stored] == [[x, 1] for x in range(1000)]
