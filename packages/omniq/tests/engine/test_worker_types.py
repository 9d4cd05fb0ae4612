"""The suite's checks of the worker types that come with omniq."""

from __future__ import annotations

from pathlib import Path

import pytest

from omniq_conformance import WorkerSuite

pytestmark = pytest.mark.slow  # each test starts a worker process or two


class OnSQLite(WorkerSuite):
    __test__ = False

    def url(self, folder: Path) -> str:
        return f"sqlite:///{folder}/tasks.db"


class TestAsync(OnSQLite):
    worker_type = "async"
    stops_plain_functions = False


class TestThreadPool(OnSQLite):
    worker_type = "thread_pool"
    stops_plain_functions = False


class TestProcessPool(OnSQLite):
    worker_type = "process_pool"
    stops_plain_functions = True
