"""Every error of the contract: few classes, split by what the reader would do, each with a stable code.

A message says what was expected, what came, and what to do. ``docs/errors.md`` has one heading per code. No message
holds a secret: URLs are redacted before they get here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import ClassVar

from omniq_core.capabilities import Capability

__all__ = [
    "BackendError",
    "BrokenPlugin",
    "Closed",
    "ContractSkew",
    "DuplicateProviders",
    "ErrorCode",
    "MissingCapability",
    "MissingLibrary",
    "NotInstalled",
    "OmniQError",
    "OptionError",
    "PluginError",
    "SchemaOutOfDate",
    "TooLarge",
    "UnknownPlugin",
    "Unreachable",
    "Unsupported",
]


class OmniQError(Exception):
    """Anything that OmniQ raises on purpose.

    Attributes:
        code: stable, for searching and for ``docs/errors.md``.
    """

    code: ClassVar[str] = "OMQ-0000"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


# --- plugins -----------------------------------------------------------------------------------------------------


class PluginError(OmniQError):
    """A plugin cannot be used. It never disturbs another plugin."""

    code = "OMQ-P000"


class NotInstalled(PluginError):
    """A backend that OmniQ knows of is not installed here."""

    code = "OMQ-P001"


class UnknownPlugin(PluginError):
    """No installed distribution offers that name, and OmniQ knows of none that would."""

    code = "OMQ-P002"


class MissingLibrary(PluginError):
    """The plugin is installed and the client library that it needs is not."""

    code = "OMQ-P003"


class BrokenPlugin(PluginError):
    """The plugin's module fails to import, or what it names is not what it should be."""

    code = "OMQ-P004"


class DuplicateProviders(PluginError):
    """Two distributions offer one name. OmniQ never chooses between them."""

    code = "OMQ-P005"


class ContractSkew(PluginError):
    """The plugin was built for another version of the contract."""

    code = "OMQ-P006"


class OptionError(OmniQError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""

    code = "OMQ-P007"


# --- capabilities ------------------------------------------------------------------------------------------------


class Unsupported(OmniQError):
    """A method was called whose capability the opened backend does not declare.

    Args:
        capability: the one that is missing.
        backend: the backend's name.
        why: the backend's own reason, from ``Backend.absent``.
    """

    code = "OMQ-C001"

    def __init__(self, capability: Capability, backend: str = "this", why: str = "") -> None:
        reason = f": {why}" if why else ""
        super().__init__(f"the {backend} backend does not offer {capability.name}{reason}")
        self.capability = capability


class MissingCapability(OmniQError):
    """A program needs something that its backend does not offer; found before any work is taken."""

    code = "OMQ-C002"

    def __init__(self, message: str, missing: Iterable[Capability] = ()) -> None:
        super().__init__(message)
        self.missing = frozenset(missing)


# --- talking to a backend ----------------------------------------------------------------------------------------


class ErrorCode(enum.StrEnum):
    """What ``Backend.classify`` makes of a native exception."""

    UNAVAILABLE = "unavailable"
    """The server cannot be reached, and the call is known not to have taken effect."""
    TIMEOUT = "timeout"
    """No answer in time, before the request could have taken effect (waiting for a connection or a lock)."""
    EXHAUSTED = "exhausted"
    """Out of connections, memory or disk."""
    UNKNOWN_EFFECT = "unknown_effect"
    """Sent, and no answer came: it may have taken effect. Repeating it is safe, as every method is idempotent."""
    INVALID = "invalid"
    """The store refused the request itself; repeating it will not help."""
    TOO_LARGE = "too_large"
    PERMISSION = "permission"
    SCHEMA = "schema"
    """The stored layout is missing, older or newer than the driver."""
    CORRUPT = "corrupt"
    """What is stored cannot be read."""
    UNSUPPORTED = "unsupported"
    CLOSED = "closed"
    UNKNOWN = "unknown"
    """In doubt. Treated as ``UNKNOWN_EFFECT``; never guess that something did not happen."""

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed later without anybody changing anything."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ErrorCode.UNAVAILABLE,
        ErrorCode.TIMEOUT,
        ErrorCode.EXHAUSTED,
        ErrorCode.UNKNOWN_EFFECT,
        ErrorCode.UNKNOWN,
    }
)


class BackendError(OmniQError):
    """A call to a store failed as a whole. The native exception is its ``__cause__``.

    Args:
        message: what was being done, to what, and what to do about it.
        error_code: what the driver made of the native exception.
        backend: the backend's name.
    """

    code = "OMQ-B000"

    def __init__(self, message: str, error_code: ErrorCode = ErrorCode.UNKNOWN, backend: str = "") -> None:
        super().__init__(message)
        self.error_code = error_code
        self.backend = backend

    @property
    def is_retryable(self) -> bool:
        return self.error_code.is_retryable


class Unreachable(BackendError):
    """The server does not answer, or the file cannot be opened."""

    code = "OMQ-B001"


class SchemaOutOfDate(BackendError):
    """The stored layout and the driver differ, and opening may not change it."""

    code = "OMQ-B002"

    def __init__(self, message: str, backend: str = "") -> None:
        super().__init__(message, ErrorCode.SCHEMA, backend)


class Closed(BackendError):
    """The backend was closed (or never opened)."""

    code = "OMQ-B003"

    def __init__(self, backend: str = "this") -> None:
        super().__init__(
            f"the {backend} backend is not open; enter it with 'async with', or call open()",
            ErrorCode.CLOSED,
            backend,
        )


class TooLarge(BackendError, ValueError):
    """A body, name or batch is over the backend's limit; nothing was sent."""

    code = "OMQ-B004"

    def __init__(self, message: str, backend: str = "") -> None:
        super().__init__(message, ErrorCode.TOO_LARGE, backend)
