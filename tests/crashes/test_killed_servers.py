"""Servers that are killed or frozen under producers and workers, and workers that are killed at random.

What was acknowledged is kept by the test itself, outside every store. ``OMNIQ_TEST_CHAOS_S`` and ``OMNIQ_TEST_FROZEN_S``
make the random killing and the freezing longer than their few seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.crashes.program import facade
from tests.crashes.workers import Crew

from omniq import AsyncOmniQ
from omniq.ids import new_id
from omniq_conformance.servers import Server
from omniq_core import BackendError

pytestmark = pytest.mark.slow  # servers and workers are killed for minutes

SERVERS = ["postgres", "valkey", "redis", "nats", "gcs"]
"""Those that keep what they have when they are killed. The S3 server of the tests has it in memory alone."""
STORES = ["sqlite", "file", *SERVERS, "s3"]
KILLS = 10
FROZEN_S = float(os.environ.get("OMNIQ_TEST_FROZEN_S", "6"))
RETURN_S = 10.0
"""Workers must take up work again within this time after their server is back."""
KILLS_AT_RANDOM = 20
CHAOS_S = float(os.environ.get("OMNIQ_TEST_CHAOS_S", "0"))
"""For so long the killing at random goes on at least."""


def a_config(place: str, folder: Path, lease_s: float = 3.0) -> dict[str, Any]:
    return {"queue": place, "folder": str(folder), "lease": lease_s}


class Producer:
    """Enqueues until it is told to stop, whatever happens to the server; knows what was acknowledged."""

    def __init__(self, oq: AsyncOmniQ) -> None:
        self._oq = oq
        self.acknowledged: dict[str, int] = {}
        self._next = 0
        self._stopped = False
        self._grew = asyncio.Condition()

    async def run(self) -> None:
        while not self._stopped:
            batch = [(new_id(), self._next + offset) for offset in range(20)]
            self._next += len(batch)
            await self._send(batch)
            async with self._grew:
                self.acknowledged.update(batch)
                self._grew.notify_all()
            await asyncio.sleep(0.02)  # a pace, so that workers keep up

    async def _send(self, batch: list[tuple[str, int]]) -> None:
        calls = [{"func": "effect", "func_args": [number], "task_id": task_id} for task_id, number in batch]
        while True:
            try:
                await self._oq.enqueue_many(calls)
            except BackendError as error:
                if not error.is_retryable:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def until_it_grew_by(self, count: int) -> None:
        goal = len(self.acknowledged) + count
        async with self._grew:
            await self._grew.wait_for(lambda: len(self.acknowledged) >= goal)

    def stop(self) -> None:
        self._stopped = True


async def work_goes_on(oq: AsyncOmniQ) -> float:
    """How long it takes until a task that is enqueued now has been run, in seconds."""
    started = time.monotonic()
    while True:
        try:
            task_id = await oq.enqueue("effect", -1)
            result = await oq.get_result(task_id, timeout=60)
        except BackendError:
            await asyncio.sleep(0.05)
        else:
            assert result is not None
            assert result.result == -2
            return time.monotonic() - started


async def check_all(oq: AsyncOmniQ, acknowledged: dict[str, int]) -> None:
    results = await oq.get_results(list(acknowledged), timeout=150)
    lost = [task_id for task_id, result in zip(acknowledged, results, strict=True) if result is None]
    assert lost == []
    assert [result and result.result for result in results] == [
        2 * number for number in acknowledged.values()
    ]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_killed_ten_times_loses_nothing_and_workers_go_on(
    kind: str, place_on: Callable[..., str], server_of: Callable[[str], Server], tmp_path: Path
) -> None:
    server = server_of(kind)
    config = a_config(place_on(kind), tmp_path)

    async def run() -> None:
        async with facade(config) as oq:
            producer = Producer(oq)
            producing = asyncio.ensure_future(producer.run())
            with Crew(config, 2) as crew:
                await work_goes_on(oq)  # the workers are there
                for _ in range(KILLS):
                    await producer.until_it_grew_by(40)
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                    assert await work_goes_on(oq) < RETURN_S
                producer.stop()
                await producing
                await check_all(oq, producer.acknowledged)
                assert crew.deaths == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", [*SERVERS, "s3"])
def test_a_server_frozen_for_a_while_loses_nothing_and_workers_go_on(
    kind: str, place_on: Callable[..., str], server_of: Callable[[str], Server], tmp_path: Path
) -> None:
    server = server_of(kind)
    config = a_config(place_on(kind), tmp_path)

    async def run() -> None:
        async with facade(config) as oq:
            producer = Producer(oq)
            producing = asyncio.ensure_future(producer.run())
            with Crew(config, 2) as crew:
                await work_goes_on(oq)  # the workers are there
                await producer.until_it_grew_by(100)
                await asyncio.to_thread(server.freeze)
                await asyncio.sleep(FROZEN_S)  # standing still for so long is the fault itself
                await asyncio.to_thread(server.thaw)
                assert await work_goes_on(oq) < RETURN_S
                producer.stop()
                await producing
                await check_all(oq, producer.acknowledged)
                assert crew.deaths == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", STORES)
def test_four_workers_run_10000_tasks_exactly_once_each(
    kind: str, place_on: Callable[..., str], tmp_path: Path
) -> None:
    # As many at once as a busy worker has: with ten, it is the syncs of the servers that take the time.
    config = a_config(place_on(kind), tmp_path, lease_s=30.0) | {"max_workers": 100}

    async def run() -> None:
        async with facade(config) as oq:
            ids = await oq.enqueue_many({"func": "effect", "func_args": [number]} for number in range(10_000))
            with Crew(config, 4):
                await check_all(oq, dict(zip(ids, range(10_000), strict=True)))

    asyncio.run(run())
    done = Counter(int(line.split()[0]) for line in (tmp_path / "ledger").read_text().splitlines())
    assert done == Counter(range(10_000))


@pytest.mark.parametrize("kind", STORES)
def test_workers_killed_at_random_lose_nothing_and_every_task_ends(
    kind: str, place_on: Callable[..., str], tmp_path: Path
) -> None:
    config = a_config(place_on(kind), tmp_path, lease_s=1.0)
    chance = random.Random(7)

    async def run() -> None:
        async with facade(config) as oq:
            producer = Producer(oq)
            producing = asyncio.ensure_future(producer.run())
            with Crew(config, 4) as crew:
                end, kills = time.monotonic() + CHAOS_S, 0
                while kills < KILLS_AT_RANDOM or time.monotonic() < end:
                    kills += 1
                    await producer.until_it_grew_by(chance.randint(10, 120))
                    chance.choice(crew.members()).send(signal.SIGKILL)
                producer.stop()
                await producing
                infos: list[Any] = []
                ids = list(producer.acknowledged)
                while len(infos) < len(ids):  # many side by side, as an object store answers slowly
                    some = ids[len(infos) : len(infos) + 200]
                    infos += await asyncio.gather(*(settled(oq, task_id) for task_id in some))
                assert crew.deaths > 0
            # Some may be dead after three such deaths: that is the crash budget, and they are kept with their reason.
            assert {info.state.value for info in infos} <= {"succeeded", "dead"}
            for info in infos:
                assert info.state.value == "succeeded" or info.crashes >= 3, info

    async def settled(oq: AsyncOmniQ, task_id: str) -> Any:
        await oq.get_result(task_id, timeout=60)
        info = await oq.get_task(task_id)
        assert info is not None
        assert info.state.is_final
        return info

    asyncio.run(run())
