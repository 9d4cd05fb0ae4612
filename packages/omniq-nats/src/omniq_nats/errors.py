"""The ways in which a call fails, and what each means for its effect.

Few on purpose: whoever reads ``CannotConnect`` or ``NotThere`` knows that nothing happened, whoever reads ``ConnectionLost``
knows that the server may have done it.
"""

from __future__ import annotations

from omniq_core import BackendError, ErrorCode, Unsupported

__all__ = [
    "CannotConnect",
    "ConnectionLost",
    "Forbidden",
    "NatsError",
    "NoAnswer",
    "NotThere",
    "Refused",
    "classify",
]


class NatsError(Exception):
    """What this driver raises about the server. Shows no secrets."""


class CannotConnect(NatsError):
    """No server was reached, or let us in, in time. Nothing was sent."""


class Forbidden(CannotConnect):
    """A server was reached, and does not let us in."""


class NotThere(NatsError):
    """Nobody listens to this subject: JetStream, or the stream's leader, is not there (yet). Nothing happened."""


class ConnectionLost(NatsError):
    """The connection broke while an answer was owed: the call may have taken effect."""


class NoAnswer(ConnectionLost):
    """The server was silent for too long: the call may have taken effect."""


class Refused(NatsError):
    """JetStream, or the server, answered with an error.

    Attributes:
        code: as in HTTP.
        number: JetStream's own number of the error; 0 for none.
    """

    def __init__(self, what: str, code: int, number: int = 0) -> None:
        super().__init__(what)
        self.code = code
        self.number = number


TOO_MANY = frozenset({10167, 10210, 10211})
"""More is on its way to the stream than it takes: nothing of this was stored."""
FULL = frozenset({10023, 10028, 10047, 10077, 10110, 10111})
"""Out of storage, or over the account's limits."""

NO_PEERS = 10005
"""Too few servers of the cluster are up."""


def classify(error: BaseException) -> ErrorCode:
    """See :meth:`omniq_core.Backend.classify`."""
    if isinstance(error, BackendError):
        return error.error_code
    if isinstance(error, Unsupported):
        return ErrorCode.UNSUPPORTED
    if isinstance(error, Forbidden):
        return ErrorCode.PERMISSION
    if isinstance(error, (CannotConnect, NotThere)):
        return ErrorCode.UNAVAILABLE
    if isinstance(error, ConnectionLost):
        return ErrorCode.UNKNOWN_EFFECT
    if isinstance(error, Refused):
        if error.number in TOO_MANY or error.number in FULL:
            return ErrorCode.EXHAUSTED
        if error.code == 503 or error.number == NO_PEERS:
            return ErrorCode.UNAVAILABLE
        if error.code == 403:
            return ErrorCode.PERMISSION
        if error.code == 413:
            return ErrorCode.TOO_LARGE
    return ErrorCode.UNKNOWN
