"""The classes of :mod:`omniq.results` and :mod:`omniq.events` in one place."""

from __future__ import annotations

from typing import Any

import omniq.events as _events
import omniq.results as _results
from omniq.events import AsyncEventStore, EventStore
from omniq.results import AsyncResultStore, ResultStore

__all__ = ["AsyncEventStore", "AsyncResultStore", "EventStore", "ResultStore"]


def __getattr__(name: str) -> Any:
    for module in (_results, _events):
        try:
            return getattr(module, name)
        except AttributeError:
            continue
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*dir(_results), *dir(_events)]
