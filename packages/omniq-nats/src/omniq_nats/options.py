"""The settings of the NATS backend."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import ClassVar

from omniq_core import BackendOptions, OptionError, Secret, Url

__all__ = ["NatsOptions"]

PORT = 4222


class NatsOptions(BackendOptions, frozen=True, kw_only=True):
    """Settings of the NATS backend; also the options of its URLs."""

    # --- where the servers are ---
    servers: str | list[str] = "localhost:4222"
    """One server or several of one cluster, ``host:port``; in text with commas between them. In a URL they stand where the
    host does. Those that a server tells of are tried as well."""

    # --- who we are ---
    username: str | None = None
    password: Secret | None = None
    token: Secret | None = None
    nkey_seed: Secret | None = None
    """An nkey's seed (``SU…``): it signs the server's challenge. Needs the package ``nkeys``."""
    credentials_file: str = ""
    """A ``.creds`` file: a JWT and a seed. Needs the package ``nkeys``."""
    client_name: str = "omniq"
    """What the server's monitoring shows."""

    # --- encryption ---
    tls: bool = False
    """Encrypt (``tls://``); also done where the server asks for it. Its certificate and name are verified."""
    tls_handshake_first: bool = False
    """For servers that want the handshake before they say anything."""
    tls_ca_file: str = ""
    """Certificates to trust instead of the system's."""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    """Our own certificate, for servers that ask clients for one."""
    tls_hostname: str = ""
    """The name in the servers' certificate, where it is another than the one that we connect to."""

    # --- time ---
    connect_timeout_s: float = 5.0
    """How long reaching and greeting a server may take, over all of them, in seconds."""
    timeout_s: float = 10.0
    """How long an answer may take, in seconds."""

    # --- how tasks are kept ---
    replicas: int = 1
    """On how many servers of the cluster each stream is kept, when it is made: 1, 3 or 5."""
    retention_s: float = 3600.0
    """How long finished tasks, and results without a time to live, are kept, in seconds. A known id is a ``DUPLICATE`` so
    long."""
    max_events: int = 1_000_000
    """How many events are kept; the oldest go first."""
    monitoring_url: str = ""
    """``http://host:8222`` of a server: then ``check()`` can tell how often it syncs its files."""

    aliases: ClassVar[Mapping[str, str]] = {
        "url": "servers",
        "user": "username",
        "name": "client_name",
        "num_replicas": "replicas",
        "user_credentials": "credentials_file",
        "connect_timeout": "connect_timeout_s",
    }

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        if url.path.strip("/"):
            raise OptionError(f"{url} has a path, which means nothing to NATS; use ?project_name=")
        fields: dict[str, object] = {"servers": url.netloc.rpartition("@")[2] or None}
        if url.username and url.password is None:
            fields["token"] = Secret(url.username)
        else:
            fields |= {"username": url.username, "password": url.password}
        if url.scheme == "tls":
            fields["tls"] = True
        return fields

    def __post_init__(self) -> None:
        if self.connect_timeout_s <= 0 or self.timeout_s <= 0:
            raise ValueError("connect_timeout_s and timeout_s must be above 0")
        if self.retention_s < 0 or self.max_events < 1:
            raise ValueError("retention_s must not be negative, and max_events must be at least 1")
        if not 1 <= self.replicas <= 5:
            raise ValueError("replicas must be from 1 to 5")
        ways = [
            self.password is not None,
            self.token is not None,
            self.nkey_seed is not None,
            bool(self.credentials_file),
        ]
        if sum(ways) > 1:
            raise ValueError("give one of password, token, nkey_seed and credentials_file")
        if self.tls_key_file and not self.tls_cert_file:
            raise ValueError("tls_key_file needs tls_cert_file")
        if not self.addresses:
            raise ValueError("servers names no server")

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Where to knock."""
        given = self.servers.split(",") if isinstance(self.servers, str) else self.servers
        return [_address(text) for text in given if text.strip()]

    def ssl_context(self) -> ssl.SSLContext:
        """How to encrypt; reads the files that the settings name."""
        context = ssl.create_default_context(cafile=self.tls_ca_file or None)
        if self.tls_cert_file:
            context.load_cert_chain(self.tls_cert_file, self.tls_key_file or None)
        return context

    def describe(self) -> str:
        places = ",".join(f"{host}:{port}" for host, port in self.addresses)
        return f"{'tls' if self.tls else 'nats'}://{places} project {self.project_name}"


def _address(text: str) -> tuple[str, int]:
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        rest = scheme
    elif scheme not in ("nats", "tls"):
        raise ValueError(f"servers are host:port, nats:// or tls://, got {scheme}://")
    if "@" in rest:
        raise ValueError("servers hold no credentials: use username and password, or token")
    rest = rest.rstrip("/")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, port = rest, str(PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"servers are host:port, got {rest!r}")
    return host.strip("[]"), int(port)
