"""Component classes by name: ``SQLiteTaskQueue`` is the task queue on whatever backend is registered as ``sqlite``.

Backends are distributions of their own, and this library imports none of them. So the classes that are named after one are
made on demand by a module's ``__getattr__``, which asks the registry what the prefix names: a stranger's backend ``acme``
has its ``AcmeTaskQueue`` as well.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Mapping
from typing import Any, Self, cast, get_args

import msgspec

from omniq.stores import resolve_backend
from omniq_core import (
    BACKENDS,
    Backend,
    BackendOptions,
    MissingLibrary,
    NotInstalled,
    UnknownPlugin,
    backend_class,
)
from omniq_core.options import convert_option

__all__ = [
    "BackendConfig",
    "ByName",
    "FromConfig",
    "backend_name",
    "class_prefix",
    "config_class",
    "config_values",
    "find_backend",
]

_PREFIXES = {
    "Memory": "memory",
    "SQLite": "sqlite",
    "File": "file",
    "Postgres": "postgres",
    "PostgreSQL": "postgres",
    "Redis": "redis",
    "NATS": "nats",
}
"""How our own backends are written in class names."""


def backend_name(prefix: str) -> str | None:
    """The backend that the beginning of a class's name stands for; ``None``: there is none of that name."""
    known = _PREFIXES.get(prefix)
    if known is None and prefix.lower() in BACKENDS.names():
        known = prefix.lower()
    return known


def class_prefix(name: str) -> str:
    """How a backend is written in class names."""
    for prefix, known in _PREFIXES.items():
        if known == name:
            return prefix
    return name.capitalize()


def find_backend(module: str, name: str, prefix: str) -> type[Backend] | None:
    """The backend class for a class's name, or ``None`` if the prefix names none.

    Raises:
        ImportError: it is not installed; with the command to install it.
        PluginError: it is broken.
    """
    backend = backend_name(prefix)
    if backend is None:
        return None
    try:
        return backend_class(backend)
    except (NotInstalled, MissingLibrary, UnknownPlugin) as error:
        raise ImportError(f"cannot import {name!r} from {module!r}: {error}", name=name) from error


class BackendConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The parameters of a component as an object, checked when it is made. What is not set is left to the component."""

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not msgspec.UNSET:
                kind = functools.reduce(
                    operator.or_, [part for part in get_args(field.type) if part is not msgspec.UnsetType]
                )
                checked = convert_option(
                    type(self).__name__, field.name, kind, value, where="its arguments", is_text=False
                )
                setattr(self, field.name, checked)


def config_values(config: object) -> dict[str, Any]:
    """What is set on a config object, by name."""
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, msgspec.Struct):
        values = msgspec.structs.asdict(config)
    else:
        values = dict(vars(config))
    return {name: value for name, value in values.items() if value is not msgspec.UNSET and value is not None}


class FromConfig:
    """The ways to make a component from what a configuration says."""

    @classmethod
    def from_config(cls, config: object) -> Self:
        """From a config object: ``SQLiteTaskQueueConfig`` and the like, or any object with such attributes."""
        return cls.from_dict(config_values(config))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the keywords of the constructor."""
        return cls(**config)


_configs: dict[str, type[BackendConfig]] = {}


def config_class(name: str, backend: type[Backend], own: Mapping[str, Any]) -> type[BackendConfig]:
    """The config class of a component: the backend's options, and the component's own parameters."""
    made = _configs.get(name)
    if made is None:
        options: type[BackendOptions] = backend.options_type
        fields: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(options)} | dict(
            own
        )
        made = cast(
            type[BackendConfig],
            msgspec.defstruct(
                name,
                [(field, kind | msgspec.UnsetType, msgspec.UNSET) for field, kind in fields.items()],
                bases=(BackendConfig,),
                module="omniq.models",
                kw_only=True,
            ),
        )
        _configs[name] = made
    return made


class ByName:
    """Makes the classes of one kind of component that are named after backends.

    Args:
        module: where they are looked up.
        sync: the class of the sync ones.
        asynchronous: the class of those whose name begins with ``Async``.
        suffixes: how the names end; the first is the usual one.
        own: the parameters that are the component's own and not the backend's, with their types.
    """

    def __init__(
        self,
        module: str,
        *,
        sync: type[Any],
        asynchronous: type[Any],
        suffixes: tuple[str, ...],
        own: Mapping[str, Any],
    ) -> None:
        self._module = module
        self._sync = sync
        self._asynchronous = asynchronous
        self._suffixes = suffixes
        self._own = own
        self._pattern = re.compile(rf"(Async)?([A-Z]\w*?)({'|'.join(suffixes)})(Config)?")
        self._made: dict[tuple[bool, str], type[Any]] = {}

    def find(self, name: str) -> Any:
        """The class of that name.

        Raises:
            AttributeError: the name does not end in one of the suffixes, or no backend is called so.
            ImportError: its backend is not installed.
            PluginError: its backend is broken.
        """
        matched = self._pattern.fullmatch(name)
        backend = find_backend(self._module, name, matched[2]) if matched else None
        if matched is None or backend is None:
            raise AttributeError(f"module {self._module!r} has no attribute {name!r}")
        is_async, is_config = bool(matched[1]), bool(matched[4])
        usual = ("Async" if is_async else "") + class_prefix(backend.name) + self._suffixes[0]
        if is_config:
            return config_class(usual + "Config", backend, self._own)
        key = (is_async, backend.name)
        if key not in self._made:
            base = self._asynchronous if is_async else self._sync
            self._made[key] = _named(usual, self._module, base, backend.name, frozenset(self._own))
        return self._made[key]

    def names(self) -> list[str]:
        """The classes of the installed backends, for ``dir``; imports none of them."""
        prefixes = sorted({class_prefix(name) for name in BACKENDS.names()})
        return [f"{kind}{prefix}{self._suffixes[0]}" for prefix in prefixes for kind in ("", "Async")]


def _named(name: str, module: str, base: type[Any], backend: str, own: frozenset[str]) -> type[Any]:
    def __init__(self: Any, project_name: str | None = None, **settings: Any) -> None:
        if project_name is not None:
            settings["project_name"] = project_name
        mine = {key: settings.pop(key) for key in own & settings.keys()}
        generic: Any = base
        generic.__init__(self, resolve_backend(backend, settings), **mine)

    namespace: dict[str, Any] = {
        "__init__": __init__,
        "__module__": module,
        "__doc__": f"The :class:`{base.__name__}` on the {backend} backend; keyword arguments are its settings.",
        "backend_name": backend,
    }
    return type(name, (base,), namespace)
