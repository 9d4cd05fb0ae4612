"""The suite, on real servers: Valkey 9 and Redis 8, with the settings that lose nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from omniq_conformance import BackendSuite, Env
from omniq_conformance.servers import RedisServer, ValkeyServer
from omniq_core import Backend
from omniq_redis import RedisBackend
from omniq_redis.errors import CannotConnect, ConnectionLost, NoAnswer, Refused

pytestmark = pytest.mark.slow  # on real servers


class OnRedis(BackendSuite):
    __test__ = False
    server: ClassVar[RedisServer | ValkeyServer]

    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[Backend]:
        yield RedisBackend.from_url(self.url_for(env), clock=env.clock)

    def url_for(self, env: Env) -> str:
        return f"{self.server.url}?project_name={env.namespace}"

    async def restart(self, env: Env) -> None:
        if not self.server.is_ours:
            raise NotImplementedError
        self.server.kill()
        self.server.start()

    async def drop_connections(self, env: Env) -> None:
        self.server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.server.command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")

    def native_errors(self) -> Mapping[BaseException, str]:
        return {
            CannotConnect("refused"): "unavailable",
            ConnectionLost("reset"): "unknown_effect",
            NoAnswer("silent"): "unknown_effect",
            Refused("LOADING Redis is loading the dataset in memory"): "unavailable",
            Refused("READONLY You can't write against a read only replica."): "unavailable",
            Refused("CLUSTERDOWN The cluster is down"): "unavailable",
            Refused("BUSY Redis is busy running a script."): "unavailable",
            Refused("OOM command not allowed when used memory > 'maxmemory'."): "exhausted",
            Refused("MISCONF Errors writing to the AOF file"): "exhausted",
            Refused("ERR max number of clients reached"): "exhausted",
            Refused("NOAUTH Authentication required."): "permission",
            Refused("NOPERM this user has no permissions"): "permission",
            Refused("WRONGTYPE Operation against a key holding the wrong kind of value"): "corrupt",
            Refused("ERR user_script:1: something"): "unknown",
        }


class TestValkey(OnRedis):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, valkey_server_durable: ValkeyServer) -> None:
        cls.server = valkey_server_durable


class TestRedis(OnRedis):
    histories = 5  # the same scripts have thirty on Valkey

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, redis_server_durable: RedisServer) -> None:
        cls.server = redis_server_durable
