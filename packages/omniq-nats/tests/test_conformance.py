"""The suite, on a real server, as it comes and with the setting that loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from omniq_conformance import BackendSuite, Env
from omniq_conformance.servers import NatsServer
from omniq_core import Backend
from omniq_nats import NatsBackend
from omniq_nats.errors import CannotConnect, ConnectionLost, Forbidden, NoAnswer, NotThere, Refused
from omniq_nats.subjects import Subjects

pytestmark = pytest.mark.slow  # on a real server


class TestNats(BackendSuite):
    server: ClassVar[NatsServer]
    used: ClassVar[Counter[str]] = Counter()

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, nats_server: NatsServer) -> None:
        cls.server = nats_server

    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[Backend]:
        self.used[env.namespace] += 1
        try:
            yield NatsBackend.from_url(self.url_for(env), clock=env.clock)
        finally:
            self.used[env.namespace] -= 1
            if not self.used[env.namespace]:  # a test may have several backends on its project
                names = Subjects(env.namespace)
                for name in (names.tasks, names.lines, names.claims, names.events):
                    self.server.api(f"STREAM.DELETE.{name}")

    def url_for(self, env: Env) -> str:
        return f"{self.server.url}?project_name={env.namespace}"

    async def restart(self, env: Env) -> None:
        if not self.server.is_ours:
            raise NotImplementedError
        self.server.kill()
        self.server.start()

    async def drop_connections(self, env: Env) -> None:
        self.server.drop_clients()

    def native_errors(self) -> Mapping[BaseException, str]:
        return {
            CannotConnect("refused"): "unavailable",
            NotThere("no responders"): "unavailable",
            ConnectionLost("reset"): "unknown_effect",
            NoAnswer("silent"): "unknown_effect",
            Forbidden("Authorization Violation"): "permission",
            Refused("Permissions Violation for Publish", 403): "permission",
            Refused("JetStream system temporarily unavailable", 503, 10008): "unavailable",
            Refused("too many requests", 429, 10167): "exhausted",
            Refused("insufficient resources", 503, 10023): "exhausted",
            Refused("something else", 400, 10003): "unknown",
        }
