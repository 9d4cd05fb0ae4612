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
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Portal", "at_exit", "is_portal_loop", "portal", "run_sync"]

T = TypeVar("T")
log = logging.getLogger("omniq")

CANCEL_GRACE_S = 5.0
"""How long an interrupted call waits for its coroutine to clean up, in seconds, before the interrupt goes on."""
SIGNAL_SLICE_S = 0.5
"""How soon a waiting call sees a signal at the latest, in seconds."""
CLOSE_GRACE_S = 30.0
"""How long closing the portal waits for its thread, in seconds."""


class _Call(Generic[T]):
    """One coroutine on its way through the portal's loop.

    The caller waits at a bare lock. An interrupt can strike between any two steps of Python code, and inside a
    ``concurrent.futures.Future`` it can leave the lock taken that the loop's thread needs as well; acquiring a bare lock is
    one step, which has happened or has not.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._is_cancelled = False
        self._turnstile = threading.Lock()
        self._turnstile.acquire()
        self.is_done = False

    # --- on the loop's thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        if self._is_cancelled:
            self._coroutine.close()
            self._end()
            return
        self._task = asyncio.ensure_future(self._coroutine)
        self._task.add_done_callback(lambda _: self._end())

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _end(self) -> None:
        self.is_done = True
        self._turnstile.release()

    # --- on the caller's ----------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Waits for the end."""
        # In slices: a signal that arrives in the instant before the system call begins to wait does not end it, and would
        # be seen only when it returns.
        while not self._turnstile.acquire(timeout=SIGNAL_SLICE_S):
            pass

    def wait_for_cleanup(self) -> None:
        """Waits for the end of a cancelled coroutine, but not for ever."""
        self._turnstile.acquire(timeout=CANCEL_GRACE_S)

    def result(self) -> T:
        """What the coroutine returned or raised."""
        assert self._task is not None
        return self._task.result()


class Portal:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(started,), name="omniq-portal")
        self._thread.start()
        started.wait()

    def _main(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(started.set)
        try:
            self.loop.run_forever()
        finally:
            try:
                left = asyncio.all_tasks(self.loop)
                for task in left:
                    task.cancel()
                if left:
                    self.loop.run_until_complete(asyncio.wait(left, timeout=CANCEL_GRACE_S))
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            finally:
                self.loop.close()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the portal's own."""
        return threading.get_ident() == self._thread.ident

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
            call.wait()
        except BaseException:
            if self.loop.is_closed():
                coroutine.close()
            elif not call.is_done:
                self.loop.call_soon_threadsafe(call.cancel)
                call.wait_for_cleanup()
            raise
        return call.result()

    def close(self) -> None:
        """Ends the thread; what still runs on the loop is cancelled. Idempotent; not for the portal's own thread."""
        if not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it closed in between
                self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_GRACE_S)


_lock = threading.Lock()
_portal: Portal | None = None
_last: list[Callable[[], object]] = []
_is_watching = False


def portal() -> Portal:
    """This process's portal, started if need be."""
    global _portal
    found = _portal
    if found is None or found.loop.is_closed():
        with _lock:
            found = _portal
            if found is None or found.loop.is_closed():
                found = _portal = Portal()
                _watch()
    return found


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on this process's portal; see :meth:`Portal.run`."""
    return portal().run(coroutine)


def is_portal_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether ``loop`` is this process's portal's."""
    return _portal is not None and _portal.loop is loop


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
    """Starts the thread that waits for the end of the main thread. Called under the lock."""
    global _is_watching
    if not _is_watching:
        _is_watching = True
        # Not a daemon, so that Python waits for what it does at the end. It ends by itself, as the main thread does.
        threading.Thread(target=_wait_for_the_end, name="omniq-exit").start()


def _wait_for_the_end() -> None:
    threading.main_thread().join()
    while True:
        with _lock:
            last = _last.pop() if _last else None
        if last is None:
            break
        try:
            last()
        except Exception:
            log.exception("could not clean up at the end of the process")
    with _lock:
        ending = _portal
    if ending is not None:
        ending.close()


def _forget_after_fork() -> None:
    global _portal, _lock, _is_watching
    _lock = threading.Lock()  # another thread of the parent may have held it
    _portal = None
    _is_watching = False
    _last.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
