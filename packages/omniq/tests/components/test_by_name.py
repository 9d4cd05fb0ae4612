"""Component classes that are named after backends, which are distributions of their own."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest

from omniq.backend import MemoryBackend, SQLiteBackend
from omniq.events import AsyncSQLiteEventStorage, EventStore, SQLiteEventStorage
from omniq.queue import AsyncMemoryTaskQueue, AsyncTaskQueue, MemoryTaskQueue, SQLiteTaskQueue, TaskQueue
from omniq.results import AsyncSQLiteResultStorage, MemoryResultStorage, ResultStore, SQLiteResultStorage
from omniq_core import BACKENDS, BrokenPlugin, OptionError


def test_a_class_is_the_component_on_that_backend(tmp_path: Path) -> None:
    queue = SQLiteTaskQueue("shop", base_dir=str(tmp_path), queues=["high", "low"])
    assert isinstance(queue, TaskQueue)
    assert queue.backend.config["project_name"] == "shop"
    assert queue.get_queue_names() == ["high", "low"]
    assert (
        repr(queue)
        == f"<SQLiteTaskQueue on <SQLiteBackend sqlite:///{tmp_path}/shop.db>, queues=['high', 'low']>"
    )
    results = SQLiteResultStorage(project_name="shop", base_dir=tmp_path)
    assert results.backend is queue.backend  # the same settings, so the same opened file
    assert SQLiteResultStorage(db_path=str(tmp_path / "other.db")).backend is not queue.backend
    assert isinstance(AsyncMemoryTaskQueue(), AsyncTaskQueue)
    assert isinstance(SQLiteEventStorage(base_dir=str(tmp_path)), EventStore)


def test_making_components_opens_nothing(tmp_path: Path) -> None:
    SQLiteTaskQueue(base_dir=str(tmp_path))
    AsyncSQLiteResultStorage(base_dir=str(tmp_path))
    AsyncSQLiteEventStorage(base_dir=str(tmp_path))
    SQLiteBackend({"db_path": str(tmp_path / "x.db")})
    assert list(tmp_path.iterdir()) == []


def test_a_class_has_the_same_methods_whatever_backend_it_is_on() -> None:
    with MemoryTaskQueue() as queue:
        assert queue.get_queue_size() == 0
    backend = MemoryBackend()
    assert MemoryTaskQueue.from_backend(backend, ["a"]).backend is backend
    assert isinstance(TaskQueue.from_backend(backend, queues=["a"]), TaskQueue)
    assert ResultStore.from_backend(backend).backend is EventStore.from_backend(backend).backend is backend


def test_short_names_and_other_homes_give_the_very_same_class() -> None:
    queue, results, storage = (
        importlib.import_module(f"omniq.{name}") for name in ("queue", "results", "storage")
    )
    assert queue.SQLiteQueue is queue.SQLiteTaskQueue
    assert results.SQLiteResultStore is results.SQLiteResultStorage is storage.SQLiteResultStorage
    assert storage.SQLiteEventStorage is SQLiteEventStorage
    assert importlib.import_module("omniq.backends").MemoryBackend is MemoryBackend
    assert "SQLiteTaskQueue" in dir(queue)
    assert "SQLiteBackend" in dir(importlib.import_module("omniq.backend"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("omniq.queue", "NATSTaskQueue"),
        ("omniq.results", "AsyncNATSResultStorage"),
        ("omniq.storage", "NATSEventStorage"),
        ("omniq.backend", "NATSBackend"),
        ("omniq.models", "NATSTaskQueueConfig"),
    ],
)
def test_a_class_of_a_backend_that_is_not_installed_says_what_to_install(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BACKENDS, "_found", {})
    with pytest.raises(
        ImportError, match=rf"cannot import '{name}' .*no backend named 'nats'.*omniq\[nats\]"
    ):
        getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", ["UnheardOfTaskQueue", "Nonsense", "TaskQueues", "_private"])
def test_any_other_name_is_simply_absent(name: str) -> None:
    for module in (
        "omniq.queue",
        "omniq.results",
        "omniq.events",
        "omniq.storage",
        "omniq.backend",
        "omniq.models",
    ):
        assert not hasattr(importlib.import_module(module), name)


def test_a_strangers_backend_has_its_classes_too() -> None:
    class AcmeBackend(MemoryBackend):  # type: ignore[misc, valid-type]
        name = "acme"

    BACKENDS.register("acme", AcmeBackend)
    try:
        queue_module: Any = importlib.import_module("omniq.queue")
        queue = queue_module.AcmeTaskQueue(queues=["a"])
        assert isinstance(queue.backend, AcmeBackend)
        assert importlib.import_module("omniq.backend").AcmeBackend is AcmeBackend
    finally:
        BACKENDS.unregister("acme")


def test_a_broken_backend_gives_its_own_error_and_only_to_who_asks_for_it() -> None:
    BACKENDS.register("wreck", int)  # type: ignore[arg-type]
    try:
        with pytest.raises(
            BrokenPlugin, match=r"'wreck' of this program must be a subclass of omniq_core.Backend"
        ):
            importlib.import_module("omniq.queue").WreckTaskQueue
        assert MemoryTaskQueue().backend
    finally:
        BACKENDS.unregister("wreck")


def test_a_misspelt_setting_is_refused_with_its_name() -> None:
    with pytest.raises(OptionError, match=r"sqlite: unknown option 'db_pth'.*did you mean 'db_path'"):
        SQLiteTaskQueue(db_pth="x.db")
    with pytest.raises(
        TypeError, match=r"queues must be a list of names, got the text 'high'; write \['high'\]"
    ):
        SQLiteTaskQueue(queues="high")
    with pytest.raises(ValueError, match="queues must not repeat a name"):
        MemoryTaskQueue(queues=["a", "a"])


def test_a_config_object_is_checked_when_it_is_made(tmp_path: Path) -> None:
    from omniq.models import SQLiteResultStorageConfig, SQLiteTaskQueueConfig  # type: ignore[attr-defined]

    config = SQLiteTaskQueueConfig(project_name="shop", base_dir=str(tmp_path), queues=["a"])
    queue = SQLiteTaskQueue.from_config(config)
    assert queue.get_queue_names() == ["a"]
    assert queue.backend.config["base_dir"] == str(tmp_path)
    assert SQLiteResultStorage.from_config(SQLiteResultStorageConfig(base_dir=str(tmp_path))).backend
    with pytest.raises(
        ValueError, match=r"SQLiteTaskQueueConfig: option 'queues' must be list\[str\], got 3"
    ):
        SQLiteTaskQueueConfig(queues=3)
    with pytest.raises(TypeError, match="quues"):
        SQLiteTaskQueueConfig(quues=["a"])


def test_a_component_can_be_made_of_a_mapping() -> None:
    assert MemoryTaskQueue.from_dict({"queues": ["x"]}).get_queue_names() == ["x"]
    assert MemoryResultStorage.from_dict({})


def test_queues_can_be_declared_later_and_taken_back_while_they_are_empty() -> None:
    async def main() -> None:
        async with AsyncMemoryTaskQueue(queues=["a"]) as queue:
            queue.add_queue("b")
            queue.add_queue("b")
            await queue.enqueue(print, queue_name="b")
            assert queue.get_queue_names() == ["a", "b"]
            assert not await queue.remove_queue("b")
            assert await queue.remove_queue("a")
            assert queue.get_queue_names() == ["b"]

    asyncio.run(main())
