"""The file backend is held to the same suite as every other: here on a local disk and in fsspec's memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from omniq_conformance import BackendSuite, Env
from omniq_file import FileBackend

pytestmark = pytest.mark.slow  # every call is a file


class TestLocalDisk(BackendSuite):
    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[FileBackend]:
        yield FileBackend(base_dir=str(env.tmp_path / "q"), clock=env.clock)

    def url_for(self, env: Env) -> str:
        return f"file://{env.tmp_path}/q"


class TestMemory(BackendSuite):
    histories = 5  # the same code above the shelf has thirty on a local disk

    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[FileBackend]:
        yield FileBackend(base_dir=f"memory://{env.namespace}", clock=env.clock)

    def url_for(self, env: Env) -> str:
        return f"memory://{env.namespace}"
