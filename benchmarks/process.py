"""Processes that a subject starts: its worker, above all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

__all__ = ["Footprint", "LocalWorker", "WorkerProcess", "python"]


def python(*arguments: str) -> list[str]:
    """The command line of a Python of this environment."""
    return [sys.executable, *arguments]


class Footprint(dict[str, float]):
    """Memory of a process and all its children, in MiB; `rss` counts shared pages once per process, `pss` once."""


def footprint_of(pids: Sequence[int]) -> Footprint:
    total = Footprint(rss=0.0, pss=0.0, processes=0.0)
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Rss", "Pss"):
                    total[name.lower()] += int(value.split()[0]) / 1024
            total["processes"] += 1
    return total


class LocalWorker:
    """A worker within the measuring process; its figures are those of the whole process."""

    def check(self) -> None:
        pass

    def log_tail(self) -> str:
        return ""

    def cpu_seconds(self) -> float:
        return time.process_time()

    def footprint(self) -> Footprint:
        return footprint_of([os.getpid()])


class WorkerProcess:
    """A worker, started as its users start it, and whatever it starts itself.

    Args:
        command: its command line.
        stop_signal: what asks it to stop.
    """

    def __init__(self, command: Sequence[str], *, stop_signal: signal.Signals = signal.SIGTERM) -> None:
        self._stop_signal = stop_signal
        self.log_path = Path(os.environ["BENCH_TALLY"]).with_name("worker.log")
        self._log: IO[bytes] = self.log_path.open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def check(self) -> None:
        """Raises, with the end of its log, if it is gone."""
        if self._process.poll() is not None:
            text = self.log_path.read_text("utf-8", "replace")[-3000:]
            raise RuntimeError(f"the worker ended with {self._process.returncode}:\n{text}")

    def log_tail(self) -> str:
        return self.log_path.read_text("utf-8", "replace")[-2000:]

    def _tree(self) -> list[int]:
        import psutil  # not needed by workers, who import this module with their tasks

        try:
            root = psutil.Process(self._process.pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """User and system time of the tree, ended children of its processes included."""
        ticks = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def footprint(self) -> Footprint:
        """How much memory it takes now."""
        return footprint_of(self._tree())

    def stop(self) -> None:
        """Asks it to stop, and makes it."""
        pids = self._tree()
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + 5
        for pid in pids:  # children in sessions of their own
            while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        self._log.close()
