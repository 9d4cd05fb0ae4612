"""What the tests of this package share: real servers, and Python processes that gevent has patched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name

PATCH = "from omniq_gevent.cli import patch; patch(); from gevent import monkey\n"


@pytest.fixture
def patched() -> Callable[..., str]:
    """Runs a program in a process that is patched before anything else happens there; what it printed. Nothing may be
    written to stderr, unless it need not be ``quiet``."""

    def run(code: str, *arguments: str, first: str = PATCH, quiet: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-c", first + code, *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            env={**os.environ, "PYTHONPATH": ""},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert not (quiet and done.stderr), done.stderr
        return done.stdout.strip()

    return run
