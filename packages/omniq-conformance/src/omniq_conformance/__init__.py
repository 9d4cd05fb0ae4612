"""The suite that says what a backend of OmniQ is: subclass :class:`BackendSuite`, supply a way to make yours, run pytest. The
same for worker types: :class:`WorkerSuite`.

Importing this module loads nothing else: pytest imports it in every run of every project in whose environment it is
installed, and must not be slowed down, or broken, by a suite that nobody asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniq_conformance.env import Env, Unavailable
    from omniq_conformance.server_suite import ServerSuite
    from omniq_conformance.suite import BackendSuite
    from omniq_conformance.worker_suite import WorkerSuite

__version__ = "0.1.0"
__all__ = ["BackendSuite", "Env", "ServerSuite", "Unavailable", "WorkerSuite"]

_HOMES = {
    "BackendSuite": "suite",
    "Env": "env",
    "ServerSuite": "server_suite",
    "Unavailable": "env",
    "WorkerSuite": "worker_suite",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
