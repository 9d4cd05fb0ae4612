"""The command line, called in this process; workers and signals are in test_worker.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from omniq.cli.group import run
from omniq.queue import SQLiteTaskQueue

TASKS = """
from omniq import OmniQ

oq = OmniQ("sqlite:///shop.db")

@oq.task
def add(a: int, b: int = 1) -> int:
    return a + b

@oq.task(max_retries=0)
def boom() -> None:
    raise LookupError("nothing there")

@oq.task
def gather(names: list[str]) -> str:
    return ", ".join(names)
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Answer]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("OMNIQ_APP", raising=False)
    module = f"shop_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(TASKS)

    def call(*words: str) -> Answer:
        code = run([word.replace("SHOP", module) for word in words])
        captured = capsys.readouterr()
        return Answer(
            code, captured.out.strip().replace(module, "SHOP"), captured.err.strip().replace(module, "SHOP")
        )

    yield call
    sys.modules.pop(module, None)


def work(call: Call) -> None:
    """Lets the enqueued tasks be run, by the very program that the command imported."""
    from omniq.testing import run_until_idle

    [program] = [value.oq for name, value in sys.modules.items() if name.startswith("shop_test")]
    run_until_idle(program)
    program.close()


def test_enqueuing_prints_the_id_and_inspecting_shows_the_task(call: Call) -> None:
    enqueued = call("enqueue", "SHOP:oq", "add", "a=3", "b:=4")
    assert enqueued.code == 0, enqueued.err
    shown = call("inspect", enqueued.out, "--app", "SHOP:oq")
    assert shown.code == 0
    assert "call          SHOP:add(a=3, b=4)" in shown.out
    assert "status        pending" in shown.out
    work(call)
    shown = call("inspect", enqueued.out, "--url", "sqlite:///shop.db", "--events")
    assert "result        7" in shown.out
    assert [word for word in ("enqueued", "executing", "completed") if word in shown.out] == [
        "enqueued",
        "executing",
        "completed",
    ]


def test_a_failed_task_is_shown_with_its_error_and_traceback(call: Call) -> None:
    task_id = call("enqueue", "SHOP", "boom").out  # the module holds one OmniQ
    work(call)
    shown = call("inspect", task_id, "--app", "SHOP")
    assert "status        error" in shown.out
    assert "error         LookupError: nothing there" in shown.out
    assert 'raise LookupError("nothing there")' in shown.out


def test_answers_in_json_can_be_read_by_programs(call: Call) -> None:
    task_id = json.loads(call("enqueue", "SHOP:oq", "add", "a=1", "--json").out)["task_id"]
    work(call)
    shown = json.loads(call("inspect", task_id, "--app", "SHOP:oq", "--events", "--json").out)
    assert shown["task"]["status"] == shown["result"]["status"] == "success"
    assert (shown["task"]["kwargs"], shown["result"]["result"], len(shown["events"])) == ({"a": 1}, 2, 3)
    names = {plugin["name"] for plugin in json.loads(call("plugins", "--json").out)}
    assert {"memory", "sqlite", "async", "thread_pool", "process_pool"} <= names
    assert all(plugin["ok"] for plugin in json.loads(call("check", "--json").out)["plugins"])


def test_a_task_may_be_for_later_and_for_another_queue(call: Call) -> None:
    enqueued = call(
        "enqueue", "SHOP:oq", "SHOP:gather", 'names:=["a","b"]', "--in", "1h30m", "--queue", "aside"
    )
    shown = json.loads(call("inspect", enqueued.out, "--app", "SHOP:oq", "--json").out)["task"]
    assert shown["queue_name"] == "aside"
    assert shown["run_at"] > shown["enqueued_at"]
    assert call("enqueue", "SHOP:oq", "add", "a=1", "--at", "2030-01-01T09:00+01:00").code == 0


def test_the_environment_may_name_the_program(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    module = next(path.stem for path in Path().glob("shop_*.py"))
    monkeypatch.setenv("OMNIQ_APP", f"{module}:oq")
    task_id = call("enqueue", "add", "a=1").out
    assert call("inspect", task_id).code == 0
    assert "SQLite" in call("check").out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["enqueue", "SHOP:oq", "adds", "a=1"], 2, "no task named 'adds'; did you mean 'add'?"),
        (["enqueue", "SHOP:oq", "add"], 2, "missing a required argument: 'a'"),
        (["enqueue", "SHOP:oq", "add", "a=three"], 2, "'a=three': Expected `int`, got `str`"),
        (["enqueue", "SHOP:oq", "add", "a:=3]"], 2, "what follows := must be JSON"),
        (["enqueue", "SHOP:oq", "add", "3"], 2, "an argument is NAME=VALUE or NAME:=JSON, got '3'"),
        (["enqueue", "SHOP:oq", "add", "a=1", "--in", "soon"], 2, "'soon' is no duration"),
        (["enqueue", "SHOP:oq", "add", "a=1", "--at", "soon"], 2, "--at: 'soon' is no moment"),
        (["enqueue", "add"], 2, "which task?"),
        (["enqueue", "nowhere:oq", "add"], 2, "no module named 'nowhere' here"),
        (
            ["enqueue", "SHOP:op", "add"],
            2,
            "must name an OmniQ or AsyncOmniQ, and is nothing of that name; it holds oq",
        ),
        (["enqueue", "SHOP:add", "add"], 2, "and is a Task"),
        (["enqueue", "json", "add"], 2, "module 'json' must hold one OmniQ, and holds none"),
        (["inspect", "nope", "--app", "SHOP:oq"], 1, "no task nope on <SQLiteBackend sqlite:///shop.db>"),
        (["inspect", "nope"], 2, "give the program with --app"),
        (["inspect", "nope", "--url", "sqlite:////proc/none/x.db"], 3, "cannot reach <SQLiteBackend"),
        (["inspect", "nope", "--url", "sqlit:///x.db"], 2, "Did you mean 'sqlite'?"),
        (["check", "--url", "sqlite:///x.db?db_pth=1"], 2, "unknown option 'db_pth'"),
        (["worker"], 2, "Missing argument 'APP'"),
        (["worker", "SHOP:oq", "-c", "0"], 2, "0 is not in the range"),
        (["worker", "SHOP:oq", "--type", "treads"], 2, "no worker type named 'treads'"),
        (["wroker"], 2, "No such command 'wroker'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_by_the_exit_code(
    call: Call, words: list[str], code: int, message: str
) -> None:
    answer = call(*words)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.err
    assert "Traceback" not in answer.err
    if answer.err.startswith("omniq: "):
        assert len(answer.err.splitlines()) == 1


def test_a_module_that_cannot_be_imported_shows_its_own_traceback(call: Call) -> None:
    Path("wrecked.py").write_text("import not_there_at_all\n")
    answer = call("enqueue", "wrecked:oq", "x")
    assert answer.code == 2
    assert "'wrecked' needs the module 'not_there_at_all', which is not there" in answer.err
    Path("wrecked2.py").write_text("1 / 0\n")
    answer = call("enqueue", "wrecked2:oq", "x")
    assert answer.code == 2
    assert "1 / 0" in answer.err
    assert answer.err.endswith("omniq: importing 'wrecked2' failed: ZeroDivisionError: division by zero")


def test_help_and_version_tell_what_there_is(call: Call) -> None:
    assert "Exit codes: 0 done" in " ".join(call("--help").out.split())
    assert "0 stopped cleanly" in " ".join(call("worker", "--help").out.split())
    assert "omniq-core" in call("version").out


def test_waiting_for_a_task_that_nobody_runs_ends_after_its_time(call: Call) -> None:
    answer = call("enqueue", "SHOP:oq", "add", "a=1", "--wait", "--timeout", "50ms")
    assert answer.code == 1, answer
    assert "has not ended within 0.05 s" in answer.err
    with SQLiteTaskQueue(db_path="shop.db") as queue:
        assert queue.get_queue_size() == 1
