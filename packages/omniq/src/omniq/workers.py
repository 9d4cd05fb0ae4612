"""Workers: they take tasks from queues and run them.

``AsyncWorker`` runs async functions on its event loop and plain ones in threads; ``ThreadPoolWorker`` runs plain functions
in threads, and async ones on a loop of their own beside them; ``ProcessPoolWorker`` runs both in other processes.

Where a worker lives. Made of sync components (or started where no event loop runs), it has a thread and an event loop of
its own, so that blocking code beside it, a notebook cell that waits for a result, cannot stop it. Made of async components,
it runs on the caller's loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec

from omniq.config import Environment, canonical_worker_type
from omniq.engine import Engine, WorkerSettings
from omniq.events import AsyncEventStore, EventStore
from omniq.middleware import Middleware
from omniq.outcome import seconds
from omniq.parameters import Duration, TaskId
from omniq.portal import at_exit, run_sync
from omniq.queue import AsyncTaskQueue, TaskQueue
from omniq.results import DEFAULT_TIMEOUT_S, AsyncResultStore, ResultStore
from omniq.runners.runner import Runner
from omniq.stores import Stores
from omniq.task import TaskRegistry
from omniq_core import WORKERS, OptionError, WorkerReport
from omniq_core.native import make_latch, make_thread
from omniq_core.options import suggest

__all__ = ["AsyncWorker", "ProcessPoolWorker", "ThreadPoolWorker", "Worker", "make_worker", "worker_class"]

log = logging.getLogger("omniq.worker")

CUT_SHORT_S = 10.0
"""How long an interrupted ``stop`` waits for the worker to give back what it runs, in seconds."""


class _Done:
    """Something to await that has happened already."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


class Worker:
    """What all worker types have in common. Making one starts nothing.

    Args:
        queue: the task queue, also spelled ``task_queue``.
        result_store: where results go, also spelled ``result_storage``; by default to the queue's own backend.
        event_store: where events go, also spelled ``event_storage``; by default where the queue notes its own.
        max_workers: how many tasks run at once; by default ``OMNIQ_MAX_WORKERS`` (and ``OMNIQ_THREAD_WORKERS``,
            ``OMNIQ_PROCESS_WORKERS``), else 10, of the pools 4 threads and 2 processes.
        queues: the queues to take tasks from, in strict order of preference, and no others; by default the queue's declared
            ones in their order, then all others, ``default`` first.
        task_timeout: the longest run of a task that has no time-out of its own.
        shutdown_timeout: how long running tasks may go on when it is stopped.
        lease: how long others wait before they take over from a worker that died.
        poll_interval: when idle, look for tasks at least so often, should a wake-up have been lost.
        name: the worker's id, kept with the tasks that it runs. It must be unique; made up by default.
        middleware: what surrounds each run, from the outside in; see :mod:`omniq.middleware`.
        registry: the functions that it runs; by default those of the queue.
        settings: any other field of :class:`~omniq.engine.settings.WorkerSettings`.

    Raises:
        TypeError, ValueError: a parameter is unknown or out of range.
    """

    worker_type: ClassVar[str] = ""
    runs_apart: ClassVar[bool] = False
    """The engine never runs on the caller's loop: always on one of its own, in a thread of the system."""

    def __init__(
        self,
        queue: TaskQueue | AsyncTaskQueue | None = None,
        result_store: ResultStore | AsyncResultStore | None = None,
        event_store: EventStore | AsyncEventStore | None = None,
        *,
        task_queue: TaskQueue | AsyncTaskQueue | None = None,
        result_storage: ResultStore | AsyncResultStore | None = None,
        event_storage: EventStore | AsyncEventStore | None = None,
        max_workers: int | None = None,
        queues: Sequence[str] | None = None,
        task_timeout: Duration | None = None,
        shutdown_timeout: Duration | None = None,
        lease: Duration | None = None,
        poll_interval: Duration | None = None,
        name: str | None = None,
        middleware: Sequence[Middleware] = (),
        registry: TaskRegistry | None = None,
        **settings: Any,
    ) -> None:
        queue = queue or task_queue
        if queue is None:
            raise TypeError(f"{type(self).__name__} needs a queue, for example SQLiteTaskQueue()")
        self.queue = queue
        self.result_store = result_store or result_storage
        self.event_store = event_store or event_storage
        self._own_thread = self.runs_apart or not isinstance(queue, AsyncTaskQueue)
        aio = queue if isinstance(queue, AsyncTaskQueue) else queue.aio
        events = aio.events_backend if self.event_store is None else self.event_store.backend
        results = aio.backend if self.result_store is None else self.result_store.backend
        self.stores = Stores(aio.backend, results, events)
        self.registry = registry if registry is not None else aio.registry
        self._middleware = tuple(middleware)
        self._given_settings = _engine_settings(
            settings,
            {
                "max_workers": max_workers,
                "task_timeout_s": task_timeout,
                "grace_s": shutdown_timeout,
                "lease_s": lease,
                "poll_s": poll_interval,
                "name": name,
            },
            max_workers_default=Environment().max_workers(self.worker_type) if max_workers is None else None,
        )
        self._given_queues = None if queues is None else tuple(queues)
        self._declared = aio
        self._engine: Engine | None = None
        self._thread: _WorkerThread | None = None
        self._running: asyncio.Task[WorkerReport] | None = None
        self._not_at_exit: Callable[[], None] = lambda: None
        self.report: WorkerReport | None = None
        """What it did, once it has stopped."""

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<{type(self).__name__} of {self.max_workers} on {self.stores.queue!r}, {state}>"

    def make_runner(self) -> Runner:
        """Where this worker type runs functions. Called before each run of the worker, in the thread that starts it."""
        raise NotImplementedError

    @property
    def settings(self) -> WorkerSettings:
        """The engine's settings. Queues that were declared since are among them."""
        if self._given_queues is not None:
            return msgspec.structs.replace(self._given_settings, queues=self._given_queues)
        return msgspec.structs.replace(
            self._given_settings, queues=tuple(self._declared.queues), and_others=True
        )

    @property
    def max_workers(self) -> int:
        """How many tasks run at once."""
        return self._given_settings.max_workers

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not stopped."""
        if self._thread is not None:
            return self._thread.is_alive()
        return self._running is not None and not self._running.done()

    @property
    def engine(self) -> Engine:
        """The engine behind it, made with the first use after each stop."""
        if self._engine is None:
            self._engine = Engine(
                self.stores, self.registry, self.make_runner(), self.settings, middleware=self._middleware
            )
        return self._engine

    # --- running ------------------------------------------------------------------------------------------------

    async def run(self, *, burst: bool = False) -> WorkerReport:
        """Works on the caller's loop until :meth:`stop`.

        Args:
            burst: stop by itself when nothing is due and nothing runs.

        Raises:
            MissingCapability: the backend lacks what a worker needs; nothing was taken.
            Unreachable, SchemaOutOfDate, BackendError: a backend cannot be opened.
            RuntimeError: it runs already.
        """
        if self.is_running:
            raise RuntimeError(f"{self!r} runs already")
        if self.runs_apart:
            return await self._run_apart(burst=burst)
        engine = self.engine
        self._running = asyncio.ensure_future(engine.run(burst=burst))
        try:
            self.report = await self._running
        except asyncio.CancelledError:
            self._running.cancel()
            await asyncio.wait([self._running])
            raise
        finally:
            self._running = self._engine = None
        return self.report

    async def _run_apart(self, *, burst: bool) -> WorkerReport:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        thread = self._thread = _WorkerThread(
            self.engine, burst=burst, on_end=lambda: loop.call_soon_threadsafe(over.set_result, None)
        )
        try:
            thread.start()
            await asyncio.shield(over)
        except asyncio.CancelledError:
            thread.engine.stop_threadsafe(grace_s=0)
            await asyncio.wait([over])
            raise
        finally:
            if self._thread is thread:
                self._thread = self._engine = None
        if thread.error is not None:
            raise thread.error
        assert thread.report is not None
        self.report = thread.report
        return thread.report

    def start(self) -> Awaitable[None]:
        """Starts working. Acts at once; idempotent.

        Returns:
            something that may be awaited: until the worker is about to take its first task. With a thread of its own it is
            when this returns.

        Raises:
            as :meth:`run`: here with a thread of its own, when awaited otherwise.
        """
        if self.is_running:
            return _Done()
        if self._own_thread or not _has_loop():
            self.start_thread()
            return _Done()
        return self._start_here()

    def stop(self, *, grace: Duration | None = None) -> Awaitable[None]:
        """Takes nothing new, lets running tasks end, gives back what was not started. Acts at once; idempotent.

        Args:
            grace: how long running tasks may go on, a ``timedelta`` or seconds; ``None``: the ``shutdown_timeout``.

        Returns:
            something that may be awaited: until the worker has stopped. With a thread of its own it has when this returns.
        """
        grace_s = None if grace is None else seconds(grace)
        if self._thread is not None:
            if self.runs_apart and _has_loop():  # the caller's loop has other things to do meanwhile
                return asyncio.ensure_future(asyncio.to_thread(self.stop_thread, grace=grace))
            self.stop_thread(grace=grace)
            return _Done()
        if self._running is not None and self._engine is not None:
            return asyncio.ensure_future(self._stop_here(self._running, self._engine, grace_s))
        return _Done()

    def _start_here(self) -> Awaitable[None]:
        engine = self.engine
        started = asyncio.Event()
        engine.on_started = started.set
        self._running = asyncio.ensure_future(engine.run())
        return asyncio.ensure_future(self._until_started(self._running, started))

    async def _until_started(self, running: asyncio.Task[WorkerReport], started: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(started.wait())
        try:
            await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if running.done():
            self._running = self._engine = None
            running.result()

    async def _stop_here(
        self, running: asyncio.Task[WorkerReport], engine: Engine, grace_s: float | None
    ) -> None:
        await engine.stop(grace_s=grace_s)
        try:
            self.report = await running
        finally:
            if self._running is running:
                self._running = self._engine = None

    def start_thread(self) -> None:
        """:meth:`start` with a thread of its own, whatever the components are. When it returns the worker is about to take
        its first task. Does nothing while it runs."""
        if self.is_running:
            return
        thread = self._thread = _WorkerThread(self.engine)
        try:
            thread.start_and_wait()
        except BaseException:
            self._thread = self._engine = None
            raise
        self._not_at_exit = at_exit(self.stop_thread)

    def stop_thread(self, *, grace: Duration | None = None) -> None:
        """:meth:`stop` for a worker with a thread of its own. When it returns the worker has stopped. Idempotent."""
        thread = self._thread
        if thread is None:
            return
        self._not_at_exit()
        thread.engine.stop_threadsafe(grace_s=None if grace is None else seconds(grace))
        try:
            thread.join()
        except BaseException:  # interrupted: no more patience, but what runs is still given back
            thread.engine.stop_threadsafe(grace_s=0)
            thread.join(CUT_SHORT_S)
            raise
        if self._thread is thread:
            self._thread = self._engine = None
            self.report = thread.report
        if thread.error is not None:
            error, thread.error = thread.error, None
            raise error

    def __enter__(self) -> Self:
        self.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_thread()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._thread is not None:
            await asyncio.to_thread(self.stop_thread)
        else:
            await self.stop()

    # --- results ------------------------------------------------------------------------------------------------

    def get_result(self, task_id: TaskId, timeout: Duration | None = DEFAULT_TIMEOUT_S) -> Any:
        """How a task ended, see ``ResultStore.get``; to be awaited with async components."""
        aio = self._results()
        if self._own_thread:
            return run_sync(aio.get(task_id, timeout))
        return aio.get(task_id, timeout)

    def _results(self) -> AsyncResultStore:
        store = self.result_store
        if store is None:
            store = self.result_store = AsyncResultStore.from_backend(
                self.stores.queue, queue_backend=self.stores.queue
            )
        return store if isinstance(store, AsyncResultStore) else store.aio

    # --- telling it ---------------------------------------------------------------------------------------------

    def learn_queue(self, name: str) -> None:
        """Somebody in this process uses that queue: look at it at once, if all queues are worked on."""
        if self._engine is not None:
            self._engine.learn_queue(name)

    def cancel_soon(self, task_id: str) -> None:
        """A running task's cancellation was requested: if it runs here, stop it at once."""
        if self._engine is not None:
            self._engine.cancel_soon(task_id)


class _WorkerThread:
    """The thread of a worker, with its event loop."""

    def __init__(
        self, engine: Engine, *, burst: bool = False, on_end: Callable[[], object] = lambda: None
    ) -> None:
        self.engine = engine
        self.report: WorkerReport | None = None
        self.error: BaseException | None = None
        self._burst = burst
        self._on_end = on_end
        self._is_ready = make_latch()
        engine.on_started = self._is_ready.set
        # A daemon: the functions of ``portal.at_exit`` stop it when the program ends, and nothing else may hold that up.
        self._thread = make_thread(self._run, name="omniq-worker")
        self.start, self.join, self.is_alive = self._thread.start, self._thread.join, self._thread.is_alive

    def _run(self) -> None:
        try:
            self.report = asyncio.run(self.engine.run(burst=self._burst))
        except BaseException as error:
            self.error = error
            if self._is_ready.is_set():
                log.exception("worker %s has failed", self.engine.worker_id)
        finally:
            self._is_ready.set()
            self._on_end()

    def start_and_wait(self) -> None:
        """Starts it, and waits until it is about to take its first task.

        Raises:
            BaseException: it could not start.
        """
        self.start()
        try:
            self._is_ready.wait()
        except BaseException:  # interrupted: nobody will know of this worker, so it must end
            self.engine.stop_threadsafe(grace_s=0)
            raise
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _engine_settings(
    others: Mapping[str, Any], given: Mapping[str, Any], *, max_workers_default: int | None
) -> WorkerSettings:
    known = {field.name for field in msgspec.structs.fields(WorkerSettings)} - {"queues", "and_others"}
    for name in others:
        if name not in known:
            hint = suggest(name, sorted(known | set(_PARAMETERS)))
            raise TypeError(f"a worker has no parameter {name!r}{hint}")
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if max_workers_default is not None:
        values.setdefault("max_workers", max_workers_default)
    values.update(others)
    for name, value in values.items():
        if name.endswith("_s") and value is not None:
            values[name] = seconds(value)
    if isinstance(values.get("max_workers"), bool) or not isinstance(values.get("max_workers", 1), int):
        raise TypeError(f"max_workers must be a whole number, got {values['max_workers']!r}")
    return WorkerSettings(**values)


_PARAMETERS = (
    "max_workers", "queues", "task_timeout", "shutdown_timeout", "lease", "poll_interval", "name", "middleware",
)  # fmt: skip


class AsyncWorker(Worker):
    """Runs async functions on its event loop, and plain ones in threads."""

    worker_type: ClassVar[str] = "async"

    def make_runner(self) -> Runner:
        from omniq.runners.coroutine import CoroutineRunner

        return CoroutineRunner()


class ThreadPoolWorker(Worker):
    """Runs plain functions in threads, and async ones on an event loop of their own beside them."""

    worker_type: ClassVar[str] = "thread_pool"

    def make_runner(self) -> Runner:
        from omniq.runners.thread import ThreadRunner

        return ThreadRunner()


class ProcessPoolWorker(Worker):
    """Runs functions in child processes: a function that crashes or hangs takes only its child along."""

    worker_type: ClassVar[str] = "process_pool"

    def make_runner(self) -> Runner:
        from omniq.runners.process import ProcessRunner

        return ProcessRunner()


ThreadWorker = ThreadPoolWorker
ProcessWorker = ProcessPoolWorker


def worker_class(worker_type: str) -> type[Worker]:
    """The class of a worker type.

    Raises:
        PluginError: there is none of that name, or its plugin is broken.
    """
    found: type[Worker] = WORKERS.load(canonical_worker_type(worker_type))
    return found


def make_worker(
    worker_type: str,
    queue: TaskQueue | AsyncTaskQueue,
    result_store: ResultStore | AsyncResultStore | None,
    event_store: EventStore | AsyncEventStore | None,
    config: Mapping[str, Any],
) -> Worker:
    """A worker of a type that is given by name.

    Raises:
        OptionError: a parameter is unknown or out of range.
        PluginError: see :func:`worker_class`.
    """
    cls = worker_class(worker_type)
    try:
        return cls(queue, result_store, event_store, **config)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"worker {worker_type!r}: {error}") from error


def __getattr__(name: str) -> Any:
    # ``GeventPoolWorker`` and its like, from plugins: the name of the worker type before ``PoolWorker`` or ``Worker``.
    for suffix in ("PoolWorker", "Worker"):
        short = name.removesuffix(suffix).lower()
        if name.endswith(suffix) and short and not name.startswith("_"):
            try:
                return worker_class(short)
            except Exception as error:
                raise ImportError(f"cannot import {name!r} from {__name__!r}: {error}", name=name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
