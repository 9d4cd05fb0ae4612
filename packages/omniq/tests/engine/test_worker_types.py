"""The suite's checks of the worker types that come with omniq."""

from __future__ import annotations

import pytest

from omniq_conformance import WorkerSuite

pytestmark = pytest.mark.slow  # each test starts a worker process or two


class TestAsync(WorkerSuite):
    worker_type = "async"
    stops_plain_functions = False


class TestThreadPool(WorkerSuite):
    worker_type = "thread_pool"
    stops_plain_functions = False


class TestProcessPool(WorkerSuite):
    worker_type = "process_pool"
    stops_plain_functions = True
