"""The whole backend on object stores: racing and dying processes, lost replies, and what each call costs."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from omniq_conformance.nursery import Child, start
from omniq_conformance.servers import Proxy, S3Server
from omniq_core import (
    Claim,
    ErrorCode,
    EventFilter,
    Outcome,
    Queue,
    Settlement,
    TaskRecord,
    TaskState,
    Unreachable,
    Url,
    Verb,
)
from omniq_file import FileBackend
from omniq_file.shelves.store_errors import NoAnswer

pytestmark = pytest.mark.slow  # on real servers, by several processes

Run = Callable[[Coroutine[Any, Any, None]], None]
WORKER = f"{Path(__file__).with_name('worker.py')}:main"


def tasks(count: int) -> list[TaskRecord]:
    return [TaskRecord(id=str(uuid.uuid4()), queue="q", name="work", body=b"body") for _ in range(count)]


async def claim(queue: Queue, count: int = 10, claim_id: str = "", lease_s: float = 60.0) -> list[Claim]:
    claim_id = claim_id or str(uuid.uuid4())
    return list(await queue.claim(["q"], max_tasks=count, lease_s=lease_s, worker_id="w", claim_id=claim_id))


async def insist(backend: FileBackend, call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeats a call until it succeeds, as OmniQ does. Every failure must be one that may be repeated."""
    end = time.monotonic() + 20
    while True:
        try:
            return await call()
        except Exception as error:
            if not backend.classify(error).is_retryable or time.monotonic() > end:
                raise
            await asyncio.sleep(0.02)  # a server that starts has no signal that we could wait for


class Worker:
    """A worker process that stands ready."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.kill = child.kill

    def hear(self) -> list[str]:
        """The words of its next line."""
        return self._child.stdout.readline().decode().split()

    def hear_out(self) -> list[str]:
        """All that it says until its end."""
        return self._child.stdout.read().decode().split()

    def go_on(self) -> None:
        self._child.stdin.write(b"\n")


def race(workers: list[Worker]) -> list[list[str]]:
    """What each has done; each has done something before one may do the rest."""
    done = [worker.hear() for worker in workers]
    for worker in workers:
        worker.go_on()
    return [first + worker.hear_out() for first, worker in zip(done, workers, strict=True)]


@contextmanager
def workers(url: str, *names: str, count: int = 7, lease_s: float = 60.0) -> Iterator[list[Worker]]:
    """Worker processes that stand ready, and then go. None is left in the end."""
    scheme = Url.parse(url).scheme
    with ExitStack() as stack:
        started = [
            Worker(stack.enter_context(start(WORKER, url, me, count, lease_s, schemes=[scheme])))
            for me in names
        ]
        for worker in started:
            assert worker.hear() == ["ready"]
        for worker in started:
            worker.go_on()
        yield started


def test_two_racing_worker_processes_do_each_task_exactly_once(place: Any, run: Run) -> None:
    records = tasks(150)

    async def fill() -> None:
        async with FileBackend.from_url(place.url()) as backend:
            await backend.queue().enqueue(records)

    run(fill())
    with workers(place.url(), "a", "b") as racing:
        done = race(racing)
    assert all(done)
    assert sorted(done[0] + done[1]) == sorted(record.id for record in records)

    async def look() -> None:
        async with FileBackend.from_url(place.url()) as backend:
            found = await backend.queue().get([record.id for record in records])
            assert {task and task.state for task in found} == {TaskState.SUCCEEDED}
            results = await backend.result_store().get(done[1])
            assert {result and result.body for result in results} == {b"b"}

    run(look())


def test_what_a_killed_worker_process_held_is_done_by_the_others_once(place: Any, run: Run) -> None:
    records = tasks(30)

    async def fill() -> None:
        async with FileBackend.from_url(place.url()) as backend:
            await backend.queue().enqueue(records)

    run(fill())
    with workers(place.url(), "dies", count=5, lease_s=1.0) as [dying]:
        held = dying.hear()
        assert len(held) == 5
        dying.kill()
    with workers(place.url(), "a", "b", count=4, lease_s=30.0) as racing:
        done = [task_id for some in race(racing) for task_id in some]
    assert sorted(done) == sorted(record.id for record in records)
    assert set(held) <= set(done)


def test_calls_whose_commits_or_looks_lose_their_replies_take_effect_once(
    place: Any, run: Run, server_proxy: Callable[[Any], Proxy]
) -> None:
    proxy = server_proxy(place.server)
    # GCS tells a creation by its body, which may come by itself.
    creates = {"s3": b"PUT ", "gcs": b'"name"', "azure": b"PUT "}[place.kind]

    async def main() -> None:
        url = place.url(proxy.url_for(place.server.endpoint))
        async with FileBackend.from_url(url) as backend:
            queue = backend.queue()
            lost = 0

            async def losing(request: bytes, call: Callable[[], Awaitable[Any]]) -> Any:
                nonlocal lost
                lost += 1
                proxy.swallow_reply(predicate=lambda data: request in data)
                answer = await insist(backend, call)
                proxy.wait_for(lambda counters: counters.swallowed == lost)
                return answer

            for request in (creates, b"GET ", creates, b"GET "):
                [record] = tasks(1)
                first = await losing(request, lambda record=record: queue.enqueue([record]))
                assert {answer.outcome for answer in first} <= {Outcome.OK, Outcome.DUPLICATE}
                claim_id = str(uuid.uuid4())
                [held] = await losing(request, lambda claim_id=claim_id: claim(queue, claim_id=claim_id))
                assert held.task_id == record.id
                assert held.attempt == 1
                end = Settlement(held.lease, Verb.SUCCEED, result=b"done")
                [outcome] = await losing(request, lambda end=end: queue.settle([end]))
                assert outcome in (Outcome.OK, Outcome.DUPLICATE)
                assert await claim(queue) == []
                [result] = await backend.result_store().get([record.id])
                assert result is not None
                assert result.body == b"done"

    run(main())


def test_a_connection_that_is_cut_again_and_again_loses_and_doubles_nothing(
    place: Any, run: Run, server_proxy: Callable[[Any], Proxy]
) -> None:
    proxy = server_proxy(place.server)

    async def main() -> None:
        async with FileBackend.from_url(place.url(proxy.url_for(place.server.endpoint))) as backend:
            queue = backend.queue()
            acknowledged: list[str] = []
            done: list[str] = []
            stored = asyncio.Semaphore(0)
            stop = False

            async def produce() -> None:
                while not stop:
                    records = tasks(3)
                    await insist(backend, lambda records=records: queue.enqueue(records))
                    acknowledged.extend(record.id for record in records)
                    stored.release()

            async def work() -> None:
                while not (stop and len(done) >= len(acknowledged)):
                    claim_id = str(uuid.uuid4())
                    claims = await insist(backend, lambda claim_id=claim_id: claim(queue, 20, claim_id))
                    ends = [Settlement(c.lease, Verb.SUCCEED, result=b"done") for c in claims]
                    outcomes = await insist(backend, lambda ends=ends: queue.settle(ends))
                    assert set(outcomes) <= {Outcome.OK, Outcome.DUPLICATE}
                    done.extend(c.task_id for c in claims)

            producers = [asyncio.ensure_future(produce()) for _ in range(2)]
            worker = asyncio.ensure_future(work())
            for _ in range(6):
                for _ in range(2):
                    await stored.acquire()
                proxy.cut()
            stop = True
            await asyncio.gather(*producers)
            await worker
            assert sorted(done) == sorted(acknowledged)

    run(main())


def test_a_backend_through_a_line_that_is_dead_fails_in_time_and_goes_on_when_it_lives(
    place: Any, run: Run, server_proxy: Callable[[Any], Proxy]
) -> None:
    proxy = server_proxy(place.server)

    async def main() -> None:
        url = place.url(proxy.url_for(place.server.endpoint), timeout_s=1.0)
        async with FileBackend.from_url(url) as backend:
            queue = backend.queue()
            [record] = tasks(1)
            proxy.half_open()
            started = time.monotonic()
            with pytest.raises(Exception) as silent:  # noqa: PT011 - what matters is what it means
                await queue.enqueue([record])
            assert backend.classify(silent.value) is ErrorCode.UNKNOWN_EFFECT
            assert time.monotonic() - started < 2.5
            proxy.cut()
            proxy.heal()
            await insist(backend, lambda: queue.enqueue([record]))
            assert [c.task_id for c in await claim(queue)] == [record.id]

    run(main())


def test_a_frozen_store_holds_no_call_longer_than_the_timeout_that_it_was_given(place: Any, run: Run) -> None:
    if not place.server.is_ours:
        pytest.skip("this server is not ours to freeze")
    timeout_s = 1.0

    async def main() -> None:
        async with FileBackend.from_url(place.url(timeout_s=timeout_s)) as backend:
            queue, results = backend.queue(), backend.result_store()
            records = tasks(4)
            await queue.enqueue(records[:2])
            [held] = await claim(queue, 1)
            await asyncio.to_thread(place.server.freeze)

            async def outlast(call: Awaitable[Any]) -> tuple[float, ErrorCode]:
                started = time.monotonic()
                with pytest.raises((Unreachable, NoAnswer)) as silent:
                    await call
                return time.monotonic() - started, backend.classify(silent.value)

            calls: list[Awaitable[Any]] = [
                queue.enqueue(records[2:3]),
                claim(queue),
                queue.settle([Settlement(held.lease, Verb.SUCCEED, result=b"done")]),
                queue.extend([held.lease], lease_s=60),
                queue.maintain(),
                queue.get([records[0].id]),
                queue.stats(["q"]),
                results.get([records[0].id]),
                backend.event_store().read(EventFilter()),
            ]
            ends = await asyncio.gather(*map(outlast, calls))
            # And who comes later stands in line behind what is still being tried for the first ones.
            ends += await asyncio.gather(outlast(queue.enqueue(records[3:])), outlast(queue.get(["x"])))
            assert max(took for took, _ in ends) < timeout_s + 0.8, ends
            assert {code for _, code in ends} <= {ErrorCode.UNKNOWN_EFFECT, ErrorCode.TIMEOUT}
            await asyncio.to_thread(place.server.thaw)
            again = await insist(backend, lambda: queue.enqueue(records))
            assert {answer.outcome for answer in again} <= {Outcome.OK, Outcome.DUPLICATE}
            end = Settlement(held.lease, Verb.SUCCEED, result=b"done")
            [settled] = await insist(backend, lambda: queue.settle([end]))
            assert settled in (Outcome.OK, Outcome.DUPLICATE)
            assert None not in await queue.get([record.id for record in records])

    run(main())


def test_the_readme_counts_the_requests_right(s3_server: S3Server, s3_bucket: str, run: Run) -> None:
    key, secret = s3_server.login
    url = f"s3://{s3_bucket}?endpoint_url={s3_server.endpoint}&key={key}&secret={secret}&poll_interval_s=60"

    def requests(since: int) -> Counter[str]:
        log = s3_server.log[since:]
        found = re.findall(r"(GET|PUT|POST|DELETE) (/\S*)", log)
        return Counter("LIST" if "list-type" in path else method for method, path in found)

    async def main() -> None:
        async with FileBackend.from_url(url) as backend:
            queue = backend.queue()

            async def cost(call: Callable[[], Awaitable[Any]]) -> tuple[Counter[str], Any]:
                since = len(s3_server.log)
                answer = await call()
                return requests(since), answer

            one_commit = Counter({"PUT": 1, "LIST": 1})
            one_look = Counter({"GET": 1, "LIST": 1})
            records = tasks(500)
            assert (await cost(lambda: queue.enqueue(records)))[0] == one_commit
            spent, claims = await cost(lambda: claim(queue, 100))
            assert (spent, len(claims)) == (one_commit, 100)
            assert (await cost(lambda: queue.extend([c.lease for c in claims], lease_s=60)))[0] == one_commit
            ends = [Settlement(c.lease, Verb.SUCCEED, result=b"done") for c in claims]
            assert (await cost(lambda: queue.settle(ends)))[0] == one_commit
            assert (await cost(lambda: queue.get([records[0].id])))[0] == one_look

    run(main())
