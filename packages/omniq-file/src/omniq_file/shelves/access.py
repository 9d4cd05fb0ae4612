"""How a bucket is found and entered: the settings that the shelves of object stores read."""

from __future__ import annotations

import re
from typing import Any, Self

import msgspec

from omniq_core import OptionError, Secret

__all__ = ["Access"]

_SEGMENT = re.compile(r"[^\x00-\x1f\x7f/\\?#*]+")


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bucket is, who we are there, and how long we wait. Its ``repr`` shows no secret.

    Empty text means: whatever the client library finds by itself, in the environment or its own configuration files.
    """

    bucket: str
    prefix: str = ""
    """What the names of all our objects begin with, without a slash at its ends."""
    endpoint_url: str = ""
    """The server, for anything but the cloud's own: ``http://127.0.0.1:9000``."""
    create_bucket: bool = False
    """Make the bucket if it is missing. Not by default: a mistyped name should be an error and not a new bucket."""
    endpoint_is_durable: bool = False
    """You know that the server at ``endpoint_url`` keeps what it has acknowledged. Nobody can see it from outside."""
    single_process: bool = False
    """Take also a store that does not enforce exclusive creation, since no other process will use it."""

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
    """How long a connection may take, in seconds."""
    timeout_s: float = 10.0
    """How long one request may take in all, in seconds; then it is given up."""
    poll_interval_s: float = 1.0
    """How often somebody who waits looks for new objects, in seconds: no object store tells of them."""
    connections: int = 32
    """Most connections at once."""

    def __post_init__(self) -> None:
        if not self.bucket or not _SEGMENT.fullmatch(self.bucket) or self.bucket in (".", ".."):
            raise OptionError(
                f"the URL of an object store names a bucket after its scheme, got {self.bucket!r}"
            )
        for segment in self.prefix.split("/") if self.prefix else ():
            if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
                raise OptionError(
                    f"the path in bucket {self.bucket!r} must be words joined by '/', without '.', '..', "
                    f"control characters, or any of \\ ? # *; got {self.prefix!r}"
                )
        if len(self.prefix.encode()) > 512:
            raise OptionError("the path in a bucket must be at most 512 bytes long")
        if min(self.connect_timeout_s, self.timeout_s, self.poll_interval_s) <= 0 or self.connections < 1:
            raise OptionError(
                "connect_timeout_s, timeout_s and poll_interval_s must be above 0, and connections at least 1"
            )

    @classmethod
    def of(cls, options: Any, *, bucket: str, prefix: str) -> Self:
        """The settings of the same names in a backend's options; the place in them is given apart."""
        names = [
            field.name for field in msgspec.structs.fields(cls) if field.name not in ("bucket", "prefix")
        ]
        given = {name: getattr(options, name) for name in names if hasattr(options, name)}
        # None is an option that was left out.
        return cls(
            bucket=bucket,
            prefix=prefix,
            **{name: value for name, value in given.items() if value is not None},
        )
