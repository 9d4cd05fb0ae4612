"""The compatibility table, made from reports: nobody writes a tick by hand."""

from __future__ import annotations

from collections.abc import Iterable

from omniq_conformance.report import Report, SuiteReport
from omniq_core import Capability

__all__ = ["render_table"]


def render_table(reports: Iterable[Report]) -> str:
    """A Markdown table with a column per backend: its verdict, and what it declares and was held to."""
    columns = [(report, suite) for report in reports for suite in report.suites]
    if not columns:
        return "No reports.\n"
    rows = [
        ["", *(_name(suite) for _, suite in columns)],
        ["---", *("---" for _ in columns)],
        ["suite run as", *(suite.suite for _, suite in columns)],
        ["verdict", *(f"**{suite.verdict}**" for _, suite in columns)],
        ["tests passed", *(_tests(suite) for _, suite in columns)],
        ["server", *(suite.server or "?" for _, suite in columns)],
        ["a killed server loses", *(suite.durability.get("server_killed", "?") for _, suite in columns)],
        ["a power cut loses", *(suite.durability.get("power_cut", "?") for _, suite in columns)],
        ["suite, contract", *(f"{report.omniq_conformance}, {report.spi}" for report, _ in columns)],
    ]
    notes: dict[str, int] = {}
    for capability in Capability:
        cells = [_cell(suite, capability, notes) for _, suite in columns]
        rows.append([f"`{capability.name}`", *cells])
    table = "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in rows)
    if notes:
        table += "\n\n" + "\n".join(f"{number}. {reason}" for reason, number in notes.items())
    return table + "\n"


def _name(suite: SuiteReport) -> str:
    plugin = suite.plugin
    if plugin is None:
        return suite.suite
    return plugin.backend if plugin.distribution == "?" else f"{plugin.distribution} {plugin.version}"


def _tests(suite: SuiteReport) -> str:
    text = f"{suite.counts.get('passed', 0)} of {len(suite.tests)}"
    deviations = suite.counts.get("deviation", 0)
    return f"{text}, {deviations} known deviations" if deviations else text


def _cell(suite: SuiteReport, capability: Capability, notes: dict[str, int]) -> str:
    if capability.value in suite.capabilities:
        return "yes"
    reason = suite.absent.get(capability.value, "")
    return f"no ({notes.setdefault(reason, len(notes) + 1)})" if reason else "no"
