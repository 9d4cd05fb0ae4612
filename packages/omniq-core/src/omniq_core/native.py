"""Threads and locks of the operating system, also where gevent has taken the place of those of the standard library.

``gevent.monkey.patch_all()`` makes ``threading.Thread`` a greenlet, on the one thread that all the others of the process
share. Then a thread that must go on whatever user code does (one that extends leases), that is there to wait in a C library
(SQLite's), or that has an event loop of its own (``asyncio.get_running_loop()`` is kept by thread of the system) is none any
more. So whatever in OmniQ needs a thread takes it from here; without gevent it is a plain ``threading.Thread``.

What patching does to such a thread: an event loop that is made *in* it runs on gevent's selector, with a hub of its own that
no other thread sees. Sockets, ``to_thread`` and what client libraries start as threads live on that hub. That costs some
speed and breaks nothing.

Locks are held for a few steps that never wait, by greenlets of one thread as well as by several threads, so they are native
too: :class:`RLock`. What is *waited* for from ordinary code is a :class:`Latch`: it lets other greenlets run.

gevent is never imported here: a process that has not loaded it is not patched.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from _queue import SimpleQueue
from _thread import RLock, get_native_id
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Latch", "RLock", "SimpleQueue", "Thread", "is_patched", "make_latch", "make_thread"]

SLICE_S = 0.5
"""The longest wait in one piece, in seconds: a signal that arrives in the instant before the system call begins to wait does
not end it, and would be seen only when it returns."""
GONE_S = 1.0
"""How long it is waited for that a thread which has done its work is gone, in seconds; it takes less than a millisecond."""


def is_patched() -> bool:
    """Whether ``threading`` means greenlets in this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class Latch(Protocol):
    """What :func:`make_latch` returns: something that will happen once, in whatever thread."""

    def set(self) -> None:
        """It has happened. By one thread, which may repeat it."""

    def is_set(self) -> bool:
        """Whether it has happened."""
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for it, by as many as like; whether it has happened in time. Greenlets go on meanwhile."""
        ...


def make_latch() -> Latch:
    """A latch, not set."""
    return _GreenletLatch() if is_patched() else _ThreadLatch()


class _ThreadLatch:
    """A bare lock. An interrupt can strike between any two steps of Python code, and inside a ``threading.Event`` it can
    leave a lock taken that the other thread needs as well; acquiring a bare one is one step, which has happened or not."""

    __slots__ = ("_is_set", "_lock")

    def __init__(self) -> None:
        self._is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._lock.release()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._is_set:
            slice_s = SLICE_S if until is None else min(SLICE_S, until - time.monotonic())
            if slice_s <= 0:
                return False
            if self._lock.acquire(timeout=slice_s):
                self._lock.release()
        return True


class _GreenletLatch:
    """Each waiter has an async watcher in the loop of its own hub: sending to one is all that a foreign thread may do there.

    A patched lock would not do. Releasing it in another thread calls ``run_callback_threadsafe``, which counts up the
    references of the other hub's loop while libev, in that hub's thread and without the GIL, counts them down. Now and then
    (gevent 26.9: in two of 120 runs on a busy machine) the count went wrong, and a hub reported that it would wait for ever.
    """

    __slots__ = ("_bells", "_is_set", "_lock")

    def __init__(self) -> None:
        self._is_set = False
        self._bells: list[Any] = []
        self._lock = RLock()  # a watcher is not closed while another thread sends to it

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            for bell in self._bells:
                bell.send()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        if self.is_set():
            return True
        if timeout_s is not None and timeout_s <= 0:
            return False
        hub_module = sys.modules["gevent.hub"]
        hub = hub_module.get_hub()
        waiter = hub_module.Waiter(hub)
        bell = hub.loop.async_()
        bell.start(waiter.switch, None)  # what is sent to one that is not started is lost
        timer = None if timeout_s is None else hub.loop.timer(timeout_s)
        try:
            with self._lock:
                if self.is_set():
                    return True
                self._bells.append(bell)
            if timer is not None:
                timer.start(waiter.switch, None, update=True)
            waiter.get()
        finally:
            with self._lock:
                if bell in self._bells:
                    self._bells.remove(bell)
            for watcher in (bell, timer):
                if watcher is not None:
                    watcher.stop()
                    watcher.close()
        return self._is_set


class Thread(Protocol):
    """What :func:`make_thread` returns: this much of ``threading.Thread``."""

    name: str

    def start(self) -> None:
        """Starts it, once."""

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end."""

    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        ...


def make_thread(target: Callable[..., object], *args: Any, name: str, daemon: bool = True) -> Thread:
    """A thread of the operating system, not started.

    Args:
        target: what it runs.
        args: for ``target``.
        name: for logs and debuggers.
        daemon: ``False``: the process waits for it at its end. Not under patching, where each is a daemon.
    """
    if is_patched():
        return _UnpatchedThread(target, args, name)
    return threading.Thread(target=target, args=args, name=name, daemon=daemon)


_running: set[_UnpatchedThread] = set()
_is_watching = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # a child of a fork has none of these threads


def _see_off_at_exit() -> None:
    global _is_watching
    if not _is_watching:
        _is_watching = True
        # Called by the main thread when it ends, the newest first: so after the portal, which closes what is open.
        with contextlib.suppress(RuntimeError):  # it is ending already
            threading._register_atexit(_see_off)  # type: ignore[attr-defined]


def _see_off() -> None:
    """Waits for threads that are just ending. Python would stop them within a greenlet, which greenlet does not survive."""
    until = time.monotonic() + GONE_S
    for thread in list(_running):
        thread.join(max(0.0, until - time.monotonic()))


class _UnpatchedThread:
    """A thread beside the hub's."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
        self.name = name
        self.daemon = True
        self._target = target
        self._args = args
        self._was_started = False
        self._native_id = 0
        self._ended = make_latch()

    def start(self) -> None:
        if self._was_started:
            raise RuntimeError("threads can only be started once")
        self._was_started = True
        _see_off_at_exit()
        _running.difference_update([thread for thread in list(_running) if thread._is_gone()])
        _running.add(self)
        try:
            # Two threads that make their first hubs at once hang in gevent 26.9: each imports gevent's event loop, under
            # import locks that are gevent's as well and need hubs. So this thread has its own before the other begins.
            sys.modules["gevent.hub"].get_hub()
            start_new_thread = sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")
            start_new_thread(self._run, ())
        except BaseException:
            self._ended.set()
            raise

    def _run(self) -> None:
        self._native_id = get_native_id()
        hub = sys.modules["gevent.hub"].get_hub()
        try:
            threading.current_thread().name = self.name
            self._target(*self._args)
        except SystemExit:
            pass
        except BaseException:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), None)))
        finally:
            hub.destroy(True)  # it holds a few descriptors, and nobody else would ever close them
            # current_thread() has made an entry for this thread, which would stay in threading.enumerate().
            threading._active.pop(threading.get_ident(), None)  # type: ignore[attr-defined]
            self._ended.set()

    def join(self, timeout: float | None = None) -> None:
        if self._ended.wait(timeout) and self._native_id:
            # It may still have greenlets to end. Only Linux tells when it is gone.
            sleep = sys.modules["gevent.monkey"].get_original("time", "sleep")
            until = time.monotonic() + GONE_S
            while not self._is_gone() and time.monotonic() < until:
                sleep(0.0005)
            _running.discard(self)

    def _is_gone(self) -> bool:
        return self._ended.is_set() and not os.path.exists(f"/proc/self/task/{self._native_id}")

    def is_alive(self) -> bool:
        return self._was_started and not self._ended.is_set()
