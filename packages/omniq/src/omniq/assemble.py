"""Which components a program has: put together from keywords, from backends, or from settings.

Precedence: what was given by keyword, then the environment, then a mapping or file, then the defaults. What is not said for
a part comes from the program's backend, and without one from the queue's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec

from omniq.by_name import config_values
from omniq.config import (
    DEFAULT_BACKEND,
    Environment,
    Part,
    Settings,
    canonical_worker_type,
    merged,
    read_file,
    settings_from,
)
from omniq.events import AsyncEventStore, EventStore
from omniq.queue import AsyncTaskQueue, TaskQueue
from omniq.results import AsyncResultStore, ResultStore
from omniq.stores import resolve_backend
from omniq.task import DEFAULT_OPTIONS, TaskOptions
from omniq.workers import Worker
from omniq_core import BACKENDS, Backend, OptionError
from omniq_core.options import suggest

__all__ = ["FromSettings", "Parts", "parts_from_backend", "parts_from_keywords", "parts_from_settings"]


class Parts(msgspec.Struct):
    """The components of a program."""

    task_queue: AsyncTaskQueue
    result_store: AsyncResultStore | None
    event_store: AsyncEventStore | None
    project_name: str | None = None
    worker: Worker | None = None
    worker_type: str | None = None
    worker_config: Mapping[str, Any] = {}


def _joined(
    task_queue: AsyncTaskQueue,
    result_store: AsyncResultStore | None,
    event_store: AsyncEventStore | None,
    **others: Any,
) -> Parts:
    """Lets the parts know of one another: enqueuing is logged, and who waits for a result can ask the queue."""
    if result_store is not None and result_store.queue_backend is None:
        result_store.queue_backend = task_queue.backend
    if event_store is not None and task_queue.events_backend is None:
        task_queue.events_backend = event_store.backend
    return Parts(task_queue, result_store, event_store, **others)


def parts_from_backend(
    backend: Backend | str,
    result_store_backend: Backend | str | None,
    event_store_backend: Backend | str | None,
    *,
    worker_type: str | None,
    worker_config: Mapping[str, Any] | None,
    queues: Sequence[str] | None,
    project_name: str | None,
    events: bool,
    defaults: TaskOptions | None = None,
) -> Parts:
    """A program on one backend, or on several."""

    def resolve(which: Backend | str) -> Backend:
        is_text = isinstance(which, str)
        return resolve_backend(which, {"project_name": project_name} if is_text and project_name else None)

    if not isinstance(events, bool):
        raise TypeError(
            f"events must be True or False, got {events!r}; give event_store= for a store of its own"
        )
    own = resolve(backend)
    results = own if result_store_backend is None else resolve(result_store_backend)
    log = own if event_store_backend is None else resolve(event_store_backend)
    task_queue = AsyncTaskQueue.from_backend(
        own, queues, defaults=Environment().task_options() if defaults is None else defaults
    )
    return _joined(
        task_queue,
        AsyncResultStore.from_backend(results),
        AsyncEventStore.from_backend(log) if events or event_store_backend is not None else None,
        project_name=project_name,
        worker_type=None if worker_type is None else canonical_worker_type(worker_type),
        worker_config=worker_config or {},
    )


def parts_from_keywords(
    project_name: str | None,
    *,
    task_queue: AsyncTaskQueue | TaskQueue | None,
    result_store: AsyncResultStore | ResultStore | None,
    event_store: AsyncEventStore | EventStore | None,
    worker: Worker | None,
    backend: Backend | str | None,
    queues: Sequence[str] | None,
    worker_type: str | None,
    worker_config: Mapping[str, Any] | None,
    events: bool,
    settings: Mapping[str, Any],
) -> Parts:
    """A program as the constructor's keywords say."""
    settings = dict(settings)
    if "backend_type" in settings:
        backend = backend or settings.pop("backend_type")
    if project_name is not None and not isinstance(project_name, str):
        raise TypeError(
            f"the first argument is a project's name or a URL, got {type(project_name).__name__}: {project_name!r}; "
            "give a backend as backend=, or use from_backend()"
        )
    if project_name is not None and "://" in project_name:
        if backend is not None:
            raise TypeError(f"two backends are given: {project_name!r} and {backend!r}")
        backend, project_name = project_name, None
    if worker is not None:
        task_queue = task_queue if task_queue is not None else worker.queue
        result_store = result_store if result_store is not None else worker.result_store
        event_store = event_store if event_store is not None else worker.event_store
        if worker_type is not None or worker_config is not None:
            raise TypeError("worker= and worker_type=, worker_config= exclude each other; give one of them")
    results = None if result_store is None else _aio_results(result_store)
    log = None if event_store is None else _aio_events(event_store)
    if task_queue is not None:
        if settings:
            name = min(settings)
            hint = suggest(name, list(_KEYWORDS))
            raise TypeError(
                f"unexpected keyword argument {name!r}{hint or '; the settings of a storage go to its component'}"
            )
        parts = _parts_of_components(task_queue, results, log, backend, queues, events)
    elif backend is not None or settings:
        _refuse_a_backend_for_a_project(project_name, backend)
        _refuse_misspelt(backend, settings)
        if project_name is not None:
            settings["project_name"] = project_name
        own = resolve_backend(DEFAULT_BACKEND if backend is None else backend, settings)
        parts = parts_from_backend(
            own,
            None if results is None else results.backend,
            None if log is None else log.backend,
            worker_type=None,
            worker_config=None,
            queues=queues,
            project_name=None,
            events=events,
        )
        _keep_objects(parts, results, log)
    else:
        _refuse_a_backend_for_a_project(project_name, backend)
        given: dict[str, Any] = {"events": None if events else False}
        if project_name is not None:
            given["project_name"] = project_name
        if queues is not None:
            given["queues"] = list(queues)
        parts = parts_from_settings(msgspec.structs.replace(Environment().over(Settings()), **given))
        _keep_objects(parts, results, log)
    parts.project_name = project_name
    parts.worker = worker
    parts.worker_type = None if worker_type is None else canonical_worker_type(worker_type)
    parts.worker_config = worker_config or {}
    return parts


_KEYWORDS = (
    "project_name", "task_queue", "result_store", "event_store", "worker", "backend", "queues", "worker_type",
    "worker_config", "events", "result_storage", "event_storage",
)  # fmt: skip


def _refuse_misspelt(backend: Backend | str | None, settings: Mapping[str, Any]) -> None:
    """A misspelt keyword of ours would be taken for a setting of the backend: the hint should name ours."""
    for name in settings:
        near = suggest(name, list(_KEYWORDS))
        if near and isinstance(backend, (str, type(None))) and name not in ("base_dir",):
            from omniq_core import backend_class
            from omniq_core.options import Url

            kind = DEFAULT_BACKEND if backend is None else backend
            options = backend_class(Url.parse(kind).scheme if "://" in kind else kind).options_type
            known = {field.name for field in msgspec.structs.fields(options)} | set(options.aliases)
            if name not in known:
                raise TypeError(f"unexpected keyword argument {name!r}{near}")


def _refuse_a_backend_for_a_project(project_name: str | None, backend: Backend | str | None) -> None:
    """``OmniQ("redis")`` names a project, and would keep its tasks in a file where the caller looks for them in Redis."""
    if backend is not None or project_name is None or project_name == DEFAULT_BACKEND:
        return
    if project_name in BACKENDS.names():
        configured = Environment().over(Settings())
        if configured.backend is None and configured.task_queue is None:
            raise TypeError(
                f"the first argument is a project's name, and {project_name!r} is the name of a backend: "
                f"say backend={project_name!r} to keep tasks there, or backend={DEFAULT_BACKEND!r} as well if the project "
                "is really called so"
            )


def _keep_objects(parts: Parts, results: AsyncResultStore | None, log: AsyncEventStore | None) -> None:
    """The components that were given stay the objects that they are."""
    if results is not None:
        parts.result_store = results
        results.queue_backend = results.queue_backend or parts.task_queue.backend
    if log is not None:
        parts.event_store = log
        parts.task_queue.events_backend = log.backend


def _aio_results(store: AsyncResultStore | ResultStore) -> AsyncResultStore:
    if isinstance(store, ResultStore):
        return store.aio
    if isinstance(store, AsyncResultStore):
        return store
    raise TypeError(f"result_store must be a result store, got {type(store).__name__}: {store!r}")


def _aio_events(store: AsyncEventStore | EventStore) -> AsyncEventStore:
    if isinstance(store, EventStore):
        return store.aio
    if isinstance(store, AsyncEventStore):
        return store
    raise TypeError(f"event_store must be an event store, got {type(store).__name__}: {store!r}")


def _parts_of_components(
    task_queue: AsyncTaskQueue | TaskQueue,
    results: AsyncResultStore | None,
    log: AsyncEventStore | None,
    backend: Backend | str | None,
    queues: Sequence[str] | None,
    events: bool,
) -> Parts:
    if not isinstance(task_queue, (AsyncTaskQueue, TaskQueue)):
        raise TypeError(f"task_queue must be a task queue, got {type(task_queue).__name__}: {task_queue!r}")
    aio = task_queue.aio if isinstance(task_queue, TaskQueue) else task_queue
    if queues is not None:
        for name in queues:
            aio.add_queue(name)
    configured = Environment().over(Settings())
    others = None if backend is None else resolve_backend(backend)
    if results is None:
        if others is None and configured.result_store is not None:
            results = AsyncResultStore.from_backend(_backend_of(configured.result_store, None))
        else:
            results = AsyncResultStore.from_backend(others or aio.backend)
    if log is None and events:
        if others is not None:
            log = AsyncEventStore.from_backend(others)
        elif aio.events_backend is not None:
            log = AsyncEventStore.from_backend(aio.events_backend)
        elif configured.event_store is not None:
            log = AsyncEventStore.from_backend(_backend_of(configured.event_store, None))
    if aio.defaults is DEFAULT_OPTIONS:
        aio.defaults = configured.tasks
    return _joined(aio, results, log)


# --- settings ----------------------------------------------------------------------------------------------------


def _backend_of(part: Part, project_name: str | None, own: tuple[str, ...] = ()) -> Backend:
    config = {name: value for name, value in part.config.items() if name not in own}
    if project_name is not None:
        config.setdefault("project_name", project_name)
    return resolve_backend(part.type, config)


def parts_from_settings(settings: Settings) -> Parts:
    """A program as a mapping, a file or the environment says."""
    project = settings.project_name
    common = None if settings.backend is None else _backend_of(settings.backend, project, ("queues",))
    queues = settings.queues
    if settings.task_queue is not None:
        own = _backend_of(settings.task_queue, project, ("queues",))
        queues = settings.task_queue.config.get("queues", queues)
    elif common is not None:
        assert settings.backend is not None
        own = common
        queues = settings.backend.config.get("queues", queues)
    else:
        own = _backend_of(_default_part(), project)
    events: Backend | None = None
    if settings.event_store is not None:
        events = _backend_of(settings.event_store, project)
    elif settings.task_queue is None:
        events = common or own
    if settings.events is False:
        events = None
    results = None if settings.result_store is None else _backend_of(settings.result_store, project)
    parts = parts_from_backend(
        own,
        results or common,
        events,
        worker_type=None,
        worker_config=None,
        queues=_checked_queues(queues),
        project_name=None,
        events=events is not None,
        defaults=settings.tasks,
    )
    parts.project_name = project
    if settings.worker is not None:
        parts.worker_type = canonical_worker_type(
            settings.worker.type or Environment().worker_type() or "async"
        )
        parts.worker_config = settings.worker.config
    return parts


def _default_part() -> Part:
    base_dir = Environment().text("BASE_DIR")
    return Part(DEFAULT_BACKEND, {} if base_dir is None else {"base_dir": base_dir})


def _checked_queues(queues: Any) -> Sequence[str] | None:
    if queues is None or (
        isinstance(queues, (list, tuple)) and all(isinstance(name, str) for name in queues)
    ):
        return queues
    raise OptionError(f"queues must be a list of names, got {queues!r}")


class FromSettings:
    """The ways to make a program that both faces have. All but the result are synchronous: nothing is opened."""

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        """From components that are put together already."""
        raise NotImplementedError

    @classmethod
    def from_backend(
        cls,
        backend: Backend | str,
        result_store_backend: Backend | str | None = None,
        event_store_backend: Backend | str | None = None,
        *,
        worker_type: str | None = None,
        worker_config: Mapping[str, Any] | None = None,
        queues: Sequence[str] | None = None,
        project_name: str | None = None,
        events: bool = True,
    ) -> Self:
        """On one backend, or on several. Each may be an object, a name or a URL.

        Args:
            backend: for the queue, and for every part that is not given.
            result_store_backend: for the results.
            event_store_backend: for the events.
            worker_type: see the constructor.
            worker_config: see the constructor.
            queues: see the constructor.
            project_name: see the constructor; for a ``backend`` given by name or URL.
            events: ``False``: no event is logged.
        """
        return cls.from_parts(
            parts_from_backend(
                backend,
                result_store_backend,
                event_store_backend,
                worker_type=worker_type,
                worker_config=worker_config,
                queues=queues,
                project_name=project_name,
                events=events,
            )
        )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], **overrides: Any) -> Self:
        """From a mapping as :mod:`omniq.config` shows it. ``OMNIQ_…`` variables win over it, keywords over both.

        Args:
            mapping: the configuration.
            overrides: keys of the mapping, once more.
        """
        return cls._from_settings(settings_from(mapping), overrides)

    @classmethod
    def _from_settings(cls, settings: Settings, overrides: Mapping[str, Any], prefix: str = "OMNIQ_") -> Self:
        # Keywords win over variables, so they are laid on once more.
        return cls.from_parts(parts_from_settings(merged(Environment(prefix).over(settings), overrides)))

    @classmethod
    def from_config_dict(cls, mapping: Mapping[str, Any], **overrides: Any) -> Self:
        """The same as :meth:`from_dict`."""
        return cls.from_dict(mapping, **overrides)

    @classmethod
    def from_config_file(
        cls, path: str | os.PathLike[str], *, env_vars: bool = True, **overrides: Any
    ) -> Self:
        """From a YAML, TOML or JSON file as :mod:`omniq.config` shows it.

        Args:
            path: the file.
            env_vars: whether ``${NAME:-default}`` in texts is filled in.
            overrides: keys of the file, once more.
        """
        mapping = read_file(path, env_vars=env_vars)
        return cls._from_settings(settings_from(mapping, str(path)), overrides)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *, env_vars: bool = True, **overrides: Any) -> Self:
        """The same as :meth:`from_config_file`."""
        return cls.from_config_file(path, env_vars=env_vars, **overrides)

    @classmethod
    def from_config(cls, config: object, **overrides: Any) -> Self:
        """From an object with the attributes that a mapping would have as keys, or from a :class:`Settings`."""
        if isinstance(config, Settings):
            return cls._from_settings(config, overrides)
        return cls.from_dict(config_values(config), **overrides)

    @classmethod
    def from_env(cls, prefix: str = "OMNIQ_", **overrides: Any) -> Self:
        """From the environment alone."""
        return cls._from_settings(Settings(), overrides, prefix)
