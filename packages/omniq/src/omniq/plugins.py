"""Calling the hooks of plugins (``omniq.plugins``), so that a broken one disturbs nothing and an absent one costs nothing.

Plugins are found when the first hook is asked for, never on import. Each is loaded in its own ``try``: one that cannot be
imported is reported and left out. A hook's exception is logged and the next plugin is called all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omniq_core import Registry
from omniq_core.native import RLock

if TYPE_CHECKING:
    import pluggy

__all__ = ["Hooks", "hooks"]

log = logging.getLogger("omniq.plugins")


class Hooks:
    """The hooks that some plugins implement.

    Args:
        discover: load what installed distributions offer; off for tests.
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._lock = RLock()
        self._manager: pluggy.PluginManager | None = None
        self._discover = discover
        self._installed: Registry[Any] = Registry("omniq.plugins", "plugin")
        self._callers: dict[str, Callable[..., list[Any]] | None] = {}
        self.broken: dict[str, str] = {}
        """Plugins that could not be loaded, and why, for ``omniq doctor``."""

    def register(self, plugin: object) -> None:
        """Adds a plugin of this program: a module or object with functions marked by ``omniq_core.hooks.hookimpl``."""
        with self._lock:
            self._loaded().register(plugin)
            self._callers.clear()

    def unregister(self, plugin: object) -> None:
        """Takes back :meth:`register`. Idempotent."""
        with self._lock:
            manager = self._loaded()
            if manager.is_registered(plugin):
                manager.unregister(plugin)
            self._callers.clear()

    def caller(self, hook: str) -> Callable[..., list[Any]] | None:
        """What calls every implementation of ``hook`` (with keyword arguments), returning what they returned (``None``
        left out); or ``None`` where nobody implements it, so that the caller need not even gather the arguments.

        Args:
            hook: one of :class:`omniq_core.hooks.HookSpecs`.
        """
        try:
            return self._callers[hook]
        except KeyError:
            pass
        with self._lock:
            found = None
            if self._manager is not None or (self._discover and any(self._installed)):
                relay = getattr(self._loaded().hook, hook)
                found = self._make_caller(hook, relay) if relay.get_hookimpls() else None
            self._callers[hook] = found
            return found

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Calls every implementation of ``hook`` now."""
        caller = self.caller(hook)
        return caller(**arguments) if caller is not None else []

    @staticmethod
    def _make_caller(hook: str, relay: Any) -> Callable[..., list[Any]]:
        # One by one rather than through pluggy's own call, which stops at the first exception.
        implementations = list(reversed(relay.get_hookimpls()))

        def call(**arguments: Any) -> list[Any]:
            found = []
            for implementation in implementations:
                try:
                    value = implementation.function(*[arguments[name] for name in implementation.argnames])
                except Exception:
                    if hook == "omniq_configure":  # the one that may refuse
                        raise
                    log.exception("hook %s of plugin %r failed", hook, implementation.plugin_name)
                else:
                    if value is not None:
                        found.append(value)
                        if hook == "omniq_tasks_enqueuing":  # each sees what the one before made of them
                            arguments["records"] = value
            return found

        return call

    def _loaded(self) -> pluggy.PluginManager:
        if self._manager is None:
            import pluggy  # not before there is a plugin: most programs have none

            from omniq_core.hooks import PROJECT, HookSpecs

            manager = pluggy.PluginManager(PROJECT)
            manager.add_hookspecs(HookSpecs)
            if self._discover:
                self._load_installed(manager)
            self._manager = manager
        return self._manager

    def _load_installed(self, manager: pluggy.PluginManager) -> None:
        for info in self._installed:
            name = f"{info.distribution}:{info.name}"
            try:
                manager.register(self._installed.load(name), name)
            except Exception as error:
                self.broken[name] = str(error)
                log.error("plugin %s is left out: %s", name, error)


_hooks = Hooks()


def hooks() -> Hooks:
    """The hooks of this process."""
    return _hooks
