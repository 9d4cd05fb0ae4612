"""A child process of the process pool.

The main thread runs one call at a time, as its parent hands them over. A second thread waits at a *lifeline*, a pipe that
nobody ever writes to: it ends when the parent does, and then the process ends too, whatever the main thread is doing. On
Linux the kernel is asked to do the same, for a function that never lets another thread run. The parent ends a child by
killing it, so nothing here waits for a function to be reasonable.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from omniq.codec import (
    MSGPACK,
    NIL,
    VERSION,
    Envelope,
    Failure,
    Undecodable,
    encode_value,
    failure_of,
)
from omniq.context import TaskContext
from omniq.outcome import Reject, Retry, Snooze
from omniq.runners.frames import (
    CallFrame,
    Frames,
    LoadFrame,
    OutcomeFrame,
    pack,
    unpack_to_child,
)
from omniq.runners.runner import Call, frames_above, invoke, invoke_async
from omniq.task import TaskDefinition
from omniq_core import Claim, Lease

__all__ = ["is_child", "main"]

READ_BYTES = 1 << 16


def is_child() -> bool:
    """Whether this process is a child of a process pool."""
    return _is_child


_is_child = False


class _Child:
    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._functions: dict[str, TaskDefinition[Any, Any]] = {}
        self._loads: dict[str, LoadFrame] = {}
        self._runner: asyncio.Runner | None = None

    def work(self) -> None:
        """Runs what comes, until the parent is gone."""
        pipe, frames = self._pipe, Frames()
        pipe.sendall(pack(OutcomeFrame()))  # ready
        while data := pipe.recv(READ_BYTES):
            for frame in frames.feed(data):
                message = unpack_to_child(frame)
                if isinstance(message, LoadFrame):
                    self._loads[message.name] = message
                else:
                    pipe.sendall(pack(self._outcome(message)))

    def _outcome(self, call: CallFrame) -> OutcomeFrame:
        try:
            definition = self._function(call.name)
        except BaseException as error:
            return OutcomeFrame(not_loaded=f"{type(error).__name__}: {error}")
        try:
            value = copy_context().run(self._run, definition, call)
            return OutcomeFrame(encode_value(value))
        except Undecodable as error:
            return OutcomeFrame(undecodable=str(error))
        except Retry as asked:
            return OutcomeFrame(NIL, _failure(asked), "Retry", asked.after_s, asked.reason)
        except Reject as asked:
            return OutcomeFrame(NIL, _failure(asked), "Reject", None, asked.reason)
        except Snooze as asked:
            return OutcomeFrame(NIL, _failure(asked), "Snooze", asked.delay_s, asked.reason)
        except BaseException as error:
            return OutcomeFrame(NIL, _failure(error))

    def _run(self, definition: TaskDefinition[Any, Any], call: CallFrame) -> Any:
        lease = Lease(call.task_id, call.fence)
        claim = Claim(
            call.task_id, call.queue, call.name, b"", call.attempt, call.crashes, call.max_attempts, call.max_crashes,
            call.enqueued_at, lease,
        )  # fmt: skip
        about = TaskContext(claim, call.worker_id, call.headers)
        run = Call(definition, Envelope(VERSION, MSGPACK, call.arguments), about, None)
        if not definition.is_async:
            return invoke(run)
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(invoke_async(run), context=copy_context())

    def _function(self, name: str) -> TaskDefinition[Any, Any]:
        """The function of a task: what the parent's registry holds under that name, imported or unpickled here."""
        found = self._functions.get(name)
        load = self._loads.pop(name, None)
        if load is not None or found is None:
            assert load is not None
            loaded = _load(load)
            inner = getattr(
                loaded, "definition", loaded
            )  # a decorated function is found as what the decorator made
            found = inner if isinstance(inner, TaskDefinition) else TaskDefinition(loaded, name=name)
            self._functions[name] = found
        return found


def _failure(error: BaseException) -> Failure:
    return failure_of(error, skip_frames=frames_above(error))


def _load(frame: LoadFrame) -> Callable[..., Any]:
    if frame.pickled:
        import cloudpickle  # type: ignore[import-untyped]

        pickled: Callable[..., Any] = cloudpickle.loads(frame.pickled)
        return pickled
    found: Any = importlib.import_module(frame.module)
    for part in frame.qualname.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{frame.module}:{frame.qualname} is a {type(found).__name__}, not a function")
    result: Callable[..., Any] = found
    return result


def _die_with_parent() -> None:
    """Asks the Linux kernel to kill this process when its parent dies."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    except (OSError, AttributeError):  # no such call here: the reading thread has to do
        pass


def _hold(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(0)


def main(parent: int, pipe: int, lifeline: int) -> None:
    """The process, from its start to its end.

    Args:
        parent: the parent's process id.
        pipe: a socket to it.
        lifeline: ends when it does.
    """
    global _is_child
    _is_child = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children itself
    _die_with_parent()
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(0)
    for descriptor in (pipe, lifeline):
        os.set_inheritable(descriptor, False)  # not for what a function starts
    threading.Thread(target=_hold, args=(lifeline,), name="omniq-parent", daemon=True).start()
    try:
        with socket.socket(fileno=pipe) as parent_side:
            _Child(parent_side).work()
    except OSError:  # the parent is gone, or wants us to be
        pass
    os._exit(0)
