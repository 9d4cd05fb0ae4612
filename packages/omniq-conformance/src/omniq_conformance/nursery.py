"""Other processes for tests, quickly: real ones, that are killed and stopped by real signals. Not on Windows.

:func:`start` asks the nursery for one, a process that imports once and forks; :mod:`omniq_conformance.nursery_main` says why
that is safe, and does without where it is not. There is one nursery for each process of tests. It starts when it is first
asked, and ends with that process, as do its children.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = ["HAS_NURSERY", "Child", "code_of", "start"]

HAS_NURSERY = hasattr(socket, "send_fds")
"""Whether this system has what the nursery needs."""

END_S = 5.0
"""How long the nursery may take to end."""


class Nursery:
    """The process that other processes come from."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "omniq_conformance.nursery_main", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=dict(os.environ),  # by default it is what C has, where some library may have put more
            )
        self._answers = self._line.makefile("rb")
        self._lock = threading.Lock()
        atexit.register(self.close)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, what: str, argument: object, pipes: Sequence[int] = ()) -> Any:
        """One request, and what is answered; the pipes that it is about go with it."""
        request = json.dumps([what, argument]).encode() + b"\n"
        with self._lock:
            try:
                sent = socket.send_fds(self._line, [request], list(pipes))
                self._line.sendall(request[sent:])
                answer = self._answers.readline()
            except OSError:
                answer = b""
        if not answer:
            raise RuntimeError(f"the nursery has died with code {self._process.wait()}; see its stderr")
        return json.loads(answer)

    def close(self) -> None:
        """Ends it and its children. Idempotent."""
        atexit.unregister(self.close)
        self._answers.close()
        self._line.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # the import of some driver hangs
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """In a fork of this process: it is the nursery of the other one, which alone may hold this line."""
        self._answers.close()
        self._line.close()
        self._process.returncode = 0  # nothing to wait for
        atexit.unregister(self.close)


_nursery: Nursery | None = None
_lock = threading.Lock()


def _the_nursery() -> Nursery:
    global _nursery
    with _lock:
        if _nursery is None or not _nursery.is_alive:
            if _nursery is not None:
                _nursery.close()
            _nursery = Nursery()
        return _nursery


def _forget() -> None:
    global _nursery, _lock
    _lock = threading.Lock()
    if _nursery is not None:
        _nursery.forget()
        _nursery = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Child:
    """A process that :func:`start` has started."""

    def __init__(self, nursery: Nursery, pid: int, stdin: int, stdout: int, fate: int) -> None:
        self._nursery = nursery
        self._lock = threading.Lock()
        self._code: int | None = None
        self.pid = pid
        self.stdin = open(stdin, "wb", buffering=0)  # noqa: SIM115 - until `close`
        """What it hears. Its input ends when this is closed."""
        self.stdout = open(stdout, "rb")  # noqa: SIM115
        """What it says. At its end when the process is."""
        self.fate = open(fate, "rb")  # noqa: SIM115
        """When it is dead, the number of :meth:`wait` as text, and then the end."""

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        self._nursery.ask("signal", [self.pid, number])

    def kill(self) -> None:
        """SIGKILL; does not wait."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """How it ended: its code, or the negative number of a signal. ``None`` if it still runs after this time.

        Raises:
            RuntimeError: the nursery has died, and nobody knows.
        """
        with self._lock:
            if self._code is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self.fate, selectors.EVENT_READ)
                    if not selector.select(timeout_s):
                        return None
                self._code = code_of(self.fate.read())
            return self._code

    def close(self) -> None:
        """Closes this end of its pipes. Idempotent."""
        for pipe in (self.stdin, self.stdout, self.fate):
            pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills it, if it still runs."""
        with suppress(RuntimeError):  # no nursery, no child
            self.kill()
            self.wait()
        self.close()


def code_of(text: bytes) -> int:
    """What was read from :attr:`Child.fate`, as a number.

    Raises:
        RuntimeError: nothing was.
    """
    if not text:
        raise RuntimeError("the nursery has died, and this child probably with it")
    return int(text)


def start(target: str, *arguments: Any, schemes: Sequence[str] = (), stderr: int = 2) -> Child:
    """Another process.

    Args:
        target: the function that it calls, and then ends: ``module:function``, or ``/some/file.py:function``. When it has
            opened what it needs, that function should call :func:`omniq_conformance.nursery_main.ready`: then the next ones
            start sooner.
        arguments: for the function, as JSON has them.
        schemes: of the backends that it opens.
        stderr: the descriptor to which it writes its errors.

    Raises:
        RuntimeError: the nursery has died; the next call starts another.
    """
    nursery = _the_nursery()
    ours, theirs = [], []
    try:
        for reads in (False, True, True):  # its input; its output and its fate
            ends = os.pipe()
            ours.append(ends[0 if reads else 1])
            theirs.append(ends[1 if reads else 0])
        request = {
            "target": target,
            "arguments": arguments,
            "schemes": list(schemes),
            "environment": dict(os.environ),
            "path": sys.path,
            "folder": os.getcwd(),
        }
        pid = nursery.ask("start", request, [theirs[0], theirs[1], stderr, theirs[2]])
    except BaseException:
        for end in ours:
            os.close(end)
        raise
    finally:
        for end in theirs:
            os.close(end)
    return Child(nursery, pid, *ours)
