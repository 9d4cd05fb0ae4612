"""What pytest loads in *every* run where this distribution is installed: so it is small and imports nothing of ours."""

import sys
from typing import Any

import pytest

pytest.register_assert_rewrite(
    "omniq_conformance.checks", "omniq_conformance.histories", "omniq_conformance.worker_suite"
)


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("omniq", "conformance of OmniQ backends")
    group.addoption("--omniq-report", metavar="FILE", help="write a conformance report as JSON")
    group.addoption(
        "--omniq-examples",
        type=int,
        metavar="N",
        help="random histories per suite, instead of 30 or of its own number",
    )
    group.addoption("--omniq-random", action="store_true", help="other random histories in each run")
    group.addoption("--omniq-allow-unavailable", action="store_true", help="a missing service is no failure")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    if "omniq_conformance.suite" in sys.modules:  # a test module that was collected has imported it
        from omniq_conformance.plugin import start

        start(config, items)
