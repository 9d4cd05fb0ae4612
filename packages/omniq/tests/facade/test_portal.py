"""The loop behind the sync face: signals, forks, threads, and the end of the process. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from omniq import OmniQ
from omniq.portal import portal, run_sync


def python(code: str, *, timeout: float = 60) -> str:
    done = subprocess.run(
        # Python 3.12 warns of a fork beside threads, which is what one of these tests is about.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def test_a_call_from_the_portals_own_loop_is_refused_with_a_reason() -> None:
    async def inside() -> None:
        OmniQ("memory://").list_queues()

    with pytest.raises(
        RuntimeError, match="own event loop, which would wait for itself for ever; use AsyncOmniQ"
    ):
        run_sync(inside())


def test_many_threads_share_one_program() -> None:
    with OmniQ("memory://", worker_type="thread_pool") as oq, ThreadPoolExecutor(8) as pool:

        def use(number: int) -> object:
            return str(oq.get_result(oq.enqueue(lambda: number), timeout=20))

        assert list(pool.map(use, range(100))) == [str(number) for number in range(100)]


def test_an_error_of_a_coroutine_comes_out_of_the_call() -> None:
    async def fail() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        run_sync(fail())


def test_ctrl_c_ends_a_waiting_call_and_its_coroutine() -> None:
    cancelled = threading.Event()

    async def endless() -> None:
        portal_is_there.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    portal_is_there = threading.Event()
    main_thread = threading.get_ident()

    def interrupt() -> None:
        portal_is_there.wait(10)
        signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_sync(endless())
    thread.join()
    assert cancelled.wait(10)
    assert run_sync(asyncio.sleep(0, "still there")) == "still there"


def test_interrupts_at_any_moment_leave_the_portal_in_order() -> None:
    main_thread = threading.get_ident()
    stop = threading.Event()
    interrupted = 0

    def send() -> None:
        while not stop.wait(0.0005):
            signal.pthread_kill(main_thread, signal.SIGINT)

    def raise_in_a_call(number: int, frame: FrameType | None) -> None:
        # Anywhere within it, also while it deals with another interrupt, and never in the test's own lines.
        while frame is not None:
            if frame.f_code is run_sync.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back

    async def quick() -> int:
        await asyncio.sleep(0)
        return 1

    portal()
    before = signal.signal(signal.SIGINT, raise_in_a_call)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        while interrupted < 200:
            try:
                run_sync(quick())
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert run_sync(quick()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_of_a_fork_gets_a_portal_and_connections_of_its_own(tmp_path: object) -> None:
    # Closed before the fork, as SQLite wants it: no connection may be carried into a child.
    out = python(
        f"""
import os
from omniq import OmniQ
from omniq.portal import portal
oq = OmniQ("sqlite:///{tmp_path}/f.db")
first = oq.enqueue(print, "parent")
oq.close()
mine = portal().pid
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    second = oq.enqueue(print, "child")
    os.write(write, str((portal().pid != mine, oq.get_queue_size())).encode())
    oq.close()
    os._exit(0)
os.waitpid(pid, 0)
print(os.read(read, 100).decode(), oq.get_queue_size())
"""
    )
    assert out == "(True, 2) 2"


def test_the_process_ends_by_itself_and_stops_its_worker_first() -> None:
    out = python(
        """
import threading, time
from omniq import OmniQ
oq = OmniQ("memory://")
oq.start_worker("thread_pool")
started = threading.Event()
def slow():
    started.set()
    time.sleep(0.3)
    print("finished")
oq.enqueue(slow)
started.wait()
print("main ends")
"""
    )
    assert out == "main ends\nfinished"


def test_what_was_only_enqueued_and_never_closed_does_not_keep_the_process(tmp_path: object) -> None:
    out = python(
        f"""
from omniq import OmniQ
from omniq.queue import SQLiteTaskQueue
oq = OmniQ("sqlite:///{tmp_path}/x.db")
oq.enqueue(print, 1)
SQLiteTaskQueue(db_path="{tmp_path}/y.db").enqueue(print, 2)
del oq
print("done")
"""
    )
    assert out == "done"


def test_the_portal_starts_anew_after_it_was_closed() -> None:
    before = portal()
    before.close()
    assert run_sync(asyncio.sleep(0, 1)) == 1
    assert portal() is not before
