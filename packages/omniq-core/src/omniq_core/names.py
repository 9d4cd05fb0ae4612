"""What a queue, task, worker or project may be called, and what an id may look like.

Names are data on every backend: encoded into keys, subjects and paths, never pasted. So almost anything goes; what
does not is refused here, at the API, before anything is sent.
"""

from __future__ import annotations

import unicodedata

__all__ = ["MAX_ID_BYTES", "MAX_NAME_BYTES", "check_name", "check_task_id"]

MAX_NAME_BYTES = 255
"""Longest name of a queue or task and longest unique key, in UTF-8: one path component of common file systems."""
MAX_ID_BYTES = 128
"""Longest task id, in UTF-8. A UUID has 36."""

_known_good: set[tuple[str, str]] = set()
"""Names that passed, so that the hot path pays one set look-up. Bounded, as names may come from outside."""
_KNOWN_MAX = 4096


def check_name(what: str, name: str) -> str:
    """Returns ``name`` if it may be used.

    Args:
        what: what is being named, for the message, for example ``"queue name"``.
        name: 1 to 255 bytes of UTF-8 without control characters.

    Raises:
        TypeError: not text.
        ValueError: empty, too long, not encodable (lone surrogates), or with control characters.
    """
    if (what, name) in _known_good:
        return name
    checked = _check(what, name, MAX_NAME_BYTES)
    if len(_known_good) < _KNOWN_MAX:
        _known_good.add((what, checked))
    return checked


def check_task_id(task_id: str) -> str:
    """Returns ``task_id`` if it may be used: 1 to 128 bytes of UTF-8 without control characters.

    Raises:
        TypeError: not text.
        ValueError: empty, too long, not encodable, or with control characters.
    """
    return _check("task id", task_id, MAX_ID_BYTES)


def _check(what: str, name: str, longest: int) -> str:
    if type(name) is str and name.isascii() and name.isprintable() and 0 < len(name) <= longest:
        return name  # what nearly all are, and every id of our own making
    if not isinstance(name, str):
        raise TypeError(f"a {what} must be text, got {type(name).__name__}: {name!r}")
    if not name:
        raise ValueError(f"a {what} must not be empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"a {what} must be encodable as UTF-8, got {name!r}") from error
    if size > longest:
        raise ValueError(f"a {what} has at most {longest} bytes in UTF-8, got {size}: {name[:40]!r}...")
    if not name.isprintable():
        bad = next((character for character in name if unicodedata.category(character) == "Cc"), None)
        if bad is not None:
            raise ValueError(f"a {what} must not hold control characters, got {bad!r} in {name!r}")
    return name
