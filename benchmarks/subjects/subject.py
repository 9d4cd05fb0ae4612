"""What the measuring process asks of a subject.

A subject's module is imported twice: by the process that measures (see ``driver.py``) and by the worker that it starts.
So it holds what a user of that library would write, the two tasks ``noop`` and ``sleep1`` as it wants them, and a class
that says how to enqueue, to read a result and to start a worker. Where and how is told by the environment:

``BENCH_STORE``    sqlite, redis, postgres, memory
``BENCH_URL``      of the storage
``BENCH_RESULTS``  1: results are stored
``BENCH_OPTIONS``  further settings, words; each subject knows its own
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = ["MISSING", "OPTIONS", "RESULTS", "STORE", "URL", "AsyncSubject", "Subject", "SyncSubject"]

STORE = os.environ.get("BENCH_STORE", "")
URL = os.environ.get("BENCH_URL", "")
RESULTS = os.environ.get("BENCH_RESULTS", "1") == "1"
OPTIONS = frozenset(os.environ.get("BENCH_OPTIONS", "").split())

MISSING = object()
"""There is no result yet."""


class Subject:
    """A way to get tasks run."""

    distributions: ClassVar[Sequence[str]] = ()
    """What is installed for it; the report gives the versions."""
    imports: ClassVar[str] = ""
    """The statement that a program using it begins with."""
    bare_import: ClassVar[str] = ""
    """A statement that loads less, for a second figure."""
    stores: ClassVar[Sequence[str]] = ()
    is_async: ClassVar[bool] = False
    has_bulk: ClassVar[bool] = False
    """It can enqueue many in one call."""
    keeps_results: ClassVar[bool] = True
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    pace: ClassVar[dict[str, float]] = {"noop": 1000, "sleep1": 500}
    """About how many tasks per second a worker gets through: so that each drain takes a few seconds."""
    worker_is_process: bool = True

    async def open(self) -> None:
        """Gets ready for an empty storage: schema, connections."""

    async def close(self) -> None:
        """Gives back connections: the storage will be wiped."""

    async def send(self, task: str, number: int) -> Any:
        """Enqueues one call; returns what the result is read with."""
        raise NotImplementedError

    async def send_many(self, task: str, numbers: Sequence[int]) -> Sequence[Any]:
        """Enqueues many in one call."""
        raise NotImplementedError

    async def peek(self, handle: Any) -> Any:
        """The result if it is there, else ``MISSING``; does not wait."""
        raise NotImplementedError

    async def wait(self, handle: Any, timeout_s: float) -> Any:
        """Waits for the result, as the subject recommends it."""
        raise NotImplementedError

    async def pending(self) -> int | None:
        """How many tasks wait; None where that is not told."""
        return None

    async def settled(self, handles: Sequence[Any]) -> bool:
        """All of these tasks, which ran, are done for the storage as well. The last few stand for all: peers settle one
        by one."""
        if not RESULTS or not self.keeps_results:
            return True
        for handle in handles[-8:]:
            if await self.peek(handle) is MISSING:
                return False
        return True

    def worker_command(self) -> Sequence[str]:
        """One worker process at the settings that are recommended for small tasks."""
        raise NotImplementedError

    async def start_local_worker(self) -> None:
        """Instead of a process, where the storage lives in this one."""
        raise NotImplementedError

    async def stop_local_worker(self) -> None:
        raise NotImplementedError


class SyncSubject(Subject):
    """One that blocks."""

    def send_now(self, task: str, number: int) -> Any:
        raise NotImplementedError

    def peek_now(self, handle: Any) -> Any:
        raise NotImplementedError

    def wait_now(self, handle: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    async def send(self, task: str, number: int) -> Any:
        return self.send_now(task, number)

    async def peek(self, handle: Any) -> Any:
        return self.peek_now(handle)

    async def wait(self, handle: Any, timeout_s: float) -> Any:
        return self.wait_now(handle, timeout_s)


class AsyncSubject(Subject):
    is_async = True
