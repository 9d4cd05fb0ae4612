"""The command ``omniq-gevent``: the command ``omniq`` in a process that gevent has patched before anything was imported.

``omniq-gevent worker app:oq`` takes the options of ``omniq worker``; its worker type is ``gevent`` unless ``--type`` says
otherwise, whatever the program was configured with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["main", "patch"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Patches the process, runs the command line, and exits.

    Args:
        arguments: instead of those of the process.

    Raises:
        SystemExit: always, with the exit code.
    """
    patch()

    from omniq.cli import main as run

    run(arguments, name="omniq-gevent", defaults={"worker": {"worker_type": "gevent"}})


def patch() -> None:
    """Does what ``gevent.monkey.patch_all()`` does, in less time: to call its plugins that asks some twenty times what is
    installed, each time of every distribution. Here that is read once."""
    from importlib import metadata

    from gevent import monkey

    read = metadata.entry_points
    installed = read()

    def entry_points(**wanted: Any) -> Any:
        return installed.select(**wanted)

    metadata.entry_points = entry_points
    try:
        monkey.patch_all()
    finally:
        metadata.entry_points = read
