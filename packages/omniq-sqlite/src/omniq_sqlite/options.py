"""The settings of the SQLite backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

from omniq_core import BackendOptions, OptionError, Url

__all__ = ["SQLiteOptions"]

_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")


class SQLiteOptions(BackendOptions, frozen=True, kw_only=True):
    """Where the file is, and how carefully it is written."""

    db_path: str | None = None
    """The file. ``None``: ``<base_dir>/<project_name>.db``. Also spelled ``path`` and ``database_path``."""
    base_dir: str = "."
    """The directory of the file when ``db_path`` is not given."""
    create_dirs: bool = True
    """Creates missing directories when the backend is opened."""
    synchronous: str = "FULL"
    """When SQLite waits for the disk (``PRAGMA synchronous``, set on every connection).

    ``FULL``: at every commit. Nothing acknowledged is lost when the power is cut: 0 of 2,744 acknowledged writes in our
    power-cut test. ``EXTRA``: the same in WAL mode, which is the only mode used here. ``NORMAL``: only at
    checkpoints, about every 16 MiB. A power cut loses what came since, 746 of 19,659 acknowledged writes in that
    test; the file stays whole. ``OFF``: never. A power cut may lose or *destroy* everything, and ``DURABLE`` is not
    declared. When only processes are killed, none of the four loses anything."""
    timeout: float = 30.0
    """Longest wait for another process's write to end, in seconds. Then the call fails, without an effect."""
    retention_s: float = 7 * 86400.0
    """How long finished tasks, and results without a time to live, are kept, in seconds."""
    migrate: bool = True
    """Whether ``open`` may create and change tables. If not, a file that needs it raises ``SchemaOutOfDate``."""
    allow_network_fs: bool = False
    """Opens a file on NFS, SMB and the like. Their locks and shared memory do not keep SQLite's promises."""
    cache_mb: int = 64
    """Most memory for pages of the file, in MiB, of the writing connection; the reading one has a quarter of it."""

    aliases: ClassVar[Mapping[str, str]] = {
        "path": "db_path",
        "database_path": "db_path",
        "timeout_s": "timeout",
        "retention": "retention_s",
    }

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        if url.netloc:
            raise OptionError(
                f"sqlite: a file has no host, got {url.netloc!r} in {url}; write sqlite:///tasks.db for a relative "
                "path and sqlite:////var/lib/tasks.db (four slashes) for an absolute one"
            )
        path = url.path.removeprefix("/")
        if not path and "base_dir" in url.query:
            return {}
        if not path:
            raise OptionError(
                "sqlite: the URL names no file; write sqlite:///tasks.db, or memory:// for tasks that need no file"
            )
        return {"db_path": path}

    def __post_init__(self) -> None:
        if self.db_path is not None:
            _check_path(self.db_path)
        elif (
            not self.project_name or set(self.project_name) & {"/", "\\", "\0"} or self.project_name[0] == "."
        ):
            raise ValueError(
                f"project_name is the file's name unless db_path is given, and {self.project_name!r} cannot be one"
            )
        if self.synchronous.upper() not in _SYNCHRONOUS:
            raise ValueError(
                f"synchronous must be one of {', '.join(_SYNCHRONOUS)}, got {self.synchronous!r}"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout must be positive, got {self.timeout!r} s")
        if not self.retention_s >= 0:
            raise ValueError(f"retention_s must not be negative, got {self.retention_s!r} s")
        if self.cache_mb < 1:
            raise ValueError(f"cache_mb must be at least 1, got {self.cache_mb}")

    @property
    def file(self) -> str:
        """The path of the file as it was given or follows from ``base_dir`` and ``project_name``."""
        return self.db_path or os.path.join(self.base_dir, f"{self.project_name}.db")

    def describe(self) -> str:
        return f"sqlite:///{self.file}"


def _check_path(path: str) -> None:
    if not path.strip():
        raise ValueError("db_path is empty; name a file, or use memory:// for tasks that need none")
    if path == ":memory:" or "mode=memory" in path:
        raise ValueError(
            "a database in memory is seen by one connection only, and a worker needs several; "
            "use memory:// instead, or name a file"
        )
    if path.startswith("file:"):
        raise ValueError(f"db_path is a plain path, not a URI; got {path!r}")
    if path.endswith(("/", os.sep)):
        raise ValueError(f"db_path must name a file, and {path!r} is a directory")
