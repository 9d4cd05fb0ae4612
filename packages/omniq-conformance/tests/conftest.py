"""Makes the specimens importable, tries them in other processes, and prints what became of them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# `--import-mode=importlib` puts no folder of tests on the path.
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from specimens.verdicts import Verdict

LINES = pytest.StashKey[list[str]]()
KINDS = ("lesser", "mutant", "by_chance")
"""The parameters of tests that try a specimen, those that take longest first."""


@pytest.fixture(scope="session")
def told(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the run."""
    return request.config.stash.setdefault(LINES, [])


@pytest.fixture(scope="session", autouse=True)
def trials(request: pytest.FixtureRequest) -> Iterator[Mapping[tuple[str, str], Future[Verdict]]]:
    """What will become of each specimen that a chosen test asks for: begun at once, while other tests run."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = [(kind, p[kind]) for kind in KINDS for p in parameters if kind in p]
    if not wanted:
        yield {}
        return
    from specimens.verdicts import try_specimen

    # More than there are cores: seven eighths of a suite's time on a backend in memory is waiting.
    with ProcessPoolExecutor(5, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield {(kind, what): pool.submit(try_specimen, kind, what) for kind, what in wanted}
        pool.shutdown(cancel_futures=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
