"""Azure's blob storage: no wheel has a server for it, so one is used only where the environment names it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

from omniq_conformance.servers.base import MissingServer, Profile
from omniq_conformance.servers.object_store import ObjectStore

DEVELOPMENT: Final = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
"""The account of every Azurite, with the key that Microsoft has published for it."""


class AzureEndpoint(ObjectStore):
    """The blob storage at ``OMNIQ_TEST_AZURE_ENDPOINT``: Azurite, or an account at Azure.

    The variable is a URL with the account in its path, ``http://127.0.0.1:10000/devstoreaccount1``; name and key come before
    the host, ``https://name:key@name.blob.core.windows.net``, and are those of Azurite's own account if there are none. To
    have one here: ``npm install azurite``, then ``npx azurite-blob --inMemoryPersistence --skipApiVersionCheck``.
    """

    kind = "azure"
    variable = "OMNIQ_TEST_AZURE_ENDPOINT"

    @classmethod
    def from_env(cls, profile: Profile = "default", *, settings: Mapping[str, str] | None = None) -> Self:
        external = os.environ.get(cls.variable) or None
        if external and "@" not in urlsplit(external).netloc:
            name, key = DEVELOPMENT
            external = external.replace("://", f"://{name}:{quote(key, safe='')}@", 1)
        return cls(profile, settings=settings, external=external)

    @property
    def is_named(self) -> bool:
        """Whether there is one at all."""
        return not self.is_ours

    def _missing(self) -> MissingServer:
        return MissingServer(
            f"no wheel has a server for Azure's blob storage: name a running one in {self.variable}, such as "
            "http://127.0.0.1:10000/devstoreaccount1 (npx azurite-blob --inMemoryPersistence)"
        )

    def _prepare(self, folder: Path) -> None:
        raise self._missing()

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        raise self._missing()

    def _url(self, port: int) -> str:
        raise self._missing()

    def _greeting(self) -> str:
        return f"{urlsplit(self.url).path}?comp=list"

    def _ask_version(self) -> str:
        return self.request("GET", self._greeting()).headers.get("Server", "unknown")

    def client(self) -> Any:
        """A client of azure-storage-blob, for a look or a clean-up."""
        try:
            from azure.storage.blob import BlobServiceClient
        except ImportError as error:
            raise MissingServer("Azure for tests needs: pip install azure-storage-blob") from error
        name, key = self.login
        return BlobServiceClient(self.endpoint, credential={"account_name": name, "account_key": key})

    def make_bucket(self, name: str) -> None:
        with self.client() as client:
            client.create_container(name)

    def drop_bucket(self, name: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        with self.client() as client:
            try:
                client.delete_container(name)
            except ResourceNotFoundError:
                pass
