"""Makes the specimens importable, tries them, and prints what became of them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

# `--import-mode=importlib` puts no folder of tests on the path.
sys.path.insert(0, str(Path(__file__).parent))

LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def told(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the run."""
    return request.config.stash.setdefault(LINES, [])


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Other processes to try specimens in: three of them, since most of the time they wait."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
