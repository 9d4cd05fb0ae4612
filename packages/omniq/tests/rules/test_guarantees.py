"""What a mix promises is the weakest of what its parts declare and are set to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from omniq.guarantees import Guarantees, guarantees, warnings
from omniq.stores import Stores, resolve_backend
from omniq_core import Loss


def promise_of(queue: Any, results: Any, events: Any) -> Guarantees:
    async def ask() -> Guarantees:
        backends = [None if which is None else resolve_backend(which) for which in (queue, results, events)]
        assert backends[0] is not None
        opened = await Stores(backends[0], backends[1], backends[2]).open()
        try:
            return await guarantees(opened)
        finally:
            await opened.close()

    return asyncio.run(ask())


def losses(promise: Guarantees, accident: str) -> tuple[Loss, Loss, Loss]:
    [found] = [one for one in promise.accidents if one.name == accident]
    return found.tasks, found.results, found.events


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tasks.db"


def test_sqlite_alone_loses_nothing_and_warns_of_nothing(sqlite: str) -> None:
    promise = promise_of(sqlite, sqlite, None)
    assert losses(promise, "the power is cut") == (Loss.NONE, Loss.NONE, Loss.NONE)
    assert losses(promise, "a worker is killed") == (Loss.NONE, Loss.NONE, Loss.NONE)
    assert promise.stale_writes_refused
    assert warnings(promise) == []


def test_a_weaker_setting_shows_in_the_promise_and_in_a_warning(sqlite: str) -> None:
    promise = promise_of(sqlite + "?synchronous=NORMAL", sqlite + "?synchronous=NORMAL", None)
    assert losses(promise, "the power is cut")[0] is Loss.WINDOW
    assert any("the power is cut" in line for line in warnings(promise))


def test_results_in_memory_die_with_the_worker_while_tasks_on_sqlite_stay(sqlite: str) -> None:
    promise = promise_of(sqlite, "memory://results", sqlite)
    assert losses(promise, "a worker is killed") == (Loss.NONE, Loss.ALL, Loss.WINDOW)
    assert losses(promise, "the result store is down") == (Loss.NONE, Loss.NONE, Loss.NONE)
    assert "if a worker is killed, all results are lost" in warnings(promise)


def test_a_queue_in_memory_dies_with_its_process() -> None:
    promise = promise_of("memory://", None, None)
    assert losses(promise, "a worker is killed")[0] is Loss.ALL
    assert promise.results is None
