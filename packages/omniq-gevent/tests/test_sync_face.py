"""``OmniQ`` in a process that gevent has patched: greenlets wait as threads do, and the others go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each test patches a process of its own

Patched = Callable[..., str]


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
@pytest.mark.parametrize("order", ["patched first", "omniq imported first"])
def test_a_crowd_of_greenlets_uses_one_program_and_none_stops_the_others(
    patched: Patched, storage: str, order: str, tmp_path: Path
) -> None:
    url = "memory://" if storage == "memory" else f"sqlite:///{tmp_path}/t.db"
    patch = "from gevent import monkey; monkey.patch_all()\n"
    out = patched(
        """
import sys, time, gevent
from omniq import OmniQ
oq = OmniQ(sys.argv[1])
ids, gaps, done = [], [], []
def produce(number):
    for step in range(20):
        ids.append(oq.enqueue(print, number, step))
def tick():
    while not done:
        before = time.monotonic()
        gevent.sleep(0.005)
        gaps.append(time.monotonic() - before)
ticking = gevent.spawn(tick)
gevent.joinall([gevent.spawn(produce, number) for number in range(50)], raise_error=True)
done.append(True)
ticking.join()
print(len(set(ids)), oq.get_queue_size(), max(gaps) < 1.0, len(gaps) > 3)
oq.close()
""",
        url,
        first=patch if order == "patched first" else f"import omniq.sync, omniq.workers\n{patch}",
    )
    assert out == "1000 1000 True True"


def test_who_waits_for_a_result_lets_the_greenlet_run_that_makes_it(patched: Patched) -> None:
    out = patched(
        """
import gevent, time
from omniq import OmniQ
oq = OmniQ("memory://", worker_type="gevent")
@oq.task
def nap(seconds):
    time.sleep(seconds)
    return seconds
with oq:
    oq.start_worker()
    began = time.monotonic()
    naps = [nap.enqueue(0.3) for _ in range(80)]
    print([one.result(timeout=20) for one in naps] == [0.3] * 80, time.monotonic() - began < 80 * 0.3 / 4)
"""
    )
    assert out == "True True"


def test_no_greenlet_finds_itself_inside_the_portals_event_loop(patched: Patched) -> None:
    out = patched(
        """
import asyncio, gevent
from omniq import OmniQ
oq = OmniQ("memory://")
oq.enqueue(print, 1)
def inside():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
print(inside(), gevent.spawn(inside).get(), asyncio.run(asyncio.sleep(0, "own loop")))
"""
    )
    assert out == "False False own loop"


def test_a_task_may_use_the_program_that_runs_it(patched: Patched) -> None:
    out = patched(
        """
from omniq import OmniQ
oq = OmniQ("memory://", worker_type="gevent", worker_config={"max_workers": 2})
@oq.task
def leaf(n):
    return n + 1
@oq.task
def root(n):
    return leaf.enqueue(n).result(timeout=20)
with oq:
    oq.start_worker()
    print(root.enqueue(1).result(timeout=20))
"""
    )
    assert out == "2"


def test_the_process_ends_by_itself_and_stops_its_worker_first(patched: Patched) -> None:
    out = patched(
        """
import threading, time
from omniq import OmniQ
oq = OmniQ("memory://")
oq.start_worker("gevent")
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


def test_ctrl_c_ends_a_waiting_call_and_the_next_one_works(patched: Patched) -> None:
    out = patched(
        """
import gevent, os, signal
from omniq import OmniQ
oq = OmniQ("memory://")
task_id = oq.enqueue(print, "never run")
gevent.spawn_later(0.3, os.kill, os.getpid(), signal.SIGINT)
try:
    oq.get_result(task_id, timeout=60)
except KeyboardInterrupt:
    print("interrupted", oq.get_queue_size())
oq.close()
""",
        quiet=False,  # the hub says that it saw a KeyboardInterrupt
    )
    assert out == "interrupted 1"


def test_a_greenlet_that_is_killed_while_it_waits_leaves_the_portal_in_order(patched: Patched) -> None:
    out = patched(
        """
import gevent
from omniq import OmniQ
oq = OmniQ("memory://")
task_id = oq.enqueue(print, "never run")
waiting = [gevent.spawn(oq.get_result, task_id, 60) for _ in range(20)]
gevent.sleep(0.2)
gevent.killall(waiting, timeout=10)
with gevent.Timeout(0.2, False):
    oq.get_result(task_id, 60)
print(all(one.dead for one in waiting), oq.get_queue_size())
oq.close()
"""
    )
    assert out == "True 1"


def test_a_child_of_a_fork_gets_a_portal_of_its_own(patched: Patched, tmp_path: Path) -> None:
    out = patched(
        """
import os, sys
from omniq import OmniQ
oq = OmniQ(sys.argv[1])
oq.enqueue(print, "parent")
oq.close()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    oq.enqueue(print, "child")
    os.write(write, str(oq.get_queue_size()).encode())
    oq.close()
    os._exit(0)
os.waitpid(pid, 0)
print(os.read(read, 100).decode(), oq.get_queue_size())
oq.close()
""",
        f"sqlite:///{tmp_path}/f.db",
    )
    assert out == "2 2"


def test_a_process_pool_is_refused_there_with_what_to_do(patched: Patched) -> None:
    out = patched(
        """
from omniq import OmniQ
oq = OmniQ("memory://")
try:
    oq.start_worker("process_pool")
except RuntimeError as error:
    print(error)
oq.close()
"""
    )
    assert "start this worker in a process of its own: omniq worker --type process_pool" in out


def test_a_thread_pool_there_has_threads_of_the_system(patched: Patched) -> None:
    out = patched(
        """
import threading, time
from omniq import OmniQ
oq = OmniQ("memory://")
native_id = threading.get_native_id
def where():
    return native_id()
async def where_async():
    return native_id()
with oq:
    oq.start_worker("thread_pool")
    found = {oq.get_result(oq.enqueue(task), timeout=20).result for task in (where, where_async)}
    print(len(found), native_id() in found)
"""
    )
    assert out == "2 False"
