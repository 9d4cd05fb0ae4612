"""What the components have in common: one backend each, opened when it is first used, on each event loop by itself.

A component may be made at import time, be used under several ``asyncio.run`` in turn, and on two loops at once: what is
open belongs to a loop (see :mod:`omniq.stores`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from typing import Any, Generic, Self, TypeVar

from omniq.portal import at_exit, is_portal_loop, run_sync
from omniq.stores import close_all

__all__ = ["OnEachLoop", "SyncComponent"]

S = TypeVar("S")
A = TypeVar("A", bound="OnEachLoop[Any]")
log = logging.getLogger("omniq")


class OnEachLoop(Generic[S]):
    """Something that is opened once on every loop that uses it, by whoever comes first."""

    def __init__(self) -> None:
        self._open: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, S] = weakref.WeakKeyDictionary()
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    async def _open_here(self) -> S:
        """Opens what this loop uses."""
        raise NotImplementedError

    async def _close_here(self, state: S) -> None:
        """Closes it."""
        raise NotImplementedError

    async def _here(self) -> S:
        """What is open on this loop, opened if need be."""
        loop = asyncio.get_running_loop()
        state = self._open.get(loop)
        if state is not None:
            return state
        async with self._lock(loop):
            state = self._open.get(loop)
            if state is None:
                for other in list(self._open):
                    if (
                        other.is_closed()
                    ):  # its ``asyncio.run`` ended without close(): nothing can be done there
                        del self._open[other]
                state = self._open[loop] = await self._open_here()
                if is_portal_loop(loop):
                    _close_at_exit(self)
            return state

    def _lock(self, loop: asyncio.AbstractEventLoop) -> asyncio.Lock:
        lock = self._locks.get(loop)
        if lock is None:
            lock = self._locks[loop] = asyncio.Lock()
        return lock

    async def open(self) -> Self:
        """Opens it now, rather than with its first use. Idempotent.

        Raises:
            Unreachable, SchemaOutOfDate, BackendError: it cannot be opened.
        """
        await self._here()
        return self

    async def close(self) -> None:
        """Closes it on this event loop. Idempotent; it opens again with its next use."""
        loop = asyncio.get_running_loop()
        async with self._lock(loop):
            state = self._open.pop(loop, None)
            if state is not None:
                await self._close_here(state)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_on_portal: weakref.WeakSet[OnEachLoop[Any]] = weakref.WeakSet()
_registered_in: int | None = None
"""The process that will close them. A child of a fork registers anew."""


def _close_at_exit(component: OnEachLoop[Any]) -> None:
    global _registered_in
    _on_portal.add(component)
    if _registered_in != os.getpid():
        _registered_in = os.getpid()
        at_exit(_close_those_on_the_portal)


def _close_those_on_the_portal() -> None:
    global _registered_in
    _registered_in = None

    async def close() -> None:
        for component in list(_on_portal):
            try:
                await component.close()
            except Exception:  # the others are to be closed all the same
                log.warning("could not close %r", component, exc_info=True)
        await close_all()  # what was left open by components that are gone

    run_sync(close())


class SyncComponent(Generic[A]):
    """The sync face of a component: the same methods, waiting on the portal (see :mod:`omniq.portal`).

    Attributes:
        aio: the async component behind it.
    """

    aio: A

    def close(self) -> None:
        """Closes it for all sync code of this process. Idempotent; it opens again with its next use."""
        run_sync(self.aio.close())

    def open(self) -> Self:
        """Opens it now, rather than with its first use. Idempotent.

        Raises:
            Unreachable, SchemaOutOfDate, BackendError: it cannot be opened.
        """
        run_sync(self.aio.open())
        return self

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{repr(self.aio).removeprefix(f'<{type(self.aio).__name__}')}"
