"""The settings of the Redis backend."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import ClassVar

from omniq_core import BackendOptions, OptionError, Secret, Url

__all__ = ["RedisOptions"]


class RedisOptions(BackendOptions, frozen=True, kw_only=True):
    """Settings of the Redis backend; also the options of its URLs."""

    # --- where the server is ---
    host: str = "localhost"
    port: int = 6379
    nodes: str = ""
    """Several servers, ``host:port,host:port``: the seeds of a Cluster, or the Sentinels. In a URL they stand where the
    host does. Overrides ``host`` and ``port``."""
    socket_path: str = ""
    """A Unix socket, instead of host and port."""
    db: int = 0
    """The numbered database. A Cluster has only 0."""
    cluster: bool = False
    """The servers are a Redis Cluster. All keys of a project share one hash slot, so a project lives on one of its nodes;
    that one is found, and followed when it moves."""
    sentinel_master: str = ""
    """The name under which Sentinels watch the master; ``nodes`` (or ``host``) are then the Sentinels."""

    # --- who we are ---
    username: str | None = None
    """An ACL user. Without one the password is the server's (the user ``default``)."""
    password: Secret | None = None
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None
    """For the Sentinels themselves, where they ask for one."""
    client_name: str = "omniq"
    """What ``CLIENT LIST`` shows."""

    # --- encryption ---
    tls: bool = False
    """Encrypt (``rediss://``). The server's certificate and name are verified."""
    tls_ca_file: str = ""
    """Certificates to trust instead of the system's."""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    """Our own certificate, for servers that ask clients for one."""
    tls_check_hostname: bool = True
    """``False`` where the certificate names another host than the one that we connect to."""

    # --- time ---
    connect_timeout_s: float = 5.0
    """How long finding, reaching and greeting the server may take together, in seconds."""
    timeout_s: float = 10.0
    """How long the server may be silent while it owes us an answer, in seconds. Then the connection is given up."""

    # --- how long things are kept ---
    retention_s: float = 3600.0
    """How long finished tasks, and results without a time to live, are kept, in seconds. A known id is a ``DUPLICATE`` so
    long. Memory holds all of it."""
    max_events: int = 1_000_000
    """About how many events are kept; the oldest go first."""

    aliases: ClassVar[Mapping[str, str]] = {
        "user": "username",
        "ssl": "tls",
        "ssl_ca_certs": "tls_ca_file",
        "ssl_certfile": "tls_cert_file",
        "ssl_keyfile": "tls_key_file",
        "ssl_check_hostname": "tls_check_hostname",
        "socket_connect_timeout": "connect_timeout_s",
        "socket_timeout": "timeout_s",
    }

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        fields: dict[str, object] = {
            "host": url.host,
            "port": url.port,
            "username": url.username,
            "password": url.password,
        }
        hosts = url.netloc.rpartition("@")[2]
        if "," in hosts:
            fields |= {"host": None, "nodes": hosts}
        path = url.path.strip("/")
        if path:
            if not path.isdigit():
                raise OptionError(f"the path of {url} must be the number of a database, got {path!r}")
            fields["db"] = int(path)
        if url.scheme == "rediss":
            fields["tls"] = True
        return fields

    def __post_init__(self) -> None:
        if self.connect_timeout_s <= 0 or self.timeout_s <= 0:
            raise ValueError("connect_timeout_s and timeout_s must be above 0")
        if self.retention_s < 0 or self.max_events < 1:
            raise ValueError("retention_s must not be negative, and max_events must be at least 1")
        if self.db < 0 or not 0 < self.port < 65536:
            raise ValueError("db must not be negative, and port must be from 1 to 65535")
        if self.cluster and (self.db or self.sentinel_master):
            raise ValueError(
                "a Cluster has only database 0 and no Sentinels: drop db, sentinel_master, or cluster"
            )
        if self.tls_key_file and not self.tls_cert_file:
            raise ValueError("tls_key_file needs tls_cert_file")
        for node in self.nodes.split(",") if self.nodes else ():
            host, _, port = node.strip().rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"nodes are host:port, host:port ..., got {node.strip()!r}")

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where to knock first."""
        if not self.nodes:
            return [(self.host, self.port)]
        parts = [node.strip().rpartition(":") for node in self.nodes.split(",")]
        return [(host.strip("[]"), int(port)) for host, _, port in parts]

    def ssl_context(self) -> ssl.SSLContext | None:
        """How to encrypt; reads the files that the settings name."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca_file or None)
        context.check_hostname = self.tls_check_hostname
        if self.tls_cert_file:
            context.load_cert_chain(self.tls_cert_file, self.tls_key_file or None)
        return context

    def describe(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        place = self.socket_path or self.nodes or f"{self.host}:{self.port}"
        kind = (
            " (cluster)"
            if self.cluster
            else f" (sentinel: {self.sentinel_master})"
            if self.sentinel_master
            else ""
        )
        return f"{scheme}://{place}/{self.db} project {self.project_name}{kind}"
