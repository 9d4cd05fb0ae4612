"""Holds a backend class against checks, in this process and without pytest."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from omniq_conformance.bench import Chance
from omniq_conformance.catalogue import Check, all_checks
from omniq_conformance.env import Env
from omniq_conformance.servers.base import place_of_data
from omniq_conformance.suite import BackendSuite, run_check
from omniq_core import Backend, EventStore, Queue, ResultStore
from omniq_memory import MemoryBackend
from omniq_memory.backend import MemoryEventStore, MemoryQueue, MemoryResultStore
from omniq_memory.store import Store


class Specimen(MemoryBackend):
    """A memory backend whose parts can be exchanged one by one."""

    store_type: ClassVar[type[Store]] = Store
    queue_type: ClassVar[type[MemoryQueue]] = MemoryQueue
    results_type: ClassVar[type[MemoryResultStore]] = MemoryResultStore
    events_type: ClassVar[type[MemoryEventStore]] = MemoryEventStore

    def _attach(self) -> Store:
        store = super()._attach()
        store.__class__ = self.store_type
        return store

    async def open(self) -> None:
        if self._is_open:
            return
        await super().open()
        self._queue: Queue = self.queue_type(self)
        self._results: ResultStore = self.results_type(self)
        self._events: EventStore = self.events_type(self)


@dataclass
class Trial:
    """What became of a backend."""

    ran: dict[str, str] = field(default_factory=dict)
    failed: dict[str, BaseException] = field(default_factory=dict)


def hold(
    backend_class: type[Specimen],
    checks: Iterable[Check],
    *,
    fail_fast: bool = False,
    controllable_clock: bool = True,
    timeout_s: float = 3.0,
    examples: int = 5,
) -> Trial:
    """Runs checks on a backend class."""

    class Suite(BackendSuite):
        __test__ = False

        @asynccontextmanager
        async def backend(self, env: Env) -> AsyncIterator[Backend]:
            yield backend_class(name=env.namespace, clock=env.clock)

        def url_for(self, env: Env) -> str:
            return f"memory://{env.namespace}"

    Suite.controllable_clock = controllable_clock
    Suite.timeout_s = timeout_s
    Suite.short_lease_s = 0.15
    trial = Trial()
    # Thousands of folders, one for each check of each specimen, and nobody writes into them.
    with tempfile.TemporaryDirectory(dir=place_of_data(), ignore_cleanup_errors=True) as folder:
        for check in checks:
            place = Path(folder, check.name)
            place.mkdir()
            try:
                trial.ran[check.name] = run_check(Suite(), check, place, Chance(examples))
            except Exception as error:
                trial.failed[check.name] = error
                if fail_fast:
                    break
    return trial


def of_topics(*topics: str, wide: bool = False) -> list[Check]:
    """The checks of some topics, in the suite's order; every topic if none is named."""
    known = {check.topic for check in all_checks()}
    assert set(topics) <= known, f"no such topics: {set(topics) - known}"
    return [
        check
        for check in all_checks()
        if (not topics or check.topic in topics) and (wide or not check.wide or "machine" in topics)
    ]
