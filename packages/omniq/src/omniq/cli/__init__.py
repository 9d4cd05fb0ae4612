"""The command line: ``omniq worker app:oq``, ``omniq enqueue app:oq send to=a@example.org``, and what an operator looks at.

click is imported here and nowhere else, so ``import omniq`` does not load it. Errors are one line on stderr; the exit codes
stand in ``--help``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["main"]


def main(
    arguments: Sequence[str] | None = None,
    *,
    name: str = "omniq",
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Runs the command line and exits the process.

    Args:
        arguments: instead of those of the process.
        name: what the command is called in its own messages.
        defaults: other defaults of options, by command and parameter; what the user gives, or the environment, wins.

    Raises:
        SystemExit: always, with the exit code.
    """
    import sys

    from omniq.cli.group import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments), name=name, defaults=defaults))
