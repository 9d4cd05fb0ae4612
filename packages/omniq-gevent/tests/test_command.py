"""``omniq-gevent``, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omniq import OmniQ

pytestmark = pytest.mark.slow  # each test patches a process of its own

PROGRAM = """
import threading, time
from gevent import monkey
from omniq import OmniQ

is_patched = monkey.is_module_patched("socket")
oq = OmniQ("sqlite:///{folder}/t.db", worker_type="thread_pool")

@oq.task
def patched():
    return [is_patched, monkey.is_module_patched("socket"), type(threading.current_thread()).__name__]
"""
COMMAND = [sys.executable, "-c", "from omniq_gevent.cli import main; main()"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(PROGRAM.format(folder=tmp_path), "utf-8")
    return tmp_path


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_it_patches_before_the_program_is_imported_and_its_worker_type_is_gevent(folder: Path) -> None:
    with OmniQ(f"sqlite:///{folder}/t.db") as oq:
        sent = run(folder, sys.executable, "-m", "omniq", "enqueue", "shop:oq", "patched", "--json")
        task_id = json.loads(sent.stdout)["task_id"]
        done = run(folder, *COMMAND, "worker", "shop:oq", "--burst")
        assert done.returncode == 0, done.stderr
        assert "concurrency  100, gevent" in done.stderr
        assert "Warning" not in done.stderr  # gevent's, of what was imported too early
        found = oq.get_result(task_id, timeout=0)
        assert found is not None
        assert found.result[:2] == [True, True]


@pytest.mark.parametrize("way", ["option", "variable"])
def test_another_type_can_be_asked_for(folder: Path, way: str) -> None:
    words = ["--type", "async"] if way == "option" else []
    variables = {} if way == "option" else {"OMNIQ_WORKER_WORKER_TYPE": "async"}
    done = run(folder, *COMMAND, "worker", "shop:oq", "--burst", *words, **variables)
    assert done.returncode == 0, done.stderr
    assert "concurrency  10, async" in done.stderr


def test_its_other_commands_and_its_errors_are_those_of_omniq(folder: Path) -> None:
    assert run(folder, *COMMAND, "version").returncode == 0
    wrong = run(folder, *COMMAND, "worker", "shop:nothing")
    assert wrong.returncode == 2
    assert "must name an OmniQ" in wrong.stderr
    assert "Usage: omniq-gevent" in run(folder, *COMMAND, "--help").stdout


def test_the_plain_command_runs_the_type_too_and_says_what_is_missing(folder: Path) -> None:
    done = run(folder, sys.executable, "-m", "omniq", "worker", "shop:oq", "--type", "gevent", "--burst")
    assert done.returncode == 0, done.stderr
    assert "not patched by gevent" in done.stderr


def test_importing_the_package_loads_nothing_that_could_not_be_patched_any_more(tmp_path: Path) -> None:
    code = "import sys, omniq_gevent.cli; print(sorted({'socket', 'asyncio', 'gevent', 'omniq'} & set(sys.modules)))"
    done = run(tmp_path, sys.executable, "-S", "-c", code, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.stdout.strip() == "[]", done.stderr


def test_patching_tells_gevents_plugins_as_gevent_does_and_leaves_what_finds_them_as_it_was(
    tmp_path: Path,
) -> None:
    described = tmp_path / "listener-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: listener\nVersion: 1\n", "utf-8")
    groups = ["will_patch_all", "did_patch_all"]
    points = "".join(f"[gevent.plugins.monkey.{group}]\nlistener = listener:hear\n" for group in groups)
    (described / "entry_points.txt").write_text(points, "utf-8")
    (tmp_path / "listener.py").write_text("def hear(event): print(type(event).__name__)", "utf-8")
    code = (
        "from importlib import metadata; before = metadata.entry_points\n"
        "from omniq_gevent.cli import patch; patch(); print(metadata.entry_points is before)"
    )
    done = run(tmp_path, sys.executable, "-c", code)
    assert done.stdout.split() == ["GeventWillPatchAllEvent", "GeventDidPatchAllEvent", "True"], done.stderr
