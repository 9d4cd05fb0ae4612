"""What pytest does with a suite: no cheating, strict deviations, and a verdict that a skip cannot make green."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = """
from contextlib import asynccontextmanager
import pytest
from omniq_conformance import BackendSuite
from omniq_memory import MemoryBackend

class TestIt(BackendSuite):
    @asynccontextmanager
    async def backend(self, env):
        yield MemoryBackend(name=env.namespace, clock=env.clock)
"""
CONTRACT = "contract or errors"
"""Quick topics."""
DEVIATES = """
    @asynccontextmanager
    async def backend(self, env):
        class Numb(MemoryBackend):
            def classify(self, error, /):
                from omniq_core import ErrorCode
                return ErrorCode.UNKNOWN
        yield Numb(name=env.namespace, clock=env.clock)
    known_deviations = {{ {0} }}
"""
BROKEN = (
    "test_an_error_of_the_contract_is_answered_with_its_own_code",
    "test_calling_a_closed_backend_is_classified_as_closed",
)


class Run:
    """One run of pytest in a folder of its own.

    Args:
        entry_points: as an author's pytest, which finds its plugins by itself; else it is told of ours alone, and starts in
            half the time.
    """

    def __init__(self, folder: Path, source: str, *arguments: str, entry_points: bool = False) -> None:
        (folder / "test_it.py").write_text(source, "utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
        report = folder / "report.json"
        environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
        if not entry_points:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            arguments = ("-p", "omniq_conformance.pytest_shim", *arguments)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--omniq-report={report}",
                *arguments,
            ],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.code, self.text = done.returncode, done.stdout + done.stderr
        self.suite: dict[str, Any] = json.loads(report.read_text())["suites"][0] if report.exists() else {}
        self.report: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}

    def outcome(self, name: str) -> str:
        [found] = [test["outcome"] for test in self.suite["tests"] if test["name"] == name]
        return str(found)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def start(source: str, *arguments: str, **how: bool) -> Run:
        return Run(tmp_path, source, *arguments, **how)

    return start


def test_a_whole_run_is_conformant_and_reported(run: Any) -> None:
    done = run(SUITE, "--omniq-examples", "3", "--import-mode=importlib", entry_points=True)
    assert done.code == 0, done.text
    assert "TestIt (omniq-memory" in done.text
    assert "is conformant" in done.text
    suite = done.suite
    assert suite["verdict"] == "conformant"
    assert suite["plugin"]["distribution"] == "omniq-memory"
    assert suite["plugin"]["version"]
    assert suite["server"] == "memory of this process"
    assert "fenced_settle" in suite["capabilities"]
    assert suite["absent"]["durable"] == "everything is lost when the process ends"
    assert {test["outcome"] for test in suite["tests"]} == {"passed"}
    ran = {test["ran"] for test in suite["tests"]}
    assert {"check", "twin of TX_ENQUEUE", "not claimed: MULTI_PROCESS", "not offered: restart()"} <= ran
    assert done.report["spi"] == "0.1"
    assert done.report["command"].startswith("pytest -q")


@pytest.mark.parametrize(
    "cheat",
    [
        "    def test_empty_batches_get_empty_answers(self): pass\n",
        "    test_empty_batches_get_empty_answers = None\n",
        "TestIt.test_empty_batches_get_empty_answers = lambda self: None\n",
        "del BackendSuite.test_empty_batches_get_empty_answers\n",
        "    known_deviations = {'test_empty_batches_get_empty_answers': 'too short'}\n",
        "    known_deviations = {'test_of_nothing': 'a long enough reason, https://example.org'}\n",
    ],
)
def test_cheating_is_an_error_at_collection(run: Any, cheat: str) -> None:
    done = run(SUITE + cheat, "-k", CONTRACT)
    assert done.code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED), done.text
    assert "passed" not in done.text
    assert "TestIt" in done.text


def test_a_test_can_not_be_hidden_behind_a_mixin(run: Any) -> None:
    source = SUITE.replace("class TestIt(BackendSuite)", "class TestIt(Mixin, BackendSuite)").replace(
        "class TestIt",
        "class Mixin:\n    def test_empty_batches_get_empty_answers(self): pass\n\nclass TestIt",
    )
    assert run(source, "-k", CONTRACT).code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)


def test_authors_may_add_tests_of_their_own(run: Any) -> None:
    done = run(SUITE + "    def test_of_mine(self): pass\n", "-k", "test_of_mine")
    assert done.code == 0, done.text
    assert "1 passed" in done.text


def test_a_failure_makes_the_verdict_non_conformant(run: Any) -> None:
    done = run(SUITE + DEVIATES.format(""), "-k", BROKEN[0])
    assert done.code == 1
    assert done.suite["verdict"] == "non-conformant"
    assert done.outcome(BROKEN[0]) == "failed"
    assert "own code" in done.text or "with code" in done.text


def test_a_known_deviation_from_a_core_test_is_no_conformance(run: Any) -> None:
    reasons = ", ".join(f"'{name}': 'https://example.org/issues/1 says why'" for name in BROKEN)
    done = run(SUITE + DEVIATES.format(reasons), "-k", " or ".join(BROKEN))
    assert done.outcome(BROKEN[0]) == "deviation", done.text
    assert "2 xfailed" in done.text
    assert done.suite["verdict"] == "non-conformant"


def test_a_deviation_that_is_none_fails(run: Any) -> None:
    name = "test_empty_batches_get_empty_answers"
    done = run(SUITE + f"    known_deviations = {{'{name}': 'https://example.org/issues/2'}}\n", "-k", name)
    assert done.code == 1
    assert "XPASS(strict)" in done.text
    assert done.outcome(name) == "failed"


def test_a_skip_is_no_way_to_a_green_run(run: Any) -> None:
    done = run(SUITE.replace("class TestIt", "@pytest.mark.skip(reason='not today')\nclass TestIt"))
    assert done.code == 1, done.text
    assert done.suite["verdict"] == "non-conformant"
    inside = SUITE.replace("        yield Mem", "        pytest.skip('not today')\n        yield Mem")
    done = run(inside, "-k", CONTRACT)
    assert done.code == 1, done.text
    assert done.suite["verdict"] == "non-conformant"


def test_an_xfail_of_the_authors_own_is_a_failure(run: Any) -> None:
    done = run(
        SUITE.replace("class TestIt", "@pytest.mark.xfail\nclass TestIt") + DEVIATES.format(""),
        "-k",
        BROKEN[0],
    )
    assert done.code == 1, done.text
    assert done.outcome(BROKEN[0]) == "failed"


def test_a_part_of_the_suite_is_incomplete(run: Any) -> None:
    done = run(SUITE, "-k", CONTRACT)
    assert done.code == 0, done.text
    assert done.suite["verdict"] == "incomplete"
    assert done.outcome("test_ten_thousand_tasks_come_out_once_each") == "not run"


def test_a_missing_service_is_a_failure_unless_it_is_allowed(run: Any) -> None:
    source = SUITE.replace(
        "        yield Mem", "        env.unavailable('no server at 127.0.0.1:1')\n        yield Mem"
    )
    done = run(source, "-k", CONTRACT)
    assert done.code == 1
    assert "no server at 127.0.0.1:1" in done.text
    assert done.suite["verdict"] == "non-conformant"
    done = run(source, "-k", CONTRACT, "--omniq-allow-unavailable")
    assert done.code == 0, done.text
    assert done.suite["verdict"] == "incomplete"


def test_a_server_that_does_not_answer_counts_as_missing(run: Any) -> None:
    source = SUITE.replace(
        "        yield Mem",
        "        class Away(MemoryBackend):\n"
        "            async def open(self):\n"
        "                from omniq_core import Unreachable\n"
        "                raise Unreachable('connection refused')\n"
        "        yield Away()\n        return\n        yield Mem",
    )
    done = run(source, "-k", CONTRACT, "--omniq-allow-unavailable")
    assert (done.code, done.suite["verdict"]) == (0, "incomplete"), done.text


def test_a_backend_that_hangs_fails_and_the_run_ends(run: Any) -> None:
    hangs = (
        "    timeout_s = 0.3\n"
        "    @asynccontextmanager\n"
        "    async def backend(self, env):\n"
        "        import threading\n"
        "        class Stuck(MemoryBackend):\n"
        "            async def check(self):\n"
        "                threading.Lock().__enter__; lock = threading.Lock(); lock.acquire(); lock.acquire()\n"
        "        threading.Thread(target=threading.Event().wait, args=(300,)).start()  # joined at exit\n"
        "        yield Stuck(name=env.namespace, clock=env.clock)\n"
    )
    done = run(SUITE + hangs, "-k", "test_succeed_makes_a_task_succeeded", "-p", "no:threadexception")
    assert done.code == 1
    assert "blocked its event loop" in done.text


def test_pytest_runs_of_others_load_nothing_of_the_suite(run: Any) -> None:
    done = run(
        "import sys\n"
        "def test_it():\n"
        "    ours = [m for m in sys.modules if m.startswith('omniq')]\n"
        "    assert ours == ['omniq_conformance', 'omniq_conformance.pytest_shim'], ours\n",
        entry_points=True,
    )
    assert done.code == 0, done.text
