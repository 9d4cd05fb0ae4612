"""The parent of the worker processes. The tests run it as ``python parent.py FD``, FD being one end of a socket pair.

Most of what a worker process costs is the start of an interpreter and its imports, so both are paid once, here: a worker is
a fork of this process. Forking is safe, as no thread, event loop or connection ever exists here. What it forks is a process
like any other: it opens by itself all that it uses, it is killed by a real signal, and it dies alone.

Each request is a line of JSON, answered by a line. After all that a worker has said comes a line of this process: how it
ended. Only this process signals workers, as it alone knows which of them it has not buried yet: no signal can reach a
stranger that was given the same number.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

import program

from omniq_core import BACKENDS

SCHEMES = ["memory", "sqlite", "file", "postgres", "redis", "valkey", "nats", "s3", "gs"]
LATE = ["omniq_core.hooks", "omniq_file.shelves.s3", "omniq_file.shelves.gcs", "s3fs", "gcsfs", "uuid_utils"]
"""What is else imported by each worker when it opens its stores. One that is missing here costs time, nothing else."""


class Parent:
    """Starts, signals and buries worker processes."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._selector = selectors.DefaultSelector()
        self._says: dict[int, int] = {}
        """By process, the pipe into which it speaks: open here until it is said there how the process ended."""

    def serve(self) -> None:
        """Until the tests hang up; then it kills whoever is left."""
        self._selector.register(self._line, selectors.EVENT_READ)
        is_asked = True
        while is_asked:
            for key, _ in self._selector.select():
                if key.fileobj is self._line:
                    is_asked = self._answer()
                else:
                    self._bury(key.fd, key.data)
        for pid in self._says:
            os.kill(pid, signal.SIGKILL)

    def _answer(self) -> bool:
        request, pipes = b"", []
        while not request.endswith(b"\n"):
            some, received, _, _ = socket.recv_fds(self._line, 65536, 1)
            if not some:
                return False
            request += some
            pipes += received
        what, argument = json.loads(request)
        if what == "start":
            answer = self._start(argument, pipes[0])
        else:
            pid, number = argument
            answer = pid in self._says
            if answer:
                os.kill(pid, number)
        self._line.sendall(json.dumps(answer).encode() + b"\n")
        return True

    def _start(self, config: dict[str, Any], says: int) -> int:
        # Nothing is ever written here: the reading end wakes us when the worker, the only holder of the other, is dead.
        dead, alive = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._be_a_worker(config, says)
        os.close(alive)
        self._says[pid] = says
        self._selector.register(dead, selectors.EVENT_READ, pid)
        return pid

    def _be_a_worker(self, config: dict[str, Any], says: int) -> NoReturn:
        code = 1
        try:
            self._selector.close()
            self._line.close()
            os.dup2(says, 1)
            for pipe in (says, *self._says.values()):
                os.close(pipe)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            program.run(config)
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)  # never back into the loop of the parent

    def _bury(self, dead: int, pid: int) -> None:
        self._selector.unregister(dead)
        os.close(dead)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        says = self._says.pop(pid)
        os.write(says, f"ended {code}\n".encode())
        os.close(says)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and these hang up
    for scheme in SCHEMES:
        BACKENDS.load(scheme)
    for name in LATE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a collection in a worker does not copy what it shares with this process
    Parent(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
