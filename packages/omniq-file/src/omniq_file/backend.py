"""The file backend: opening, closing, and what it can do where."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Self, cast

import msgspec

from omniq_core import (
    Backend,
    BackendError,
    BackendOptions,
    Capability,
    Closed,
    ErrorCode,
    EventStore,
    Finding,
    Health,
    Limits,
    OptionError,
    Queue,
    ResultStore,
    Severity,
    Unsupported,
)
from omniq_file.clerk import ClerkSettings, hire
from omniq_file.events import FileEventStore
from omniq_file.opened import Opened
from omniq_file.options import FileOptions
from omniq_file.places import shelf_of
from omniq_file.queue import FileQueue
from omniq_file.results import FileResultStore
from omniq_file.shelves.shelf import Shelf

__all__ = ["FileBackend"]

ABSENT: Mapping[Capability, str] = {
    Capability.SERVER_CLOCK: "files have no clock: each process reads its host's, so the hosts must agree about the time",
    Capability.TX_ENQUEUE: "there are no transactions to join",
}
PUSHED = (Capability.WAKEUP, Capability.RESULT_WAIT, Capability.EVENT_TAIL)
CLOCKS_APART_S = 2.0


class FileBackend(Backend):
    """Tasks, results and events in files: a local folder, a bucket, or memory."""

    name: ClassVar[str] = "file"
    spi_version: ClassVar[tuple[int, int]] = (0, 1)
    options_type: ClassVar[type[BackendOptions]] = FileOptions

    absent = ABSENT
    _opened: Opened | None = None
    _place: str | None = None
    _opening: asyncio.Lock | None = None
    _shelf: Shelf | None = None

    @property
    def place(self) -> str:
        """Where the files are. It is settled when first asked for: a later ``chdir`` changes nothing."""
        if self._place is None:
            self._place = cast(FileOptions, self.options).place
        return self._place

    def twin(self) -> Self:
        twin = type(self).from_options(self.options, clock=self.clock)
        twin._place = self.place
        return twin

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._opened is not None and self._opened.pid == os.getpid():
                return
            options = cast(FileOptions, self.options)
            place = self.place
            settings = ClerkSettings(
                lambda: shelf_of(options, place), create=options.create_dirs, clock=self.clock,
                retention_s=float(options.retention_s), max_finished=options.max_finished, max_events=options.max_events,
                cache_bytes=options.cache_mb << 20,
            )  # fmt: skip
            shelf_of(options, place)  # what no clerk could use is refused here
            clerk = hire(self._key(), settings)
            try:
                await clerk.opened()
            except BaseException:
                await clerk.leave()
                raise
            self._declare(clerk.shelf)
            self._opened = Opened(clerk, self.clock, self.absent)
            self._shelf = clerk.shelf
            self._queue = FileQueue(self._opened, self.limits)
            self._results = FileResultStore(self._opened)
            self._events = FileEventStore(self._opened)

    def _key(self) -> Hashable:
        """Backends of one process that are the same in this share a clerk."""
        values = msgspec.structs.asdict(self.options)
        values["storage_options"] = tuple(
            (name, repr(value)) for name, value in sorted(values["storage_options"].items())
        )
        return (self.place, id(self.clock), tuple(values.items()))

    def _declare(self, shelf: Shelf) -> None:
        facts = shelf.facts
        absent = dict(ABSENT)
        if not facts.durable:
            absent[Capability.DURABLE] = (
                "memory is lost with the process, fsync is off, or nobody can see whether that server keeps what it has "
                "acknowledged (if you know, say endpoint_is_durable=True)"
            )
        if not facts.multi_process:
            absent[Capability.MULTI_PROCESS] = absent[Capability.MULTI_HOST] = (
                "only one process may use this place"
            )
        if not facts.multi_host:
            absent.setdefault(Capability.MULTI_HOST, "a local disk belongs to one machine")
        if not facts.wake_up:
            why = f"nothing tells of new files here: they are looked for every {facts.poll_interval_s:g} s"
            absent.update(dict.fromkeys(PUSHED, why))
        self.absent = absent
        self.capabilities = frozenset(Capability) - frozenset(absent)
        self.limits = Limits(poll_interval_s=facts.poll_interval_s)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    async def setup(self, *, dry_run: bool = False) -> Sequence[str]:
        options = cast(FileOptions, self.options)
        shelf = shelf_of(options, self.place)
        step = [f"make {options.describe()}"]
        try:
            await shelf.open(create=False)
        except Exception as error:  # the storage's own: only it knows which one says that nothing is there
            if shelf.classify(error) is not ErrorCode.UNAVAILABLE:
                raise
        else:
            await shelf.close()
            return ()
        if not dry_run:
            shelf = shelf_of(options, self.place)
            await shelf.open(create=True)
            await shelf.close()
        return step

    # --- opened ------------------------------------------------------------------------------------------------

    def _now_open(self) -> Opened:
        if self._opened is None:
            raise Closed(self.name)
        self._opened.clerk()
        return self._opened

    def queue(self) -> Queue:
        self._now_open()
        return self._queue

    def result_store(self) -> ResultStore:
        self._now_open()
        return self._results

    def event_store(self) -> EventStore:
        self._now_open()
        return self._events

    async def check(self) -> Health:
        shelf = self._now_open().clerk().shelf
        findings = list(shelf.findings())
        server_s = await self._now_open().clerk().server_time()
        now = self.clock.time()
        if server_s is not None and abs(server_s - now) > CLOCKS_APART_S:
            findings.append(
                Finding(
                    Severity.WARNING,
                    f"this host's clock is {now - server_s:+.1f} s off the storage's, and leases and delays go by the hosts'",
                    "run a time service (NTP) on every host",
                )
            )
        options = cast(FileOptions, self.options)
        return Health(
            server=shelf.facts.product,
            now=now,
            durability=shelf.durability(),
            findings=findings,
            settings={"fsync": str(options.fsync).lower()} if options.scheme == "file" else {},
        )

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, BackendError):
            return error.error_code
        if isinstance(error, Unsupported):
            return ErrorCode.UNSUPPORTED
        if isinstance(error, (UnicodeError, OptionError, OverflowError)):
            return ErrorCode.INVALID
        if self._shelf is None:
            try:
                self._shelf = shelf_of(cast(FileOptions, self.options), self.place)
            except OptionError:
                return ErrorCode.UNKNOWN
        return self._shelf.classify(error)
