"""The end of a patched process that has native threads."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

Patched = Callable[..., str]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="only Linux tells which threads are left")
def test_python_ends_only_when_threads_that_are_just_ending_are_gone(patched: Patched) -> None:
    # One that is still ending is stopped within a greenlet, and the process crashes: in one start of a hundred.
    out = patched(
        """
import atexit, os
from omniq_core.native import make_thread
pause = monkey.get_original("time", "sleep")
atexit.register(lambda: print(len(os.listdir("/proc/self/task"))))
for _ in range(3): make_thread(pause, 0.1, name="ending").start()
"""
    )
    assert out == "1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_of_a_fork_does_not_wait_for_its_parents_threads(patched: Patched) -> None:
    out = patched(
        """
import os, threading, time
from gevent import get_hub
from omniq_core.native import make_latch, make_thread
latch, begun = make_latch(), make_latch()
def wait():
    begun.set()
    latch.wait()
thread = make_thread(wait, name="waiting")
thread.start()
begun.wait()  # a fork while it makes its hub would leave that half made in the child, and locked
# gevent 26.9 does this after a fork, and would wait for ever for a first child that has ended by then.
get_hub().loop.install_sigchld()
child = os.fork()
if not child:
    before = time.monotonic()
    threading._shutdown()
    os._exit(time.monotonic() - before > 0.5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
latch.set()
thread.join()
"""
    )
    assert out == "0"
