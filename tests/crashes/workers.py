"""Starting, killing and freezing real worker processes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("program.py")


class WorkerProcess:
    """One worker process, and the lines that it says."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(config)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.strip())
            self._lines.put(line.strip())
        self._lines.put(None)

    def wait_for(self, word: str, timeout_s: float = 60) -> str:
        """The next line that begins with ``word``."""
        while True:
            line = self._lines.get(timeout=timeout_s)
            assert line is not None, f"the worker ended before it said {word!r}; it said {self.said}"
            if line.startswith(word):
                return line

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def stop(self, timeout_s: float = 60) -> dict[str, Any]:
        """Stops it gracefully; what it reports."""
        self.send(signal.SIGTERM)
        assert self._process.wait(timeout_s) == 0, f"it said {self.said}"
        self._reader.join()
        report: dict[str, Any] = json.loads(self.said[-1].removeprefix("report "))
        return report

    def wait(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        """Kills it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def worker_process(config: dict[str, Any]) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(config)
    try:
        yield worker
    finally:
        worker.end()


class Crew:
    """Some worker processes, each replaced when it dies."""

    def __init__(self, config: dict[str, Any], size: int) -> None:
        self._config = config
        self._size = size
        self._dismissed = False
        self._lock = threading.Lock()
        self.deaths = 0
        self._current: dict[int, WorkerProcess] = {}
        self._all_started = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=(place,), daemon=True) for place in range(size)
        ]

    def _keep(self, place: int) -> None:
        while True:
            with self._lock:
                if self._dismissed:
                    return
                worker = self._current[place] = WorkerProcess(self._config)
                if len(self._current) == self._size:
                    self._all_started.set()
            code = worker.wait()
            worker.end()
            with self._lock:
                self.deaths += code == -signal.SIGKILL and not self._dismissed

    def until_ready(self) -> None:
        """Waits until each of its first members is about to take its first task."""
        self._all_started.wait()
        for worker in self.members():
            worker.wait_for("ready")

    def members(self) -> list[WorkerProcess]:
        """Who works now."""
        with self._lock:
            return list(self._current.values())

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._dismissed = True
            current = list(self._current.values())
        for worker in current:
            worker.send(signal.SIGKILL)
        for thread in self._threads:
            thread.join()
