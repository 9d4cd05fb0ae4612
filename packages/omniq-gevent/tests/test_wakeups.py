"""What other threads do to a hub: they wake it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.slow  # many wake-ups in a process of its own

Patched = Callable[..., str]


def test_thousands_of_wake_ups_from_other_threads_leave_a_hubs_count_of_what_it_waits_for_right(
    patched: Patched,
) -> None:
    # With run_callback_threadsafe for the watcher the count is wrong after one run in three, or it is told LoopExit.
    out = patched(
        """
import time, gevent, gevent.hub
from _queue import SimpleQueue
from omniq_core.native import make_latch, make_thread
from omniq_gevent.runner import _Bell
hub = gevent.hub.get_hub()
answers, latches, over = [0], SimpleQueue(), []
def answer(): answers[0] += 1
bell = _Bell(hub, answer, is_kept=True)
before = hub.loop.activecnt
pause = gevent.monkey.get_original("time", "sleep")
def ring():
    while not over:
        bell.ring()
        pause(2e-5)
def set_latches():
    while (latch := latches.get()) is not None:
        latch.set()
def expire():
    while not over:
        time.sleep(1e-5)
def wait():
    while not over:
        latch = make_latch()
        latches.put(latch)
        assert latch.wait(30)
threads = [make_thread(target, name="foreign") for target in (ring, ring, set_latches)]
for thread in threads: thread.start()
greenlets = [gevent.spawn(target) for target in (expire, wait) for _ in range(10)]
gevent.sleep(3)
over.append(True)
gevent.joinall(greenlets, raise_error=True)
latches.put(None)
for thread in threads: thread.join()
gevent.sleep(0.05)
print(answers[0] > 1000, hub.loop.activecnt - before)
""",
    )
    assert out == "True 0"
