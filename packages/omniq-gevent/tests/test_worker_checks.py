"""The suite's checks of the gevent worker type, as its command starts it: in a process that gevent has patched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from omniq_conformance import WorkerSuite

pytestmark = pytest.mark.slow  # each test starts a worker process or two


class TestGevent(WorkerSuite):
    worker_type = "gevent"
    command = (sys.executable, "-c", "from omniq_gevent.cli import main; main()")
    stops_plain_functions = True

    def url(self, folder: Path) -> str:
        return f"sqlite:///{folder}/tasks.db"
