"""What pytest does with a suite: no cheating, strict deviations, and a verdict that a skip cannot make green."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # runs of pytest within the run

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
        folder: new.
        sources: the test modules; in the report each of their suites is found by the name of its class.
        entry_points: as an author's pytest, which finds its plugins by itself; else it is told of ours alone, and starts in
            half the time.
    """

    def __init__(
        self, folder: Path, sources: Mapping[str, str], *arguments: str, entry_points: bool = False
    ) -> None:
        for name, source in sources.items():
            (folder / f"test_{name}.py").write_text(source, "utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
        report = folder / "report.json"
        environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
        if entry_points:
            arguments = (
                "-p",
                "no:valkey",
                *arguments,
            )  # a test server's, which takes a third of a second to load
        else:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            arguments = ("-p", "omniq_conformance.pytest_shim", *arguments)
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--omniq-report={report}", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.code, self.text = done.returncode, done.stdout + done.stderr
        self.report: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}

    def suite(self, name: str) -> dict[str, Any]:
        [found] = [suite for suite in self.report["suites"] if suite["suite"] == name]
        return dict(found)

    def outcome(self, suite: str, test: str) -> str:
        [found] = [one["outcome"] for one in self.suite(suite)["tests"] if one["name"] == test]
        return str(found)


def suite(name: str, more: str = "") -> str:
    """A module with one suite, of a backend that does everything."""
    return SUITE.replace("TestIt", name) + more


def chosen(**tests: str) -> str:
    """For ``-k``: of each suite these tests."""
    return " or ".join(f"({name} and ({words}))" for name, words in tests.items())


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def start(source: str, *arguments: str, **how: bool) -> Run:
        return Run(tmp_path, {"it": source}, *arguments, **how)

    return start


def test_a_whole_run_is_conformant_and_reported(run: Any) -> None:
    done = run(SUITE, "--omniq-examples", "3", "--import-mode=importlib", entry_points=True)
    assert done.code == 0, done.text
    assert "TestIt (omniq-memory" in done.text
    assert "is conformant" in done.text
    suite = done.suite("TestIt")
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


def test_pytest_runs_of_others_load_nothing_of_the_suite(run: Any) -> None:
    done = run(
        "import sys\n"
        "def test_it():\n"
        "    ours = [m for m in sys.modules if m.startswith('omniq')]\n"
        "    assert ours == ['omniq_conformance', 'omniq_conformance.pytest_shim'], ours\n",
        entry_points=True,
    )
    assert done.code == 0, done.text


# --- cheats: one run is refused for all that are seen when a class is made, and one for each of those that come later ------

CHEATS = {
    "Overrides": "    def test_empty_batches_get_empty_answers(self): pass\n",
    "Removes": "    test_empty_batches_get_empty_answers = None\n",
    "Curt": "    known_deviations = {'test_empty_batches_get_empty_answers': 'too short'}\n",
    "Unknown": "    known_deviations = {'test_of_nothing': 'a long enough reason, https://example.org'}\n",
    "Hides": "",
}
MIXIN = "class Mixin:\n    def test_empty_batches_get_empty_answers(self): pass\n\nclass Hides(Mixin, BackendSuite)"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Run:
    sources = {name.lower(): suite(name, more) for name, more in CHEATS.items()}
    sources["hides"] = sources["hides"].replace("class Hides(BackendSuite)", MIXIN)
    return Run(tmp_path_factory.mktemp("refused"), sources | {"honest": suite("TestHonest")}, "-k", CONTRACT)


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheating_is_an_error_at_collection(refused: Run, cheat: str) -> None:
    assert refused.code == pytest.ExitCode.INTERRUPTED, refused.text
    assert "passed" not in refused.text
    [line] = [line for line in refused.text.splitlines() if line.startswith(f"ERROR test_{cheat.lower()}.py")]
    assert f"UsageError: {cheat}" in line


@pytest.mark.parametrize(
    "cheat",
    [
        "TestIt.test_empty_batches_get_empty_answers = lambda self: None\n",
        "del BackendSuite.test_empty_batches_get_empty_answers\n",
    ],
)
def test_cheating_after_the_class_is_made_is_an_error_at_collection(run: Any, cheat: str) -> None:
    done = run(SUITE + cheat, "-k", CONTRACT)
    assert done.code == pytest.ExitCode.USAGE_ERROR, done.text
    assert "passed" not in done.text
    assert "TestIt" in done.text


# --- what fails: one run of three suites -----------------------------------------------------------------------------

EMPTY_BATCHES = "test_empty_batches_get_empty_answers"
MISSING = SUITE.replace(
    "        yield Mem", "        env.unavailable('no server at 127.0.0.1:1')\n        yield Mem"
).replace("TestIt", "TestMissing")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    reason = f"    known_deviations = {{'{EMPTY_BATCHES}': 'https://example.org/issues/2'}}\n"
    done = Run(
        tmp_path_factory.mktemp("failing"),
        {
            "broken": suite("TestBroken", DEVIATES.format("")),
            "deviates_not": suite("TestDeviatesNot", reason),
            "missing": MISSING,
        },
        "-k",
        chosen(TestBroken=BROKEN[0], TestDeviatesNot=EMPTY_BATCHES, TestMissing=CONTRACT),
    )
    assert done.code == 1, done.text
    return done


def test_a_failure_makes_the_verdict_non_conformant(failing: Run) -> None:
    assert failing.suite("TestBroken")["verdict"] == "non-conformant"
    assert failing.outcome("TestBroken", BROKEN[0]) == "failed"
    assert f"FAILED test_broken.py::TestBroken::{BROKEN[0]}" in failing.text
    assert "own code" in failing.text or "with code" in failing.text


def test_a_deviation_that_is_none_fails(failing: Run) -> None:
    assert f"FAILED test_deviates_not.py::TestDeviatesNot::{EMPTY_BATCHES} - [XPASS(strict)]" in failing.text
    assert failing.outcome("TestDeviatesNot", EMPTY_BATCHES) == "failed"


def test_a_missing_service_is_a_failure(failing: Run) -> None:
    assert "FAILED test_missing.py::TestMissing" in failing.text
    assert "no server at 127.0.0.1:1" in failing.text
    assert failing.suite("TestMissing")["verdict"] == "non-conformant"


# --- what pytest alone would let pass: one run of four suites, red by their verdicts -----------------------------------


@pytest.fixture(scope="module")
def evading(tmp_path_factory: pytest.TempPathFactory) -> Run:
    reasons = ", ".join(f"'{name}': 'https://example.org/issues/1 says why'" for name in BROKEN)
    skips = suite("TestSkips").replace("class Test", "@pytest.mark.skip(reason='not today')\nclass Test")
    inside = suite("TestInside").replace(
        "        yield Mem", "        pytest.skip('not today')\n        yield Mem"
    )
    xfails = suite("TestXfails", DEVIATES.format("")).replace("class Test", "@pytest.mark.xfail\nclass Test")
    done = Run(
        tmp_path_factory.mktemp("evading"),
        {
            "deviates": suite("TestDeviates", DEVIATES.format(reasons)),
            "skips": skips,
            "inside": inside,
            "xfails": xfails,
        },
        "-k",
        chosen(TestDeviates=" or ".join(BROKEN), TestSkips="test", TestInside=CONTRACT, TestXfails=BROKEN[0]),
    )
    assert done.code == 1, done.text
    assert not re.search(r"\d (failed|errors?)\b.* in ", done.text), done.text
    return done


def test_a_known_deviation_from_a_core_test_is_no_conformance(evading: Run) -> None:
    assert [evading.outcome("TestDeviates", name) for name in BROKEN] == ["deviation", "deviation"]
    assert evading.suite("TestDeviates")["verdict"] == "non-conformant"


@pytest.mark.parametrize("way", ["TestSkips", "TestInside"])
def test_a_skip_is_no_way_to_a_green_run(evading: Run, way: str) -> None:
    assert evading.suite(way)["verdict"] == "non-conformant"


def test_an_xfail_of_the_authors_own_is_a_failure(evading: Run) -> None:
    assert evading.outcome("TestXfails", BROKEN[0]) == "failed"
    assert evading.suite("TestXfails")["verdict"] == "non-conformant"


# --- what is let pass: one run of four suites --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Run:
    away = suite("TestAway").replace(
        "        yield Mem",
        "        class Away(MemoryBackend):\n"
        "            async def open(self):\n"
        "                from omniq_core import Unreachable\n"
        "                raise Unreachable('connection refused')\n"
        "        yield Away()\n        return\n        yield Mem",
    )
    done = Run(
        tmp_path_factory.mktemp("passing"),
        {
            "part": suite("TestPart"),
            "own": suite("TestOwn", "    def test_of_mine(self): pass\n"),
            "missing": MISSING,
            "away": away,
        },
        "--omniq-allow-unavailable",
        "-k",
        chosen(TestPart=CONTRACT, TestOwn="test_of_mine", TestMissing=CONTRACT, TestAway=CONTRACT),
    )
    assert done.code == 0, done.text
    return done


def test_authors_may_add_tests_of_their_own(passing: Run) -> None:
    assert "PASSED test_own.py::TestOwn::test_of_mine" in passing.text


def test_a_part_of_the_suite_is_incomplete(passing: Run) -> None:
    assert passing.suite("TestPart")["verdict"] == "incomplete"
    assert passing.outcome("TestPart", "test_ten_thousand_tasks_come_out_once_each") == "not run"


def test_a_missing_service_is_allowed_where_that_was_said(passing: Run) -> None:
    assert passing.suite("TestMissing")["verdict"] == "incomplete"
    assert "unavailable" in {test["outcome"] for test in passing.suite("TestMissing")["tests"]}


def test_a_server_that_does_not_answer_counts_as_missing(passing: Run) -> None:
    assert passing.suite("TestAway")["verdict"] == "incomplete"
    assert "unavailable" in {test["outcome"] for test in passing.suite("TestAway")["tests"]}


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
