"""The suite's side of pytest: no cheating at collection, strict deviations, a verdict and a report at the end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from omniq_conformance.catalogue import manifest
from omniq_conformance.guard import exit_even_if_stuck
from omniq_conformance.report import CheckReport, Outcome, SuiteReport, new_report, suite_report, write_report
from omniq_conformance.suite import BackendSuite, refuse_cheating
from omniq_core import redact

__all__ = ["start"]


def start(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Looks at the suite's tests among ``items`` before anything is deselected.

    Raises:
        pytest.UsageError: a suite test was overridden or removed, or a deviation has no reason.
    """
    if hasattr(config, "workerinput") and config.getoption("--omniq-report"):
        raise pytest.UsageError("a conformance report is written by one process: run without xdist (-n 0)")
    recorder = Recorder(config)
    for item in items:
        cls = getattr(item, "cls", None)
        if isinstance(cls, type) and issubclass(cls, BackendSuite) and isinstance(item, pytest.Function):
            recorder.add(item, cls)
    if recorder.suites and not config.pluginmanager.has_plugin("omniq_conformance_recorder"):
        config.pluginmanager.register(recorder, "omniq_conformance_recorder")


class Recorder:
    """Collects what became of each suite test."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tests: dict[str, tuple[type[BackendSuite], str]] = {}
        self._found: dict[type[BackendSuite], dict[str, CheckReport]] = {}

    @property
    def suites(self) -> Sequence[type[BackendSuite]]:
        return list(self._found)

    def add(self, item: pytest.Function, cls: type[BackendSuite]) -> None:
        if cls not in self._found:
            refuse_cheating(cls)
            self._found[cls] = {}
        name = item.originalname
        if name not in manifest():
            return  # a test of the author's own
        self._tests[item.nodeid] = (cls, name)
        reason = cls.known_deviations.get(name)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    # --- hooks ------------------------------------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self._tests:
            return
        cls, name = self._tests[report.nodeid]
        if report.when != "call" and report.passed:
            return
        properties = {key: str(value) for key, value in report.user_properties}
        outcome, reason = _outcome(report, properties, cls.known_deviations.get(name))
        before = self._found[cls].get(name)
        if before is not None and before.outcome == "failed":
            return
        level, topic = manifest()[name]
        self._found[cls][name] = CheckReport(
            name, topic, level, outcome, properties.get("omniq_ran", ""), reason, round(report.duration, 3)
        )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reports = self._reports()
        # A failed test fails the run by itself. A skipped one would not, and is no better.
        if session.exitstatus == 0 and any(report.verdict == "non-conformant" for report in reports):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        file = self._config.getoption("--omniq-report")
        if file and reports:
            command = redact(shlex.join(["pytest", *self._config.invocation_params.args]))
            write_report(new_report(command, reports), Path(file))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for report in self._reports():
            plugin = report.plugin
            who = (
                f" ({plugin.distribution} {plugin.version})" if plugin and plugin.distribution != "?" else ""
            )
            counts = ", ".join(f"{count} {what}" for what, count in sorted(report.counts.items()) if count)
            terminalreporter.write_line(
                f"omniq conformance: {report.suite}{who} is {report.verdict}: {counts}"
            )

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        exit_even_if_stuck()

    def _reports(self) -> list[SuiteReport]:
        return [suite_report(cls.__name__, cls.facts, found) for cls, found in self._found.items() if found]


def _outcome(
    report: pytest.TestReport, properties: dict[str, str], deviation: str | None
) -> tuple[Outcome, str]:
    if hasattr(report, "wasxfail"):
        if report.skipped and deviation is not None:
            return "deviation", deviation
        return "failed", "it is marked xfail outside of known_deviations"
    if report.skipped:
        if "omniq_unavailable" in properties:
            return "unavailable", properties["omniq_unavailable"]
        return "skipped", str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return "failed", redact(str(crash.message if crash else report.longrepr))[:2000]
    if properties.get("omniq_ran", "").startswith("not run"):
        return "not run", properties["omniq_ran"]
    return "passed", ""
