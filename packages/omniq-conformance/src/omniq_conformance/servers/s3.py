"""S3: moto's server, from a wheel."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omniq_conformance.servers.base import INSTALL, LOOPBACK, MissingServer, wheel_folder
from omniq_conformance.servers.object_store import ObjectStore


class S3Server(ObjectStore):
    """S3 as moto plays it, from the wheel ``moto[server]``. It keeps everything in memory.

    So unlike the other servers it comes back **empty** from :meth:`stop`, :meth:`kill` and :meth:`restart`: a test that
    wants the server gone and its data kept freezes it, or cuts the line with a :class:`Proxy`.

    ``settings={"if-none-match": "ignored"}`` makes it one of the stores that overwrite where they were asked to create.
    """

    kind = "s3"
    variable = "OMNIQ_TEST_S3_ENDPOINT"
    _client: Any = None

    def _prepare(self, folder: Path) -> None:
        wheel_folder("moto", "S3")
        wheel_folder("werkzeug", "S3")

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        words: list[str | Path] = [sys.executable, "-I", Path(__file__).with_name("_moto.py")]
        words += ["--host", LOOPBACK, "--port", str(port)]
        for name, value in self._settings.items():
            words += [f"--{name}", value]
        return words

    def _url(self, port: int) -> str:
        return f"http://test-key:test-secret@{LOOPBACK}:{port}"

    def _ask_version(self) -> str:
        return version("moto") if self.is_ours else self.request("GET", "/").headers.get("Server", "unknown")

    def client(self) -> Any:
        """A client of boto3, for a look or a clean-up; always the same, as making one takes a tenth of a second."""
        if self._client is None:
            self._client = self._new_client()
        return self._client

    def _new_client(self) -> Any:
        try:
            import boto3  # type: ignore[import-untyped]
            from botocore.config import Config  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingServer(f"S3 for tests needs boto3: {INSTALL}") from error
        key, secret = self.login
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(
                connect_timeout=5,
                read_timeout=10,
                retries={"max_attempts": 0},
                s3={"addressing_style": "path"},
            ),
        )

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def drop_bucket(self, name: str) -> None:
        client = self.client()
        try:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                if keys := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
                    client.delete_objects(Bucket=name, Delete={"Objects": keys, "Quiet": True})
            client.delete_bucket(Bucket=name)
        except client.exceptions.NoSuchBucket:
            pass
