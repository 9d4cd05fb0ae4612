"""The clerk: one thread per place and process that works on its logs for everybody in the process.

Every backend on the same place, and every twin for another thread, hands its calls to one clerk. So a process holds one
copy of the index and reads each commit once, however many backends it opens; calls from all of them share commits; and the
lease of a task is extended even while the event loop that claimed it is blocked by user code. The shelf is used on the
clerk's own event loop, where waiting for a disk holds up nobody else's.

A clerk starts with the first backend that is opened and ends with the last one that is closed. Only the thread that forks
lives on in a child: the child forgets its parent's clerks, and a backend that was open there must be opened again here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeVar

from omniq_core import BackendError, Clock, Closed, ErrorCode
from omniq_core.native import RLock, make_thread
from omniq_file.bell import EVENTS, Bell, queue_key, result_key
from omniq_file.bodies import Bodies
from omniq_file.call import Call
from omniq_file.desk import Desk
from omniq_file.event_machine import EventMachine
from omniq_file.log import Log, commit_name
from omniq_file.machine import TaskMachine
from omniq_file.shelves.shelf import Shelf

__all__ = ["Clerk", "ClerkSettings", "hire"]

T = TypeVar("T")
logger = logging.getLogger("omniq")

LOOK_S = 1.0
TASKS_FOLDER, EVENTS_FOLDER = "tasks", "events"


class ClerkSettings:
    """What a clerk is made of.

    Args:
        shelf: makes a shelf that is not open yet.
        create: whether a missing place is made.
        clock: for the time of commits.
        retention_s: how long finished tasks are kept, in seconds.
        max_finished: how many.
        max_events: how many events are kept.
        cache_bytes: for commits of each log.
    """

    def __init__(
        self, shelf: Callable[[], Shelf], *, create: bool, clock: Clock, retention_s: float, max_finished: int,
        max_events: int, cache_bytes: int,
    ) -> None:  # fmt: skip
        self.shelf, self.create, self.clock = shelf, create, clock
        self.policy = (retention_s, max_finished)
        self.event_policy = (max_events,)
        self.cache_bytes = cache_bytes


class Clerk:
    """Started by :func:`hire`. Everything but ``_main`` and what it calls may be used from any thread."""

    def __init__(self, key: Hashable, settings: ClerkSettings) -> None:
        self.key, self.settings = key, settings
        self.pid = os.getpid()
        self.users = 0
        self.bell = Bell()
        self.shelf: Shelf
        self.tasks: Desk[TaskMachine]
        self.events: Desk[EventMachine]
        self._incoming: deque[tuple[bool, Call]] = deque()
        self._is_awake = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """Made in the clerk's thread, once that runs."""
        self._early: list[Callable[[], object]] = []
        """What it is to be told first."""
        self._end = asyncio.Event()
        self._is_over = False
        self._opened: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._verdict: BaseException | bool | None = None
        """Of opening: None: not known yet. True: it is open."""
        self._ended: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._lock = RLock()
        make_thread(self._run, name="omniq-file").start()

    # --- from any thread -------------------------------------------------------------------------------------------

    async def opened(self) -> None:
        """Returns when the place is open.

        Raises:
            Exception: what opening it met.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._verdict is None:
                self._opened.append((loop, future))
            else:
                _settle(future, self._verdict)
        await future

    def submit(self, call: Call, *, events: bool = False) -> asyncio.Future[Any]:
        """Hands a call in; its answer comes to the running loop."""
        if self._is_over:
            raise Closed("file")
        self._incoming.append((events, call))
        if not self._is_awake:
            self._is_awake = True
            self._wake(self._distribute)
        return call.future

    async def event_commits(self, numbers: Sequence[int]) -> list[bytes | None]:
        """Whole commits of the log of events; None for one that is gone."""
        return await self._run_there(self.events.log.bodies.commits(numbers))

    async def server_time(self) -> float | None:
        """The storage's own clock, if it has one."""
        return await self._run_there(self.shelf.now())

    async def _run_there(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._is_over or self._loop is None:
            coroutine.close()
            raise Closed("file")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def _wake(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if self._loop is None:
                self._early.append(callback)
                return
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            raise Closed("file") from None

    async def leave(self) -> None:
        """Takes one user away; with the last one everything is closed, and this returns when it is."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            if _clerks.get(self.key) is self:
                del _clerks[self.key]
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._is_over:
                return
            self._ended.append((loop, future))
        self._wake(self._end.set)
        await future

    # --- on the clerk's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        with self._lock:
            self._loop = loop
            for callback in self._early:
                loop.call_soon(callback)
        try:
            loop.run_until_complete(self._main())
        except BaseException as error:
            logger.exception("omniq-file: the thread that works on %s ended", self.key)
            self._publish(error)
        finally:
            with _lock:
                if _clerks.get(self.key) is self:
                    del _clerks[self.key]
            with self._lock:
                self._is_over = True
                ended, self._ended = self._ended, deque()
            self._refuse_rest()
            # Its threads end before this one does: under gevent they are greenlets of this thread's hub, which goes with it,
            # and the process would wait for them at its end for ever.
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            for waiting, future in ended:
                _call(waiting, future, True)

    async def _main(self) -> None:
        settings = self.settings
        shelf = settings.shelf()
        try:
            await shelf.open(create=settings.create)
            self.shelf = shelf
            self.tasks = Desk(self._log(TASKS_FOLDER, TaskMachine, settings.policy), self._announce_tasks)
            self.events = Desk(
                self._log(EVENTS_FOLDER, EventMachine, settings.event_policy), self._announce_events
            )
            await self.tasks.log.refresh()
            shelf.watch(self._notice)
        except BaseException as error:
            with _lock:
                if _clerks.get(self.key) is self:
                    del _clerks[self.key]
            await shelf.close()
            self._publish(error)
            if not isinstance(error, Exception):
                raise
            await self._end.wait()
            return
        self._publish(True)
        workers = [asyncio.create_task(desk.serve()) for desk in (self.tasks, self.events)]
        workers.append(asyncio.create_task(self._poll()))
        ending = asyncio.create_task(self._end.wait())
        try:
            # A desk never ends by itself, unless there is a bug: then nobody must wait for its answers.
            done, _ = await asyncio.wait([ending, *workers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not ending:
                    task.result()
        finally:
            self._is_over = True
            for task in (*workers, ending):
                task.cancel()
            await asyncio.wait([*workers, ending])
            self._distribute()
            for desk in (self.tasks, self.events):
                await desk.end()
            self.bell.ring_all()
            await shelf.close()

    def _log(self, folder: str, machine: Any, policy: Any) -> Log[Any]:
        bodies = Bodies(self.shelf, lambda number: commit_name(folder, number), self.settings.cache_bytes)
        return Log(self.shelf, folder, machine, policy, self.settings.clock, bodies)

    def _distribute(self) -> None:
        self._is_awake = False
        while self._incoming:
            events, call = self._incoming.popleft()
            (self.events if events else self.tasks).accept(call)

    def _refuse_rest(self) -> None:
        while self._incoming:
            _, call = self._incoming.popleft()
            _call(call.loop, call.future, Closed("file"))

    def _publish(self, verdict: BaseException | bool) -> None:
        with self._lock:
            if self._verdict is None:
                self._verdict = verdict
            waiting, self._opened = self._opened, deque()
        for loop, future in waiting:
            _call(loop, future, verdict)

    # --- news ------------------------------------------------------------------------------------------------------

    def _notice(self) -> None:
        self.tasks.notice()
        if self.events.log.is_loaded:
            self.events.notice()

    async def _poll(self) -> None:
        """Looks now and then while somebody waits; also where one is told, as a process may die before it tells."""
        facts = self.shelf.facts
        while True:
            await asyncio.sleep(LOOK_S if facts.wake_up else facts.poll_interval_s)
            if self.bell.is_waited_at:
                self._notice()

    def _announce_tasks(self, machine: TaskMachine, is_new: bool) -> None:
        if is_new:
            self.bell.ring_all()
        for name in machine.rung:
            self.bell.ring(queue_key(name))
        machine.rung.clear()
        for task_id in machine.results.ended:
            self.bell.ring(result_key(task_id), count=False)
        machine.results.ended.clear()

    def _announce_events(self, _machine: EventMachine, _is_new: bool) -> None:
        self.bell.ring(EVENTS)


def _settle(future: asyncio.Future[None], verdict: BaseException | bool) -> None:
    if future.done():
        return
    if isinstance(verdict, BaseException):
        future.set_exception(verdict)
    else:
        future.set_result(None)


def _call(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], verdict: BaseException | bool
) -> None:
    try:
        loop.call_soon_threadsafe(_settle, future, verdict)
    except RuntimeError:  # the loop was closed meanwhile: nobody waits there any more
        return


_lock = RLock()
_clerks: dict[Hashable, Clerk] = {}


def hire(key: Hashable, settings: ClerkSettings) -> Clerk:
    """The process's clerk for a place, with one user more. Follow it by ``opened``, whatever comes by ``leave``.

    Args:
        key: two backends with the same key share a clerk.
        settings: used if there is none yet.
    """
    with _lock:
        clerk = _clerks.get(key)
        if clerk is None:
            clerk = _clerks[key] = Clerk(key, settings)
        clerk.users += 1
        return clerk


def check_process(clerk: Clerk) -> None:
    """Raises unless this is the clerk's own process."""
    if clerk.pid != os.getpid():
        raise BackendError(
            "this backend was opened before the process was forked, and its thread is in the parent. Open it again here",
            ErrorCode.CLOSED, "file",
        )  # fmt: skip


def _forget_parents_clerks() -> None:
    global _lock
    _lock = RLock()
    _clerks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_clerks)
