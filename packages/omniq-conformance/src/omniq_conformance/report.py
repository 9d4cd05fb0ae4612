"""What a run says about a backend: a verdict, and every test behind it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from omniq_conformance import __version__
from omniq_conformance.catalogue import manifest
from omniq_conformance.suite import Facts
from omniq_core import SPI_VERSION, Backend, Capability

__all__ = [
    "CheckReport",
    "Plugin",
    "Report",
    "SuiteReport",
    "plugin_of",
    "read_report",
    "verdict_of",
    "without_paths",
    "without_places",
    "write_report",
]

Outcome = Literal["passed", "failed", "skipped", "deviation", "unavailable", "not run"]
Verdict = Literal["conformant", "partial", "non-conformant", "incomplete"]


class CheckReport(msgspec.Struct, frozen=True):
    """One test."""

    name: str
    topic: str
    level: str
    outcome: Outcome
    ran: str = ""
    """``check``, ``twin of CANCEL`` (the capability is not declared), ``not claimed: DURABLE`` or ``not offered: ...``."""
    reason: str = ""
    seconds: float = 0.0


class Plugin(msgspec.Struct, frozen=True):
    """Which backend."""

    backend: str
    distribution: str
    version: str
    class_name: str


class SuiteReport(msgspec.Struct, frozen=True):
    """One subclass of the suite: one backend in one configuration."""

    suite: str
    verdict: Verdict
    counts: Mapping[str, int]
    plugin: Plugin | None = None
    server: str = ""
    durability: Mapping[str, str] = {}
    capabilities: Sequence[str] = ()
    absent: Mapping[str, str] = {}
    """Capabilities that are not declared, and the backend's reason; empty where it gives none."""
    tests: Sequence[CheckReport] = ()


class Report(msgspec.Struct, frozen=True):
    """One run of pytest."""

    omniq_conformance: str
    """The suite's version."""
    spi: str
    python: str
    platform: str
    at: str
    command: str
    suites: Sequence[SuiteReport]


def verdict_of(tests: Sequence[CheckReport]) -> Verdict:
    """What the tests of one suite say together.

    ``non-conformant``: something failed or was skipped, or deviates from a core test. ``incomplete``: something was not
    run, or a service was missing. ``partial``: known deviations from extended tests. Else ``conformant``.
    """
    outcomes = {test.outcome for test in tests}
    if outcomes & {"failed", "skipped"} or any(t.outcome == "deviation" and t.level == "core" for t in tests):
        return "non-conformant"
    if outcomes & {"not run", "unavailable"}:
        return "incomplete"
    return "partial" if "deviation" in outcomes else "conformant"


def suite_report(name: str, facts: Facts | None, found: Mapping[str, CheckReport]) -> SuiteReport:
    """Judges what was found against the shipped manifest: a test that is not there was not run."""
    tests = [
        found.get(test) or CheckReport(test, topic, level, "not run")
        for test, (level, topic) in manifest().items()
    ]
    counts: Counter[str] = Counter(test.outcome for test in tests)
    counts["twins"] = sum(test.ran.startswith("twin") for test in tests)
    counts["not claimed"] = sum(test.ran.startswith("not claimed") for test in tests)
    counts["not offered"] = sum(test.ran.startswith("not offered") for test in tests)
    if facts is None:
        return SuiteReport(name, verdict_of(tests), counts, tests=tests)
    health = facts.health
    missing = sorted(set(Capability) - facts.capabilities)
    return SuiteReport(
        name,
        verdict_of(tests),
        counts,
        plugin=plugin_of(facts.backend),
        server=health.server if health else "",
        durability=(
            {
                "server_killed": health.durability.server_killed.value,
                "power_cut": health.durability.power_cut.value,
            }
            if health
            else {}
        ),
        capabilities=sorted(capability.value for capability in facts.capabilities),
        absent={capability.value: facts.absent.get(capability, "") for capability in missing},
        tests=tests,
    )


def plugin_of(backend: type[Backend]) -> Plugin:
    """The distribution that offers a backend; ``?`` for a class of the test's own."""
    top = backend.__module__.partition(".")[0]
    for point in importlib.metadata.entry_points(group="omniq.backends"):
        if point.name == backend.name and point.module.partition(".")[0] == top and point.dist is not None:
            return Plugin(backend.name, point.dist.name, point.dist.version, backend.__qualname__)
    return Plugin(backend.name, "?", "?", backend.__qualname__)


def new_report(command: str, suites: Sequence[SuiteReport]) -> Report:
    """A report of these suites, made here and now. It is published as it is: so it names no place of this machine."""
    report = Report(
        omniq_conformance=__version__,
        spi=".".join(map(str, SPI_VERSION)),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",  # which kernel, and whose, is nobody's business
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=without_paths(command),
        suites=suites,
    )
    return msgspec.convert(_each_text(msgspec.to_builtins(report), without_places), Report)


def without_paths(command: str) -> str:
    """A command line in which a path from the root is one from here, or only a name."""

    def shorter(found: re.Match[str]) -> str:
        path = Path(found[1])
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f"…/{path.name}"

    return re.sub(r"(?<![^\s='\"])((?:/|[A-Za-z]:\\)[^\s'\"]+)", shorter, command)


def without_places(text: str) -> str:
    """``text`` without this machine: its folders, its name, and where the URLs and addresses in it point."""
    text = re.sub(r"\b([A-Za-z][\w+.-]*://)[^\s'\"`<>);,]+", r"\1…", text)
    for folder in _folders():
        text = re.sub(rf"(?<![\w.]){re.escape(folder)}(?=[/\\]|\b)", "…", text)
    hosts = "|".join(
        [*map(re.escape, {socket.gethostname(), "localhost"}), r"\d+(?:\.\d+){3}", r"\[[\da-f:]+\]"]
    )
    return re.sub(rf"(?<![\w.-])(?:{hosts}):\d{{2,5}}\b|\b127(?:\.\d+){{3}}\b", "…", text)


def _folders() -> Sequence[str]:
    """Where things are on this machine: the longest first, since one may be within another."""
    found = {
        os.getcwd(),
        os.path.expanduser("~"),
        tempfile.gettempdir(),
        os.path.realpath(tempfile.gettempdir()),
    }
    return sorted((folder for folder in found if len(folder) > 1), key=len, reverse=True)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    return value


def write_report(report: Report, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read_report(file: Path) -> Report:
    return msgspec.json.decode(file.read_bytes(), type=Report)
