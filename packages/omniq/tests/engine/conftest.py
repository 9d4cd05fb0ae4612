"""What the engine's tests share: a laboratory with a backend, a registry and engines; and coroutines as tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omniq.codec import decode_result, decode_value
from omniq.context import TaskContext
from omniq.engine import Engine, WorkerSettings
from omniq.ids import new_id
from omniq.models import TaskEvent, TaskResult, result_of_record
from omniq.plugins import Hooks
from omniq.runners.coroutine import CoroutineRunner
from omniq.runners.process import ProcessRunner
from omniq.runners.thread import ThreadRunner
from omniq.stores import Stores
from omniq.task import TaskDefinition, TaskOptions, TaskRegistry
from omniq_core import Backend, EventFilter, TaskSnapshot, TaskState
from omniq_memory import MemoryBackend

TEST_TIMEOUT_S = 60


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs on an event loop of its own, and not for ever."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(bounded())
    return True


RUNNERS: dict[str, Callable[[], Any]] = {
    "async": CoroutineRunner,
    "thread_pool": ThreadRunner,
    "process_pool": ProcessRunner,
}


class Faults:
    """What goes wrong in a :class:`FaultyBackend`: a function per method, called before the real one (may raise or wait),
    and one called after it."""

    def __init__(self) -> None:
        self.before: dict[str, Callable[..., Any]] = {}
        self.after: dict[str, Callable[..., Any]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.is_dead = asyncio.Event()
        """Once set, no call comes back, as in a process that is gone."""

    async def die(self) -> None:
        """Dies here and now."""
        self.is_dead.set()
        await asyncio.Event().wait()

    def down(self, *methods: str) -> None:
        """Lets these methods fail until :meth:`up`."""

        def refuse(*_: Any) -> None:
            raise ConnectionError("the server is down")

        self.before.update(dict.fromkeys(methods, refuse))

    def up(self) -> None:
        self.before.clear()
        self.after.clear()

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)


class _Faulty:
    def __init__(self, real: Any, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self._faults.is_dead.is_set():
                await self._faults.die()
            self._faults.calls.append((name, args))
            for hooks, when in ((self._faults.before, "before"), (self._faults.after, "after")):
                if when == "after":
                    answer = await found(*args, **kwargs)
                hook = hooks.get(name)
                waiting = None if hook is None else hook(*args)
                if inspect.isawaitable(waiting):
                    await waiting
            return answer

        return call


class FaultyBackend(MemoryBackend):
    """A memory backend in which things go wrong, in its twins too."""

    faults: Faults

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.faults = Faults()

    async def open(self) -> None:
        if self._is_open:
            return
        await super().open()
        self._queue: Any = _Faulty(self._queue, self.faults)
        self._results: Any = _Faulty(self._results, self.faults)
        self._events: Any = _Faulty(self._events, self.faults)

    def twin(self, faults: Faults | None = None) -> FaultyBackend:
        twin = super().twin()
        twin.faults = faults or self.faults
        return twin


class Lab:
    """A backend with tasks, and the means to make engines for it."""

    def __init__(self) -> None:
        self.backend: Backend = MemoryBackend()
        self.results: Backend | None = self.backend
        self.events: Backend | None = None
        self.registry = TaskRegistry()
        self.hooks = Hooks(discover=False)
        self.contexts: list[TaskContext] = []

    def stores(self) -> Stores:
        return Stores(self.backend, self.results, self.events)

    def engine(self, worker_type: str = "async", **settings: Any) -> Engine:
        options = {
            name: settings.pop(name) for name in ("middleware", "clock", "registry") if name in settings
        }
        settings.setdefault("poll_s", 0.02)
        return Engine(
            self.stores(),
            options.pop("registry", self.registry),
            RUNNERS[worker_type](),
            WorkerSettings(**settings),
            hooks=self.hooks,
            **options,
        )

    def define(
        self, func: Callable[..., Any], name: str | None = None, **options: Any
    ) -> TaskDefinition[Any, Any]:
        if name is None and not options:
            return self.registry.adopt(func)
        definition: TaskDefinition[Any, Any] = TaskDefinition(func, name=name, options=TaskOptions(**options))
        self.registry.add(definition)
        return definition

    async def enqueue(self, func: Any, *args: Any, delay_s: float = 0.0, **options: Any) -> str:
        definition = func if isinstance(func, TaskDefinition) else self.define(func)
        chosen = TaskOptions(**options) if options else None
        record = definition.record(new_id(), args, {}, chosen, delay_s=delay_s)
        await self.backend.open()
        await self.backend.queue().enqueue([record])
        return record.id

    async def task(self, task_id: str) -> TaskSnapshot:
        """The task as the store has it."""
        await self.backend.open()
        (found,) = await self.backend.queue().get([task_id])
        assert found is not None
        return found

    async def result(self, task_id: str) -> TaskResult | None:
        """The stored result."""
        assert self.results is not None
        await self.results.open()
        (found,) = await self.results.result_store().get([task_id])
        return None if found is None else result_of_record(found)

    async def value(self, task_id: str) -> Any:
        assert self.results is not None
        await self.results.open()
        (found,) = await self.results.result_store().get([task_id])
        assert found is not None
        assert found.state is TaskState.SUCCEEDED
        return decode_value(decode_result(found.body).value)

    async def event_types(self, task_id: str) -> list[str]:
        return [event.event_type for event in await self.all_events(task_id)]

    async def all_events(self, task_id: str) -> list[TaskEvent]:
        assert self.events is not None
        await self.events.open()
        page = await self.events.event_store().read(EventFilter(task_ids=[task_id]))
        return [TaskEvent.of(event) for event in page.items]

    @asynccontextmanager
    async def running(self, engine: Engine) -> AsyncIterator[Engine]:
        """The engine at work; stopped at the end, without grace."""
        started = asyncio.Event()
        engine.on_started = started.set
        task = asyncio.create_task(engine.run())
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            yield engine
        finally:
            await engine.stop(grace_s=0)
            await task

    async def eventually(self, condition: Callable[[], Any]) -> None:
        """Waits for a condition that nothing announces; the test's own time-out is the limit."""
        while True:
            found = condition()
            if await found if inspect.isawaitable(found) else found:
                return
            await asyncio.sleep(0.005)

    async def is_idle(self, engine: Engine) -> bool:
        """Whether nothing is due and the engine holds nothing."""
        (stats,) = await self.backend.queue().stats(["default"])
        parts = engine._parts
        return not stats.ready and parts is not None and not parts.desk.held

    async def until(self, task_id: str, *states: TaskState) -> TaskSnapshot:
        """Waits until the task is in one of the states (a final one by default)."""
        while True:
            found = await self.task(task_id)
            if found.state in states or (not states and found.state.is_final):
                return found
            await asyncio.sleep(0.005)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def faulty() -> type[FaultyBackend]:
    return FaultyBackend


@pytest.fixture
def lab() -> Lab:
    return Lab()
