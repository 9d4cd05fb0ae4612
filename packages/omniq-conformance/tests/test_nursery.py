"""The processes that tests start are real ones, however quickly they come."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
import pytest

from omniq_conformance import nursery
from omniq_conformance.nursery import Child, start
from omniq_conformance.remote import Remote, RemoteFailed
from omniq_core import Verb

pytestmark = pytest.mark.slow  # interpreters are started

LATE = """
import os, time
IMPORTED_BY = os.getpid()
with open({log!r}, "a") as log:
    log.write("imported\\n")
time.sleep(0.2)  # others are asked for meanwhile
"""
ALONE_S = 20.0


def hear(child: Child) -> Any:
    """What it says next."""
    return json.loads(child.stdout.readline())


def until_it_is(pid: int, *states: str) -> None:
    """Waits for what nothing announces."""
    end = time.monotonic() + ALONE_S
    while (state := psutil.Process(pid).status() if psutil.pid_exists(pid) else "gone") not in states:
        assert time.monotonic() < end, state
        time.sleep(0.01)


def until_gone(pid: int) -> None:
    until_it_is(pid, "gone", psutil.STATUS_ZOMBIE)  # who inherits orphans may bury them late


def is_a_fork(target: str = "nursery_children:look") -> bool:
    with start(target, "HOME") as child:
        return bool(hear(child)[2])


@pytest.fixture
def own_nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A nursery of this test alone: what happens to it stays."""
    monkeypatch.setattr(nursery, "_nursery", None)
    yield
    if nursery._nursery is not None:
        nursery._nursery.close()


@pytest.fixture(params=["a fork", "a new interpreter"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of children, one after the other."""
    if request.param == "a new interpreter":
        assert is_a_fork()
        monkeypatch.setenv("OMNIQ_TEST_NURSERY", "other than when the nursery was started")
    assert is_a_fork() == (request.param == "a fork")
    return str(request.param)


# --- a real process --------------------------------------------------------------------------------------------------


def test_a_child_hears_and_says_and_ends_with_its_input(kind: str) -> None:
    with start("nursery_children:echo") as child:
        assert hear(child) == child.pid
        child.stdin.write(b"one\ntwo\n")
        assert [hear(child), hear(child)] == ["one", "two"]
        assert child.wait(0) is None
        child.stdin.close()
        assert child.stdout.read() == b""
        assert child.wait(ALONE_S) == 0


def test_a_child_is_stopped_continued_and_killed_by_real_signals_and_dies_alone(kind: str) -> None:
    with start("nursery_children:echo") as victim, start("nursery_children:echo") as other:
        assert [hear(victim), hear(other)] == [victim.pid, other.pid]
        victim.send_signal(signal.SIGSTOP)
        until_it_is(victim.pid, psutil.STATUS_STOPPED)
        victim.stdin.write(b"heard\n")
        victim.send_signal(signal.SIGCONT)
        assert hear(victim) == "heard"
        victim.kill()
        assert victim.wait(ALONE_S) == -signal.SIGKILL
        assert not psutil.pid_exists(victim.pid)
        victim.send_signal(signal.SIGKILL)  # too late, and nobody is hit
        other.stdin.write(b"alive\n")
        assert hear(other) == "alive"


def test_an_interrupt_ends_a_child_as_it_ends_any_other(kind: str) -> None:
    with TemporaryFile() as errors, start("nursery_children:echo", stderr=errors.fileno()) as child:
        hear(child)
        child.send_signal(signal.SIGINT)
        assert child.wait(ALONE_S) != 0
        errors.seek(0)
        assert b"KeyboardInterrupt" in errors.read()


@pytest.mark.parametrize(("how", "code"), [(None, 0), (3, 3), ("a message", 1), ("an exception", 1)])
def test_a_child_ends_with_the_code_of_its_function(how: Any, code: int) -> None:
    with TemporaryFile() as errors, start("nursery_children:end", how, stderr=errors.fileno()) as child:
        assert child.wait(ALONE_S) == code
        errors.seek(0)
        assert (b"LookupError: on purpose" in errors.read()) == (how == "an exception")


def test_a_child_has_the_environment_and_the_folder_of_the_test(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with start("nursery_children:look", "PYTEST_CURRENT_TEST") as child:
        assert hear(child)[:2] == [os.environ["PYTEST_CURRENT_TEST"], str(tmp_path)]
    with start("nursery_children:look", "OMNIQ_TEST_NURSERY") as child:
        assert hear(child)[0] == os.environ.get("OMNIQ_TEST_NURSERY")


def test_nothing_is_forked_for_who_would_import_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_a_fork()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_a_fork()


def test_siblings_share_no_chance() -> None:
    drawn = []
    for _ in range(3):
        with start("nursery_children:draw") as child:
            drawn.append(hear(child))
    assert is_a_fork()
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == 3, numbers


def test_a_function_can_be_of_a_file_that_nobody_can_import(tmp_path: Path) -> None:
    program = tmp_path / "say-it.py"
    program.write_text("def main(what):\n    print(f'\"{what}\"')\n", "utf-8")
    with start(f"{program}:main", "this") as child:
        assert hear(child) == "this"


# --- when not to fork ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at_import",
    [
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "_thread.start_new_thread(time.sleep, (600,))",
        "loop = asyncio.new_event_loop()",
        "line = socket.create_server(('127.0.0.1', 0))",
    ],
)
def test_nothing_is_forked_after_an_import_that_made_a_thread_or_opened_a_line(
    at_import: str, own_nursery: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfit_for_forks.py").write_text(
        f"import asyncio, socket, threading, time, _thread\nfrom nursery_children import *\n{at_import}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert is_a_fork()
    assert not is_a_fork("unfit_for_forks:look")
    assert not is_a_fork(), "what an import made is still there"


# --- what siblings need ----------------------------------------------------------------------------------------------


def test_what_a_child_imports_late_its_successors_have_and_the_first_goes_ahead(
    own_nursery: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    (tmp_path / "imported_late.py").write_text(LATE.format(log=str(log)))
    monkeypatch.syspath_prepend(tmp_path)

    def use(_: int) -> Any:
        with start("nursery_children:use", "imported_late") as child:
            return hear(child)

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(use, range(3)))
    assert sorted(found) == [[False, False], [True, True], [True, True]]
    assert log.read_text().split() == ["imported"] * 2  # by the first one, and by the nursery


# --- ends ------------------------------------------------------------------------------------------------------------

CLIENT = """
import os, signal, sys
sys.path[:] = {path!r}
from omniq_conformance import nursery
if {fork}:
    nursery.start("nursery_children:echo")
    if os.fork() == 0:
        child = nursery.start("nursery_children:echo")
        os.write(1, child.stdout.readline())
        os._exit(0)
    os.wait()
child = nursery.start("nursery_children:echo")
child.stdout.readline()
child.send_signal(signal.SIGSTOP)
print(nursery._nursery._process.pid, child.pid, flush=True)
{end}
"""


def run_client(end: str, *, fork: bool = False) -> list[int]:
    """The pids that a process of tests tells before its end."""
    code = CLIENT.format(path=sys.path, fork=fork, end=end)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_nursery_and_children_end_with_the_process_of_the_tests(end: str) -> None:
    for pid in run_client(end):
        until_gone(pid)


def test_a_fork_of_the_process_of_the_tests_has_a_nursery_of_its_own_and_holds_no_other() -> None:
    pids = run_client("os._exit(0)", fork=True)
    assert len(pids) == 3
    for pid in pids:
        until_gone(pid)


def test_after_the_death_of_a_nursery_another_one_is_started(own_nursery: None) -> None:
    with start("nursery_children:echo") as child:
        hear(child)
        assert nursery._nursery is not None
        nursery._nursery._process.kill()
        with pytest.raises(RuntimeError, match="the nursery has died"):
            child.wait(ALONE_S)
        with pytest.raises(RuntimeError, match="the nursery has died"):
            child.kill()
        child.stdin.close()  # without a nursery it still ends with its input
        until_gone(child.pid)
    assert is_a_fork()


# --- the process checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_nursery", [True, False])
def test_another_process_of_a_check_works_is_stopped_and_killed(
    has_nursery: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "HAS_NURSERY", has_nursery)

    async def main() -> None:
        async with Remote.start("memory://nursery") as remote:
            assert await remote.do("enqueue", task_ids=["t"], queue="q") == ["ok"]
            assert await remote.claim("q", max_tasks=1, lease_s=60.0) == ["t"]
            with pytest.raises(RemoteFailed, match="KeyError"):
                await remote.settle(["unknown"], Verb.SUCCEED)
            remote.stop()
            await remote.send("settle", task_ids=["t"], verb=Verb.SUCCEED.value)
            remote.resume()
            assert await remote.answer() == ["ok"]
            await remote.kill()
            with pytest.raises(RemoteFailed, match="ended with code -9"):
                await remote.answer()
        async with Remote.start("memory://nursery") as remote:
            remote.stop()  # and so it is left

    asyncio.run(main())


def test_another_process_of_a_check_that_cannot_open_says_so() -> None:
    async def main() -> None:
        with pytest.raises(RemoteFailed, match="ended with code 1"):
            async with Remote.start("memory://x?no_such_setting=1"):
                pass

    asyncio.run(main())


def test_a_process_that_gevent_has_patched_gets_its_other_processes_from_the_nursery() -> None:
    code = """
        from gevent import monkey
        monkey.patch_all()
        import asyncio
        from omniq_conformance.remote import Remote

        async def main():
            async with Remote.start("memory://x") as one, Remote.start("memory://x") as other:
                for remote in (one, other):
                    assert await remote.do("enqueue", task_ids=["t"], queue="q") == ["ok"]
                one.stop()
                await other.kill()

        asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
