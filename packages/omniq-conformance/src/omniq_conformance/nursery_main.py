"""The nursery, seen from inside. :mod:`omniq_conformance.nursery` starts it, and holds the other end of its line.

Most of what another process costs is the start of an interpreter and its imports, so both are paid once, here: a child is a
fork of this process. What it forks is a process like any other: it opens by itself all that it uses, it is killed by a real
signal, and it dies alone. All that siblings share is what is imported, and with it the seed of ``hash(str)``.

Forking is safe, as no thread, event loop or connection ever exists here. Nobody can promise that of what a stranger's driver
does when it is imported: so this process looks at itself before it forks, and starts a new interpreter for each child
where it sees a thread or an open line that it has not made. It does the same where it cannot look (no ``/proc``; there the
libraries of the system may have threads of their own, too), and for a child whose environment or ``sys.path`` is not that of
the first one: it might import something else.

What a driver imports late, when it opens, is not known here. So each child tells, by :func:`ready`, what it had to import
itself; the next ones find it done. The first of its kind goes ahead: who is asked for meanwhile is born when it is ready.

Each request is a line of JSON, answered by a line. Only this process signals children, as it alone knows which of them it has
not buried yet: no signal can reach a stranger that was given the same number. How a child ended is written to its ``fate``,
a pipe. When the tests hang up, because they are over or were killed, the children are killed and this process ends.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omniq_core import BACKENDS

__all__ = ["ready"]

READY_S = 5.0
"""How long others wait for the first of their kind, in seconds. One that never calls :func:`ready` costs that much, once."""
PROGRAM = "omniq_conformance_program"
"""The name of a program that was given as a file."""
OF_THE_TEST = {"PYTEST_CURRENT_TEST"}
"""Variables that are another in each test, and that no import asks for."""

Kind = tuple[str, ...]
World = tuple[list[str], dict[str, str]]


@dataclass(frozen=True)
class Request:
    """A child that is wanted, as JSON."""

    target: str
    """``module:function``, or ``/file.py:function``."""
    arguments: list[Any]
    schemes: list[str]
    environment: dict[str, str]
    path: list[str]
    """``sys.path``."""
    folder: str
    """Where it works."""

    @property
    def kind(self) -> Kind:
        """Who needs the same imports."""
        return (self.target, *self.schemes)

    @property
    def world(self) -> World:
        """Where an import finds and does the same."""
        lasting = {name: value for name, value in self.environment.items() if name not in OF_THE_TEST}
        return self.path, lasting


@dataclass(frozen=True)
class Pipes:
    """What comes with a request, in this order."""

    stdin: int
    stdout: int
    stderr: int
    fate: int

    def close(self) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.close(pipe)


@dataclass
class Kid:
    """A child that was not buried yet."""

    pid: int
    fate: int
    kind: Kind
    interpreter: subprocess.Popen[bytes] | None
    """Of a child that is no fork."""
    told: bytes = b""

    def bury(self) -> int:
        """How it ended; it has."""
        if self.interpreter is not None:
            return self.interpreter.wait()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Imports:
    """What is imported here, and for whom."""

    def __init__(self) -> None:
        self._lines = _lines()
        self._is_fit = Path("/proc/self/task").exists()
        self._world: World | None = None
        self._count = 0
        """Of modules, when they were last sealed."""

    def are_for(self, request: Request) -> bool:
        """Whether a new interpreter would import the same; the first who asks decides for whom it is."""
        if self._world is None:
            self._world = request.world
        return self._is_fit and self._world == request.world

    def ahead_of(self, request: Request) -> None:
        """Imports what a child will want, as far as it can be known. What fails here fails there, and is told there."""
        sys.path[:] = request.path
        for scheme in request.schemes:
            with suppress(Exception):
                BACKENDS.load(scheme)
        self.add([] if _is_file(request.target) else [request.target.partition(":")[0]])

    def add(self, names: list[str]) -> None:
        """Imports modules, in the order in which others have."""
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)
        if len(sys.modules) > self._count:
            self._count = len(sys.modules)
            gc.collect()
            gc.freeze()  # so that a collection in a child does not copy what it shares with this process

    def are_harmless(self, own: set[int]) -> bool:
        """Whether no import has made a thread or opened a line. Once one has, it is never again.

        Args:
            own: the lines that the nursery has made itself.
        """
        self._is_fit = (
            self._is_fit and len(os.listdir("/proc/self/task")) == 1 and _lines() <= self._lines | own
        )
        return self._is_fit


class Nursery:
    """Starts, signals and buries children."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._selector = selectors.DefaultSelector()
        self._imports = Imports()
        self._kids: dict[int, Kid] = {}
        self._first: set[Kind] = set()
        """Kinds whose first child is not ready."""
        self._known: set[Kind] = set()

    def serve(self) -> None:
        """Until the tests hang up; then it kills whoever is left."""
        self._selector.register(self._line, selectors.EVENT_READ)
        is_asked = True
        while is_asked:
            heard = [key for key, _ in self._selector.select()]
            # Last, since an answer may have to hear more from the others.
            for key in sorted(heard, key=lambda key: key.fileobj is self._line):
                if key.fileobj is self._line:
                    is_asked = self._answer()
                else:
                    self._hear(key.fd, key.data)
        for pid in self._kids:
            os.kill(pid, signal.SIGKILL)

    def _answer(self) -> bool:
        text, pipes = b"", []
        while not text.endswith(b"\n"):
            some, received, _, _ = socket.recv_fds(self._line, 65536, 4)
            if not some:
                return False
            text += some
            pipes += received
        for pipe in pipes:
            os.set_inheritable(pipe, False)
        what, argument = json.loads(text)
        if what == "start":
            answer = self._start(Request(**argument), Pipes(*pipes))
        else:
            pid, number = argument
            answer = pid in self._kids
            if answer:
                os.kill(pid, number)
        self._line.sendall(json.dumps(answer).encode() + b"\n")
        return True

    # --- birth --------------------------------------------------------------------------------------------------

    def _start(self, request: Request, pipes: Pipes) -> int:
        may_fork = self._imports.are_for(request)
        if may_fork:
            self._await_the_first(request.kind)
            self._imports.ahead_of(request)
        # The child, which alone holds the other end, tells here what it imports; when it dies this end is at its end.
        hears, tells = os.pipe()
        interpreter = None
        fates = (kid.fate for kid in self._kids.values())
        own = {hears, tells, *vars(pipes).values(), *self._selector.get_map(), *fates}
        if may_fork and self._imports.are_harmless(own):
            pid = os.fork()
            if pid == 0:
                self._be_a_child(request, pipes, tells, hears)
        else:
            interpreter = new_interpreter(request, pipes, tells)
            pid = interpreter.pid
        pipes.close()
        os.close(tells)
        if interpreter is None and request.kind not in self._known:
            self._first.add(request.kind)
        self._kids[pid] = Kid(pid, pipes.fate, request.kind, interpreter)
        self._selector.register(hears, selectors.EVENT_READ, self._kids[pid])
        return pid

    def _await_the_first(self, kind: Kind) -> None:
        end = time.monotonic() + READY_S
        while kind in self._first:
            for key, _ in self._selector.select(max(0.0, end - time.monotonic())):
                if key.fileobj is self._line:  # who waits for our answer asks nothing: it has hung up
                    return
                self._hear(key.fd, key.data)
            if time.monotonic() >= end:
                self._settle(kind)

    def _settle(self, kind: Kind) -> None:
        self._known.add(kind)
        self._first.discard(kind)

    def _be_a_child(self, request: Request, pipes: Pipes, tells: int, hears: int) -> NoReturn:
        code = 1
        try:
            for key in list(self._selector.get_map().values()):
                if key.fileobj is not self._line:
                    os.close(key.fd)
            self._selector.close()
            self._line.close()
            for fd in (hears, pipes.fate, *(kid.fate for kid in self._kids.values())):
                os.close(fd)
            for number, pipe in enumerate((pipes.stdin, pipes.stdout, pipes.stderr)):
                os.dup2(pipe, number)
            pipes.close()
            sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - as long as it lives
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(request.environment)
            os.chdir(request.folder)
            live(request, tells)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)  # never back into the loop of the nursery

    # --- life and death -----------------------------------------------------------------------------------------

    def _hear(self, hears: int, kid: Kid) -> None:
        some = os.read(hears, 65536)
        if some:
            *lines, kid.told = (kid.told + some).split(b"\n")
            if kid.interpreter is None:
                for line in lines:
                    self._imports.add(json.loads(line))
                    self._settle(kid.kind)
            return
        self._selector.unregister(hears)
        os.close(hears)
        self._first.discard(kid.kind)  # the next one is the first then
        code = kid.bury()
        del self._kids[kid.pid]
        with suppress(BrokenPipeError):  # nobody wants to know
            os.write(kid.fate, str(code).encode())
        os.close(kid.fate)


def _lines() -> set[int]:
    """The open descriptors through which something is heard or said: sockets, pipes, event loops. No files."""
    found = set()
    with suppress(OSError):
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # that of the look itself is closed by now
                if not os.readlink(f"/proc/self/fd/{fd}").startswith("/"):
                    found.add(fd)
    return found


def _is_file(target: str) -> bool:
    return target.rpartition(":")[0].endswith(".py")


# --- in the child ----------------------------------------------------------------------------------------------------

_tells: int | None = None
_inherited: set[str] = set()


def live(request: Request, tells: int) -> None:
    """What a child does."""
    global _tells, _inherited
    _tells, _inherited = tells, set(sys.modules)
    importlib.invalidate_caches()  # what the test has just written can be imported
    function_of(request.target)(*request.arguments)


def function_of(target: str) -> Callable[..., Any]:
    """What a child runs."""
    where, _, name = target.rpartition(":")
    if _is_file(target):
        spec = importlib.util.spec_from_file_location(PROGRAM, where)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[PROGRAM] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function: Callable[..., Any] = getattr(module, name)
    return function


def ready() -> None:
    """To be called by a child that has opened what it needs: what it had to import for that its successors find imported.
    Does nothing elsewhere."""
    global _inherited
    if _tells is not None:
        mine = [name for name in list(sys.modules) if name not in _inherited and name != PROGRAM]
        _inherited |= set(mine)
        with suppress(BrokenPipeError), open(_tells, "wb", closefd=False) as line:
            line.write(json.dumps(mine).encode() + b"\n")


def new_interpreter(request: Request, pipes: Pipes, tells: int) -> subprocess.Popen[bytes]:
    """A child that is no fork."""
    text = json.dumps({**vars(request), "environment": {}})
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(tells), text],
        stdin=pipes.stdin,
        stdout=pipes.stdout,
        stderr=pipes.stderr,
        env=request.environment,
        cwd=request.folder,
        pass_fds=[tells],
    )


def main(fd: int, text: str | None = None) -> None:
    """The nursery, or a child of its own interpreter."""
    if text is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and these hang up
        line = socket.socket(fileno=fd)
        line.setblocking(True)  # it is not where gevent has made it
        Nursery(line).serve()
        os._exit(0)  # nothing is open here, and tidying up what was imported takes its time
    else:
        os.set_inheritable(fd, False)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored signals are inherited
        request = Request(**json.loads(text))
        sys.path[:] = request.path
        live(request, fd)


if __name__ == "__main__":
    # Under its own name: there a child that calls `ready` finds what this process knows.
    from omniq_conformance import nursery_main

    nursery_main.main(int(sys.argv[1]), *sys.argv[2:])
