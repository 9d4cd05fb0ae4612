"""The gevent worker type of OmniQ: plain functions run in greenlets. See :mod:`omniq_gevent.worker`.

Importing this loads nothing else, as the command ``omniq-gevent`` must come to patch before anything is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniq_gevent.worker import GeventWorker as GeventWorker

__version__ = "0.1.0"

__all__ = ["GeventWorker"]


def __getattr__(name: str) -> Any:
    if name == "GeventWorker":
        from omniq_gevent.worker import GeventWorker

        return GeventWorker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
