"""What can be said about a task when it is enqueued, and what the door of the queue does with it."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from omniq import AsyncOmniQ, NotSerializable, OmniQ, RetryPolicy, current_task
from omniq.codec import decode_call
from omniq.queue import AsyncTaskQueue
from omniq_core import (
    BackendError,
    Capability,
    Enqueued,
    Limits,
    ManualClock,
    MissingCapability,
    TaskRecord,
    TooLarge,
)
from omniq_memory import MemoryBackend


def join(*parts: object, end: str = "") -> str:
    return " ".join(map(str, parts)) + end


class Recorder:
    """The memory backend, looked at: which calls of ``enqueue`` it got, and which of them fail.

    The first ``failures`` calls raise; with ``after`` they do so after storing what they were given.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0, after: bool = False) -> None:
        self.calls: list[int] = []
        self.release: asyncio.Event | None = None
        self.backend = MemoryBackend()
        self._failures = failures
        real = type(self.backend).queue
        wrapped: dict[int, Any] = {}

        def queue(backend: MemoryBackend) -> Any:
            found = real(backend)
            if id(found) not in wrapped:
                wrapped[id(found)] = found
                enqueue = found.enqueue

                async def watched(records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
                    self.calls.append(len(records))
                    if self.release is not None:
                        await self.release.wait()
                    fails = self._failures > 0
                    self._failures -= 1
                    if fails and not after:
                        raise ConnectionError("no answer")
                    answers = await enqueue(records)
                    if fails:
                        raise ConnectionError("the reply was lost")
                    return answers

                monkeypatch.setattr(found, "enqueue", watched)
            return found

        monkeypatch.setattr(type(self.backend), "queue", queue)


@pytest.fixture
def oq() -> Any:
    with OmniQ("memory://") as opened:
        yield opened


def arguments_of(oq: OmniQ, task_id: str) -> Any:
    task = oq.get_task(task_id)
    assert task is not None
    return task.arguments


def test_arguments_may_be_given_in_several_ways(oq: OmniQ) -> None:
    assert arguments_of(oq, oq.enqueue(join, 1, 2)) == ([1, 2], {})
    assert arguments_of(oq, oq.enqueue(join, func_args=[1, 2])) == ([1, 2], {})
    assert arguments_of(oq, oq.enqueue(join, func_args={"end": "!"})) == ([], {"end": "!"})
    assert arguments_of(oq, oq.enqueue(join, 1, func_kwargs={"end": "!"})) == ([1], {"end": "!"})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"end": "!"}, r"unexpected keyword argument 'end'.*func_kwargs=\{'end': ...\}"),
        ({"queue": "mail"}, "did you mean 'queue_name'"),
        ({"priorty": 1}, "did you mean 'priority'"),
        ({"priority": "high"}, "priority must be int, got str: 'high'"),
        ({"max_retries": 1.5}, "max_retries must be a whole number"),
        ({"ttl": "1h"}, "ttl must be a timedelta or a number of seconds"),
        ({"run_at": "tomorrow"}, "run_at must be a datetime"),
        ({"func_args": "text"}, "func_args must be a mapping"),
        ({"func_args": {"end": ""}, "func_kwargs": {"end": ""}}, "'end' is given twice"),
        ({"headers": {"a": 1}}, "headers must map text to text"),
        ({"task_id": 7}, "a task id must be text or a UUID"),
        ({"depends_on": ["x"]}, "unexpected keyword argument 'depends_on'"),
    ],
)
def test_a_wrong_keyword_is_refused_by_name(oq: OmniQ, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        oq.enqueue(join, **keywords)
    assert oq.list_queues() == []


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"ttl": 0}, "ttl must be more than 0 seconds"),
        ({"priority": 40_000}, "priority must be from -32768 to 32767"),
        ({"queue_name": ""}, "a queue name must not be empty"),
        ({"queue_name": "a\nb"}, "control characters"),
        ({"task_id": "x" * 200}, "a task id has at most 128 bytes"),
        ({"unique_key": "x" * 300}, "a unique key has at most 255 bytes"),
        ({"run_in": 1, "run_at": datetime.datetime.now(datetime.UTC)}, "exclude each other"),
    ],
)
def test_a_value_out_of_range_is_refused(oq: OmniQ, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oq.enqueue(join, **keywords)
    assert oq.list_queues() == []


def test_an_argument_that_cannot_be_sent_is_refused(oq: OmniQ) -> None:
    with pytest.raises(NotSerializable, match="join: cannot encode"):
        oq.enqueue(join, object())


def test_times_are_durations_or_moments_and_a_naive_moment_is_utc() -> None:
    clock = ManualClock(start=1_700_000_000.0)
    oq = OmniQ(backend=MemoryBackend(clock=clock))

    def due_in(**keywords: Any) -> float:
        task = oq.get_task(oq.enqueue(join, **keywords))
        assert task is not None
        return task.run_at.timestamp() - clock.time()

    assert due_in(run_in=90) == 90
    assert due_in(run_in=datetime.timedelta(minutes=2)) == 120
    now = datetime.datetime.fromtimestamp(clock.time(), datetime.UTC)
    assert due_in(run_at=now + datetime.timedelta(hours=1)) == 3600
    assert due_in(run_at=(now + datetime.timedelta(hours=1)).replace(tzinfo=None)) == 3600
    assert due_in(run_at=now - datetime.timedelta(hours=1)) == 0
    oq.close()


def test_a_calls_parameters_win_over_the_tasks_and_those_over_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMNIQ_RETRY_ATTEMPTS", "7")
    monkeypatch.setenv("OMNIQ_TASK_TIMEOUT", "5")
    oq = OmniQ("memory://")
    plain = oq.task(join)
    decorated = oq.task(name="decorated", max_retries=2, queue_name="mail", timeout=None, retry_delay=3)(join)

    def sent(task: Any) -> tuple[Any, ...]:
        stored = oq.get_task(task.enqueue("x").id)
        assert stored is not None
        options = decode_call(stored.body).options
        assert options is not None
        return (stored.queue_name, stored.max_attempts, options.timeout_s, options.retry)

    assert sent(plain)[:3] == ("default", 8, 5)
    assert sent(decorated)[:3] == ("mail", 3, None)
    assert sent(decorated.with_options(max_retries=0, queue_name="other"))[:2] == ("other", 1)
    policy = RetryPolicy(max_retries=1, delay_s=9)
    assert sent(decorated.options(retry=policy))[3] == policy
    oq.close()


def test_a_wrong_option_is_told_where_it_is_written(oq: OmniQ) -> None:
    with pytest.raises(TypeError, match="did you mean 'queue_name'"):
        oq.task(queue="mail")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="max_retries must not be negative"):
        oq.task(max_retries=-1)(join)
    with pytest.raises(TypeError, match="did you mean 'max_retries'"):
        oq.task(join).with_options(retries=1)  # type: ignore[call-arg]


def test_a_unique_key_that_is_held_gives_the_holder(oq: OmniQ) -> None:
    task = oq.task(join)
    first = task.with_options(unique_key="daily").enqueue("a")
    second = task.with_options(unique_key="daily").enqueue("b")
    assert (first.created, second.created) == (True, False)
    assert second.id == first.id == oq.enqueue(join, "c", unique_key="daily")


def test_an_id_that_is_there_already_changes_nothing(oq: OmniQ) -> None:
    task = oq.task(join)
    assert task.with_options(task_id="one").enqueue("a").created
    assert not task.with_options(task_id="one").enqueue("b").created
    assert arguments_of(oq, "one") == (["a"], {})


def test_headers_travel_along(oq: OmniQ) -> None:
    task_id = oq.enqueue(lambda: dict(current_task().headers), headers={"trace": "abc"})
    oq.start_worker()
    result = oq.get_result(task_id, timeout=10)
    assert result is not None
    assert result.result == {"trace": "abc"}


def test_many_calls_in_every_form(oq: OmniQ) -> None:
    ids = oq.enqueue_many(
        [
            join,
            (join, [1]),
            (join, [1], {"end": "!"}),
            (join, {"end": "?"}),
            {"func": join, "func_args": [2], "task_id": "x"},
        ],
        queue_name="bulk",
    )
    assert [arguments_of(oq, task_id) for task_id in ids] == [
        ([], {}), ([1], {}), ([1], {"end": "!"}), ([], {"end": "?"}), ([2], {}),
    ]  # fmt: skip
    assert ids[-1] == "x"
    assert oq.get_queue_size("bulk") == 5


def test_one_wrong_call_of_many_sends_nothing(oq: OmniQ) -> None:
    for wrong in ((join, "text"), (), {"args": 1}, (join, [object()])):
        with pytest.raises(TypeError):
            oq.enqueue_many([join, wrong])
    assert oq.list_queues() == []


def test_a_registered_task_may_be_named(oq: OmniQ) -> None:
    oq.task(name="mail")(join)
    assert oq.enqueue("mail", "x")
    with pytest.raises(
        LookupError, match="no task named 'mial' is registered in this program; did you mean 'mail'"
    ):
        oq.enqueue("mial")


# --- the door ----------------------------------------------------------------------------------------------------


def test_coroutines_share_the_call_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)

    async def main() -> None:
        async with AsyncTaskQueue.from_backend(recorder.backend) as queue:
            recorder.release = asyncio.Event()
            sending = [asyncio.create_task(queue.enqueue(join, n)) for n in range(100)]
            await asyncio.sleep(0)  # all of them run up to the call
            recorder.release.set()
            assert len(set(await asyncio.gather(*sending))) == 100

    asyncio.run(main())
    assert recorder.calls == [1, 99]


class Turns(asyncio.Event):
    """Lets each call take a few turns of the loop, as a call to a store does."""

    async def wait(self) -> Literal[True]:
        for _ in range(5):
            await asyncio.sleep(0)
        return True


def test_a_crowd_that_comes_back_again_and_again_shares_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    recorder.release = Turns()

    async def main() -> None:
        async with AsyncTaskQueue.from_backend(recorder.backend) as queue:

            async def send_ten() -> None:
                for n in range(10):
                    await queue.enqueue(join, n)

            await asyncio.gather(*(send_ten() for _ in range(64)))

    asyncio.run(main())
    assert recorder.calls == [1, *[64] * 9, 63]


def test_a_cancelled_caller_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)

    async def main() -> None:
        async with AsyncTaskQueue.from_backend(recorder.backend) as queue:
            recorder.release = asyncio.Event()
            sending = [asyncio.create_task(queue.enqueue(join, n)) for n in range(4)]
            await asyncio.sleep(0)
            sending[0].cancel()  # its call is under way
            sending[1].cancel()  # it waits in line
            recorder.release.set()
            await asyncio.wait(sending)
            assert [task.cancelled() for task in sending] == [True, True, False, False]
            recorder.release = None
            await queue.enqueue(join)

    asyncio.run(main())
    assert recorder.calls == [1, 2, 1]


def test_many_tasks_are_cut_into_batches_that_the_backend_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)

    async def main() -> list[str]:
        await recorder.backend.open()
        recorder.backend.limits = Limits(max_batch=10)
        queue = AsyncTaskQueue.from_backend(recorder.backend)
        ids = await queue.enqueue_many([(join, [n]) for n in range(25)])
        await queue.close()
        return ids

    assert len(set(asyncio.run(main()))) == 25
    assert recorder.calls == [10, 10, 5]


@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored, and the reply lost"])
def test_a_lost_call_is_repeated_and_stores_the_task_once(
    monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    recorder = Recorder(monkeypatch, failures=2, after=after)
    with OmniQ(backend=recorder.backend) as oq:
        handle = oq.task(join).enqueue("x")
        assert handle.created
        assert oq.get_queue_size() == 1
        assert len(oq.get_events(handle.id)) == 1
    assert recorder.calls == [1, 1, 1]


def test_a_store_that_stays_away_is_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq.door.FIRST_PAUSE_S", 0.001)
    recorder = Recorder(monkeypatch, failures=100)
    with (
        OmniQ(backend=recorder.backend) as oq,
        pytest.raises(BackendError, match="cannot enqueue on <MemoryBackend"),
    ):
        oq.enqueue(join)
    assert len(recorder.calls) == 5


def test_a_store_that_answers_nothing_keeps_the_caller_for_two_of_its_time_outs_and_not_for_five(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("omniq.door.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("omniq.door.PATIENCE_S", 0.0)  # each call takes longer
    recorder = Recorder(monkeypatch, failures=100)
    with OmniQ(backend=recorder.backend) as oq, pytest.raises(BackendError, match="cannot enqueue"):
        oq.enqueue(join)
    assert len(recorder.calls) == 2


def test_what_the_backend_cannot_do_is_refused_by_name() -> None:
    backend = MemoryBackend()

    async def main() -> None:
        await backend.open()
        backend.capabilities = frozenset(
            set(backend.capabilities)
            - {Capability.PRIORITY, Capability.DELAYED, Capability.EXPIRY, Capability.UNIQUE}
        )
        async with AsyncOmniQ(backend=backend) as oq:
            for keywords, name in (
                ({"priority": 1}, "PRIORITY"),
                ({"run_in": 1}, "DELAYED"),
                ({"ttl": 1}, "EXPIRY"),
                ({"unique_key": "k"}, "UNIQUE"),
            ):
                with pytest.raises(MissingCapability, match=f"lacks {name}, which task .*join"):
                    await oq.enqueue(join, **keywords)  # type: ignore[arg-type]
            await oq.enqueue(join)
            assert await oq.get_queue_size() == 1

    asyncio.run(main())


def test_arguments_that_are_too_large_are_refused_before_anything_is_sent(oq: OmniQ) -> None:
    with pytest.raises(TooLarge, match="takes at most 1,048,576 per task"):
        oq.enqueue(join, "x" * 2_000_000)
    assert oq.list_queues() == []
