"""Real servers, shared by all tests of this package, and a few things that several files need."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name
from omniq_nats import NatsBackend, lines


@pytest.fixture
def project() -> str:
    """A project that no other test has."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def backend_at(project: str) -> Callable[..., NatsBackend]:
    """Makes backends of this test's project at a URL."""

    def make(url: str, **settings: object) -> NatsBackend:
        return NatsBackend.from_url(url, project_name=project, **settings)

    return make


@pytest.fixture
def hints_come_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is different then, and the check of a load need not wait for ten seconds."""
    monkeypatch.setattr(lines, "DEAL_S", 2)
