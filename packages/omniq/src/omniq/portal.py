"""The portal: one private thread with an event loop, on which the sync face runs everything that is async.

Why a thread. Everything in OmniQ is written once, async. ``asyncio.run`` in the caller's thread would make a loop per call
(and a connection per call), and would refuse to work in a notebook, whose thread runs a loop already. So each process has
one loop in a thread of its own, started by the first sync call; every ``OmniQ`` and every sync component of the process
share it, and with it their connections and group commits. A sync call hands its coroutine over and waits.

Fork. Only the forking thread lives on in a child, so the child forgets the portal and gets its own with its first call.
The parent's connections belong to the parent's loop and are never touched by the child.

The end. Functions registered with :func:`at_exit` run when the main thread has ended and *before* Python waits for other
threads (``atexit`` comes after that wait, which would never end while a client library's thread is up): workers stop
gracefully, stores are closed, and then the portal's thread ends.

gevent. In a process that it has patched the portal is a thread of the system all the same (:mod:`omniq_core.native`): in a
greenlet's its loop would be "the running loop" of every other greenlet too. The latch at which a caller waits lets its hub
run then, so greenlets wait as threads do, and the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from omniq_core.native import RLock, is_patched, make_latch, make_thread

__all__ = ["Portal", "at_exit", "is_portal_loop", "portal", "run_sync"]

T = TypeVar("T")
log = logging.getLogger("omniq")

CANCEL_GRACE_S = 5.0
"""How long an interrupted call waits for its coroutine to clean up, in seconds, before the interrupt goes on."""
CLOSE_GRACE_S = 30.0
"""How long closing the portal waits for its thread, in seconds."""


class _Call(Generic[T]):
    """One coroutine on its way through the portal's loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._is_cancelled = False
        self.ended = make_latch()

    # --- on the loop's thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        if self._is_cancelled:
            self._coroutine.close()
            self.ended.set()
            return
        self._task = asyncio.ensure_future(self._coroutine)
        self._task.add_done_callback(lambda _: self.ended.set())

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    # --- on the caller's ----------------------------------------------------------------------------------------

    def result(self) -> T:
        """What the coroutine returned or raised."""
        assert self._task is not None
        return self._task.result()


class Portal:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident = 0
        self._error: BaseException | None = None
        self._is_up = make_latch()
        self._thread = make_thread(self._main, name="omniq-portal", daemon=False)
        self._thread.start()

    def _main(self) -> None:
        try:
            # Here, not where the portal is made: a loop belongs to its thread's hub where there are hubs.
            loop = asyncio.new_event_loop()
        except BaseException as error:
            self._error = error
            self._is_up.set()
            return
        self._ident = threading.get_ident()
        self._loop = loop
        asyncio.set_event_loop(loop)
        loop.call_soon(self._is_up.set)
        try:
            loop.run_forever()
        finally:
            try:
                left = asyncio.all_tasks(loop)
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left, timeout=CANCEL_GRACE_S))
                loop.run_until_complete(loop.shutdown_asyncgens())
                try:
                    loop.run_until_complete(loop.shutdown_default_executor())
                except RuntimeError:
                    # Python 3.12.0 and 3.12.1 refuse the thread that this takes when the process ends; there Python itself
                    # waits for the executor's threads.
                    pass
            finally:
                loop.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The portal's loop. The first call waits until it runs.

        Raises:
            OSError: it could not be made.
        """
        if self._loop is None:
            self._is_up.wait()
            if self._loop is None:
                raise self._error or RuntimeError("the portal has no event loop")
        return self._loop

    @property
    def is_closed(self) -> bool:
        """Whether another one must take its place."""
        return self._error is not None if self._loop is None else self._loop.is_closed()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the portal's own."""
        return threading.get_ident() == self._ident

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the portal's loop and waits for it.

        ``KeyboardInterrupt`` (or another exception that a signal handler raises) ends the wait: the coroutine is
        cancelled, and the exception goes on once it has cleaned up.

        Raises:
            RuntimeError: called from the portal's own thread, which would wait for itself.
            BaseException: what the coroutine raised.
        """
        if self.is_here:
            coroutine.close()
            raise RuntimeError(
                "a blocking method of OmniQ was called on OmniQ's own event loop, which would wait for itself for ever; "
                "use AsyncOmniQ there, or call it from another thread"
            )
        call = _Call(coroutine)
        try:
            self.loop.call_soon_threadsafe(call.start)
            call.ended.wait()
        except BaseException:
            if self.is_closed:
                coroutine.close()
            elif not call.ended.is_set():
                self.loop.call_soon_threadsafe(call.cancel)
                call.ended.wait(CANCEL_GRACE_S)
            raise
        return call.result()

    def close(self) -> None:
        """Ends the thread; what still runs on the loop is cancelled. Idempotent; not for the portal's own thread."""
        if not self.is_closed:
            with contextlib.suppress(RuntimeError):  # it closed in between
                self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_GRACE_S)


_lock = RLock()
"""Held for a few steps, never while waiting."""
_portal: Portal | None = None
_last: list[Callable[[], object]] = []
_is_watching = False


def portal() -> Portal:
    """This process's portal, started if need be."""
    global _portal
    found = _portal
    if found is None or found.is_closed:
        with _lock:
            found = _portal
            if found is None or found.is_closed:
                found = _portal = Portal()
                _watch()
    return found


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on this process's portal; see :meth:`Portal.run`."""
    return portal().run(coroutine)


def is_portal_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether ``loop`` is this process's portal's."""
    return _portal is not None and _portal._loop is loop


def at_exit(last: Callable[[], object]) -> Callable[[], None]:
    """Has ``last`` called when the main thread ends: the newest first, each in its own ``try``, the portal still up.

    Returns:
        what takes it back; idempotent.
    """
    with _lock:
        _last.append(last)
        _watch()

    def take_back() -> None:
        with _lock, contextlib.suppress(ValueError):
            _last.remove(last)

    return take_back


def _watch() -> None:
    """Sees to it that the end of the main thread is noticed. Called under the lock."""
    global _is_watching
    if _is_watching:
        return
    _is_watching = True
    if is_patched():
        # The main thread itself does it: what it waits for there may need its hub. (A private function, which
        # concurrent.futures uses for the same.)
        threading._register_atexit(_clean_up)  # type: ignore[attr-defined]
    else:
        # Not a daemon, so that Python waits for what it does at the end. It ends by itself, as the main thread does.
        threading.Thread(target=_wait_for_the_end, name="omniq-exit").start()


def _wait_for_the_end() -> None:
    threading.main_thread().join()
    _clean_up()


def _clean_up() -> None:
    while True:
        with _lock:
            last = _last.pop() if _last else None
        if last is None:
            break
        try:
            last()
        except Exception:  # what is left is to be cleaned up all the same
            log.exception("could not clean up at the end of the process")
    with _lock:
        ending = _portal
    if ending is not None:
        ending.close()


def _forget_after_fork() -> None:
    global _portal, _lock, _is_watching
    _lock = RLock()  # another thread of the parent may have held it
    _portal = None
    _is_watching = False
    _last.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
