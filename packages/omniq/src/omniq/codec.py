"""How a call, a result and a failure become bytes, and back. Nothing that is decoded here is ever imported or run.

Everything is MessagePack through msgspec. A call's envelope names the content type of its arguments, so that another
serializer can be added without breaking workers of this version: they keep such a task as undecodable, with its bytes.

What comes back equals what went in for: ``None``, booleans, integers of 64 bits, floats, text, bytes, lists, dicts,
``datetime``, and whatever the function's annotations ask for (sets, tuples, dataclasses, msgspec structs, enums, UUIDs,
decimals, pydantic models). Without an annotation a tuple or a set arrives as a list, a dataclass as a dict.
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from omniq.errors import (
    NotSerializable,
    RemoteTraceback,
    TaskCancelled,
    TaskDead,
    TaskError,
    TaskExpired,
    TaskTimeout,
    WorkerLost,
)
from omniq.retry import RetryPolicy

__all__ = [
    "MSGPACK",
    "VERSION",
    "CallOptions",
    "Envelope",
    "Failure",
    "ResultBody",
    "Undecodable",
    "decode_arguments",
    "decode_call",
    "decode_failure",
    "decode_result",
    "encode_call",
    "encode_failure",
    "encode_result",
    "encode_success",
    "encode_value",
    "failure_of",
    "raise_failure",
    "register_exception",
]

VERSION = 1
MSGPACK = "msgpack"
MAX_ERROR_TEXT = 16 * 1024
"""Longest message and longest traceback that are kept, in characters; the middle of a longer one is cut out."""


NIL = msgspec.Raw(b"\xc0")
"""Encoded ``None``, for what is absent. (``msgspec.Raw | None`` cannot be decoded: it takes the null alone.)"""


class Undecodable(Exception):
    """Bytes that are no call of a version and content type known here."""


class CallOptions(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the producer decided about the run. New fields are added at the end, with a default."""

    retry: RetryPolicy | None = None
    timeout_s: float | None = None
    store_result: bool = True
    result_ttl_s: float | None = None
    schedule_id: str | None = None


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call. New fields are added at the end, with a default."""

    version: int
    content_type: str
    arguments: msgspec.Raw
    options: CallOptions | None = None
    headers: dict[str, str] | None = None


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An exception as text."""

    type_name: str
    """``module.qualname``."""
    message: str
    traceback: str = ""
    args: msgspec.Raw = NIL
    """The exception's ``args`` where they can be encoded, so that a builtin one can be made again."""


class ResultBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a task ended, as kept in the result store. New fields are added at the end, with a default."""

    version: int = VERSION
    value: msgspec.Raw = NIL
    """``NIL`` also where there is no value (it failed, or the value was not to be kept)."""
    failure: Failure | None = None
    started_at: float | None = None
    finished_at: float | None = None
    worker_id: str | None = None
    attempt: int = 0
    reason: str | None = None
    schedule_id: str | None = None
    content_type: str = MSGPACK
    name: str = ""
    queue: str = ""


def _encode_hook(value: Any) -> Any:
    dump = getattr(
        value, "model_dump", None
    )  # a pydantic model: known by its shape, so that we need not import pydantic
    if callable(dump) and hasattr(type(value), "model_validate"):
        return dump(mode="python")
    raise NotSerializable(
        f"cannot encode a {type(value).__module__}.{type(value).__qualname__} (expected plain data, dataclasses, "
        f"msgspec structs, enums, dates, UUIDs, decimals or pydantic models), got {_short(value)}"
    )


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"a value whose repr fails with {type(error).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_envelopes = msgspec.msgpack.Decoder(Envelope)
_results = msgspec.msgpack.Decoder(ResultBody)
_failures = msgspec.msgpack.Decoder(Failure)
_arguments = msgspec.msgpack.Decoder(tuple[list[Any], dict[str, Any]])
_values = msgspec.msgpack.Decoder()


def _encode(value: object, what: str) -> bytes:
    try:
        return _encoder.encode(value)
    except NotSerializable as error:
        raise NotSerializable(f"{what}: {error.message}") from None
    except OverflowError as error:
        raise NotSerializable(f"{what}: an integer needs more than 64 bits; pass it as text") from error
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise NotSerializable(f"{what}: {error}") from error


# --- calls -------------------------------------------------------------------------------------------------------


def encode_call(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: CallOptions | None = None,
    headers: dict[str, str] | None = None,
    *,
    what: str = "the arguments",
) -> bytes:
    """The body of a task record.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        options: what the producer decided about the run; ``None``: all defaults.
        headers: text that travels along (trace context).
        what: the call, for the message.

    Raises:
        NotSerializable: an argument cannot be encoded.
    """
    arguments = msgspec.Raw(_encode((args, kwargs), what))
    return _encoder.encode(Envelope(VERSION, MSGPACK, arguments, options, headers))


def decode_call(body: bytes) -> Envelope:
    """The envelope of a task's body; its arguments stay encoded.

    Raises:
        Undecodable: not an envelope, of a newer version, or of a content type that is not known here.
    """
    try:
        envelope = _envelopes.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Undecodable(f"its body is no call: {error}") from error
    if envelope.version > VERSION:
        raise Undecodable(f"its call is of version {envelope.version}; this worker reads up to {VERSION}")
    if envelope.content_type != MSGPACK:
        raise Undecodable(f"its content type is {envelope.content_type!r}; this worker reads {MSGPACK!r}")
    return envelope


def decode_arguments(envelope: Envelope) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call as plain data.

    Raises:
        Undecodable: they are not what the envelope says.
    """
    try:
        return _arguments.decode(envelope.arguments)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Undecodable(f"its arguments cannot be decoded: {error}") from error


# --- results -----------------------------------------------------------------------------------------------------


def encode_value(value: object) -> msgspec.Raw:
    """A task's value, to be put in a :class:`ResultBody`.

    Raises:
        NotSerializable: it cannot be encoded.
    """
    return msgspec.Raw(_encode(value, "the result"))


class _Success(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A :class:`ResultBody` whose value is not encoded yet, so that one call encodes both. Field for field the same."""

    version: int
    value: Any
    failure: None
    started_at: float
    finished_at: float
    worker_id: str
    attempt: int
    reason: None
    schedule_id: str | None
    content_type: str
    name: str
    queue: str


def encode_result(body: ResultBody) -> bytes:
    return _encoder.encode(body)


def encode_success(
    value: Any,
    started_at: float,
    finished_at: float,
    worker_id: str,
    attempt: int,
    name: str,
    queue: str,
    schedule_id: str | None = None,
) -> bytes:
    """``encode_result`` of a function's value, in one step; a ``msgspec.Raw`` is taken as encoded already.

    Raises:
        NotSerializable: the value cannot be encoded.
    """
    body = _Success(
        VERSION, value, None, started_at, finished_at, worker_id, attempt, None, schedule_id, MSGPACK, name, queue
    )  # fmt: skip
    try:
        return _encoder.encode(body)
    except Exception:
        _encode(value, "the result")  # says what is wrong, and with what
        raise


def decode_result(data: bytes) -> ResultBody:
    """What was kept of a task's end.

    Raises:
        Undecodable: the bytes are no result.
    """
    if not data:
        return ResultBody()
    try:
        return _results.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Undecodable(f"the stored result cannot be decoded: {error}") from error


def decode_value(raw: msgspec.Raw | bytes) -> Any:
    """A value as plain data."""
    return _values.decode(raw)


# --- failures ----------------------------------------------------------------------------------------------------


def _cut(text: str) -> str:
    if len(text) <= MAX_ERROR_TEXT:
        return text
    half = MAX_ERROR_TEXT // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def failure_of(error: BaseException, *, skip_frames: int = 0) -> Failure:
    """An exception as text.

    Args:
        error: the exception, with its traceback.
        skip_frames: how many of the outermost frames (the worker's own) to leave out of the traceback.
    """
    trace = error.__traceback__
    for _ in range(skip_frames):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # an exception whose own __str__ fails must not hide the failure
        text = f"{type(error).__qualname__} (its traceback cannot be formatted)\n"
    try:
        message = str(error)
    except Exception as broken:
        message = f"(its message cannot be shown: {type(broken).__name__})"
    try:
        args = msgspec.Raw(_encoder.encode(error.args))
    except Exception:  # args that cannot be sent, whatever their own code raises: the text has to do
        args = NIL
    if len(args) > MAX_ERROR_TEXT:
        args = NIL
    kind = type(error)
    return Failure(f"{kind.__module__}.{kind.__qualname__}", _cut(message), _cut(text), args)


def encode_failure(failure: Failure) -> bytes:
    return _encoder.encode(failure)


def decode_failure(data: bytes) -> Failure:
    """The stored error of a task. Bytes that are none become a failure that says so."""
    try:
        return _failures.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return Failure("omniq.errors.TaskError", f"the stored error cannot be decoded ({len(data)} bytes)")


_known_exceptions: dict[str, type[Exception]] = {
    f"builtins.{name}": kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
} | {
    f"omniq.errors.{kind.__name__}": kind
    for kind in (TaskTimeout, WorkerLost, TaskDead, TaskCancelled, TaskExpired)
}
"""The only exceptions that are ever made from a message (CVE-2021-23727 was a class name from a result store)."""


def register_exception(kind: type[Exception]) -> type[Exception]:
    """Lets an exception class of yours come back from a worker as itself. Usable as a class decorator.

    It is made again from its ``args``, so ``kind(*args)`` must work.
    """
    _known_exceptions[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return kind


def raise_failure(failure: Failure, *, task_id: str, note: str = "") -> Any:
    """Raises what a task raised, with the remote traceback as its cause; never returns.

    Args:
        failure: what was kept of it.
        task_id: the task.
        note: a line that is added to the exception (PEP 678).
    """
    error = _make(failure, task_id)
    if note:
        error.add_note(note)
    raise error from (RemoteTraceback(failure.traceback) if failure.traceback else None)


def _make(failure: Failure, task_id: str) -> Exception:
    kind = _known_exceptions.get(failure.type_name)
    if kind is not None and not issubclass(kind, TaskError) and failure.args != NIL:
        try:
            return kind(*_values.decode(failure.args))
        except Exception:  # a class that cannot be made from its args: shown as text below
            pass
    if kind is not None and issubclass(kind, TaskError):
        return kind(
            failure.message, task_id=task_id, type_name=failure.type_name, remote_traceback=failure.traceback
        )
    return TaskError(
        f"{failure.type_name}: {failure.message}",
        task_id=task_id,
        type_name=failure.type_name,
        remote_traceback=failure.traceback,
    )
