"""The memory backend is held to the same suite as every other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from omniq_conformance import BackendSuite, Env
from omniq_memory import MemoryBackend


class TestMemory(BackendSuite):
    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[MemoryBackend]:
        yield MemoryBackend(name=env.namespace, clock=env.clock)

    def url_for(self, env: Env) -> str:
        return f"memory://{env.namespace}"
