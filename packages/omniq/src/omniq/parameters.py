"""What a caller may say about a task, in one place: the keywords of ``@oq.task``, ``enqueue`` and ``Task.with_options``.

They are typed dictionaries (PEP 692), so that every face offers the same keywords and type checkers know them all.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import msgspec

from omniq.outcome import seconds
from omniq.retry import RetryPolicy
from omniq.task import TaskOptions
from omniq_core import check_name
from omniq_core.options import suggest

__all__ = [
    "Call",
    "CallParameters",
    "Duration",
    "EnqueueParameters",
    "RunParameters",
    "TaskId",
    "TaskParameters",
    "delay_of",
    "headers_of",
    "queue_names_of",
    "refuse_unknown",
    "split_arguments",
    "split_call",
    "task_id_of",
    "with_parameters",
]

Duration: TypeAlias = datetime.timedelta | float
"""A ``timedelta``, or a number of seconds."""
TaskId: TypeAlias = str | uuid.UUID
Call: TypeAlias = Callable[..., Any] | tuple[Any, ...] | Mapping[str, Any]
"""One call for ``enqueue_many``: a function, ``(function, args)``, ``(function, args, kwargs)``, or a mapping with
``func`` and the keywords of ``enqueue``."""


class RunParameters(TypedDict, total=False):
    """How a task is run. What is not said comes from the task's decorator, then from the settings."""

    queue_name: str
    priority: int
    """Within one queue a higher number goes first. -32768 to 32767."""
    max_retries: int
    """Tries after the first one."""
    retry_delay: Duration
    """Before the first retry, at least; it doubles from retry to retry."""
    retry: RetryPolicy
    """The whole policy, instead of the two above."""
    timeout: Duration | None
    """Longest run; ``None``: no limit."""
    ttl: Duration | None
    """How long after enqueuing it may be started; then it expires instead. ``None``: for ever."""
    result_ttl: Duration | None
    """How long its result is kept; ``None``: as long as the store keeps finished tasks."""
    store_result: bool
    """``False``: its value is not kept. Waiting for its end works all the same."""
    max_crashes: int
    """Dead after so many workers died under it. 1: never started twice, even if its worker dies."""


class TaskParameters(RunParameters, total=False):
    """What ``@oq.task(...)`` may say."""

    name: str
    """In messages; ``module:qualname`` by default."""


class CallParameters(RunParameters, total=False):
    """What may be said about one call."""

    run_in: Duration | None
    """Not before so long from now."""
    run_at: datetime.datetime | None
    """Not before then. Without a time zone: UTC."""
    task_id: TaskId | None
    """Made by the caller. Enqueuing the same id again changes nothing."""
    unique_key: str | None
    """At most one pending or running task holds a key. While one does, enqueuing gives that task's id."""
    transaction: object | None
    """A connection of the backend's client library (or a SQLAlchemy session over it) with a transaction open: the task is
    enqueued as a part of that transaction, seen by nobody before it commits, and gone if it is rolled back. The backend's
    README says which kinds it takes. No ``enqueued`` event is logged, as the commit is not ours."""
    headers: Mapping[str, str] | None
    """Text that travels along; see ``omniq.current_task().headers``."""


class EnqueueParameters(CallParameters, total=False):
    """What ``enqueue`` may say besides the function and its positional arguments."""

    func_args: Mapping[str, Any] | Sequence[Any] | None
    """A mapping: keyword arguments of the function; a sequence: positional ones."""
    func_kwargs: Mapping[str, Any] | None
    """Keyword arguments of the function."""


_RENAMED = {
    "queue": "queue_name",
    "retries": "max_retries",
    "delay": "run_in",
    "countdown": "run_in",
    "eta": "run_at",
    "args": "func_args",
    "kwargs": "func_kwargs",
    "id": "task_id",
    "expires": "ttl",
}
"""What other queues call it, for the hint."""


def refuse_unknown(where: str, given: Mapping[str, Any], known: type[Any]) -> None:
    """Refuses keywords that are none.

    Args:
        where: the method, for the message.
        given: what came.
        known: the typed dictionary of what is known.

    Raises:
        TypeError: with the nearest known keyword, and where the function's own arguments go.
    """
    unknown = given.keys() - known.__optional_keys__
    if not unknown:
        return
    name = min(unknown)
    near = _RENAMED.get(name)
    hint = f"; did you mean {near!r}?" if near in known.__optional_keys__ else ""
    hint = hint or suggest(name, sorted(known.__optional_keys__)) or "."
    own = ""
    if "func_kwargs" in known.__optional_keys__:
        own = f" The function's own keyword arguments go in func_kwargs={{{name!r}: ...}}"
    raise TypeError(f"{where}() got an unexpected keyword argument {name!r}{hint}{own}".rstrip("."))


def with_parameters(options: TaskOptions, given: Mapping[str, Any]) -> TaskOptions:
    """``options`` with what was given instead; keywords that are not about the run are left alone.

    Raises:
        ValueError, TypeError: a value is out of range or of the wrong type.
    """
    changes: dict[str, Any] = {}
    retry: dict[str, Any] = {}
    for name, value in given.items():
        if name in _DURATIONS:
            changes[f"{name}_s"] = None if value is None else _seconds(name, value)
        elif name == "max_retries" or name == "retry_delay":
            if value is not None:
                retry["max_retries" if name == "max_retries" else "delay_s"] = (
                    _whole(name, value) if name == "max_retries" else _seconds(name, value)
                )
        elif name in _PLAIN and value is not None:
            if not isinstance(value, _PLAIN[name]) or (isinstance(value, bool) and name != "store_result"):
                raise TypeError(
                    f"{name} must be {_PLAIN[name].__name__}, got {type(value).__name__}: {value!r}"
                )
            changes[name] = value
    if retry:
        base = changes.get("retry", options.retry)
        changes["retry"] = msgspec.structs.replace(base, **retry)
    return msgspec.structs.replace(options, **changes) if changes else options


_DURATIONS = frozenset({"timeout", "ttl", "result_ttl"})
_PLAIN: dict[str, type[Any]] = {
    "queue_name": str,
    "priority": int,
    "retry": RetryPolicy,
    "store_result": bool,
    "max_crashes": int,
}
RUN_PARAMETERS = RunParameters.__optional_keys__


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, datetime.timedelta)):
        raise TypeError(
            f"{name} must be a timedelta or a number of seconds, got {type(value).__name__}: {value!r}"
        )
    return seconds(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}: {value!r}")
    return value


def delay_of(given: Mapping[str, Any], now: float) -> float:
    """How long from now a call may not be started, in seconds; 0 also for a time that has passed.

    Args:
        given: what the caller said.
        now: seconds since the epoch; the producer's, as only a delay is sent.
    """
    run_in, run_at = given.get("run_in"), given.get("run_at")
    if run_in is not None:
        if run_at is not None:
            raise ValueError("run_in and run_at exclude each other; give one of them")
        return max(0.0, _seconds("run_in", run_in))
    if run_at is None:
        return 0.0
    if not isinstance(run_at, datetime.datetime):
        raise TypeError(f"run_at must be a datetime, got {type(run_at).__name__}: {run_at!r}")
    if run_at.tzinfo is None:
        run_at = run_at.replace(tzinfo=datetime.UTC)
    return max(0.0, run_at.timestamp() - now)


def task_id_of(given: TaskId) -> str:
    """An id as text; ``UUID`` objects are welcome."""
    if isinstance(given, str):
        return given
    if type(given).__name__ == "UUID":  # the standard library's, or that of the library that makes our ids
        return str(given)
    raise TypeError(f"a task id must be text or a UUID, got {type(given).__name__}: {given!r}")


def split_arguments(args: Sequence[Any], given: dict[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The function's arguments, out of positional ones, ``func_args`` and ``func_kwargs`` (which are taken out).

    Raises:
        TypeError: something comes twice, or is neither a mapping nor a sequence.
    """
    func_args, func_kwargs = given.pop("func_args", None), given.pop("func_kwargs", None)
    if func_kwargs is not None and not isinstance(func_kwargs, Mapping):
        raise TypeError(
            f"func_kwargs must be a mapping of keyword arguments, got {type(func_kwargs).__name__}: {func_kwargs!r}"
        )
    kwargs: Mapping[str, Any] = func_kwargs or {}
    if func_args is None:
        return args, kwargs
    if isinstance(func_args, Mapping):
        both = func_args.keys() & kwargs.keys()
        if both:
            raise TypeError(f"{min(both)!r} is given twice, in func_args and in func_kwargs")
        return args, {**func_args, **kwargs}
    if isinstance(func_args, (str, bytes)) or not isinstance(func_args, Sequence):
        raise TypeError(
            "func_args must be a mapping (keyword arguments) or a sequence (positional ones), "
            f"got {type(func_args).__name__}: {func_args!r}"
        )
    if args:
        raise TypeError("positional arguments are given twice: after the function, and in func_args")
    return tuple(func_args), kwargs


def headers_of(given: Mapping[str, str] | None) -> dict[str, str] | None:
    """Headers, checked to be text.

    Raises:
        TypeError: one is not.
    """
    if given is None:
        return None
    try:
        return msgspec.convert(given, dict[str, str])
    except msgspec.ValidationError as error:
        raise TypeError(f"headers must map text to text, got {given!r}") from error


def split_call(
    where: str, call: Call, common: Mapping[str, Any]
) -> tuple[Any, Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
    """One item of ``enqueue_many``: its function, positional and keyword arguments, and parameters.

    Args:
        where: the method, for messages.
        call: the item.
        common: parameters for all items; an item's own win.

    Raises:
        TypeError: it is no call.
    """
    if isinstance(call, Mapping):
        own = dict(call)
        func = own.pop("func", None)
        if func is None:
            raise TypeError(f"a call for {where} needs 'func', got {sorted(call)}")
        refuse_unknown(where, own, EnqueueParameters)
        if "transaction" in own:
            raise TypeError(f"a transaction is for all calls: give it to {where} itself")
        args, kwargs = split_arguments((), own)
        return func, args, kwargs, {**common, **own}
    if not isinstance(call, tuple):
        return call, (), {}, common
    if not 1 <= len(call) <= 3:
        raise TypeError(
            f"a call for {where} is (function, args, kwargs), got a tuple of {len(call)}: {call!r}"
        )
    func = call[0]
    args = call[1] if len(call) > 1 else ()
    kwargs = call[2] if len(call) > 2 else {}
    if isinstance(args, Mapping) and not kwargs:
        return func, (), args, common
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise TypeError(
            f"the arguments of a call for {where} must be a sequence, got {args!r}; write ({args!r},)"
        )
    return func, tuple(args), kwargs, common


def queue_names_of(queues: Sequence[str] | None) -> list[str]:
    """Declared queues, checked.

    Raises:
        TypeError: not a list of names.
        ValueError: a name may not be used, or comes twice.
    """
    if queues is None:
        return []
    if isinstance(queues, str):
        raise TypeError(f"queues must be a list of names, got the text {queues!r}; write [{queues!r}]")
    names = [check_name("queue name", name) for name in queues]
    if len(set(names)) != len(names):
        raise ValueError(f"queues must not repeat a name, got {names}")
    return names
