"""What psycopg's exceptions mean.

``UNAVAILABLE``, ``TIMEOUT`` and ``EXHAUSTED`` claim that the call had no effect. An error that the server told about a
statement aborted its transaction, so that is certain; the end of a connection after the call was sent is not.
"""

from __future__ import annotations

import struct

import psycopg

from omniq_core import BackendError, ErrorCode, Unsupported
from omniq_postgres.connection import NoReply, NotConnected, ReplyLost
from omniq_postgres.pool import NoFreeConnection

__all__ = ["classify", "is_about_items"]

_STATES = {
    "40001": ErrorCode.TIMEOUT,  # serialization failure: rolled back, and may be repeated
    "40P01": ErrorCode.TIMEOUT,  # deadlock: waited for a lock in vain
    "55P03": ErrorCode.TIMEOUT,  # lock not available
    "57014": ErrorCode.TIMEOUT,  # statement_timeout, or somebody cancelled it
    "57P01": ErrorCode.UNKNOWN_EFFECT,  # the session was ended; when, in relation to our call, is not told
    "57P02": ErrorCode.UNKNOWN_EFFECT,
    "57P03": ErrorCode.UNAVAILABLE,  # the server is starting up or shutting down
    "57P05": ErrorCode.UNKNOWN_EFFECT,
    "25006": ErrorCode.UNAVAILABLE,  # a standby: a failover is going on
    "42501": ErrorCode.PERMISSION,
    "42P01": ErrorCode.SCHEMA,
    "42883": ErrorCode.SCHEMA,
    "42703": ErrorCode.SCHEMA,
    "3F000": ErrorCode.SCHEMA,
    "3D000": ErrorCode.INVALID,  # no such database
    "26000": ErrorCode.INVALID,  # our prepared statement is gone: a pooler, and neither notify=False nor listen_url
    "42P05": ErrorCode.INVALID,  # somebody else's is there: the same
    "XX001": ErrorCode.CORRUPT,
    "XX002": ErrorCode.CORRUPT,
    "58030": ErrorCode.EXHAUSTED,  # I/O error; mostly a full disk
}
_CLASSES = {
    "08": ErrorCode.UNKNOWN_EFFECT,
    "22": ErrorCode.INVALID,
    "23": ErrorCode.INVALID,
    "25": ErrorCode.UNKNOWN_EFFECT,
    "28": ErrorCode.PERMISSION,
    "42": ErrorCode.INVALID,
    "53": ErrorCode.EXHAUSTED,
    "54": ErrorCode.TOO_LARGE,
}
_LOGIN_REFUSED = (
    "authentication failed",
    "no pg_hba.conf entry",
    "no password supplied",
    "not permitted to log in",
)


def classify(error: BaseException) -> ErrorCode:
    if isinstance(error, BackendError):
        return error.error_code
    if isinstance(error, Unsupported):
        return ErrorCode.UNSUPPORTED
    if isinstance(error, NoFreeConnection):
        return ErrorCode.TIMEOUT
    if isinstance(error, NotConnected):
        return ErrorCode.UNAVAILABLE
    if isinstance(error, (ReplyLost, NoReply)):
        return ErrorCode.UNKNOWN_EFFECT
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        if state is not None:
            return _STATES.get(state) or _CLASSES.get(state[:2], ErrorCode.UNKNOWN)
        return _of_connecting(error)
    if isinstance(error, ConnectionRefusedError):
        return ErrorCode.UNAVAILABLE
    if isinstance(
        error, (struct.error, UnicodeError)
    ):  # a number or a text that no column takes; it was not sent
        return ErrorCode.INVALID
    return ErrorCode.UNKNOWN


def _of_connecting(error: psycopg.Error) -> ErrorCode:
    """Errors without a code come from libpq, and from our links only while connecting: theirs are of classes of their own.

    What the server says then is text, in its own language; the code is lost. These phrases are libpq's and the English
    server's.
    """
    text = str(error)
    if isinstance(error, psycopg.OperationalError):
        if any(words in text for words in _LOGIN_REFUSED) or ("role" in text and "does not exist" in text):
            return ErrorCode.PERMISSION
        if (
            "too many clients" in text
            or "remaining connection slots" in text
            or "too many connections" in text
        ):
            return ErrorCode.EXHAUSTED
        if "does not exist" in text and "database" in text:
            return ErrorCode.INVALID
        if "server closed the connection" in text or "terminating connection" in text:
            # Said of a connection of the caller's as well, on which something may have been sent.
            return ErrorCode.UNKNOWN_EFFECT
        if "connection failed" in text or "could not" in text or "failed to resolve" in text:
            return ErrorCode.UNAVAILABLE
        return ErrorCode.UNKNOWN_EFFECT
    if isinstance(error, psycopg.DataError):
        return ErrorCode.INVALID
    return ErrorCode.UNKNOWN


def is_about_items(error: BaseException) -> bool:
    """Whether a call failed because of what was in it."""
    if isinstance(error, psycopg.Error):
        return classify(error) in (ErrorCode.INVALID, ErrorCode.TOO_LARGE)
    return not isinstance(error, (BackendError, OSError))  # an item that could not be encoded
