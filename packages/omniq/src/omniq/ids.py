"""Ids: UUIDv7 text, made by the producer. They sort by the time of their making, which keeps database indexes dense."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["new_id"]

_make: Callable[[], str] | None = None


def _find() -> Callable[[], str]:
    if sys.version_info >= (3, 14):
        import uuid

        return lambda: str(uuid.uuid7())
    import uuid_utils

    make = uuid_utils.uuid7
    return lambda: str(make())


def new_id() -> str:
    """A new UUIDv7 as text; rising within a process."""
    global _make
    if _make is None:
        _make = _find()
    return _make()
