"""The three stores of a program, opened: whose backend each is, shared between those who use them, and their errors.

Sharing. A facade, its components and its workers hold the same :class:`~omniq_core.Backend` objects; opening one that is
open already *on this event loop* counts a user more. A backend belongs to the loop that opened it, so a second loop (the
sync face's, a worker in a thread, the lease keeper) gets a twin of its own: the same storage through another connection.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Mapping
from typing import Any

from omniq.plugins import hooks
from omniq_core import (
    Backend,
    BackendError,
    Capability,
    ErrorCode,
    EventStore,
    MissingCapability,
    OmniQError,
    Queue,
    ResultStore,
    Unreachable,
    backend_class,
    redact,
)
from omniq_core.options import Url

__all__ = ["OpenStores", "Stores", "acquire", "close_all", "explain", "release", "resolve_backend"]


# --- which backend -----------------------------------------------------------------------------------------------

_resolved: weakref.WeakValueDictionary[tuple[str, str, str, str], Backend] = weakref.WeakValueDictionary()


def resolve_backend(which: Backend | str, settings: Mapping[str, Any] | None = None) -> Backend:
    """A backend by object, by name (``"sqlite"``) or by URL (``"sqlite:///tasks.db"``). No I/O.

    The same name or URL with the same settings, while the first is in use, gives the same object: two facades of one
    program share a connection. (Not so for a storage that each object has to itself, ``memory://``.)

    Args:
        which: the backend.
        settings: more settings, for a name or URL.

    Raises:
        PluginError, OptionError: see :mod:`omniq_core.errors`.
        TypeError: something else came.
    """
    settings = dict(settings or {})
    if not isinstance(which, str):
        if Backend not in type(which).__mro__:
            raise TypeError(
                "a backend is given as an object, a name ('sqlite') or a URL ('sqlite:///tasks.db'), "
                f"got {type(which).__name__}: {which!r}"
            )
        if settings:
            raise TypeError(
                f"a backend object has its settings already; got more: {', '.join(sorted(settings))}"
            )
        return which
    if "://" in which:
        url = Url.parse(which)
        cls = backend_class(url.scheme)
        backend: Backend = cls.from_url(url, **settings)
    else:
        cls = backend_class(which)
        backend = cls.from_env(**settings)
    if backend.options.is_private:
        return backend
    # The working directory is part of what a relative path means.
    key = (cls.__module__, cls.__qualname__, repr(_revealed(backend)), _working_directory())
    return _resolved.setdefault(key, backend)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _revealed(backend: Backend) -> list[tuple[str, object]]:
    from omniq_core import Secret

    return [
        (name, hash(value) if isinstance(value, Secret) else value)
        for name, value in sorted(backend.config.items())
    ]


# --- opening and sharing -----------------------------------------------------------------------------------------


class _Opened:
    """A backend that is open on one loop, and how many use it."""

    __slots__ = ("instance", "is_announced", "lock", "users")

    def __init__(self, instance: Backend) -> None:
        self.instance = instance
        self.users = 0
        self.lock = asyncio.Lock()
        self.is_announced = False
        """Whether plugins know that it is open."""


_opened: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Opened]] = (
    weakref.WeakKeyDictionary()
)
_homes: weakref.WeakKeyDictionary[Backend, weakref.ref[asyncio.AbstractEventLoop]] = (
    weakref.WeakKeyDictionary()
)
"""The loop on which a backend object itself is open; every other loop uses a twin of it."""


async def acquire(backend: Backend) -> Backend:
    """Opens ``backend`` for one more user on this loop: itself, or a twin where another loop has it.

    Raises:
        Unreachable, SchemaOutOfDate, BackendError: it cannot be opened.
    """
    loop = asyncio.get_running_loop()
    table = _opened.setdefault(loop, {})
    entry = table.get(id(backend))
    if entry is None:
        home_of = _homes.get(backend)
        home = None if home_of is None else home_of()
        if home is None or home.is_closed() or home is loop:
            _homes[backend] = weakref.ref(loop)
            instance = backend
        else:
            instance = backend.twin()
        entry = table[id(backend)] = _Opened(instance)
    entry.users += 1
    try:
        async with entry.lock:  # who comes second waits until the first has opened it
            await entry.instance.open()
            if not entry.is_announced:
                entry.is_announced = True
                hooks().call("omniq_backend_opened", backend=entry.instance)
    except BaseException as error:
        entry.users -= 1
        if not entry.users:
            _forget(loop, backend, entry)
        if isinstance(error, Exception):
            raise explain(entry.instance, error, "open") from error
        raise
    return entry.instance


async def release(backend: Backend) -> None:
    """Undoes one :func:`acquire` of this loop; the last one closes."""
    loop = asyncio.get_running_loop()
    entry = _opened.get(loop, {}).get(id(backend))
    if entry is None:
        return
    entry.users -= 1
    async with entry.lock:
        # Looked at under the lock: somebody may have come while we waited. Who comes while it closes waits for the lock,
        # and opens it again.
        if not entry.users:
            entry.is_announced = False
            hooks().call("omniq_backend_closing", backend=entry.instance)
            await entry.instance.close()
            if not entry.users:
                _forget(loop, backend, entry)


async def close_all() -> None:
    """Closes whatever is still open on this loop, at its end: used by what was dropped without being closed."""
    loop = asyncio.get_running_loop()
    for entry in list(_opened.pop(loop, {}).values()):
        await entry.instance.close()


def _forget(loop: asyncio.AbstractEventLoop, backend: Backend, entry: _Opened) -> None:
    table = _opened.get(loop)
    if table is not None and table.get(id(backend)) is entry:
        del table[id(backend)]
        if entry.instance is backend:
            _homes.pop(backend, None)


def explain(backend: Backend, error: Exception, doing: str) -> OmniQError:
    """The error that a user reads when a call to a backend failed; raise it ``from`` the native one.

    Args:
        backend: whose call it was.
        error: what the driver raised.
        doing: the verb, for the message.
    """
    if isinstance(error, OmniQError):
        return error
    code = backend.classify(error)
    text = redact(f"{type(error).__name__}: {error}".strip())
    if doing == "open" and code in (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT):
        return Unreachable(
            f"cannot reach {backend!r} ({text}). Is it running, and is the address right?", code, backend.name
        )
    return BackendError(f"cannot {doing} on {backend!r}: {code.value} ({text})", code, backend.name)


class Stores:
    """Which backends a program uses for its queue, its results and its events. No I/O until :meth:`open`.

    Args:
        queue: where tasks are kept.
        results: where results are kept; ``None``: nowhere.
        events: where events are kept; ``None``: nowhere.
    """

    def __init__(self, queue: Backend, results: Backend | None, events: Backend | None) -> None:
        self.queue = queue
        self.results = results
        self.events = events

    def __repr__(self) -> str:
        return f"Stores(queue={self.queue!r}, results={self.results!r}, events={self.events!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stores) and (
            (self.queue, self.results, self.events) == (other.queue, other.results, other.events)
        )

    __hash__ = None  # type: ignore[assignment]

    async def open(self) -> OpenStores:
        """Opens each backend for one more user on this loop.

        Raises:
            Unreachable, SchemaOutOfDate, BackendError: one of them cannot be opened; then none stays open for this call.
        """
        held: list[Backend] = []
        try:
            opened = []
            for backend in (self.queue, self.results, self.events):
                opened.append(None if backend is None else await acquire(backend))
                if backend is not None:
                    held.append(backend)
        except BaseException:
            for backend in reversed(held):
                await release(backend)
            raise
        queue, results, events = opened
        assert queue is not None
        return OpenStores(self, queue, results, events)


class OpenStores:
    """The opened stores, for the loop that opened them."""

    def __init__(
        self, stores: Stores, queue: Backend, results: Backend | None, events: Backend | None
    ) -> None:
        self.stores = stores
        self.queue_backend = queue
        self.result_backend = results
        self.event_backend = events
        self.queue: Queue = queue.queue()
        self.results: ResultStore | None = None
        self.events: EventStore | None = None
        if results is not None and Capability.RESULTS in results.capabilities:
            self.results = results.result_store()
        if events is not None and Capability.EVENTS in events.capabilities:
            self.events = events.event_store()
        self.settles_results = (
            results is queue and self.results is not None and Capability.ATOMIC_SETTLE in queue.capabilities
        )
        """Whether a settlement carries its result, in one atomic write."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The queue's."""
        return self.queue_backend.capabilities

    def need(self, capability: Capability, what: str) -> None:
        """Raises unless the queue's backend has ``capability``.

        Args:
            capability: what is needed.
            what: who needs it, for the message: "task 'app:report' (priority=5)".

        Raises:
            MissingCapability: it lacks it.
        """
        if capability not in self.queue_backend.capabilities:
            why = self.queue_backend.absent.get(capability)
            raise MissingCapability(
                f"{self.queue_backend!r} lacks {capability.name}, which {what} needs"
                + (f": {why}" if why else ""),
                {capability},
            )

    async def close(self) -> None:
        """Gives each backend back."""
        for backend in (self.stores.events, self.stores.results, self.stores.queue):
            if backend is not None:
                await release(backend)
