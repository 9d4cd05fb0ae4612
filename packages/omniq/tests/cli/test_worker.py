"""``omniq worker`` as a process of its own: what it prints, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniq import OmniQ

TASKS = """
import os, pathlib, time
from omniq import OmniQ

oq = OmniQ("sqlite:///shop.db", queues=["high"])

@oq.task
def pid() -> int:
    return os.getpid()

@oq.task(max_retries=0)
def boom() -> None:
    raise LookupError("nothing there")

@oq.task
def until(file: str) -> str:
    print("started", flush=True)
    while not pathlib.Path(file).exists():
        time.sleep(0.01)
    return "finished"

@oq.task
async def endless() -> None:
    import asyncio
    print("started", flush=True)
    await asyncio.Event().wait()
"""


class Process:
    """A worker, and what it has printed."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "omniq", "worker", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def until(self, text: str, times: int = 1) -> None:
        """Waits until it has printed a line with ``text``."""
        with self._news:
            found = self._news.wait_for(lambda: sum(text in line for line in self.lines) >= times, timeout=60)
            assert found, "\n".join(self.lines)

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def oq(folder: Path) -> Iterator[OmniQ]:
    """A producer that knows the tasks by name only, as another program would."""
    program = OmniQ(f"sqlite:///{folder}/shop.db")
    for name in ("pid", "boom", "until", "endless"):
        program.task(name=f"shop:{name}")(lambda *args: None)
    yield program
    program.close()


def test_a_burst_runs_what_is_due_and_exits(folder: Path, oq: OmniQ) -> None:
    done, failed = oq.enqueue("shop:pid"), oq.enqueue("shop:boom", max_retries=0)
    worker = Process(folder, "shop:oq", "--burst", "-n", "burster")
    assert worker.end() == 0
    result, failure = oq.get_result(done, timeout=0), oq.get_result(failed, timeout=0)
    assert result is not None
    assert failure is not None
    assert (result.result, result.worker_id) == (worker.process.pid, "burster")
    assert failure.error == "LookupError: nothing there"
    printed = "\n".join(worker.lines)
    for expected in (
        "worker burster",
        "app          shop:oq",
        "queue        <SQLiteBackend sqlite:///shop.db>",
        "queues       high, then all others",
        "concurrency  10, async",
        "tasks        4",
        "shop:pid  (",
        "1 succeeded, 0 retried, 1 dead",
    ):
        assert expected in printed


@pytest.mark.parametrize("kind", ["async", "thread_pool", "process_pool"])
def test_every_worker_type_runs_imported_tasks(folder: Path, oq: OmniQ, kind: str) -> None:
    ids = [oq.enqueue("shop:pid") for _ in range(5)]
    worker = Process(folder, "shop:oq", "--burst", "--type", kind, "-c", "2")
    assert worker.end() == 0, worker.lines
    results = [oq.get_result(task_id, timeout=0) for task_id in ids]
    assert None not in results
    pids = {result.result for result in results if result is not None}
    assert (pids == {worker.process.pid}) is (kind != "process_pool")
    assert None not in pids


def test_the_environment_says_what_no_option_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIQ_APP", "shop:oq")
    monkeypatch.setenv("OMNIQ_WORKER_TYPE", "thread_pool")
    monkeypatch.setenv("OMNIQ_WORKER_CONCURRENCY", "3")
    worker = Process(folder, "--burst")
    assert worker.end() == 0, worker.lines
    assert "concurrency  3, thread_pool" in "\n".join(worker.lines)


def test_the_first_signal_lets_running_tasks_end(folder: Path, oq: OmniQ) -> None:
    task_id = oq.enqueue("shop:until", str(folder / "go"))
    worker = Process(folder, "shop:oq")
    try:
        worker.until("started")
        worker.process.send_signal(signal.SIGTERM)
        worker.until("SIGTERM: stopping")
        (folder / "go").touch()
        assert worker.end() == 0
    finally:
        worker.kill()
    assert str(oq.get_result(task_id, timeout=0)) == "finished"


def test_the_second_signal_gives_running_tasks_back_at_once(folder: Path, oq: OmniQ) -> None:
    task_id = oq.enqueue("shop:endless")
    worker = Process(folder, "shop:oq")
    try:
        worker.until("started")
        worker.process.send_signal(signal.SIGINT)
        worker.until("SIGINT: stopping")
        worker.process.send_signal(signal.SIGINT)
        assert worker.end() == 0
    finally:
        worker.kill()
    task = oq.get_task(task_id)
    assert task is not None
    assert (task.status, task.attempts) == ("pending", 0)  # not charged, and due now
    assert "1 given back" in worker.lines[-1]


def test_the_third_signal_ends_the_process_on_the_spot(folder: Path, oq: OmniQ) -> None:
    task_id = oq.enqueue("shop:until", str(folder / "never"))  # a thread, which cannot be stopped
    worker = Process(folder, "shop:oq")
    try:
        worker.until("started")
        worker.process.send_signal(signal.SIGTERM)
        worker.until("SIGTERM: stopping")
        # In one go: after the second the worker comes to its end by itself. Which of them is the third, the system decides.
        worker.process.send_signal(signal.SIGINT)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    finally:
        worker.kill()
    task = oq.get_task(task_id)
    assert task is not None
    assert task.status == "running"  # until its lease has ended


def test_a_signal_during_a_slow_import_is_obeyed(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    worker = Process(folder, "slow:oq")
    try:
        worker.until("importing")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0
    finally:
        worker.kill()


def test_a_worker_serves_only_the_queues_that_it_is_told(folder: Path, oq: OmniQ) -> None:
    ids = {name: oq.enqueue("shop:pid", queue_name=name) for name in ("a", "b", "c")}
    worker = Process(folder, "shop:oq", "--burst", "-q", "a,c")
    assert worker.end() == 0
    assert [name for name, task_id in ids.items() if oq.get_result(task_id, timeout=0)] == ["a", "c"]


def test_a_storage_that_cannot_be_reached_is_exit_code_three(folder: Path) -> None:
    (folder / "away.py").write_text("from omniq import OmniQ\noq = OmniQ('sqlite:////proc/none/x.db')\n")
    worker = Process(folder, "away:oq")
    assert worker.end() == 3
    assert worker.lines[-1].startswith("omniq: cannot reach <SQLiteBackend")


def test_functions_of_a_script_have_the_names_that_a_worker_finds(folder: Path) -> None:
    (folder / "script.py").write_text(
        TASKS + "\nif __name__ == '__main__':\n    print(pid.enqueue().id)\n    oq.close()\n"
    )
    task_id = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    worker = Process(folder, "script:oq", "--burst")
    assert worker.end() == 0
    with OmniQ(f"sqlite:///{folder}/shop.db") as oq:
        assert str(oq.get_result(task_id, timeout=0)) == str(worker.process.pid)
