"""The four ways in which a call fails, and what each means for its effect.

Few on purpose: whoever reads ``CannotConnect`` knows that nothing was sent, whoever reads ``ConnectionLost`` knows that the
server may have done it.
"""

from __future__ import annotations

from omniq_core import BackendError, ErrorCode, Unsupported

__all__ = ["CannotConnect", "ConnectionLost", "NoAnswer", "Refused", "classify"]


class RedisError(Exception):
    """What this driver raises about the server. Shows no secrets."""


class CannotConnect(RedisError):
    """The server was not reached, or not greeted, in time. Nothing was sent."""


class ConnectionLost(RedisError):
    """The connection broke while the server owed an answer: the call may have taken effect."""


class NoAnswer(ConnectionLost):
    """The server was silent for too long, and the connection was given up: the call may have taken effect."""


class Refused(RedisError):
    """The server answered with an error.

    Attributes:
        code: its first word: ``NOSCRIPT``, ``READONLY``, ``OOM``, ``ERR`` ...
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]
        # An error inside a script keeps its own code, unless the server put "ERR" before it.
        if self.code == "ERR" and "max number of clients" in message:
            self.code = "MAXCLIENTS"


NO_EFFECT = {
    # Each is answered before the first write of a script: nothing happened, and it will pass.
    "LOADING": ErrorCode.UNAVAILABLE,  # just started, reading its data
    "MASTERDOWN": ErrorCode.UNAVAILABLE,  # a replica without its master
    "READONLY": ErrorCode.UNAVAILABLE,  # it was the master before a failover; the next call looks for the new one
    "UNBLOCKED": ErrorCode.UNAVAILABLE,  # the same, to a command that was blocking
    "CLUSTERDOWN": ErrorCode.UNAVAILABLE,
    "TRYAGAIN": ErrorCode.UNAVAILABLE,  # the slot is on the move
    "ASK": ErrorCode.UNAVAILABLE,
    "MOVED": ErrorCode.UNAVAILABLE,
    "NOREPLICAS": ErrorCode.UNAVAILABLE,  # min-replicas-to-write
    "BUSY": ErrorCode.UNAVAILABLE,  # somebody's script does not end
    "MAXCLIENTS": ErrorCode.EXHAUSTED,
    "OOM": ErrorCode.EXHAUSTED,  # maxmemory is reached
    "MISCONF": ErrorCode.EXHAUSTED,  # it cannot write its file: the disk is full
    "NOAUTH": ErrorCode.PERMISSION,
    "NOPERM": ErrorCode.PERMISSION,
    "WRONGPASS": ErrorCode.PERMISSION,
    "DENIED": ErrorCode.PERMISSION,  # protected mode
    "WRONGTYPE": ErrorCode.CORRUPT,  # a key of ours holds something that is not ours
    "NOPROTO": ErrorCode.UNSUPPORTED,
}


def classify(error: BaseException) -> ErrorCode:
    """See :meth:`omniq_core.Backend.classify`."""
    if isinstance(error, BackendError):
        return error.error_code
    if isinstance(error, Unsupported):
        return ErrorCode.UNSUPPORTED
    if isinstance(error, CannotConnect):
        return ErrorCode.UNAVAILABLE
    if isinstance(error, ConnectionLost):
        return ErrorCode.UNKNOWN_EFFECT
    if isinstance(error, Refused):
        return NO_EFFECT.get(error.code, ErrorCode.UNKNOWN)
    return ErrorCode.UNKNOWN
