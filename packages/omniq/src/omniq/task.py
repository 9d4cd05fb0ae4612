"""A task's definition: a function, its name, and how it is run by default. And the registry of those that a program knows.

A message only ever *names* a function; a worker runs what its own registry holds under that name, and imports nothing.
The registry holds what ``@oq.task`` decorated, and what this very process enqueued; so a lambda, a local function or a
notebook cell works with a worker in the same program.

Names. A function is ``module:qualname``. One defined in a script that runs as ``__main__`` is named by its real module,
so that another process that imports the script finds it. A lambda or local function that was not decorated gets a name
of this process alone: two of them may share a qualname, and a message left over from another process must not run one
of ours.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import secrets
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from omniq.codec import CallOptions, encode_call
from omniq.errors import ArgumentError, DuplicateTask, UnknownTask
from omniq.retry import DEFAULT_RETRY, RetryPolicy
from omniq_core import TaskRecord, check_name
from omniq_core.native import RLock
from omniq_core.options import suggest

__all__ = ["TaskDefinition", "TaskOptions", "TaskRegistry", "name_of"]

P = ParamSpec("P")
R = TypeVar("R")


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a task is enqueued and run unless a call says otherwise."""

    queue_name: str = "default"
    priority: int = 0
    """Within one queue a higher number goes first. -32768 to 32767."""
    retry: RetryPolicy = DEFAULT_RETRY
    timeout_s: float | None = None
    """Longest run, in seconds; ``None``: no limit."""
    ttl_s: float | None = None
    """Seconds after enqueuing until which it must have been started; ``None``: no limit."""
    result_ttl_s: float | None = None
    """How long its result is kept, in seconds; ``None``: as long as the store keeps finished tasks."""
    store_result: bool = True
    max_crashes: int = 3
    """Dead after so many workers died under it. 1: never started twice, even if its worker dies."""

    def __post_init__(self) -> None:
        check_name("queue name", self.queue_name)
        if not -32768 <= self.priority <= 32767:
            raise ValueError(f"priority must be from -32768 to 32767, got {self.priority}")
        for field in ("timeout_s", "ttl_s", "result_ttl_s"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field.removesuffix('_s')} must be more than 0 seconds, got {value}")
        if self.max_crashes < 1:
            raise ValueError(f"max_crashes must be at least 1, got {self.max_crashes}")


DEFAULT_OPTIONS = TaskOptions()
_UNSET_CALL = CallOptions()
_UNKNOWN = object()


class TaskDefinition(Generic[P, R]):
    """A function that can be enqueued. Calling it calls the function, here and now.

    Args:
        func: a sync or async function, or another callable.
        name: its name in messages; ``module:qualname`` by default.
        options: how it is enqueued and run by default.

    Raises:
        TypeError: not callable, or a generator function.
    """

    def __init__(
        self, func: Callable[P, Any], *, name: str | None = None, options: TaskOptions = DEFAULT_OPTIONS
    ) -> None:
        if not callable(func):
            raise TypeError(
                f"a task must be a function or another callable, got {type(func).__name__}: {func!r}"
            )
        plain = inspect.unwrap(func) if not isinstance(func, functools.partial) else func.func
        if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
            raise TypeError(f"a task must return a value; {func!r} is a generator function")
        self.func = func
        self.name = check_name("task name", name or name_of(func))
        self.options = options
        self.is_async = inspect.iscoroutinefunction(func) or (
            inspect.iscoroutinefunction(getattr(func, "__call__", None)) and not inspect.isclass(func)  # noqa: B004 - not whether, but how
        )
        self.signature = _signature(func)
        self._positional = _positional_counts(self.signature)
        self._converters: dict[str, Any] | None = None
        self._returns: Any = _UNKNOWN
        self._call_options = self._default_call_options(options)
        self.__doc__ = func.__doc__
        self.__wrapped__ = func  # for inspect.signature, help() and doctest

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    @property
    def source(self) -> str:
        """``file:line`` of the function, as far as it can be told."""
        code = getattr(inspect.unwrap(self.func), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else "?"

    # --- the producer's side ------------------------------------------------------------------------------------

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Checks that the arguments fit.

        Raises:
            ArgumentError: with the signature, and where it stands.
        """
        if self.signature is None:
            return
        # ``Signature.bind`` is most of what it costs to make a record; this is what nearly all calls look like.
        if (
            not kwargs
            and self._positional is not None
            and self._positional[0] <= len(args) <= self._positional[1]
        ):
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(
                f"{self.name}{self.signature} cannot be called so: {error}; it is defined at {self.source}"
            ) from None

    def record(
        self,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: TaskOptions | None = None,
        *,
        delay_s: float = 0.0,
        unique_key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> TaskRecord:
        """What is sent to enqueue one call: checked and encoded.

        Raises:
            ArgumentError: the arguments do not fit the signature.
            NotSerializable: an argument cannot be encoded.
        """
        self.bind(args, kwargs)
        if options is None or options is self.options:
            options, call = self.options, self._call_options
        else:
            call = self._default_call_options(options)
        body = encode_call(args, kwargs, call, headers, what=self.name)
        return TaskRecord(
            task_id,
            options.queue_name,
            self.name,
            body,
            options.priority,
            delay_s,
            options.ttl_s,
            options.retry.max_retries + 1,
            options.max_crashes,
            unique_key,
        )

    @staticmethod
    def _default_call_options(options: TaskOptions) -> CallOptions | None:
        call = CallOptions(
            None if options.retry == DEFAULT_RETRY else options.retry,
            options.timeout_s,
            options.store_result,
            options.result_ttl_s,
        )
        return None if call == _UNSET_CALL else call

    # --- the worker's side --------------------------------------------------------------------------------------

    def convert(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Plain data as the function's annotations want it: a list becomes a set, a dict a dataclass.

        Raises:
            ArgumentError: a value cannot be what its annotation says, or the arguments do not fit.
        """
        converters = self._converters
        if converters is None:
            converters = self._converters = self._find_converters()
        if not converters or self.signature is None:
            return args, kwargs
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{self.name}{self.signature} cannot be called so: {error}") from None
        for name, annotation in converters.items():
            if name not in bound.arguments:
                continue
            kind = self.signature.parameters[name].kind
            value = bound.arguments[name]
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(self._convert(name, annotation, item) for item in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {
                    key: self._convert(name, annotation, item) for key, item in value.items()
                }
            else:
                bound.arguments[name] = self._convert(name, annotation, value)
        return list(bound.args), bound.kwargs

    def convert_result(self, value: Any) -> Any:
        """A value that came back as plain data, as the function's return annotation wants it.

        Raises:
            TypeError: it cannot be that.
        """
        if self._returns is _UNKNOWN:
            try:
                annotation = get_type_hints(inspect.unwrap(self.func)).get("return", Any)
            except Exception:  # annotations that cannot be evaluated here: the value stays plain
                annotation = Any
            self._returns = annotation if _needs_conversion(annotation) else Any
        if self._returns is Any:
            return value
        try:
            return convert_value(value, self._returns)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise TypeError(f"{self.name} returned what its annotation does not allow: {error}") from error

    def _convert(self, name: str, annotation: Any, value: Any) -> Any:
        try:
            return convert_value(value, annotation)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise ArgumentError(f"{self.name}: argument {name!r}: {error}") from error

    def _find_converters(self) -> dict[str, Any]:
        """The parameters whose annotation asks for more than plain data has."""
        try:
            hints = get_type_hints(inspect.unwrap(self.func))
        except Exception:  # annotations that cannot be evaluated here: the values stay plain
            return {}
        names = self.signature.parameters if self.signature else {}
        return {name: hints[name] for name in names if name in hints and _needs_conversion(hints[name])}


_PLAIN = (None, type(None), bool, int, float, str, bytes, list, dict, object, Any)


def _needs_conversion(annotation: Any) -> bool:
    if annotation in _PLAIN or isinstance(annotation, (TypeVar, str)):
        return False
    origin = get_origin(annotation)
    if origin is None:
        return _is_convertible(annotation)
    if origin in (Union, types.UnionType):
        return any(_needs_conversion(part) for part in get_args(annotation))
    if origin in (list, dict):
        return any(_needs_conversion(part) for part in get_args(annotation))
    return _is_convertible(annotation)


def _is_convertible(annotation: Any) -> bool:
    if hasattr(annotation, "model_validate"):
        return True
    try:
        msgspec.json.schema(annotation)  # asks msgspec whether it knows the type, without a value
    except Exception:  # it does not, or what the type's own code says to that fails
        return False
    return True


def _convert_hook(expected: type, value: Any) -> Any:
    validate = getattr(expected, "model_validate", None)  # pydantic, known by its shape
    if callable(validate):
        return validate(value)
    raise NotImplementedError(f"cannot make a {expected!r} from plain data")


def convert_value(value: Any, annotation: Any) -> Any:
    """Plain data as ``annotation`` wants it."""
    return msgspec.convert(value, annotation, strict=True, dec_hook=_convert_hook)


def _signature(func: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(func)
    except (TypeError, ValueError):  # some builtins have none: they are called with what came
        return None


def _positional_counts(signature: inspect.Signature | None) -> tuple[int, int] | None:
    """How many positional arguments a call without keywords must and may have; ``None``: it takes more to tell."""
    if signature is None:
        return None
    least = most = 0
    for parameter in signature.parameters.values():
        needed = parameter.default is inspect.Parameter.empty
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += needed
        elif parameter.kind is parameter.KEYWORD_ONLY and needed:
            return None
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = sys.maxsize
    return least, most


# --- names -------------------------------------------------------------------------------------------------------


def name_of(func: Callable[..., Any]) -> str:
    """``module:qualname``, with the real module of a script that runs as ``__main__``."""
    if isinstance(func, functools.partial):
        return name_of(func.func)
    module = getattr(func, "__module__", None) or type(func).__module__
    qualname = getattr(func, "__qualname__", None) or type(func).__qualname__
    if module == "__main__":
        module = real_main_module()
    return f"{module}:{qualname}"


def real_main_module() -> str:
    """What other processes would import to get the functions of ``__main__``."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _is_local(name: str) -> bool:
    return "<locals>" in name or "<lambda>" in name


def _is_bound(func: Callable[..., Any]) -> bool:
    """Whether it is a method of one object, of which its qualname says nothing."""
    return inspect.ismethod(func) and not inspect.isclass(func.__self__)


def _key(func: Callable[..., Any]) -> Any:
    """What finds a function again. Two bound methods of one object are equal; what has no hash is itself only."""
    try:
        hash(func)
    except TypeError:
        return id(func)
    return func


# --- the registry ------------------------------------------------------------------------------------------------


class TaskRegistry:
    """The functions that a program can run, by name. Safe for threads.

    Args:
        adopting: the registry of functions that are enqueued without having been decorated; this one by default.
    """

    def __init__(self, adopting: TaskRegistry | None = None) -> None:
        self._lock = RLock()
        self._by_name: dict[str, TaskDefinition[Any, Any]] = {}
        self._by_function: dict[Any, TaskDefinition[Any, Any]] = {}
        self._adopting = adopting
        self._numbers = itertools.count(1)
        self._pid, self._token = 0, ""

    @classmethod
    def for_program(cls) -> TaskRegistry:
        """A registry of its own for what is decorated, that shares with the whole process what is only enqueued: another
        queue object's worker in this process finds it as well."""
        return cls(_enqueued_here)

    def get(self, name: str) -> TaskDefinition[Any, Any] | None:
        found = self._by_name.get(name)
        if found is None and self._adopting is not None:
            return self._adopting.get(name)
        return found

    def __getitem__(self, name: str) -> TaskDefinition[Any, Any]:
        definition = self.get(name)
        if definition is None:
            raise UnknownTask(
                f"no task named {name!r} is registered in this program"
                + (
                    suggest(name, list(self._by_name))
                    or f"; it knows: {', '.join(sorted(self._by_name)) or 'none'}"
                )
                + ". Import the module that defines it, or decorate it with @oq.task"
            )
        return definition

    def __iter__(self) -> Any:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, definition: TaskDefinition[Any, Any]) -> None:
        """Registers a definition. The same function defined again (a reloaded module, a notebook cell) replaces it.

        Raises:
            DuplicateTask: another function has that name.
        """
        with self._lock:
            old = self._by_name.get(definition.name)
            if old is not None and name_of(old.func) != name_of(definition.func):
                raise DuplicateTask(
                    f"two tasks are named {definition.name!r}: {name_of(old.func)} at {old.source} and "
                    f"{name_of(definition.func)} at {definition.source}; give one of them another name="
                )
            self._by_name[definition.name] = definition
            self._by_function[_key(definition.func)] = definition

    def adopt(self, func: Callable[..., Any]) -> TaskDefinition[Any, Any]:
        """The definition of a function that is enqueued, made if need be.

        Raises:
            TypeError: it cannot be a task.
        """
        if isinstance(func, TaskDefinition):
            if self.get(func.name) is not func:
                self.add(func)
            return func
        known = self._by_function.get(_key(func))
        if known is not None:
            return known
        if self._adopting is not None:
            return self._adopting.adopt(func)
        name = name_of(func)
        if _is_local(name) or isinstance(func, functools.partial) or _is_bound(func):
            # Of this process alone, see the module's docstring.
            name = f"{name[:180]}#{self._mark()}.{next(self._numbers)}"
        definition: TaskDefinition[Any, Any] = TaskDefinition(func, name=name)
        self.add(definition)
        return definition

    def _mark(self) -> str:
        """What tells this process from all others, children of a fork included."""
        if self._pid != os.getpid():
            self._pid, self._token = os.getpid(), f"{os.getpid()}-{secrets.token_hex(4)}"
        return self._token


_enqueued_here = TaskRegistry()
