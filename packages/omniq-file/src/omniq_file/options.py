"""The settings of the file backend."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from omniq_core import OptionError, Secret, Url, redact
from omniq_core.options import suggest
from omniq_file.shelves.store_options import StoreOptions

__all__ = ["FileOptions", "Hidden"]

OF_FSSPEC: Mapping[str, str] = {
    "endpoint_url": "endpoint_url", "key": "key", "secret": "secret", "token": "token", "anon": "anon",
    "profile": "profile", "region": "region", "region_name": "region", "project": "cloud_project",
    "account_name": "account_name", "account_key": "account_key", "sas_token": "sas_token",
    "connection_string": "connection_string",
}  # fmt: skip
"""What fsspec's file systems call our settings."""


class Hidden(Mapping[str, Any]):
    """A mapping that shows its keys only: any of its values may be a secret."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{key!r}: '***'" for key in self._values) + "}"

    def __reduce__(self) -> Any:
        raise TypeError(
            "storage options are not pickled, as they may hold secrets; pass the place where they can be read"
        )


class FileOptions(StoreOptions, frozen=True, kw_only=True):
    """Where the files are, how carefully they are written, and how long things are kept; and those of object stores."""

    base_dir: str = "./omniq_data"
    """A folder, or the URL of one: ``s3://bucket/prefix``, ``gs://``, ``abfs://``, ``memory://name``. Each project has a
    folder of its own in it. Also spelled ``path``."""
    create_dirs: bool = True
    """Make the folder if it is missing (on object stores there are none; see ``create_bucket``)."""
    fsync: bool = True
    """Local disk: wait until it holds what is acknowledged. ``False`` is several times faster for single calls and
    risks everything at a power cut: what was acknowledged in the last half minute may be gone, and the log may be left
    unreadable. ``DURABLE`` is not declared then. Killed processes lose nothing either way."""
    allow_network_fs: bool = False
    """Take a folder on NFS, SMB and the like. They may show one machine an old view of what another has written."""

    retention_s: float = 86_400.0
    """How long finished tasks, and results without a time to live, are kept, in seconds."""
    max_finished: int = 100_000
    """Most finished tasks that are kept; the oldest go first. Each costs memory in every process."""
    max_events: int = 200_000
    """About how many events are kept; the oldest go first."""
    cache_mb: int = 32
    """Most memory for recently written and read files, in MiB, per process and log."""

    storage_options: Mapping[str, Any] | str = {}
    """The settings of object stores by fsspec's names; in a URL as JSON. For a storage that is none of ours: fsspec's own."""

    aliases: ClassVar[Mapping[str, str]] = {
        "path": "base_dir",
        "timeout": "timeout_s",
        "retention": "retention_s",
    }

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        if url.scheme != "file":
            return {"base_dir": f"{url.scheme}://{url.netloc}{url.path}"}
        if url.netloc not in ("", "localhost"):
            raise OptionError(
                f"file: a folder has no host, got {url.netloc!r} in {url}; write file:///var/lib/tasks (three slashes), and "
                "FileBackend(base_dir='tasks') for a relative path"
            )
        path = "/" + url.path.lstrip("/")
        if path == "/":
            if "base_dir" in url.query:
                return {}
            raise OptionError("file: the URL names no folder; write file:///var/lib/tasks")
        return {"base_dir": path}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.base_dir.strip() or "\0" in self.base_dir:
            raise ValueError(f"base_dir must name a folder or its URL, got {self.base_dir!r}")
        if self.retention_s < 0 or self.max_finished < 0 or self.max_events < 1 or self.cache_mb < 1:
            raise ValueError(
                "retention_s and max_finished must not be negative, max_events and cache_mb must be at least 1"
            )
        options = self.storage_options
        if isinstance(options, str):
            try:
                options = msgspec.json.decode(options, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise ValueError("storage_options as text must be a JSON object") from error
        if not isinstance(options, Hidden):
            options = Hidden(options)
            msgspec.structs.force_setattr(self, "storage_options", options)
        if self.scheme in OBJECT_STORES:
            self._take_fsspec_names(options)
        elif self.scheme in ("file", "memory") and options:
            raise ValueError(f"storage_options have no meaning for {self.scheme}://")

    def _take_fsspec_names(self, options: Hidden) -> None:
        client = options.get("client_kwargs", {})
        for name, value in {**options, **(client if isinstance(client, Mapping) else {})}.items():
            if name == "client_kwargs":
                continue
            ours = OF_FSSPEC.get(name)
            if ours is None:
                raise ValueError(f"storage_options: unknown setting {name!r}{suggest(name, list(OF_FSSPEC))}")
            is_secret = ours in ("key", "secret", "token", "account_key", "sas_token", "connection_string")
            if not isinstance(value, (bool if ours == "anon" else str)) and not (
                is_secret and isinstance(value, Secret)
            ):
                raise ValueError(
                    f"storage_options: {name!r} has a value of the wrong type, {type(value).__name__}"
                )
            msgspec.structs.force_setattr(
                self, ours, Secret(str(value) if isinstance(value, bool) else value) if is_secret else value
            )

    @property
    def hidden(self) -> Hidden:
        """``storage_options``."""
        assert isinstance(self.storage_options, Hidden)
        return self.storage_options

    @property
    def scheme(self) -> str:
        """``file`` for a plain path."""
        scheme, separator, _ = self.base_dir.partition("://")
        return scheme.lower() if separator else "file"

    @property
    def project_folder(self) -> str:
        """The name of the project's folder: one word that is safe in a path, and different for every project."""
        word = urllib.parse.quote(self.project_name, safe="")
        if word.startswith("."):
            word = "%2E" + word[1:]
        if len(word) > 150 or word != word.lower() or not word:
            # Some file systems take Capitals and small letters for the same.
            word = f"{word[:150]}.{hashlib.sha256(self.project_name.encode()).hexdigest()[:16]}"
        return word

    @property
    def place(self) -> str:
        """Where the project's files are: an absolute path, or a URL."""
        if self.scheme != "file":
            rest = self.base_dir.partition("://")[2]
            return f"{self.scheme}://{rest.rstrip('/')}/{self.project_folder}"
        path = self.base_dir.removeprefix("file://") if "://" in self.base_dir else self.base_dir
        return os.path.join(os.path.abspath(path), self.project_folder)

    def describe(self) -> str:
        if self.scheme != "file":
            return f"{redact(self.base_dir)} project {self.project_name}"
        return f"file://{os.path.abspath(self.base_dir.removeprefix('file://'))} project {self.project_name}"


OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
