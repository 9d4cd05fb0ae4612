"""Where a bucket is, and who we are there: hostile names stay data, and secrets stay secret."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from omniq_core import OmniQError, OptionError, Secret, TaskRecord, TaskState
from omniq_file import FileBackend
from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.store_errors import StoreError
from omniq_file.shelves.store_options import StoreOptions

pytestmark = pytest.mark.slow  # on real servers

Run = Callable[[Coroutine[Any, Any, None]], None]
SECRET = "hunter2aGVsbG8gd29ybGQ"
"""Looks like base64, which some of the clients decode."""


@pytest.mark.parametrize("bucket", ["", ".", "..", "a/b", "a b\0", "a\r\nb", "a?b", "a#b", "a*b", "a\\b"])
def test_a_bucket_that_is_no_name_is_refused(bucket: str) -> None:
    with pytest.raises(OptionError, match="names a bucket"):
        Bucket(bucket)


@pytest.mark.parametrize(
    "prefix",
    [
        "..",
        "../x",
        "a/../b",
        "a/./b",
        "a//b",
        "/a",
        "a/",
        "a\0",
        "a\r\nb",
        "a?b",
        "a#b",
        "a*",
        "a\\b",
        "x" * 513,
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(prefix: str) -> None:
    with pytest.raises(OptionError, match="path in"):
        Bucket("b", prefix)


@pytest.mark.parametrize(
    "prefix",
    ["", "plain", "a b/c+d", "ümläut/%2e%2e", "a&b=c", "...", "/".join(["x" * 127] * 4), "é%2F%00/$;,:@!'()"],
)
def test_an_odd_path_is_data_and_two_that_look_alike_are_two(place: Any, run: Run, prefix: str) -> None:
    other = prefix.replace("%2e", ".").replace("%2F", "!") + "z" if len(prefix) < 512 else prefix[:-1]

    async def main() -> None:
        async with place.opened(prefix=prefix) as one, place.opened(prefix=other) as two:
            assert await one.create("log/1", b"one")
            assert await two.create("log/1", b"two")
            assert await one.read("log/1") == b"one"
            assert list(await one.list("log")) == ["log/1"]
            await two.delete(["log/1"])
            assert await one.read("log/1") == b"one"
            assert await one.create("log/2", b"")
            assert list(await one.list("log", after="log/1")) == ["log/2"]

    run(main())


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 0}, {"connect_timeout_s": -1}, {"poll_interval_s": 0}, {"connections": 0}]
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="above 0"):
        FileBackend(base_dir="s3://b", **settings)


def test_no_secret_is_shown_by_a_repr_a_log_or_an_error(
    place: Any, run: Run, caplog: pytest.LogCaptureFixture, server_proxy: Any
) -> None:
    secrets: dict[str, Any] = {
        "s3": {"key": Secret(f"{SECRET}K"), "secret": Secret(f"{SECRET}S"), "token": Secret(f"{SECRET}T")},
        "gcs": {
            "token": Secret(f'{{"client_id": "i", "client_secret": "{SECRET}", "refresh_token": "{SECRET}"}}')
        },
        "azure": {"account_key": Secret(SECRET + "=="), "sas_token": Secret(f"sig={SECRET}")},
    }
    shown: list[str] = []

    async def main(**settings: Any) -> None:
        shelf = place.shelf(**secrets[place.kind], **settings)
        shown.extend(
            [
                repr(shelf._bucket),
                repr(shelf._options),
                str(shelf._options),
                repr(shelf.facts),
                repr(shelf.findings()),
            ]
        )
        try:
            await shelf.open(create=False)
        except (OmniQError, StoreError) as error:
            shown.extend(traceback.format_exception(error))
            shown.append(repr(error))
        finally:
            await shelf.close()

    with caplog.at_level(logging.INFO):
        run(main(bucket="not-there"))
        run(main(bucket="not-there-either", endpoint_url="http://127.0.0.1:9"))
        proxy = server_proxy(place.server)
        proxy.half_open()
        run(main(bucket="not-there", endpoint_url=proxy.url_for(place.server.endpoint), timeout_s=0.3))
    text = "\n".join(shown) + caplog.text
    assert "not-there" in text
    assert SECRET not in text


@pytest.mark.parametrize("kind", ["connection_string", "sas_token"])
def test_azure_shows_neither_a_connection_string_nor_a_signature(kind: str, run: Run) -> None:
    from omniq_file.shelves.azure import AzureShelf

    given = {
        "connection_string": "DefaultEndpointsProtocol=http;AccountName=me;AccountKey=" + SECRET + "==;"
        "BlobEndpoint=http://127.0.0.1:9/me;",
        "sas_token": f"?sv=2024&sig={SECRET}",
    }[kind]
    where = {} if kind == "connection_string" else {"endpoint_url": "http://127.0.0.1:9/me"}
    shelf = AzureShelf(Bucket("b"), StoreOptions(**{kind: Secret(given)}, **where))

    async def main() -> None:
        with pytest.raises(StoreError) as failed:
            await shelf.open(create=False)
        text = "".join(traceback.format_exception(failed.value)) + repr(shelf.facts)
        assert "127.0.0.1:9/me" in text
        assert SECRET not in text

    run(main())


@pytest.mark.parametrize(
    "option", ["key", "secret", "token", "account_key", "sas_token", "connection_string"]
)
def test_a_wrong_url_is_shown_without_the_secret_in_it(option: str) -> None:
    for url in (f"s3://b/p?{option}={SECRET}&no_such_option=1", f"s3://b/p?{option}={SECRET}&timeout_s=x"):
        with pytest.raises(OptionError) as refused:
            FileBackend.from_url(url)
        assert "s3://b/p" in str(refused.value)
        assert SECRET not in "".join(traceback.format_exception(refused.value))
    backend = FileBackend.from_url(f"s3://b/p?{option}={SECRET}")
    assert (
        SECRET
        not in repr(backend) + repr(backend.options) + repr(dict(backend.config)) + backend.options.describe()
    )
    named = FileBackend(base_dir="s3://b/p", storage_options={option: SECRET})
    assert (
        SECRET not in repr(named) + repr(named.options) + repr(dict(named.config)) + named.options.describe()
    )


@pytest.mark.parametrize(
    "project",
    ["../../x", "*", "a/b", "A", "a", "nul\0", "cr\r\nlf", "ü" * 300, "%2e%2e", "..", "x?y#z", "back\\slash"],
)
def test_a_hostile_project_name_stays_in_its_own_folder(place: Any, run: Run, project: str) -> None:
    async def main() -> None:
        async with (
            FileBackend.from_url(place.url(), project_name=project) as one,
            FileBackend.from_url(place.url(), project_name=f"{project}x") as two,
        ):
            for backend in (one, two):
                await backend.queue().enqueue([TaskRecord(id="same", queue=project, name="w", body=b"x")])
            [found] = await one.queue().claim(
                [project], max_tasks=5, lease_s=60, worker_id="w", claim_id=str(uuid.uuid4())
            )
            assert (found.task_id, found.queue) == ("same", project)
            [other] = await two.queue().get(["same"])
            assert other is not None
            assert other.state is TaskState.PENDING
        async with place.opened(prefix="") as everything:
            assert {name.split("/")[:2] == ["some", "where"] for name in await everything.list("some")} == {
                True
            }
            names = await everything.list("some", limit=1000)
            assert len({name.split("/")[2] for name in names} - {"probe"}) == 2

    run(main())


def test_importing_the_backend_imports_no_client_of_an_object_store() -> None:
    code = """
import sys
import omniq_file
import omniq_file.shelves.s3, omniq_file.shelves.gcs, omniq_file.shelves.azure
for name in ("s3fs", "gcsfs", "adlfs", "botocore", "aiobotocore", "azure", "google.auth", "aiohttp", "requests"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
