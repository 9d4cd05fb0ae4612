"""Buckets on real servers, and shelves in them."""

from __future__ import annotations

import asyncio
import gc
import secrets
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from omniq_conformance.servers import ObjectStore, fresh_bucket
from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by name
from omniq_core import Secret
from omniq_file.shelves.azure import AzureShelf
from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.gcs import GCSShelf
from omniq_file.shelves.in_process import InProcessShelf
from omniq_file.shelves.local import LocalShelf
from omniq_file.shelves.objects import ObjectShelf
from omniq_file.shelves.s3 import S3Shelf
from omniq_file.shelves.shelf import Shelf
from omniq_file.shelves.store_options import StoreOptions

SHELVES: dict[str, tuple[type[ObjectShelf], str]] = {
    "s3": (S3Shelf, "s3_server"),
    "gcs": (GCSShelf, "gcs_server"),
    "azure": (AzureShelf, "azure_endpoint"),
}


def options(server: ObjectStore, **settings: Any) -> StoreOptions:
    """How to enter a test server."""
    name, secret = server.login
    if server.kind == "s3":
        settings = {"key": Secret(name), "secret": Secret(secret)} | settings
    elif server.kind == "azure":
        settings = {"account_name": name, "account_key": Secret(secret)} | settings
    return StoreOptions(**({"endpoint_url": server.endpoint} | settings))


class Place:
    """A bucket of one test, on one kind of store."""

    def __init__(self, kind: str, server: ObjectStore, bucket: str) -> None:
        self.kind, self.server, self.bucket = kind, server, bucket

    @property
    def code(self) -> str:
        """What another process executes to have such a shelf; it is called ``shelf``."""
        shelf = SHELVES[self.kind][0]
        given = msgspec.structs.asdict(options(self.server))
        shown = {k: f"Secret({v.reveal()!r})" if isinstance(v, Secret) else repr(v) for k, v in given.items()}
        return (
            f"from {shelf.__module__} import {shelf.__name__}\n"
            "from omniq_core import Secret\nfrom omniq_file.shelves.bucket import Bucket\n"
            "from omniq_file.shelves.store_options import StoreOptions\n"
            f"options = StoreOptions({', '.join(f'{k}={v}' for k, v in shown.items())})\n"
            f"shelf = {shelf.__name__}(Bucket({self.bucket!r}, 'some/where'), options)\n"
        )

    def shelf(self, *, bucket: str = "", prefix: str = "some/where", **settings: Any) -> ObjectShelf:
        """A shelf in the bucket that is not open yet."""
        return SHELVES[self.kind][0](Bucket(bucket or self.bucket, prefix), options(self.server, **settings))

    def url(self, endpoint: str = "", **settings: object) -> str:
        """The URL of a backend in the bucket."""
        name, secret = self.server.login
        who = {
            "s3": {"key": name, "secret": secret},
            "gcs": {},
            "azure": {"account_name": name, "account_key": secret},
        }
        given = {
            "endpoint_url": endpoint or self.server.endpoint,
            "poll_interval_s": 0.1,
            **who[self.kind],
            **settings,
        }
        scheme = {"s3": "s3", "gcs": "gs", "azure": "abfs"}[self.kind]
        return f"{scheme}://{self.bucket}/some/where?{urlencode(given)}"

    @asynccontextmanager
    async def opened(self, **settings: Any) -> AsyncIterator[ObjectShelf]:
        shelf = self.shelf(**settings)
        await shelf.open(create=True)
        try:
            yield shelf
        finally:
            await shelf.close()


@pytest.fixture(params=list(SHELVES))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A bucket, on each of the object stores in turn."""
    server: ObjectStore = request.getfixturevalue(SHELVES[request.param][1])
    with fresh_bucket(server) as bucket:
        try:
            yield Place(request.param, server, bucket)
        finally:
            if server.is_ours:
                server.start()  # a test may have frozen it, and failed


@pytest.fixture(params=["memory", "local", *SHELVES])
def new_shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Shelf]]:
    """Makes shelves in one place, which is on each storage in turn."""
    if request.param == "memory":
        folder = secrets.token_hex(8)
        yield lambda: InProcessShelf(f"memory://{folder}", {})
    elif request.param == "local":
        yield lambda: LocalShelf(str(tmp_path / "place"))
    else:
        server: ObjectStore = request.getfixturevalue(SHELVES[request.param][1])
        with fresh_bucket(server) as bucket:
            yield Place(request.param, server, bucket).shelf


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine, after which nothing may be left open: a session or socket that is fails the test."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            gc.freeze()  # what was there before is none of ours: the client libraries alone are 300,000 objects
            try:
                asyncio.run(coroutine)
                gc.collect()
            finally:
                gc.unfreeze()
        assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []

    return run
