"""The suite, on real servers of objects: S3 (moto) and Google Cloud Storage (fake-gcs-server); Azure where there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import ClassVar
from urllib.parse import urlencode

import pytest

from omniq_conformance import BackendSuite, Env
from omniq_conformance.servers import AzureEndpoint, GcsServer, ObjectStore, S3Server, fresh_name
from omniq_core import Backend
from omniq_file import FileBackend
from omniq_file.shelves.store_errors import CannotConnect, ConnectionLost, NoAnswer, Refused

pytestmark = pytest.mark.slow  # on real servers

SHARE = 10
"""How many namespaces lie in one bucket."""


class OnObjects(BackendSuite):
    __test__ = False
    server: ClassVar[ObjectStore]
    scheme: ClassVar[str]
    buckets: ClassVar[list[str]]
    places: ClassVar[dict[str, str]]
    """The bucket of each namespace. Some share one, as projects do, but few: the test servers read a whole bucket for each
    listing."""
    known: ClassVar[Mapping[str, str]] = {}
    """What the operator of that server knows about it."""
    timeout_s = 30.0
    """moto is a Python program that answers some two hundred requests in a second, on a machine that does nothing else."""
    histories = 5
    pytestmark: ClassVar[object] = pytest.mark.timeout(600)

    @asynccontextmanager
    async def backend(self, env: Env) -> AsyncIterator[Backend]:
        yield FileBackend.from_url(self.url_for(env), clock=env.clock)

    def url_for(self, env: Env) -> str:
        bucket = self.places.get(env.namespace)
        if bucket is None:
            if len(self.places) % SHARE == 0:
                self.buckets.append(fresh_name().replace("_", "-"))
                self.server.make_bucket(self.buckets[-1])
            bucket = self.places[env.namespace] = self.buckets[-1]
        name, secret = self.server.login
        who = {
            "s3": {"key": name, "secret": secret},
            "gs": {},
            "abfs": {"account_name": name, "account_key": secret},
        }[self.scheme]
        # Nothing tells of new objects: the tests look as often as the servers stand.
        settings = {
            "endpoint_url": self.server.endpoint,
            "poll_interval_s": "0.1",
            "project_name": env.namespace,
        }
        return f"{self.scheme}://{bucket}/suite?{urlencode({**settings, **who, **self.known})}"

    @classmethod
    @contextmanager
    def on(cls, server: ObjectStore) -> Iterator[None]:
        cls.server, cls.buckets, cls.places = server, [], {}
        yield
        if not server.is_ours:  # ours takes everything with it
            for bucket in cls.buckets:
                server.drop_bucket(bucket)

    def native_errors(self) -> Mapping[BaseException, str]:
        return {
            CannotConnect("refused"): "unavailable",
            ConnectionLost("reset"): "unknown_effect",
            NoAnswer("silent"): "unknown_effect",
            Refused("S3 answered 503 SlowDown", 503, "SlowDown"): "unavailable",
            Refused("GCS answered 429 rateLimitExceeded", 429, "rateLimitExceeded"): "unavailable",
            Refused("S3 answered 500 InternalError", 500, "InternalError"): "unknown_effect",
            Refused("S3 answered 403 AccessDenied", 403, "AccessDenied"): "permission",
            Refused("S3 answered 404 NoSuchBucket", 404, "NoSuchBucket"): "invalid",
            Refused("MinIO answered 507 XMinioStorageFull", 507, "XMinioStorageFull"): "exhausted",
        }


class TestS3(OnObjects):
    scheme = "s3"
    histories = 2  # the same code above the shelf has thirty on a local disk

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, s3_server: S3Server) -> Iterator[None]:
        with cls.on(s3_server):
            yield


class TestGCS(OnObjects):
    scheme = "gs"
    # Its process may be killed, as `restart` does; power cuts are not tried here.
    known: ClassVar[Mapping[str, str]] = {"endpoint_is_durable": "true"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, gcs_server: GcsServer) -> Iterator[None]:
        with cls.on(gcs_server):
            yield

    async def restart(self, env: Env) -> None:
        if not self.server.is_ours:
            raise NotImplementedError
        self.server.kill()
        self.server.start()


class TestAzure(OnObjects):
    # The suite takes a skip for a failure: without the variable there is no such class, and the test below is skipped.
    __test__ = AzureEndpoint.from_env().is_named
    scheme = "abfs"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, azure_endpoint: AzureEndpoint) -> Iterator[None]:
        with cls.on(azure_endpoint):
            yield


def test_the_suite_runs_on_azure_where_the_environment_names_one(azure_endpoint: AzureEndpoint) -> None:
    assert TestAzure.__test__
    assert azure_endpoint.ping()
