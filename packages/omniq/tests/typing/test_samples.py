"""The users' programs of tests/typing, before both type checkers: what they must accept and what they must find."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
SAMPLES = ROOT / "tests" / "typing"
IGNORE = re.compile(r"  # type: ignore\[[\w-]+\]")

Complaints = set[tuple[str, int]]
"""The name of a file, and a line of it."""


def mypy(accepted: Path, refused: Path) -> Complaints:
    """About which lines mypy --strict complains."""
    config = str(ROOT / "pyproject.toml")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", config, str(accepted), str(refused)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {(found[1], int(found[2])) for found in re.finditer(r"(\w+\.py):(\d+): error", done.stdout)}


def pyright(accepted: Path, refused: Path) -> Complaints:
    """About which lines pyright complains."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson",
            str(accepted), str(refused),
        ],
        cwd=refused.parent,
        capture_output=True,
        text=True,
        timeout=170,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["summary"]["filesAnalyzed"] == 2, done.stdout
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
        for found in answer["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.fixture(scope="module", params=[mypy, pyright])
def complaints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Complaints:
    """Of one checker, about both programs: to look at the library for each of them took twice as long. From ``refused.py``
    was taken away what says that its mistakes are meant."""
    checker: Callable[[Path, Path], Complaints] = request.param
    bare = tmp_path_factory.mktemp("bare") / "refused.py"
    lines = (SAMPLES / "refused.py").read_text().splitlines()
    bare.write_text("\n".join(IGNORE.sub("", line) for line in lines) + "\n")
    return checker(SAMPLES / "accepted.py", bare)


def test_a_right_program_is_accepted(complaints: Complaints) -> None:
    assert {line for name, line in complaints if name != "refused.py"} == set()


def test_every_mistake_is_found_and_nothing_else(complaints: Complaints) -> None:
    lines = (SAMPLES / "refused.py").read_text().splitlines()
    mistakes = {number for number, line in enumerate(lines, start=1) if IGNORE.search(line)}
    assert len(mistakes) == 16
    assert {line for name, line in complaints if name == "refused.py"} == mistakes
