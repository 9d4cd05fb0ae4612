"""Backend classes by name: ``SQLiteBackend``, ``FileBackend``, ``PostgresBackend``, …, and those of strangers.

Each comes from its own distribution, loaded when its name is first used here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omniq.by_name import class_prefix, find_backend
from omniq.stores import resolve_backend
from omniq_core import BACKENDS, Backend

__all__ = ["Backend", "resolve_backend"]

_SUFFIX = "Backend"


def __getattr__(name: str) -> Any:
    if name.endswith(_SUFFIX) and not name.startswith("_"):
        found = find_backend(__name__, name, name.removesuffix(_SUFFIX))
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *sorted({class_prefix(name) + _SUFFIX for name in BACKENDS.names()})]


if TYPE_CHECKING:
    MemoryBackend: type[Backend]
    SQLiteBackend: type[Backend]
    FileBackend: type[Backend]
    PostgresBackend: type[Backend]
    RedisBackend: type[Backend]
    NATSBackend: type[Backend]
