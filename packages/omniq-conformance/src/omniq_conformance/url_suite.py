"""A suite for people who only have a URL: what ``python -m omniq_conformance run`` gives to pytest."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from omniq_conformance.bench import NotOffered
from omniq_conformance.env import Env
from omniq_conformance.suite import BackendSuite
from omniq_core import Backend, Url, backend_class

VARIABLE = "OMNIQ_CONFORMANCE_URL"
FOLDER = ".conformance"
"""Ends the name of the folder beside a storage that is a path: every test gets a place of its own in it."""


def folder_of(url: str) -> Path | None:
    """Where the tests of a storage that is a path work; ``None`` for a server."""
    parsed = Url.parse(url)
    return None if parsed.netloc or len(parsed.path) < 2 else Path(parsed.path[1:] + FOLDER)


class TestUrl(BackendSuite):
    """The backend of a URL, each test in a project (or beside the path) of its own."""

    short_lease_s = float(os.environ.get("OMNIQ_CONFORMANCE_LEASE_S", "0.3"))
    timeout_s = float(os.environ.get("OMNIQ_CONFORMANCE_TIMEOUT_S", "10"))

    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[Backend]:
        firsts: dict[str, Backend] = self.__dict__.setdefault("firsts", {})
        first = firsts.get(env.namespace)
        if first is not None:
            yield first.twin()
            return
        url = self.url_for(env)
        firsts[env.namespace] = backend_class(Url.parse(url).scheme).from_url(url, clock=env.clock)
        yield firsts[env.namespace]

    def transaction(self, env: Env) -> AbstractAsyncContextManager[object]:
        raise NotOffered("transaction(), which a URL alone does not give", needed=True)

    def url_for(self, env: Env) -> str:
        url, _, query = os.environ[VARIABLE].partition("?")
        folder = folder_of(url)
        if folder is not None:
            (folder / env.namespace).mkdir(parents=True, exist_ok=True)
            url = f"{url}{FOLDER}/{env.namespace}/{url.rpartition('/')[2]}"
        return f"{url}?{query}{'&' if query else ''}project_name={env.namespace}"
