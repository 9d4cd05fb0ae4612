"""The users' programs of tests/typing, before both type checkers: what they must accept and what they must find."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SAMPLES = ROOT / "tests" / "typing"
IGNORE = re.compile(r"  # type: ignore\[[\w-]+\]")


def mypy(path: Path) -> set[int]:
    """The lines about which mypy --strict complains."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(found[1]) for found in re.finditer(rf"{path.name}:(\d+): error", done.stdout)}


def pyright(path: Path) -> set[int]:
    """The lines about which pyright complains."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(path)],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=170,
    )
    answer = json.loads(done.stdout)
    return {
        found["range"]["start"]["line"] + 1
        for found in answer["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_right_program_is_accepted(checker: type) -> None:
    assert checker(SAMPLES / "accepted.py") == set()


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_every_mistake_is_found_and_nothing_else(checker: type, tmp_path: Path) -> None:
    lines = (SAMPLES / "refused.py").read_text().splitlines()
    bare = tmp_path / "refused.py"
    bare.write_text("\n".join(IGNORE.sub("", line) for line in lines) + "\n")
    mistakes = {number for number, line in enumerate(lines, start=1) if IGNORE.search(line)}
    assert len(mistakes) == 16
    assert checker(bare) == mistakes
