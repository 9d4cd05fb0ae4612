"""Running functions in child processes: the ``process_pool`` worker type. For what computes, and for what may crash.

**Children are new interpreters**, never forks of this one: a fork copies locks that other threads hold. A child has its own
session, so that Ctrl-C does not reach it and everything that it started can be killed with it.

**What is handed over.** A child imports the module of the task's function, by the name that the *registry* gives (nothing is
imported for a message). What cannot be imported (a lambda, a local function, a notebook cell) is handed over by value with
cloudpickle, through the pipe. Arguments and values pass through the parent encoded; annotations are honoured in the child.

**The end of a child.** One that dies in a call has crashed, which is charged to the task's crash budget; the pool puts
another in its place. A call that is cancelled or out of time is ended by killing its child: SIGTERM, and a second later
SIGKILL for its whole process group. A child ends itself when this process is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from typing import Any, cast

from omniq.codec import Undecodable
from omniq.errors import NotSerializable
from omniq.outcome import Reject, Retry, Signal, Snooze
from omniq.runners.child import is_child
from omniq.runners.frames import (
    CallFrame,
    Frames,
    LoadFrame,
    OutcomeFrame,
    pack,
    unpack_to_parent,
)
from omniq.runners.handover import by_value, load_frame
from omniq.runners.runner import Call, ChildCrashed, RemoteFailure
from omniq.task import TaskDefinition
from omniq_core.native import is_patched

__all__ = ["ProcessRunner"]

log = logging.getLogger("omniq.worker")

KILL_AFTER_S = 1.0
LAST_WORDS_S = 0.2
"""How long after a child's death its pipe is read, for an answer that it still sent."""
SPAWN_AGAIN_S = 1.0
_BOOT = (
    "import os, sys; *numbers, path = sys.argv[1:]; sys.argv[1:] = []; sys.path[:] = path.split(os.pathsep); "
    "from omniq.runners.child import main; main(*map(int, numbers))"
)


class _Child(asyncio.Protocol):
    """The parent's side of one child."""

    def __init__(self) -> None:
        self._frames = Frames()
        self._answer: asyncio.Future[OutcomeFrame] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._pipe_closed = asyncio.Event()
        self._lifeline = -1
        self.is_doomed = False
        self.gone: asyncio.Task[None] | None = None
        """Done when the process has ended."""
        self.loaded: dict[str, TaskDefinition[Any, Any]] = {}

    async def start(self) -> None:
        """Starts the process; see :meth:`ready`."""
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        try:
            try:
                flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *flags,
                    "-c",
                    _BOOT,
                    str(os.getpid()),
                    str(theirs.fileno()),
                    str(lifeline),
                    os.pathsep.join(sys.path),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), lifeline],
                    start_new_session=True,
                )
            finally:
                theirs.close()
                os.close(lifeline)
            await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            self._drop_lifeline()
            if self._process is not None:
                self._kill_group(signal.SIGKILL)
                await self._process.wait()
            raise
        self.gone = asyncio.ensure_future(self._watch())
        self._answer = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        """Waits until it has started up.

        Raises:
            ChildCrashed: it did not.
        """
        assert self._answer is not None
        try:
            await self._answer
        finally:
            self._answer = None

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    @property
    def is_alive(self) -> bool:
        return self.gone is not None and not self.gone.done() and not self.is_doomed

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(
            asyncio.WriteTransport, transport
        )  # not by isinstance(): uvloop's are no subclass of it
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(unpack_to_parent(frame))

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe_closed.set()

    # --- calls --------------------------------------------------------------------------------------------------

    async def call(self, load: LoadFrame | None, call: CallFrame) -> OutcomeFrame:
        """Runs one call.

        Raises:
            ChildCrashed: the process died.
        """
        if self._transport is None or not self.is_alive:
            raise ChildCrashed(self._end())
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(pack(call) if load is None else pack(load) + pack(call))
        try:
            return await self._answer
        finally:
            self._answer = None

    async def _watch(self) -> None:
        """Notices the end of the process: the pipe alone does not tell, as a grandchild may have inherited it."""
        assert self._process is not None
        await self._process.wait()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._pipe_closed.wait()
        except TimeoutError:
            pass
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ChildCrashed(self._end()))
        self.hang_up()

    def _end(self) -> str:
        status = None if self._process is None else self._process.returncode
        if status is None:
            return "its process is gone"
        if status >= 0:
            return f"its process ended with status {status}"
        try:
            return f"its process was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"its process was killed by signal {-status}"

    # --- the end ------------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Lets the child end by itself, at once."""
        if self._transport is not None:
            self._transport.close()
        self._drop_lifeline()

    def _drop_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    async def kill(self) -> None:
        """Ends the process, and what it started."""
        if self.gone is None:
            return
        self.is_doomed = True
        self._kill_group(signal.SIGTERM)
        await asyncio.wait([self.gone], timeout=KILL_AFTER_S)
        self._kill_group(signal.SIGKILL)
        await asyncio.wait([self.gone], timeout=KILL_AFTER_S)

    def _kill_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # all of it is gone
            pass


class ProcessRunner:
    """Functions in child processes, one call at a time in each."""

    calls_wait = True
    """For a child that is still starting."""

    def __init__(self) -> None:
        self._most = 0
        self._children: set[_Child] = set()
        self._leaving: set[_Child] = set()
        """Killed, and not gone yet."""
        self._idle: deque[_Child] = deque()
        self._waiting: deque[asyncio.Future[_Child]] = deque()
        self._starting = 0
        self._spawning: set[asyncio.Task[None]] = set()
        self._stopped = True

    @property
    def pids(self) -> list[int]:
        """The processes of the pool."""
        return [child.pid for child in self._children if child.is_alive]

    async def start(self, *, concurrency: int) -> None:
        """See :class:`~omniq.runners.runner.Runner`. The children start in the background."""
        if is_child():
            raise RuntimeError(
                "a child of a process pool must not start a pool. The module that it imported, for a function that it "
                "defines, starts a worker when it is imported: put that under  if __name__ == '__main__':"
            )
        if is_patched():
            raise RuntimeError(
                "the process pool needs a process that gevent has not patched, as there the ends of children go to gevent's "
                "hub; start this worker in a process of its own: omniq worker --type process_pool"
            )
        if not hasattr(os, "killpg"):
            raise RuntimeError("the process pool needs a POSIX system; use thread_pool here")
        self._stopped = False
        self._most = concurrency
        self._fill()

    async def stop(self) -> None:
        """See :class:`~omniq.runners.runner.Runner`."""
        self._stopped = True
        for task in list(self._spawning):
            task.cancel()
        if self._spawning:
            await asyncio.wait(self._spawning)
        children = [*self._children, *self._leaving]
        for child in children:
            child.hang_up()
        gone = [child.gone for child in children if child.gone is not None]
        if gone:
            await asyncio.wait(gone, timeout=KILL_AFTER_S)
        await asyncio.gather(*(child.kill() for child in children))
        self._children.clear()
        self._idle.clear()

    async def run(self, call: Call) -> Any:
        """See :class:`~omniq.runners.runner.Runner`."""
        child = await self._take()
        try:
            outcome = await self._call(child, call)
        except asyncio.CancelledError:
            call.context.ask_to_stop()
            # Shielded: a second cancellation must not leave it alive.
            await asyncio.shield(asyncio.ensure_future(child.kill()))
            raise
        finally:
            call.ended = True
            self._give_back(child)  # dead or alive
        return _value_of(outcome, call)

    async def _call(self, child: _Child, call: Call) -> OutcomeFrame:
        definition = call.definition
        frame = _call_frame(call)
        load = None if child.loaded.get(definition.name) is definition else load_frame(definition)
        call.begin()
        outcome = await child.call(load, frame)
        if outcome.not_loaded and load is not None and not load.pickled:
            outcome = await child.call(by_value(definition, outcome.not_loaded), frame)
        if outcome.not_loaded:
            raise NotSerializable(
                f"the task {definition.name} cannot be loaded in a child process: {outcome.not_loaded}"
            )
        child.loaded[definition.name] = definition
        return outcome

    # --- the pool -----------------------------------------------------------------------------------------------

    async def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()  # the one that was used last is warm
            if child.is_alive:
                return child
            self._discard(child)
        waiting: asyncio.Future[_Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._fill()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self._give_back(waiting.result())
            raise

    def _give_back(self, child: _Child) -> None:
        if not child.is_alive:
            self._discard(child)
            return
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(child)
                return
        self._idle.append(child)

    def _discard(self, child: _Child) -> None:
        self._children.discard(child)
        if child.gone is not None and not child.gone.done():
            self._leaving.add(child)
            child.gone.add_done_callback(lambda _: self._leaving.discard(child))
        self._fill()

    def _fill(self) -> None:
        """Brings the pool to its full size, in the background."""
        while not self._stopped and len(self._children) + self._starting < self._most:
            self._starting += 1
            task = asyncio.ensure_future(self._spawn())
            self._spawning.add(task)
            task.add_done_callback(self._spawning.discard)

    async def _spawn(self) -> None:
        said = ""
        child = _Child()
        try:
            while True:
                try:
                    await child.start()
                    await child.ready()
                    break
                except (
                    OSError,
                    ChildCrashed,
                ) as error:  # out of processes or memory, or its start fails: for now
                    if str(error) != said:
                        said = str(error)
                        log.error("cannot start a child process (%s); trying again", error)
                    await child.kill()
                    await asyncio.sleep(SPAWN_AGAIN_S)
                    child = _Child()
        except BaseException:
            await child.kill()
            raise
        finally:
            self._starting -= 1
        self._children.add(child)
        assert child.gone is not None
        child.gone.add_done_callback(lambda _: self._died(child))
        self._give_back(child)

    def _died(self, child: _Child) -> None:
        if child in self._idle:  # nobody is there to notice
            self._idle.remove(child)
            self._discard(child)


def _call_frame(call: Call) -> CallFrame:
    about = call.context
    return CallFrame(
        call.definition.name, call.envelope.arguments, about.task_id, about.queue, about.attempt, about.crashes,
        about.max_attempts, about.max_crashes, about.fence, about.enqueued_at, about.worker_id, dict(about.headers),
    )  # fmt: skip


def _value_of(outcome: OutcomeFrame, call: Call) -> Any:
    if outcome.undecodable:
        raise Undecodable(outcome.undecodable)
    if outcome.failure is None:
        return outcome.value
    signal_: Signal | None = None
    match outcome.signal:
        case "Retry":
            signal_ = Retry(outcome.seconds, reason=outcome.reason)
        case "Reject":
            signal_ = Reject(outcome.reason)
        case "Snooze":
            signal_ = Snooze(outcome.seconds or 0.0, reason=outcome.reason)
    raise RemoteFailure(outcome.failure, signal_)
