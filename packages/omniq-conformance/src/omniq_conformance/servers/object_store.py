"""What the object stores have in common: they speak HTTP, and tests need buckets of their own in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from omniq_conformance.servers.base import LOOPBACK, Profile, Server, ServerError


class Response(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ObjectStore(Server):
    """A server of objects in buckets (Azure says containers).

    There is no profile ``durable``: none of the servers that come from wheels syncs what it acknowledges.
    """

    durable = MappingProxyType({})

    def __init__(
        self,
        profile: Profile = "default",
        *,
        settings: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        external: str | None = None,
    ) -> None:
        """Nothing runs yet. `settings` are options of the server's command line."""
        if profile == "durable":
            raise ServerError(
                f"{self.kind} has no durable profile: the server for tests loses data in a power cut"
            )
        super().__init__(profile, settings=settings, env=env, external=external)

    @property
    def endpoint(self) -> str:
        """The URL without name and password: what clients call the endpoint."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def login(self) -> tuple[str, str]:
        """The name (of an account, or of an access key) and the secret; both empty where nobody is asked for any."""
        parts = urlsplit(self.url)
        return unquote(parts.username or ""), unquote(parts.password or "")

    @abstractmethod
    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""

    @abstractmethod
    def drop_bucket(self, name: str) -> None:
        """Remove a bucket and all that is in it. Does nothing if there is none."""

    def setting(self, name: str) -> str:
        raise ServerError(f"{self.kind} tells no settings")

    def ping(self, timeout: float = 1.0) -> bool:
        try:
            # It may want to know who asks: that too is an answer in its own protocol.
            return self.request("GET", self._greeting(), timeout=timeout).status in (200, 400, 403)
        except (OSError, HTTPException):
            return False

    def _greeting(self) -> str:
        return "/"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        timeout: float = 10.0,
    ) -> Response:
        """One plain request on a connection of its own, not signed.

        Raises:
            OSError, http.client.HTTPException: no answer.
        """
        url = urlsplit(self.url)
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection: Any = kind(url.hostname or LOOPBACK, url.port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()
