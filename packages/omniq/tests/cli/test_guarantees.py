"""``omniq check`` tells what a mix loses in which accident, and a starting worker warns of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from omniq import OmniQ

oq = OmniQ("sqlite:///weak.db?synchronous=NORMAL")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weak_app.py").write_text(PROGRAM)
    return tmp_path


def omniq(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "omniq", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )


def test_check_prints_what_is_lost_when_and_says_it_as_data_too(folder: Path) -> None:
    told = omniq(folder, "check", "weak_app:oq")
    assert told.returncode == 0, told.stderr
    assert "if the power is cut, lost: tasks window, results window" in told.stdout
    assert "if a worker is killed, lost: tasks none, results none" in told.stdout
    data = json.loads(omniq(folder, "check", "weak_app:oq", "--json").stdout)
    [cut] = [
        accident for accident in data["guarantees"]["accidents"] if accident["name"] == "the power is cut"
    ]
    assert cut["tasks"] == "window"


def test_a_worker_that_starts_warns_of_what_may_be_lost(folder: Path) -> None:
    told = omniq(folder, "worker", "weak_app:oq", "--burst")
    assert told.returncode == 0, told.stderr
    assert "WARNING omniq.worker: if the power is cut, the last acknowledged tasks are lost" in told.stderr
