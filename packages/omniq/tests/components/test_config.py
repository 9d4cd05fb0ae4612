"""Settings from keywords, the environment, mappings and files, in that order of precedence."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from omniq import AsyncOmniQ, OmniQ
from omniq.config import Environment, read_file, settings_from
from omniq.queue import MemoryTaskQueue, SQLiteTaskQueue
from omniq.results import MemoryResultStorage
from omniq_core import OptionError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def kinds(oq: OmniQ) -> tuple[str, str | None, str | None]:
    return (
        oq.backend.name,
        None if oq.result_store is None else oq.result_store.backend.name,
        None if oq.event_store is None else oq.event_store.backend.name,
    )


def test_nothing_at_all_gives_one_sqlite_file() -> None:
    oq = OmniQ()
    assert kinds(oq) == ("sqlite", "sqlite", "sqlite")
    assert oq.result_store is not None
    assert oq.result_store.backend is oq.backend
    assert OmniQ("shop").backend.config["project_name"] == "shop"


def test_a_backend_may_be_given_as_url_name_object_or_settings(tmp_path: Path) -> None:
    file = str(tmp_path / "a.db")
    assert OmniQ("sqlite:///a.db").backend.config["db_path"] == "a.db"
    assert OmniQ(backend="sqlite", db_path=file).backend.config["db_path"] == file
    assert OmniQ(db_path=file).backend is OmniQ(f"sqlite:///{file}").backend
    assert OmniQ(backend="memory://").backend.name == "memory"
    assert OmniQ("shop", backend="sqlite").backend.config["project_name"] == "shop"


def test_parts_that_are_not_given_come_from_the_backend(tmp_path: Path) -> None:
    oq = OmniQ.from_backend("memory", f"sqlite:///{tmp_path}/r.db", queues=["a"])
    assert kinds(oq) == ("memory", "sqlite", "memory")
    assert oq.task_queue.get_queue_names() == ["a"]
    assert kinds(OmniQ.from_backend("memory", events=False)) == ("memory", "memory", None)
    assert kinds(OmniQ.from_backend("memory", event_store_backend="sqlite", events=False))[2] == "sqlite"


def test_components_stay_the_objects_that_they_are() -> None:
    queue, results = MemoryTaskQueue(queues=["a"]), MemoryResultStorage()
    oq = OmniQ(task_queue=queue, result_storage=results)
    assert oq.task_queue is queue
    assert oq.result_store is oq.result_storage is results
    assert oq.event_store is None  # nobody asked for one
    assert kinds(OmniQ(task_queue=SQLiteTaskQueue())) == ("sqlite", "sqlite", None)
    assert kinds(OmniQ(backend="memory", result_store=SQLiteResultStorageHere()))[:2] == ("memory", "sqlite")


def SQLiteResultStorageHere() -> Any:
    from omniq.results import SQLiteResultStorage

    return SQLiteResultStorage()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"backen": "sqlite"}, "'backen'; did you mean 'backend'"),
        ({"worker_typ": "async"}, "did you mean 'worker_type'"),
        ({"task_queue": 3}, "task_queue must be a task queue, got int"),
        ({"backend": "memory", "result_store": 3}, "result_store must be a result store, got int"),
        ({"backend": "memory", "event_store": 3}, "event_store must be an event store, got int"),
        ({"result_store": 3}, "result_store must be a result store, got int"),
        ({"project_name": 3}, "the first argument is a project's name or a URL"),
        ({"project_name": "memory://", "backend": "sqlite"}, "two backends are given"),
        ({"events": "sqlite", "backend": "memory"}, "events must be True or False"),
    ],
)
def test_a_wrong_keyword_of_the_constructor_is_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        OmniQ(**keywords)


@pytest.mark.parametrize("settings", [{}, {"timeout_s": 3.0}])
def test_the_name_of_a_backend_where_a_project_is_named_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        TypeError, match="say backend='memory' to keep tasks there, or backend='sqlite' as well"
    ):
        OmniQ("memory", **settings)
    assert OmniQ("memory", backend="sqlite").backend.config["project_name"] == "memory"
    monkeypatch.setenv("OMNIQ_BACKEND", "sqlite")  # then the environment says where tasks are kept
    assert kinds(OmniQ("memory"))[0] == "sqlite"


MAPPING: dict[str, Any] = {
    "project_name": "shop",
    "task_queue": {"type": "sqlite", "config": {"base_dir": "data", "queues": ["high", "low"]}},
    "result_storage": {"type": "memory"},
    "worker": {"type": "thread_pool", "config": {"max_workers": 3}},
    "tasks": {"max_retries": 9},
}

YAML = """
project_name: ${PROJECT:-shop}
task_queue:
  type: sqlite
  config: {base_dir: data, queues: [high, low]}
result_storage: {type: memory}
worker: {type: thread_pool, config: {max_workers: 3}}
tasks: {max_retries: 9}
"""

TOML = """
project_name = "shop"
[task_queue]
type = "sqlite"
config = {base_dir = "data", queues = ["high", "low"]}
[result_storage]
type = "memory"
[worker]
type = "thread"
config = {max_workers = 3}
[tasks]
max_retries = 9
"""


def check_shop(oq: OmniQ) -> None:
    assert oq.project_name == "shop"
    assert oq.backend.config["base_dir"] == "data"
    assert oq.backend.config["project_name"] == "shop"
    assert oq.task_queue.get_queue_names() == ["high", "low"]
    assert kinds(oq) == ("sqlite", "memory", None)
    worker = oq.make_worker()
    assert (worker.worker_type, worker.max_workers) == ("thread_pool", 3)
    assert oq.task_queue.aio.defaults.retry.max_retries == 9


def test_a_mapping_says_everything() -> None:
    check_shop(OmniQ.from_dict(MAPPING))
    check_shop(OmniQ.from_config_dict(MAPPING))
    check_shop(OmniQ.from_config(types.SimpleNamespace(**MAPPING)))
    check_shop(OmniQ.from_config(settings_from(MAPPING)))


@pytest.mark.parametrize(("name", "text"), [("shop.yaml", YAML), ("shop.toml", TOML)])
def test_a_file_says_everything(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    check_shop(OmniQ.from_config_file(name))
    check_shop(OmniQ.from_yaml(tmp_path / name))
    assert OmniQ.from_config_file(name, project_name="other").project_name == "other"


def test_a_json_file_and_a_table_of_pyproject_will_do_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"backend": "memory://", "queues": ["x"]}')
    (tmp_path / "pyproject.toml").write_text('[tool.omniq]\nbackend = "memory://"\nqueues = ["x"]\n')
    for name in ("a.json", "pyproject.toml"):
        oq = OmniQ.from_config_file(name)
        assert kinds(oq) == ("memory", "memory", "memory")
        assert oq.task_queue.get_queue_names() == ["x"]


def test_one_backend_for_everything_may_be_a_name_a_url_or_a_mapping() -> None:
    for backend in ("memory", "memory://", {"type": "memory", "config": {"queues": ["x"]}}):
        assert kinds(OmniQ.from_dict({"backend": backend})) == ("memory", "memory", "memory")
    assert kinds(OmniQ.from_dict({"backend": "memory", "events": False})) == ("memory", "memory", None)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"task_queu": {}}, "unknown key 'task_queu' in the configuration; did you mean 'task_queue'"),
        ({"task_queue": {"config": {}}}, "task_queue in the configuration needs a 'type'"),
        (
            {"task_queue": {"type": "sqlite", "base_dir": "x"}},
            "unknown key 'base_dir' in task_queue .*go under 'config'",
        ),
        (
            {"task_queue": {"type": "sqlite", "config": {"base_dri": "x"}}},
            "unknown option 'base_dri'.*'base_dir'",
        ),
        (
            {"task_queue": {"type": "sqlite", "config": 3}},
            "config of task_queue in the configuration must be a mapping",
        ),
        ({"backend": "memory", "queues": "high"}, "Expected `array"),
        ({"backend": "memory", "events": "no"}, "Expected `bool"),
        ({"tasks": {"retries": 3}}, "did you mean 'max_retries'"),
        ({"tasks": {"max_retries": -1}}, "max_retries must not be negative"),
        ({"result_store": "memory", "result_storage": "memory"}, "'result_store' comes twice"),
        (3, "must be a mapping, got int"),
    ],
)
def test_a_wrong_mapping_is_refused_by_its_place(mapping: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        OmniQ.from_dict(mapping)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ini", "x", "a configuration file is .yaml, .toml or .json, got '.ini'"),
        ("a.toml", "x =", "a.toml cannot be read"),
        ("a.yaml", "a: [", "a.yaml cannot be read"),
        ("a.json", "[1]", "must hold a mapping, got list"),
        ("a.yaml", "project_name: ${NOT_THERE}", "uses the environment variable NOT_THERE, which is not set"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=message):
        read_file(name)


def test_variables_win_over_a_mapping_and_keywords_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIQ_PROJECT_NAME", "from-env")
    monkeypatch.setenv("OMNIQ_TASK_QUEUE_TYPE", "memory")
    monkeypatch.setenv("OMNIQ_RETRY_ATTEMPTS", "1")
    oq = OmniQ.from_dict(MAPPING)
    assert (oq.project_name, oq.backend.name) == ("from-env", "memory")
    assert oq.task_queue.get_queue_names() == [
        "high",
        "low",
    ]  # another type's settings do not apply; its queues do
    assert oq.task_queue.aio.defaults.retry.max_retries == 1
    assert OmniQ.from_dict(MAPPING, project_name="by keyword").project_name == "by keyword"
    assert OmniQ("sqlite:///x.db").backend.name == "sqlite"


def test_variables_are_read_when_a_program_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNIQ_BACKEND", "memory://")
    assert kinds(OmniQ()) == kinds(OmniQ.from_env()) == ("memory", "memory", "memory")
    monkeypatch.delenv("OMNIQ_BACKEND")
    monkeypatch.setenv("OMNIQ_TASK_QUEUE_URL", f"sqlite:///{tmp_path}/q.db")
    monkeypatch.setenv("OMNIQ_RESULT_STORAGE_TYPE", "memory")
    monkeypatch.setenv("OMNIQ_DEFAULT_QUEUES", "a, b")
    oq = OmniQ()
    assert oq.backend.config["db_path"] == f"{tmp_path}/q.db"
    assert kinds(oq) == ("sqlite", "memory", None)
    assert oq.task_queue.get_queue_names() == ["a", "b"]
    monkeypatch.setenv("OMNIQ_TASK_QUEUE_URL", "plain-folder")
    assert OmniQ().backend.config["base_dir"] == "plain-folder"
    assert OmniQ.from_env(prefix="OTHER_").backend.config["base_dir"] == "."


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OMNIQ_RETRY_ATTEMPTS", "three", "a whole number"),
        ("OMNIQ_TASK_TTL", "1h", "a number of seconds"),
        ("OMNIQ_DEFAULT_QUEUES", "[1", "a list of names"),
    ],
)
def test_a_variable_of_the_wrong_type_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=f"the environment variable {name} must be {expected}, got"):
        OmniQ()


def test_an_environment_can_be_handed_over() -> None:
    environment = Environment(environ={"OMNIQ_MAX_WORKERS": "3", "OMNIQ_DEFAULT_WORKER": "process"})
    assert environment.max_workers("async") == 3
    assert environment.worker_type() == "process_pool"


def test_the_async_face_is_made_in_the_same_ways_and_may_be_awaited() -> None:
    import asyncio

    async def main() -> None:
        made = await AsyncOmniQ.from_backend("memory")
        assert isinstance(made, AsyncOmniQ)
        assert isinstance(await AsyncOmniQ.from_dict({"backend": "memory"}), AsyncOmniQ)

    asyncio.run(main())
