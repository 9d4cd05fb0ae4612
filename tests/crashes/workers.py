"""Starting, killing and freezing real worker processes."""

from __future__ import annotations

import io
import json
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omniq_conformance.nursery import start
from omniq_core import Url


class WorkerProcess:
    """One worker process, and the lines that it says."""

    def __init__(self, config: dict[str, Any]) -> None:
        urls = [config[store] for store in ("queue", "results", "events_at") if config.get(store)]
        schemes = [Url.parse(url).scheme for url in urls]
        self._child = start("tests.crashes.program:run", config, schemes=schemes)
        self._code: int | None = None
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._child:
            for line in io.TextIOWrapper(self._child.stdout):
                self.said.append(line.strip())
                self._lines.put(line.strip())
            self._code = self._child.wait()
        self._lines.put(None)

    def wait_for(self, word: str, timeout_s: float = 60) -> str:
        """The next line that begins with ``word``."""
        while True:
            line = self._lines.get(timeout=timeout_s)
            assert line is not None, f"the worker ended before it said {word!r}; it said {self.said}"
            if line.startswith(word):
                return line

    def send(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        self._child.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def stop(self, timeout_s: float = 60) -> dict[str, Any]:
        """Stops it gracefully; what it reports."""
        self.send(signal.SIGTERM)
        assert self.wait(timeout_s) == 0, f"it said {self.said}"
        report: dict[str, Any] = json.loads(self.said[-1].removeprefix("report "))
        return report

    def wait(self, timeout_s: float | None = None) -> int | None:
        """How it ended: 0, or the negative number of a signal. ``None`` if it still runs after this time."""
        self._reader.join(timeout_s)
        return self._code

    def end(self) -> None:
        """Kills it, if it still runs."""
        self.send(signal.SIGKILL)
        self.wait()


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
