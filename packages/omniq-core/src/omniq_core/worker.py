"""What a worker type promises.

A worker type decides *how functions run*: on an event loop, in threads, in processes, in greenlets. It is named by an
entry point of the group ``omniq.workers`` and chosen with ``worker_type=``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from omniq_core.records import WorkerReport

__all__ = ["Worker"]


class Worker(Protocol):
    """Takes tasks from queues and runs them."""

    worker_type: ClassVar[str]
    """The name that users write."""

    @abstractmethod
    async def run(self, *, burst: bool = False) -> WorkerReport:
        """Works until it is stopped.

        Args:
            burst: stop by itself when nothing is due and nothing runs.

        Raises:
            MissingCapability: the backend lacks what the registered tasks need; nothing was taken.
        """
        ...

    @abstractmethod
    async def stop(self, *, grace_s: float | None = None) -> None:
        """Claims nothing more, gives back what was claimed and not started, lets running tasks end within ``grace_s``
        seconds (``None``: the worker's setting), then cancels and releases them. Returns when it has stopped. A second
        call cuts the grace short."""
        ...
