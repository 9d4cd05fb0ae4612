"""The ways in which a request to an object store fails, and what each means for its effect.

Three client libraries have some sixty exceptions for them; here they become four.
"""

from __future__ import annotations

from omniq_core import BackendError, ErrorCode, Unsupported

__all__ = ["CannotConnect", "ConnectionLost", "NoAnswer", "Refused", "StoreError", "classify"]


class StoreError(Exception):
    """What the shelves of object stores raise about a store. Shows no secrets."""


class CannotConnect(StoreError):
    """The store was not reached, or we could not say who we are. Nothing was sent."""


class ConnectionLost(StoreError):
    """The connection broke while the store owed an answer: the request may have taken effect."""


class NoAnswer(ConnectionLost):
    """The store took too long, and the request was given up: it may have taken effect."""


class Refused(StoreError):
    """The store answered with an error.

    Attributes:
        status: of HTTP.
        code: the store's own word: ``AccessDenied``, ``SlowDown``; may be empty.
    """

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


BY_CODE = {
    # Each says that the store did nothing, and that it will pass.
    "SlowDown": ErrorCode.UNAVAILABLE,
    "RequestLimitExceeded": ErrorCode.UNAVAILABLE,
    "ThrottlingException": ErrorCode.UNAVAILABLE,
    "ServerBusy": ErrorCode.UNAVAILABLE,
    "ConditionalRequestConflict": ErrorCode.UNAVAILABLE,
    "OperationAborted": ErrorCode.UNAVAILABLE,
    "ContainerBeingDeleted": ErrorCode.UNAVAILABLE,
    # What S3 says with status 400.
    "ExpiredToken": ErrorCode.PERMISSION,
    "InvalidToken": ErrorCode.PERMISSION,
    "TokenRefreshRequired": ErrorCode.PERMISSION,
    "EntityTooLarge": ErrorCode.TOO_LARGE,
    "RequestTimeout": ErrorCode.UNKNOWN_EFFECT,
    "QuotaExceeded": ErrorCode.EXHAUSTED,
    "XMinioStorageFull": ErrorCode.EXHAUSTED,
    "NotImplemented": ErrorCode.UNSUPPORTED,
}
BY_STATUS = {
    400: ErrorCode.INVALID,
    401: ErrorCode.PERMISSION,
    403: ErrorCode.PERMISSION,
    404: ErrorCode.INVALID,  # of a bucket: a missing object is no error here
    405: ErrorCode.UNSUPPORTED,
    408: ErrorCode.UNKNOWN_EFFECT,
    411: ErrorCode.INVALID,
    413: ErrorCode.TOO_LARGE,
    429: ErrorCode.UNAVAILABLE,  # it refuses before it does anything
    501: ErrorCode.UNSUPPORTED,
    507: ErrorCode.EXHAUSTED,
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
        known = BY_CODE.get(error.code) or BY_STATUS.get(error.status)
        # 500, 502, 503, 504: something broke inside, or on the way; who knows when.
        return known or (ErrorCode.UNKNOWN_EFFECT if error.status >= 500 else ErrorCode.UNKNOWN)
    return ErrorCode.UNKNOWN
