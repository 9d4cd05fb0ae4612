"""`python -m omniq_conformance`: for people who only have a URL."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from omniq_conformance.__main__ import main
from omniq_conformance.catalogue import manifest
from omniq_conformance.report import (
    CheckReport,
    Plugin,
    Report,
    SuiteReport,
    new_report,
    read_report,
    verdict_of,
    without_paths,
    without_places,
    write_report,
)
from omniq_conformance.table import render_table

pytestmark = pytest.mark.slow  # runs of pytest within the run


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omniq_conformance", *arguments],
        cwd=cwd,
        # A pytest that looks for plugins also finds those of test servers and of tools that play no part.
        env=os.environ | {"NO_COLOR": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_url_is_held_against_the_suite_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "reports" / "memory.json"
    done = command("run", "--url", "memory://", "--report", str(report), "--examples", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is conformant" in done.stdout
    [suite] = read_report(report).suites
    assert suite.verdict == "conformant"
    assert main(["table", str(report)]) == 0
    table = capsys.readouterr().out
    assert "| verdict | **conformant** |" in table
    assert "| `FENCED_SETTLE` | yes |" in table
    assert "1. everything is lost when the process ends" in table


def test_some_tests_of_a_url_are_incomplete_but_no_failure(tmp_path: Path) -> None:
    done = command("run", "--url", "memory://x", "-k", "empty_batches", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is incomplete" in done.stdout


def test_a_url_that_means_nothing_is_refused_with_the_registrys_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--url", "memroy://x"]) == 2
    assert "memory" in capsys.readouterr().err


def test_every_test_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(manifest())


# --- verdicts ----------------------------------------------------------------------------------------------------


def outcomes(*found: str, level: str = "core") -> list[CheckReport]:
    return [CheckReport(f"test_{n}", "claim", level, outcome) for n, outcome in enumerate(found)]  # type: ignore[arg-type]


def test_the_verdict_is_the_worst_that_the_tests_allow() -> None:
    assert verdict_of(outcomes("passed")) == "conformant"
    assert verdict_of(outcomes("passed", "failed", "not run")) == "non-conformant"
    assert verdict_of(outcomes("passed", "skipped")) == "non-conformant"
    assert verdict_of(outcomes("passed", "deviation")) == "non-conformant"
    assert verdict_of(outcomes("passed", "deviation", level="extended")) == "partial"
    assert verdict_of(outcomes("passed", "deviation", "not run", level="extended")) == "incomplete"
    assert verdict_of(outcomes("passed", "not run")) == "incomplete"
    assert verdict_of(outcomes("passed", "unavailable")) == "incomplete"


def test_a_report_survives_its_file_and_tables_keep_their_columns(tmp_path: Path) -> None:
    suite = SuiteReport(
        "TestX",
        "partial",
        {"passed": 1, "deviation": 1},
        Plugin("x", "omniq-x", "2.0", "XBackend"),
        server="X | 3",
        capabilities=["fifo"],
        absent={"unique": "planned"},
        tests=outcomes("passed", "deviation", level="extended"),
    )
    report: Report = new_report("pytest -q", [suite])
    write_report(report, tmp_path / "x.json")
    assert read_report(tmp_path / "x.json") == report
    table = render_table([report, report]).splitlines()
    assert {line.count("|") for line in table if line.startswith("|")} == {4}
    assert "| tests passed | 1 of 2, 1 known deviations | 1 of 2, 1 known deviations |" in table
    assert "| `UNIQUE` | no (1) | no (1) |" in table


def test_a_report_names_no_place_of_the_machine_that_made_it(tmp_path: Path) -> None:
    failure = f"refused at 127.0.0.1:6379, {socket.gethostname()}:6379 and redis://u:p@db.example:1/0; see {tmp_path}/log"
    suite = SuiteReport(
        "TestX",
        "non-conformant",
        {},
        Plugin("x", "omniq-x", "2.0", "XBackend"),
        server="X 18.1.0 at localhost:5432",
        absent={"unique": f"no {Path.cwd()}/x.so"},
        tests=[CheckReport("test_x", "claim", "core", "failed", reason=failure)],
    )
    report = new_report(
        f"pytest {Path.cwd()}/tests/x.py --rootdir={tmp_path} --omniq-report {tmp_path}/a.json", [suite]
    )
    file = tmp_path / "x.json"
    write_report(report, file)
    text = file.read_text("utf-8")
    for place in (
        str(Path.cwd()),
        str(tmp_path),
        tempfile.gettempdir(),
        "127.0.0.1",
        "6379",
        "5432",
        "db.example",
    ):
        assert place not in text
    assert report.command == f"pytest tests/x.py --rootdir=…/{tmp_path.name} --omniq-report …/a.json"
    assert report.suites[0].server == "X 18.1.0 at …"
    assert report.suites[0].tests[0].reason.startswith("refused at …, … and redis://…; see …")


def test_what_is_no_place_stays_in_a_report() -> None:
    for text in (
        "PostgreSQL 18.6",
        "Valkey 9.1.0.2",
        "tests/test_x.py:12: assert 1 / 2 == 3",
        "claim: 10:30",
        "a::B",
    ):
        assert without_places(text) == text
    assert (
        without_paths("pytest tests/a.py::TestX -k 'a and b' --x=1/2")
        == "pytest tests/a.py::TestX -k 'a and b' --x=1/2"
    )
