"""The SQLite backend of OmniQ: tasks, results and events in one file, for any number of processes of one machine.

Importing this package imports neither ``sqlite3`` nor ``aiosqlite``; naming one of its classes does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniq_sqlite.backend import SQLiteBackend
    from omniq_sqlite.options import SQLiteOptions

__version__ = "0.1.0"
__all__ = ["SQLiteBackend", "SQLiteOptions"]


def __getattr__(name: str) -> Any:
    if name == "SQLiteBackend":
        from omniq_sqlite.backend import SQLiteBackend

        return SQLiteBackend
    if name == "SQLiteOptions":
        from omniq_sqlite.options import SQLiteOptions

        return SQLiteOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
