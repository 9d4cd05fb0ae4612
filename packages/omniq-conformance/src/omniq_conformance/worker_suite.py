"""The suite for worker types: what every way of running functions must do, seen from outside.

The worker under test is a process of its own, started by its command line, with a program of the suite's. So what is killed
here is really killed, and a worker type that patches its process, or starts others, is tested as it is used. What ran is
known from a ledger that the tasks write; what became of it is asked of the store.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import pytest

from omniq_conformance.worker_program import CLIENT, PROGRAM

__all__ = ["Stage", "WorkerSuite"]

PATIENCE_S = 60.0
"""How long anything is waited for."""
LEASE_S = 1.5
SHORT_LEASE = ("--lease", f"{LEASE_S}s")
"""For checks of what becomes of leases. The others have longer ones, which no busy machine lets run out."""
MIDDLE_LEASE = ("--lease", "3s")
"""For checks of what a worker is told when it extends its leases, three times in each: that a task was cancelled."""
KINDS = ["plain", "coroutine"]


class Client:
    """A process that enqueues and looks. It serves one test after the other: it is not what they are about, and to start one
    for each took a third of their time.

    Args:
        folder: for the program with the tasks.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "suite_program.py").write_text(PROGRAM, "utf-8")
        self.program_path = str(folder)
        """Where ``suite_program`` can be imported from."""
        self._process: subprocess.Popen[str] | None = None

    def ask(self, url: str, verb: str, *values: Any) -> Any:
        """What it answers about a storage."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CLIENT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMNIQ_SUITE_URL": url, "PYTHONPATH": self.program_path},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([url, verb, *values]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
            assert line, f"the client has failed, see above; it was asked to {verb}"
            return json.loads(line)
        except BaseException:
            self.close()  # the next test must not get what this one was to be told
            raise

    def close(self) -> None:
        """Ends it; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


class Stage:
    """One storage with its program, a client of it, and workers.

    Args:
        folder: for the ledger and what the workers print.
        url: of the storage.
        command: what is called as ``omniq`` is.
        client: who enqueues and looks.
    """

    def __init__(
        self, folder: Path, url: str, command: Sequence[str], worker_type: str, client: Client
    ) -> None:
        self._folder = folder
        self._url = url
        self._client = client
        self._command = [*command, "worker", "suite_program:oq", "--type", worker_type]
        self._ledger = folder / "ledger"
        self._environment = {
            **os.environ,
            "OMNIQ_SUITE_URL": url,
            "OMNIQ_SUITE_TYPE": worker_type,
            "OMNIQ_SUITE_LEDGER": str(self._ledger),
            "PYTHONPATH": client.program_path,
        }
        self._workers: list[subprocess.Popen[bytes]] = []

    # --- the client ---------------------------------------------------------------------------------------------

    def ask(self, verb: str, *values: Any) -> Any:
        """What the client answers."""
        return self._client.ask(self._url, verb, *values)

    def enqueue(self, *calls: tuple[str, list[Any]], **options: Any) -> list[str]:
        """Puts calls (a task's name, its arguments) into the queue; their ids."""
        ids: list[str] = self.ask("enqueue", [[name, args, options] for name, args in calls])
        return ids

    def results(self, ids: Sequence[str], timeout_s: float = PATIENCE_S) -> list[Any]:
        """How tasks ended; ``None`` for one that has not in time."""
        found: list[Any] = self.ask("results", list(ids), timeout_s)
        return found

    def task(self, task_id: str) -> Any:
        """How a task stands now."""
        return self.ask("tasks", [task_id])[0]

    # --- the ledger ---------------------------------------------------------------------------------------------

    def ledger(self, what: str) -> list[Any]:
        """The lines that say so: what, task, attempt, when."""
        try:
            lines = self._ledger.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [line for line in map(json.loads, lines) if line[0] == what]

    def runs(self, what: str = "started") -> Counter[str]:
        """How often each task did."""
        return Counter(line[1] for line in self.ledger(what))

    def most_at_once(self, ids: Collection[str]) -> int:
        """How many of these tasks ran at the same time."""
        starts = [(line[3], 1) for line in self.ledger("started") if line[1] in ids]
        ends = [(line[3], -1) for line in self.ledger("ended") if line[1] in ids]
        return max(accumulate(change for _, change in sorted(starts + ends)))

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Waits for what nothing announces."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, (
                f"waited {timeout_s} s until {what}; the workers said:\n{self.said()}"
            )
            time.sleep(0.02)

    # --- workers ------------------------------------------------------------------------------------------------

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """A worker, running."""
        log = self._folder / f"worker-{len(self._workers)}.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [*self._command, *options],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._workers.append(worker)
        return worker

    def keep_one_running(self, *options: str) -> None:
        """Starts a worker, unless the one that was started last still runs."""
        if not self._workers or self._workers[-1].poll() is not None:
            self.start(*options)

    def is_running(self) -> bool:
        """Whether the worker that was started last still runs."""
        return self._workers[-1].poll() is None

    def said(self) -> str:
        """What all workers have printed."""
        return "".join(
            path.read_text("utf-8", "replace") for path in sorted(self._folder.glob("worker-*.log"))
        )

    def close(self) -> None:
        """Ends every worker that was started."""
        for process in self._workers:
            if process.poll() is None:
                process.kill()
            process.wait()


class WorkerSuite:
    """Everything that a worker type must do, as tests. Subclass it, say what it is called, and let pytest collect it::

    class TestAcme(WorkerSuite):
        worker_type = "acme"
        stops_plain_functions = False

        def url(self, folder):
            return f"some://{folder}/tasks"
    """

    __test__ = False

    worker_type: ClassVar[str]
    """Its name, of the entry point."""
    command: ClassVar[Sequence[str]] = (sys.executable, "-m", "omniq")
    """What starts it, as ``omniq`` does: ``worker``, a program and options follow."""
    stops_plain_functions: ClassVar[bool]
    """Whether a plain function that sleeps can be stopped. One in a thread cannot."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__test__" not in vars(cls):
            cls.__test__ = True

    @abstractmethod
    def url(self, folder: Path) -> str:
        """The storage that is worked on: a new one, which several processes can use."""
        raise NotImplementedError(
            f"{type(self).__name__} must say which storage is worked on: def url(self, folder)"
        )

    @pytest.fixture(scope="class")
    @classmethod
    def suite_client(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
        client = Client(tmp_path_factory.mktemp("suite_program"))
        try:
            yield client
        finally:
            client.close()

    @pytest.fixture
    def stage(self, tmp_path: Path, suite_client: Client) -> Iterator[Stage]:
        stage = Stage(tmp_path, self.url(tmp_path), self.command, self.worker_type, suite_client)
        try:
            yield stage
        finally:
            stage.close()

    @pytest.fixture(scope="class")
    @classmethod
    def shared_stage(cls, tmp_path_factory: pytest.TempPathFactory, suite_client: Client) -> Iterator[Stage]:
        folder = tmp_path_factory.mktemp("shared_stage")
        stage = Stage(folder, cls().url(folder), cls.command, cls.worker_type, suite_client)
        try:
            yield stage
        finally:
            stage.close()

    @pytest.fixture
    def running(self, request: pytest.FixtureRequest, shared_stage: Stage) -> Iterator[Stage]:
        """A stage whose worker has one place and runs already: one test after the other uses it, as one task after the other
        uses a worker, so that what a task leaves behind is met by the next. A test that fails takes its worker along."""
        shared_stage.keep_one_running("-c", "1", *MIDDLE_LEASE)
        failed_before = request.session.testsfailed
        yield shared_stage
        if request.session.testsfailed > failed_before:
            shared_stage.close()

    # --- what comes of a task -----------------------------------------------------------------------------------

    def test_a_thousand_small_tasks_of_each_kind_run_exactly_once(self, stage: Stage) -> None:
        ids = stage.enqueue(*((kind, [number]) for kind in KINDS for number in range(1000)))
        worker = stage.start("--burst")
        assert worker.wait(PATIENCE_S) == 0, stage.said()
        assert stage.runs() == dict.fromkeys(ids, 1)
        found = stage.results(ids, 0)
        assert [one["result"] for one in found] == [
            [n % 1000, task_id, task_id] for n, task_id in enumerate(ids)
        ]

    def test_each_run_knows_its_own_task_while_others_of_both_kinds_run_beside_it(self, stage: Stage) -> None:
        ids = stage.enqueue(*((KINDS[number % 2], [number, 0.1]) for number in range(80)))
        stage.start("-c", "20")
        found = stage.results(ids)
        assert [one["result"] for one in found] == [[n, task_id, task_id] for n, task_id in enumerate(ids)]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_failure_is_retried_by_its_policy_and_kept_with_its_traceback(
        self, running: Stage, kind: str
    ) -> None:
        [task_id] = running.enqueue((f"{kind}_failure", ["KeyError"]), max_retries=2, retry_delay=0.05)
        [found] = running.results([task_id])
        assert found["status"] == "error"
        assert running.runs()[task_id] == 3
        assert "KeyError" in found["error"]
        assert f"in {kind}_failure" in found["traceback"]
        shown = [line for line in found["traceback"].splitlines() if line.startswith("  File ")]
        assert len(shown) == 1, f"the traceback shows the worker's own frames:\n{found['traceback']}"

    @pytest.mark.parametrize("error", ["SystemExit", "StopIteration", "GeneratorExit", "BaseException"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_exception_that_a_function_raises_ends_the_worker(
        self, running: Stage, kind: str, error: str
    ) -> None:
        ids = running.enqueue((f"{kind}_failure", [error]), (kind, ["after"]), max_retries=0)
        failed, after = running.results(ids)
        assert (failed["status"], after["status"]) == ("error", "success")
        assert "on purpose" in failed["traceback"]
        assert running.is_running()

    # --- limits -------------------------------------------------------------------------------------------------

    def test_no_more_run_at_once_than_were_allowed(self, stage: Stage) -> None:
        # First one kind alone, then both, then the other: a limit for each kind would let too many run in between.
        kinds = [KINDS[0]] * 16 + KINDS * 4 + [KINDS[1]] * 16
        ids = stage.enqueue(*((kind, [number, 0.15]) for number, kind in enumerate(kinds)))
        assert stage.start("-c", "4", "--burst").wait(PATIENCE_S) == 0
        assert stage.runs() == dict.fromkeys(ids, 1)
        assert stage.most_at_once(ids) <= 4
        for kind in KINDS:
            these = [task_id for task_id, of in zip(ids, kinds, strict=True) if of == kind]
            assert (
                stage.most_at_once(these) >= 2
            )  # not 4: a process pool's children are there one after the other

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_run_that_takes_too_long_is_ended_and_has_failed(self, running: Stage, kind: str) -> None:
        [task_id] = running.enqueue((kind, ["never", 600]), timeout=0.5, max_retries=0)
        [found] = running.results([task_id])
        assert found["status"] == "error"
        assert "ran longer than 0.5 s" in found["error"]
        self._check_that_there_is_room(running, kind)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_running_task_can_be_cancelled(self, running: Stage, kind: str) -> None:
        [task_id] = running.enqueue((kind, ["never", 600]))
        running.until(lambda: running.runs()[task_id], "it runs")
        assert running.ask("cancel", task_id) is True
        [found] = running.results([task_id])
        assert found["status"] == "cancelled"
        assert running.runs()[task_id] == 1
        self._check_that_there_is_room(running, kind)

    def _check_that_there_is_room(self, stage: Stage, kind: str) -> None:
        """The one place that the worker has is free again, whether or not the function could be stopped."""
        [task_id] = stage.enqueue((kind, ["another"]))
        assert stage.results([task_id])[0]["status"] == "success"

    # --- leases -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_function_that_blocks_for_three_leases_keeps_its_task(self, stage: Stage, kind: str) -> None:
        [task_id] = stage.enqueue((f"{kind}_blocker", [3 * LEASE_S]))
        stage.start("-c", "2", *SHORT_LEASE)
        found = None
        while found is None:
            stage.ask("maintain")  # what another worker would do: take back whatever has no lease any more
            [found] = stage.results([task_id], LEASE_S / 10)
            assert stage.runs()[task_id] <= 1, "its lease was lost"
        assert found["status"] == "success"
        assert stage.task(task_id)["crashes"] == 0

    def test_a_worker_that_is_killed_loses_nothing(self, stage: Stage) -> None:
        ids = stage.enqueue(*((KINDS[number % 2], [number, 0.05]) for number in range(120)))
        worker = stage.start("-c", "4", *SHORT_LEASE)
        stage.until(lambda: len(stage.ledger("ended")) >= 10, "some have ended")
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        stage.start("-c", "8", *SHORT_LEASE)
        found = stage.results(ids)
        assert [one["result"][0] for one in found] == list(range(120))
        # Begun once more were the four under way, and what had ended and was not settled yet.
        assert sum(stage.runs().values()) - len(ids) <= 4 + 8

    # --- the end ------------------------------------------------------------------------------------------------

    def test_a_worker_that_is_told_to_stop_lets_running_tasks_end_and_gives_back_the_rest(
        self, stage: Stage
    ) -> None:
        running = stage.enqueue(*((kind, [kind, 1.0]) for kind in KINDS))
        worker = stage.start("-c", "2")
        stage.until(lambda: len(stage.runs()) == 2, "both run")
        waiting = stage.enqueue(*((kind, [kind]) for kind in KINDS * 10))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0, stage.said()
        assert [one["status"] for one in stage.results(running, 0)] == ["success"] * 2
        states = [(one["status"], one["attempts"]) for one in stage.ask("tasks", waiting)]
        assert states == [("pending", 0)] * 20

    def test_when_the_grace_is_over_what_can_be_stopped_is_stopped_and_given_back(self, stage: Stage) -> None:
        plain, coroutine = stage.enqueue(*((kind, ["never", 600]) for kind in KINDS))
        worker = stage.start("-c", "2", "--shutdown-timeout", "0.3s")
        stage.until(lambda: len(stage.runs()) == 2, "both run")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0, stage.said()
        given_back = {"status": "pending", "attempts": 0, "crashes": 0}
        assert stage.task(coroutine) == given_back
        if self.stops_plain_functions:
            assert stage.task(plain) == given_back
        else:  # a thread is at it until the process ends: its lease keeps others from starting it beside that
            assert stage.task(plain)["status"] == "running"
