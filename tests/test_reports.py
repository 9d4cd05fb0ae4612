"""The conformance reports that we publish are of what is here now, and the table in the docs is what they say."""

from __future__ import annotations

import re
import socket
import tomllib
from pathlib import Path

import pytest

from omniq_conformance import __version__
from omniq_conformance.catalogue import manifest
from omniq_conformance.report import read_report
from omniq_conformance.table import render_table
from omniq_core import SPI_VERSION

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.stem: path for path in sorted(ROOT.glob("docs/conformance/*.json"))}
PROJECTS = [
    tomllib.loads(path.read_text("utf-8"))["project"]
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
]
BACKENDS = {
    project["name"]: project["version"]
    for project in PROJECTS
    if "omniq.backends" in project.get("entry-points", {})
}
MARKER = "<!-- nox -s reports -->"
AGAIN = "`nox -s reports` writes them anew"

each_report = pytest.mark.parametrize("name", FILES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_has_a_report(backend: str) -> None:
    suites = [suite for file in FILES.values() for suite in read_report(file).suites]
    assert backend in {suite.plugin.distribution for suite in suites if suite.plugin}, AGAIN


@each_report
def test_a_report_calls_the_present_version_conformant(name: str) -> None:
    report = read_report(FILES[name])
    assert report.suites
    assert report.omniq_conformance == __version__, AGAIN
    assert report.spi == ".".join(map(str, SPI_VERSION)), AGAIN
    for suite in report.suites:
        assert suite.verdict == "conformant"
        assert suite.plugin is not None
        assert suite.plugin.version == BACKENDS[suite.plugin.distribution], AGAIN
        assert name.split("-")[0] == suite.plugin.backend


@each_report
def test_a_report_is_of_every_test_of_the_suite_as_it_is_now(name: str) -> None:
    for suite in read_report(FILES[name]).suites:
        assert {test.name: (test.level, test.topic) for test in suite.tests} == dict(manifest()), AGAIN
        assert {test.outcome for test in suite.tests} == {"passed"}
        assert suite.counts["passed"] == len(manifest())


def test_redis_is_reported_on_valkey_9_1_and_on_redis_8_and_postgres_on_18() -> None:
    servers = {suite.server for file in FILES.values() for suite in read_report(file).suites}
    for wanted in ("Valkey 9.1", "Redis 8.", "PostgreSQL 18", "SQLite 3."):
        assert any(server.startswith(wanted) for server in servers), (wanted, servers)


@each_report
def test_a_report_names_no_place_of_the_machine_that_made_it(name: str) -> None:
    report = read_report(FILES[name])
    assert re.search(
        rf" packages/omniq-{name.split('-')[0]}/tests/(?:objects/)?test_conformance\.py", report.command
    )
    text = FILES[name].read_text("utf-8")
    host = re.escape(socket.gethostname())
    for place in (
        r"/(?:home|root|tmp|Users|usr|opt|var)\b",
        r"\w://\w",
        r"\b127\.0\.0\.1",
        rf"\b{host}:\d",
        re.escape(str(ROOT)),
    ):
        assert not re.search(place, text), place


def test_the_table_in_the_docs_is_what_the_reports_say() -> None:
    _, marker, table = (ROOT / "docs" / "compatibility.md").read_text("utf-8").partition(MARKER)
    assert marker, f"docs/compatibility.md has lost its line {MARKER}"
    assert table.strip() == render_table(map(read_report, FILES.values())).strip(), AGAIN
