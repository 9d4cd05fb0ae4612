"""Settings of a program: from keywords, the environment, a mapping or a file, in that order of precedence.

One form for mappings, YAML, TOML and JSON::

    project_name: shop
    task_queue: {type: sqlite, config: {base_dir: data, queues: [high, low]}}
    result_store: {type: sqlite, config: {base_dir: data}}  # left out: the queue's own storage
    event_store: {type: sqlite, config: {base_dir: data}}  # left out: none
    worker: {type: thread_pool, config: {max_workers: 4}}
    tasks: {max_retries: 5, timeout: 60}  # how tasks are run that do not say so themselves

or, for one storage for everything, ``backend: sqlite:///shop.db``. A ``type`` is any installed backend.

Variables are read when a program (or a worker) is made, never on import. One of the wrong type is an error that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from omniq.parameters import RunParameters, refuse_unknown, with_parameters
from omniq.task import DEFAULT_OPTIONS, TaskOptions
from omniq_core import OptionError
from omniq_core.options import suggest

__all__ = [
    "DEFAULT_BACKEND",
    "Environment",
    "Part",
    "Settings",
    "WorkerPart",
    "canonical_worker_type",
    "merged",
    "read_file",
    "settings_from",
]

DEFAULT_BACKEND = "sqlite"

_WORKER_ALIASES = {"thread": "thread_pool", "process": "process_pool", "asyncio": "async"}
_DEFAULT_MAX_WORKERS = {"thread_pool": 4, "process_pool": 2, "gevent": 100}


def canonical_worker_type(name: str) -> str:
    """The registered name of a worker type: ``thread`` and ``process`` mean the pools."""
    if not isinstance(name, str):
        raise TypeError(f"worker_type must be text, got {type(name).__name__}: {name!r}")
    return _WORKER_ALIASES.get(name, name)


class Part(msgspec.Struct, frozen=True):
    """Which storage one component is on."""

    type: str
    """A backend's name, or a URL."""
    config: Mapping[str, Any] = {}
    """The settings, the component's own among them."""


class WorkerPart(msgspec.Struct, frozen=True):
    type: str | None = None
    config: Mapping[str, Any] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a mapping can say about a program."""

    project_name: str | None = None
    backend: Part | None = None
    """For every part that is not given by itself."""
    task_queue: Part | None = None
    result_store: Part | None = None
    event_store: Part | None = None
    events: bool | None = None
    """``False``: nothing is logged, even if the backend could."""
    worker: WorkerPart | None = None
    queues: Sequence[str] | None = None
    tasks: TaskOptions = DEFAULT_OPTIONS


_KEYS = (
    "project_name",
    "backend",
    "task_queue",
    "result_store",
    "event_store",
    "events",
    "worker",
    "queues",
    "tasks",
)
_ALIASES = {
    "result_storage": "result_store",
    "event_storage": "event_store",
    "backend_type": "backend",
    "queue": "task_queue",
}


def settings_from(mapping: Mapping[str, Any], where: str = "the configuration") -> Settings:
    """The settings that a mapping holds.

    Args:
        mapping: in the form that the module's docstring shows.
        where: what it came from, for messages.

    Raises:
        OptionError: an unknown key or a wrong type.
    """
    if not isinstance(mapping, Mapping):
        raise OptionError(f"{where} must be a mapping, got {type(mapping).__name__}")
    values: dict[str, Any] = {}
    for given, value in mapping.items():
        key = _ALIASES.get(given, given)
        if key not in _KEYS:
            hint = suggest(str(given), [*_KEYS, *_ALIASES]) or f"; known: {', '.join(_KEYS)}"
            raise OptionError(f"unknown key {given!r} in {where}{hint}")
        if key in values:
            raise OptionError(f"{key!r} comes twice in {where}, once as {given!r}")
        values[key] = value
    for key in ("backend", "task_queue", "result_store", "event_store"):
        if values.get(key) is not None:
            values[key] = _part(values[key], f"{key} in {where}")
    if values.get("worker") is not None:
        values["worker"] = _worker_part(values["worker"], f"worker in {where}")
    if "tasks" in values:
        values["tasks"] = _task_options(values["tasks"] or {}, f"tasks in {where}")
    try:
        return msgspec.convert({key: value for key, value in values.items() if value is not None}, Settings)
    except msgspec.ValidationError as error:
        raise OptionError(f"{where}: {error}") from error


def merged(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """``settings`` with the keys of one more mapping instead.

    Raises:
        OptionError: as for :func:`settings_from`.
    """
    given = settings_from(overrides, "the keyword arguments")
    names = [_ALIASES.get(key, key) for key in overrides]
    return msgspec.structs.replace(settings, **{name: getattr(given, name) for name in names})


def _pair(value: Any, where: str, *, needs_type: bool) -> tuple[str | None, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping):
        raise OptionError(f"{where} must be a name, a URL or a mapping of type and config, got {value!r}")
    unknown = value.keys() - {"type", "config"}
    if unknown:
        name = min(map(str, unknown))
        raise OptionError(
            f"unknown key {name!r} in {where}{suggest(name, ['type', 'config'])}; settings of the {value.get('type')} "
            "itself go under 'config'"
        )
    kind, config = value.get("type"), value.get("config") or {}
    if (kind is not None or needs_type) and not isinstance(kind, str):
        raise OptionError(f"{where} needs a 'type', the name of a backend; got {kind!r}")
    if not isinstance(config, Mapping):
        raise OptionError(f"config of {where} must be a mapping, got {type(config).__name__}")
    return kind, dict(config)


def _part(value: Any, where: str) -> Part:
    kind, config = _pair(value, where, needs_type=True)
    assert kind is not None
    return Part(kind, config)


def _worker_part(value: Any, where: str) -> WorkerPart:
    return WorkerPart(*_pair(value, where, needs_type=False))


def _task_options(value: Any, where: str, base: TaskOptions = DEFAULT_OPTIONS) -> TaskOptions:
    if not isinstance(value, Mapping):
        raise OptionError(f"{where} must be a mapping, got {type(value).__name__}")
    try:
        refuse_unknown(where, value, RunParameters)
        return with_parameters(base, value)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}: {error}") from error


# --- files -------------------------------------------------------------------------------------------------------


def read_file(path: str | os.PathLike[str], *, env_vars: bool = True) -> dict[str, Any]:
    """A configuration file as a mapping: YAML (``.yaml``, ``.yml``), TOML (``.toml``) or JSON (``.json``).

    Args:
        path: the file. In a ``pyproject.toml`` the table ``[tool.omniq]`` counts.
        env_vars: whether ``${NAME}`` and ``${NAME:-default}`` in texts are replaced by variables.

    Raises:
        OptionError: the file is of no such kind, cannot be read as one, or names a variable that is not set.
        OSError: it cannot be opened.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    text = file.read_text("utf-8")
    found: Any
    try:
        if suffix in (".yaml", ".yml"):
            found = _load_yaml(text, file)
        elif suffix == ".toml":
            import tomllib

            found = tomllib.loads(text)
            if file.name == "pyproject.toml":
                found = found.get("tool", {}).get("omniq", {})
        elif suffix == ".json":
            found = msgspec.json.decode(text)
        else:
            raise OptionError(
                f"{file}: a configuration file is .yaml, .toml or .json, got {suffix or 'no suffix'!r}"
            )
    except OptionError:
        raise
    except ValueError as error:  # tomllib's and msgspec's errors are ValueErrors
        raise OptionError(f"{file} cannot be read: {error}") from error
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise OptionError(f"{file} must hold a mapping, got {type(found).__name__}")
    return _filled_in(found, str(file)) if env_vars else found


def _load_yaml(text: str, file: Path) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise OptionError(
            f'{file}: reading YAML needs PyYAML, which is not installed; pip install "omniq[yaml]", or use TOML or JSON'
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"{file} cannot be read: {error}") from error


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _filled_in(value: Any, where: str) -> Any:
    if isinstance(value, str):

        def fill(found: re.Match[str]) -> str:
            name, default = found[1], found[2]
            filled = os.environ.get(name, default)
            if filled is None:
                raise OptionError(f"{where} uses the environment variable {name}, which is not set")
            return filled

        return _VARIABLE.sub(fill, value)
    if isinstance(value, dict):
        return {key: _filled_in(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_in(item, where) for item in value]
    return value


# --- the environment ---------------------------------------------------------------------------------------------


class Environment:
    """The ``OMNIQ_…`` variables, as they are now.

    Args:
        prefix: of the variables.
        environ: read instead of ``os.environ``.
    """

    def __init__(self, prefix: str = "OMNIQ_", environ: Mapping[str, str] | None = None) -> None:
        self._prefix = prefix
        self._environ = os.environ if environ is None else environ

    def text(self, name: str) -> str | None:
        """A variable; an empty one counts as not set."""
        return self._environ.get(self._prefix + name) or None

    def _converted(self, name: str, kind: Any, expected: str) -> Any:
        text = self.text(name)
        if text is None:
            return None
        try:
            return msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError as error:
            raise OptionError(
                f"the environment variable {self._prefix}{name} must be {expected}, got {text!r}"
            ) from error

    def whole(self, name: str) -> int | None:
        found: int | None = self._converted(name, int, "a whole number")
        return found

    def seconds(self, name: str) -> float | None:
        found: float | None = self._converted(name, float, "a number of seconds")
        return found

    def names(self, name: str) -> list[str] | None:
        """A list, separated by commas, or as JSON."""
        text = self.text(name)
        if text is None:
            return None
        if text.lstrip().startswith("["):
            try:
                return msgspec.json.decode(text, type=list[str])
            except msgspec.DecodeError as error:
                raise OptionError(
                    f"the environment variable {self._prefix}{name} must be a list of names, got {text!r}"
                ) from error
        return [part.strip() for part in text.split(",") if part.strip()]

    # --- what they mean together --------------------------------------------------------------------------------

    def over(self, settings: Settings) -> Settings:
        """``settings`` with what the variables say instead."""
        changes: dict[str, Any] = {}
        project = self.text("PROJECT_NAME")
        if project is not None:
            changes["project_name"] = project
        backend = self.text("BACKEND")
        if backend is not None:
            changes |= {
                "backend": Part(backend),
                "task_queue": None,
                "result_store": None,
                "event_store": None,
            }
        for field, name in (
            ("task_queue", "TASK_QUEUE"),
            ("result_store", "RESULT_STORAGE"),
            ("event_store", "EVENT_STORAGE"),
        ):
            part = self._part(name, getattr(settings, field) if backend is None else None)
            if part is not None:
                changes[field] = part
        queues = self.names("DEFAULT_QUEUES")
        if queues is not None:
            changes["queues"] = queues
        kind = self.text("DEFAULT_WORKER")
        if kind is not None and settings.worker is not None:
            same = settings.worker.type is None or (
                canonical_worker_type(settings.worker.type) == canonical_worker_type(kind)
            )
            changes["worker"] = WorkerPart(kind, settings.worker.config if same else {})
        changes["tasks"] = self.task_options(settings.tasks)
        return msgspec.structs.replace(settings, **changes)

    def _part(self, name: str, configured: Part | None) -> Part | None:
        kind, url = self.text(f"{name}_TYPE"), self.text(f"{name}_URL")
        if kind is None and url is None:
            base_dir = self.text("BASE_DIR")
            if base_dir is not None and configured is not None and "base_dir" in configured.config:
                return Part(configured.type, {**configured.config, "base_dir": base_dir})
            return None
        config: dict[str, Any] = {}
        if configured is not None:
            if kind is None or kind == configured.type:
                config = dict(configured.config)
            elif "queues" in configured.config:
                # Another type's settings do not apply; the names of its queues do.
                config = {"queues": configured.config["queues"]}
        if kind == "file" and url is None:
            url = self.text("FSSPEC_URI")
        if url is None:
            assert kind is not None
            if self.text("BASE_DIR") is not None and kind in ("file", "sqlite"):
                config["base_dir"] = self.text("BASE_DIR")
            return Part(kind, config)
        if "://" in url:
            queues = {"queues": config["queues"]} if "queues" in config else {}
            if kind == "file":
                return Part("file", {"base_dir": url, **queues})
            return Part(url, queues)
        # A plain folder.
        return Part(kind or (configured.type if configured else DEFAULT_BACKEND), {**config, "base_dir": url})

    def task_options(self, base: TaskOptions = DEFAULT_OPTIONS) -> TaskOptions:
        """How tasks are run that do not say so themselves."""
        found = {
            "max_retries": self.whole("RETRY_ATTEMPTS"),
            "retry_delay": self.seconds("RETRY_DELAY"),
            "timeout": self.seconds("TASK_TIMEOUT"),
            "ttl": self.seconds("TASK_TTL"),
            "result_ttl": self.seconds("RESULT_TTL"),
        }
        given = {key: value for key, value in found.items() if value is not None}
        return _task_options(given, f"the environment variables {self._prefix}…", base) if given else base

    def worker_type(self) -> str | None:
        kind = self.text("DEFAULT_WORKER")
        return None if kind is None else canonical_worker_type(kind)

    def max_workers(self, worker_type: str) -> int | None:
        """How many tasks a worker of that type runs at once; ``None``: as many as the engine's default says."""
        specific = {
            "thread_pool": "THREAD_WORKERS",
            "process_pool": "PROCESS_WORKERS",
            "gevent": "GEVENT_WORKERS",
        }
        if worker_type in specific:
            found = self.whole(specific[worker_type])
            if found is not None:
                return found
        found = self.whole("MAX_WORKERS")
        return _DEFAULT_MAX_WORKERS.get(worker_type) if found is None else found
