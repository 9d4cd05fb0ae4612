"""The same as :mod:`omniq.backend`."""

from __future__ import annotations

from typing import Any

import omniq.backend as _backend


def __getattr__(name: str) -> Any:
    return getattr(_backend, name)


def __dir__() -> list[str]:
    return dir(_backend)
