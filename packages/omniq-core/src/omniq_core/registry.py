"""Finds plugins by name: lazy entry points, one name at a time.

Listing imports nothing. A plugin's module is imported when its name is first used, so a broken plugin disturbs only
who asks for it. Two distributions that offer one name are an error that names both; OmniQ never chooses by rank or
order. ``DISTRIBUTION:NAME`` names one of them.

Groups: ``omniq.backends`` (a name is also a URL scheme), ``omniq.workers``, ``omniq.serializers``, ``omniq.plugins``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from omniq_core.backend import SPI_VERSION, Backend
from omniq_core.errors import (
    BrokenPlugin,
    ContractSkew,
    DuplicateProviders,
    MissingLibrary,
    NotInstalled,
    UnknownPlugin,
)
from omniq_core.native import RLock
from omniq_core.options import suggest

if TYPE_CHECKING:
    from importlib_metadata import Distribution

__all__ = ["BACKENDS", "SERIALIZERS", "WORKERS", "PluginInfo", "Registry", "backend_class"]

P = TypeVar("P")

_EXTRAS: Mapping[str, Mapping[str, str]] = {
    "omniq.backends": {
        "memory": "omniq",
        "sqlite": "omniq",
        "file": "omniq",
        "postgres": "omniq[postgres]",
        "postgresql": "omniq[postgres]",
        "redis": "omniq[redis]",
        "rediss": "omniq[redis]",
        "valkey": "omniq[redis]",
        "nats": "omniq[nats]",
        "s3": "omniq[s3]",
        "gs": "omniq[gcs]",
        "gcs": "omniq[gcs]",
        "az": "omniq[azure]",
        "abfs": "omniq[azure]",
    },
    "omniq.workers": {"gevent": "omniq[gevent]"},
    "omniq.serializers": {"cloudpickle": "omniq[cloudpickle]"},
}
"""What to install for a name of ours that is not there."""


class PluginInfo(msgspec.Struct, frozen=True):
    """One offer of a name, known without importing it."""

    name: str
    group: str
    value: str
    """``module:attribute``."""
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.value})"


class _Installed:
    """What is installed, read once for all groups.

    ``importlib_metadata.entry_points()`` would parse the entry points of every distribution for each group, and the metadata
    of each that has some: in an environment of two hundred that is a third of the time in which a worker starts.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._path: list[str] = []
        self._found: list[tuple[Distribution, str]] | None = None

    def forget(self) -> None:
        with self._lock:
            self._found = None

    def offering(self, group: str) -> list[Distribution]:
        """The distributions that have entry points of a group. One that is seen twice, by way of two entries of
        ``sys.path``, is given once, and of two releases the one that comes first."""
        from importlib_metadata import Distribution

        with self._lock:
            if self._found is None or self._path != sys.path:
                self._path = list(sys.path)
                self._found = [(one, _entry_points(one)) for one in Distribution.discover()]
            names = [_name_and_version(one)[0] for one, text in self._found if group in text]
        # As an import would choose: a release that is hidden by another one offers nothing.
        return [Distribution.from_name(name) for name in dict.fromkeys(map(_canonical, names)) if name]


def _entry_points(distribution: Distribution) -> str:
    """The text of its entry points."""
    from importlib_metadata import PathDistribution

    if isinstance(distribution, PathDistribution):
        return distribution.read_text("entry_points.txt") or ""
    return " ".join(distribution.entry_points.groups)  # whoever provides it need not have a text


def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    """By the first lines of its metadata: importing what parses all of them takes longer than the whole search. Empty where
    there is no metadata: something is left of a distribution that is installed no longer."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    lines = [line.split(": ", 1) for line in text.partition("\n\n")[0].splitlines() if ": " in line]
    fields = {name: value.strip() for name, value in reversed(lines)}
    return fields.get("Name", ""), fields.get("Version", "?")


_installed = _Installed()


class Registry(Generic[P]):
    """The plugins of one entry-point group.

    Args:
        group: the entry points' group.
        kind: the word for one of them in messages.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind
        self._lock = RLock()
        self._found: dict[str, list[tuple[PluginInfo, Any]]] | None = None
        self._local: dict[str, P] = {}
        self._loaded: dict[str, P] = {}

    # --- looking, without importing -----------------------------------------------------------------------------

    def _scan(self) -> dict[str, list[tuple[PluginInfo, Any]]]:
        with self._lock:
            if self._found is None:
                found: dict[str, list[tuple[PluginInfo, Any]]] = {}
                for distribution in _installed.offering(self.group):
                    name, version = _name_and_version(distribution)
                    for point in distribution.entry_points.select(group=self.group):
                        info = PluginInfo(point.name, self.group, point.value, name, version)
                        found.setdefault(point.name, []).append((info, point))
                self._found = found
            return self._found

    def refresh(self) -> None:
        """Forgets what was found, after something was installed in this very process."""
        with self._lock:
            _installed.forget()
            self._found = None
            self._loaded.clear()

    def __iter__(self) -> Iterator[PluginInfo]:
        """Every offer, sorted by name; imports nothing."""
        for name in sorted(self._scan()):
            for info, _ in self._scan()[name]:
                yield info

    def names(self) -> list[str]:
        """Every name that is offered or registered here, sorted; imports nothing."""
        return sorted({*self._scan(), *self._local})

    def register(self, name: str, plugin: P) -> None:
        """Offers a plugin of this very program, without a distribution.

        Raises:
            DuplicateProviders: something else has that name.
        """
        if self._local.get(name, plugin) is not plugin:
            raise DuplicateProviders(f"{self.kind} {name!r} is registered already, as {self._local[name]!r}")
        if self._scan().get(name):
            raise DuplicateProviders(
                f"{self.kind} {name!r} is provided by {self._scan()[name][0][0]}; register yours under another name"
            )
        self._local[name] = plugin

    def unregister(self, name: str) -> None:
        """Takes back :meth:`register`. Idempotent."""
        self._local.pop(name, None)

    # --- loading one --------------------------------------------------------------------------------------------

    def load(self, name: str) -> P:
        """The plugin of that name, or of ``DISTRIBUTION:NAME``.

        Raises:
            NotInstalled, UnknownPlugin, DuplicateProviders, MissingLibrary, BrokenPlugin: see those.
        """
        if name in self._local:
            return self._local[name]
        if name in self._loaded:
            return self._loaded[name]
        info, point = self._choose(name)
        try:
            plugin = cast(P, point.load())
        except Exception as error:
            raise self._explain(info, error) from error
        self._loaded[name] = plugin
        return plugin

    def info(self, name: str) -> PluginInfo | None:
        """Where a name would be loaded from; ``None`` for one registered by the program."""
        return None if name in self._local else self._choose(name)[0]

    def _choose(self, name: str) -> tuple[PluginInfo, Any]:
        wanted, _, short = name.rpartition(":")
        offers = self._scan().get(short, [])
        if wanted:
            offers = [offer for offer in offers if _canonical(offer[0].distribution) == _canonical(wanted)]
        if not offers:
            raise self._absent(name)
        if len(offers) > 1:
            providers = "; ".join(str(info) for info, _ in offers)
            raise DuplicateProviders(
                f"{self.kind} {short!r} is provided by {len(offers)} installed distributions: {providers}. Uninstall "
                f"all but one, or choose one with 'DISTRIBUTION:{short}', for example "
                f"'{offers[0][0].distribution}:{short}'"
            )
        return offers[0]

    def _absent(self, name: str) -> NotInstalled | UnknownPlugin:
        here = ", ".join(self.names()) or "none"
        what = f"no {self.kind} named {name!r}; installed here: {here}"
        extra = _EXTRAS.get(self.group, {}).get(name)
        if extra:
            return NotInstalled(f'{what}. Install it with: pip install "{extra}"')
        known = {*self.names(), *_EXTRAS.get(self.group, {})}
        hint = suggest(name, sorted(known))
        return UnknownPlugin(what + (f".{hint[1:].replace(' d', ' D', 1)}" if hint else ""))

    def _explain(self, info: PluginInfo, error: Exception) -> MissingLibrary | BrokenPlugin:
        who = f"{self.kind} {info.name!r} from {info}"
        module = info.value.partition(":")[0].partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name:
            missing = error.name.partition(".")[0]
            if missing == module:
                return BrokenPlugin(
                    f"{who} cannot be imported: {error}. The distribution is installed but its code is gone; "
                    f"try: pip install --force-reinstall --no-deps {info.distribution}"
                )
            return MissingLibrary(
                f"{who} needs the module {error.name!r}, which is not installed. "
                f"Try: pip install --upgrade {info.distribution}"
            )
        return BrokenPlugin(
            f"{who} cannot be imported: {type(error).__name__}: {error}. Other {self.kind}s are not affected; "
            f"report it to the authors of {info.distribution}"
        )


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


BACKENDS: Registry[type[Backend]] = Registry("omniq.backends", "backend")
WORKERS: Registry[Any] = Registry("omniq.workers", "worker type")
SERIALIZERS: Registry[Any] = Registry("omniq.serializers", "serializer")


def backend_class(name: str) -> type[Backend]:
    """The backend class of that name (or URL scheme), checked to be one for this contract.

    Raises:
        PluginError: one of its kinds, see :meth:`Registry.load`; ``BrokenPlugin`` also for something that is no
            backend, ``ContractSkew`` for one of another contract version.
    """
    found = BACKENDS.load(name)
    info = BACKENDS.info(name)
    who = f"backend {name!r} from {info}" if info else f"backend {name!r} of this program"
    # By its bases, not with issubclass(): the contract is subclassed explicitly, for its default bodies.
    if Backend not in getattr(found, "__mro__", ()):
        raise BrokenPlugin(f"{who} must be a subclass of omniq_core.Backend, got {found!r}")
    lacking = [
        attribute for attribute in ("name", "spi_version", "options_type") if not hasattr(found, attribute)
    ]
    lacking += sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise BrokenPlugin(f"{who} lacks {', '.join(lacking)}")
    major, minor = found.spi_version
    ours_major, ours_minor = SPI_VERSION
    fits = major == ours_major and (minor == ours_minor if ours_major == 0 else minor <= ours_minor)
    if not fits:
        newer = (major, minor) > SPI_VERSION
        advice = (
            "Install a newer omniq-core, or an older release of the plugin"
            if newer
            else "Install a newer release of the plugin"
        )
        raise ContractSkew(
            f"{who} was built for contract {major}.{minor}, "
            f"but this omniq-core speaks {ours_major}.{ours_minor}. {advice}"
        )
    return found
