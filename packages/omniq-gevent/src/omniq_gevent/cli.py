"""The command ``omniq-gevent``: the command ``omniq`` in a process that gevent has patched before anything was imported.

``omniq-gevent worker app:oq`` takes the options of ``omniq worker``; its worker type is ``gevent`` unless ``--type`` says
otherwise, whatever the program was configured with.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Patches the process, runs the command line, and exits.

    Args:
        arguments: instead of those of the process.

    Raises:
        SystemExit: always, with the exit code.
    """
    from gevent import monkey

    monkey.patch_all()

    from omniq.cli import main as run

    run(arguments, name="omniq-gevent", defaults={"worker": {"worker_type": "gevent"}})
