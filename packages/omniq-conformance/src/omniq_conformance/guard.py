"""Runs a test's coroutine so that nothing a backend does can hang the run.

Two nets, one inside the other. Inside, the coroutine has its time, is then cancelled, and has a moment to obey. Outside,
it runs on a thread of its own, and whoever asked for it stops waiting: that net holds when the event loop itself is
blocked, by a lock or by a call into C. What hung is left behind as a daemon thread, and the failure shows where it stood.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine

__all__ = ["TookTooLong", "exit_even_if_stuck", "run_guarded", "run_on_a_thread"]

OBEY_S = 2.0
"""How long a cancelled coroutine may take to end: closing a connection, not finishing its work."""
LAST_RESORT_S = 10.0
"""How long the interpreter may take to exit once something was left behind."""

_left_behind = 0


class TookTooLong(AssertionError):
    """The test did not end in time, or ignored its cancellation."""


def run_guarded(main: Callable[[], Coroutine[object, object, None]], *, timeout_s: float, what: str) -> None:
    """Runs ``main()`` on a new event loop in a new thread; raises what it raises.

    Args:
        main: makes the coroutine.
        timeout_s: how long it may take.
        what: names it in the failure.

    Raises:
        TookTooLong: it did not end within its time; the message shows where it stood.
    """
    __tracebackhide__ = True
    loops: list[asyncio.AbstractEventLoop] = []

    def run() -> None:
        __tracebackhide__ = True
        with asyncio.Runner() as runner:
            loops.append(runner.get_loop())
            runner.run(_limited(main, timeout_s, what))

    run_on_a_thread(run, timeout_s=timeout_s + OBEY_S + 1.0, what=what, loops=loops)


def run_on_a_thread(
    run: Callable[[], None], *, timeout_s: float, what: str, loops: list[asyncio.AbstractEventLoop]
) -> None:
    """The outer net alone, for a test that runs several loops itself (see :func:`run_guarded`)."""
    global _left_behind
    __tracebackhide__ = True
    raised: list[BaseException] = []

    def target() -> None:
        __tracebackhide__ = True
        try:
            run()
        except (
            BaseException
        ) as error:  # a skip and an interrupt are no Exception, and belong to the caller as well
            raised.append(error)

    thread = threading.Thread(target=target, name=f"conformance: {what}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        _left_behind += 1
        frame = sys._current_frames().get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else "(no stack)"
        tasks = "".join(_tasks(loop) for loop in loops)
        raise TookTooLong(
            f"{what} blocked its event loop, or kept a call from ending, for {timeout_s:g} s and was left behind. "
            f"It stands at:\n{stack}\n{tasks}"
        )
    if raised:
        raise raised[0]


async def _limited(main: Callable[[], Coroutine[object, object, None]], timeout_s: float, what: str) -> None:
    __tracebackhide__ = True
    task = asyncio.ensure_future(main())
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    if done:
        task.result()
        return
    stood = _stack(task)
    others = "".join(_stack(other) for other in asyncio.all_tasks() - {task, asyncio.current_task()})
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=OBEY_S)
    ending = (
        "" if done else " It then ignored its cancellation: a call to the backend swallows CancelledError."
    )
    raise TookTooLong(
        f"{what} did not end within {timeout_s:g} s.{ending} It stood at:\n{stood}\nBeside it:\n{others}"
    )


def _stack(task: asyncio.Task[object]) -> str:
    text = io.StringIO()
    task.print_stack(limit=8, file=text)
    return text.getvalue()


def _tasks(loop: asyncio.AbstractEventLoop) -> str:
    try:
        return "".join(_stack(task) for task in asyncio.all_tasks(loop))
    except (
        RuntimeError
    ):  # read from another thread while the loop's set of tasks changed: it is only for display
        return ""


def exit_even_if_stuck() -> None:
    """Lets the interpreter die soon: a driver's thread that a stuck test left behind would be joined for ever."""
    if _left_behind:
        # A descriptor of its own: pytest has put sys.stderr back by now, or closed it.
        faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True, file=2)
