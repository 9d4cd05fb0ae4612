"""The settings that the shelves of object stores read; the backend's options are these and more."""

from __future__ import annotations

from omniq_core import BackendOptions, Secret

__all__ = ["StoreOptions"]


class StoreOptions(BackendOptions, frozen=True, kw_only=True):
    """Where an object store is, who we are there, and how long we wait. Its ``repr`` shows no secret.

    Empty text means: whatever the client library finds by itself, in the environment or its own configuration files.
    """

    endpoint_url: str = ""
    """The server of an object store that is not the cloud's own: ``http://127.0.0.1:9000``."""
    endpoint_is_durable: bool = False
    """You know that this server keeps what it has acknowledged: ``DURABLE`` is declared. Nobody can see it from outside."""
    create_bucket: bool = False
    """Make the bucket if it is missing. Not by default: a mistyped name should be an error and not a new bucket."""
    single_process: bool = False
    """Only this process uses the place. Then also storages without exclusive creation are taken: any of fsspec's, and object
    stores that ignore the condition."""

    region: str = ""
    """S3, and where a new bucket is made on GCS."""
    profile: str = ""
    """S3: a profile of ``~/.aws``."""
    key: Secret | None = None
    """S3: the id of the access key."""
    secret: Secret | None = None
    token: Secret | None = None
    """S3: a session token. GCS: the path of a service account's file, its JSON, or a raw token."""
    anon: bool = False
    """Ask as nobody. On GCS also what an ``endpoint_url`` that is not Google's gets without a token."""
    cloud_project: str = ""
    """GCS: the project in which a new bucket is made."""
    account_name: str = ""
    """Azure."""
    account_key: Secret | None = None
    sas_token: Secret | None = None
    connection_string: Secret | None = None

    connect_timeout_s: float = 5.0
    """How long a connection to an object store may take, in seconds."""
    timeout_s: float = 10.0
    """How long a call on it may take in all, however often a request is repeated, and how long opening it may; in seconds."""
    poll_interval_s: float = 1.0
    """How often somebody who waits looks for new objects, in seconds: no object store tells of them."""
    connections: int = 32
    """Most connections to it at once."""

    def __post_init__(self) -> None:
        if min(self.connect_timeout_s, self.timeout_s, self.poll_interval_s) <= 0 or self.connections < 1:
            raise ValueError(
                "connect_timeout_s, timeout_s and poll_interval_s must be above 0, and connections at least 1"
            )
