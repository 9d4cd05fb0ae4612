"""How a command ends when it does not end well."""

from __future__ import annotations

__all__ = ["FAILED", "UNREACHABLE", "USAGE", "Failed"]

FAILED = 1
USAGE = 2
UNREACHABLE = 3


class Failed(Exception):
    """One line for stderr, and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
