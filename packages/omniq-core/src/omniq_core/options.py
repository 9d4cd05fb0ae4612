"""Typed settings of a backend: one frozen struct, filled alike from a dict, keywords, a URL or the environment.

An unknown key is an error that suggests the nearest one; a value of the wrong type names the option, the type that is
expected and where the value came from. Text (from a URL or the environment) is converted by the option's type.
Secrets are :class:`Secret`, which shows itself only when asked.

A backend author writes::

    class RedisOptions(BackendOptions, frozen=True, kw_only=True):
        host: str = "localhost"
        port: int = 6379
        password: Secret | None = None

        aliases: ClassVar[Mapping[str, str]] = {"user": "username"}

        @classmethod
        def fields_of_url(cls, url: Url) -> dict[str, object]:
            return {"host": url.host or "localhost", "port": url.port or 6379, "password": url.password}
"""

from __future__ import annotations

import datetime
import difflib
import os
import re
import urllib.parse
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import msgspec

from omniq_core.errors import OptionError

__all__ = ["BackendOptions", "Secret", "Url", "build_options", "convert_option", "redact", "suggest"]

O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741 - the conventional letter for options here


class Secret:
    """A text that does not show itself: not in ``repr``, ``str``, formatting, pickling or an f-string.

    Args:
        value: the secret text.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str | Secret) -> None:
        self._value: str = value._value if isinstance(value, Secret) else value

    def reveal(self) -> str:
        """The text itself. Pass it on to the client library, and nowhere else."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled; pass the place where it can be read instead")


class Url(msgspec.Struct, frozen=True):
    """A backend URL in parts. Its ``repr`` and ``str`` hide the password."""

    scheme: str
    username: str | None = None
    password: Secret | None = None
    host: str | None = None
    port: int | None = None
    path: str = ""
    """Decoded, with its leading slash: ``/a.db`` in ``sqlite:///a.db``, ``//tmp/a.db`` in ``sqlite:////tmp/a.db``."""
    query: Mapping[str, str] = {}
    netloc: str = ""
    """User, host and port as they came, for stores that take several hosts. May hold a password."""

    @classmethod
    def parse(cls, text: str) -> Url:
        """Takes a URL apart.

        Raises:
            OptionError: no scheme, a port that is no number, or one query key twice.
        """
        scheme, separator, _ = text.partition("://")
        if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*(:[A-Za-z][A-Za-z0-9+.-]*)?", scheme):
            raise OptionError(
                f"{redact(text)!r} has no scheme; write it as BACKEND://..., "
                "for example memory:// or sqlite:///tasks.db"
            )
        split = urllib.parse.urlsplit("x" + text[len(scheme) :])
        query: dict[str, str] = {}
        for key, value in urllib.parse.parse_qsl(split.query, keep_blank_values=True):
            if key in query:
                raise OptionError(f"option {key!r} comes twice in {redact(text)}; give it once")
            query[key] = value
        hosts = split.netloc.rpartition("@")[2]
        host: str | None
        port: int | None
        if "," in hosts:
            host, port = hosts, None
        else:
            try:
                host, port = split.hostname, split.port
            except ValueError as error:
                raise OptionError(f"the port in {redact(text)} must be a number from 0 to 65535") from error
        unquote = urllib.parse.unquote
        return cls(
            scheme=scheme.lower(),
            username=unquote(split.username) if split.username else None,
            password=Secret(unquote(split.password)) if split.password else None,
            host=unquote(host) if host else None,
            port=port,
            path=unquote(split.path),
            query=query,
            netloc=split.netloc,
        )

    def __str__(self) -> str:
        place = redact(f"{self.scheme}://{self.netloc}")
        options = "&".join(f"{key}={_mask(key, value)}" for key, value in self.query.items())
        return f"{place}{urllib.parse.quote(self.path)}" + (f"?{options}" if options else "")

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"


_SECRET_WORDS = re.compile(
    r"pass|secret|token|credential|private|api_?key|access_?key|signing|key$|connection_?string|^sig$",
    re.IGNORECASE,
)


def _mask(key: str, value: str) -> str:
    return "***" if _SECRET_WORDS.search(key) else value


def redact(text: str) -> str:
    """``text`` with the password of every URL in it, and secret-looking query values, replaced by ``***``."""
    text = re.sub(r"(?<=://)([^/@\s]*?):([^/\s]*)@", r"\1:***@", text)
    return re.sub(
        r"([?&])([^=&\s]+)=([^&\s'\"]*)",
        lambda found: f"{found[1]}{found[2]}={_mask(found[2], found[3])}",
        text,
    )


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every backend can be told. Each backend subclasses it (``frozen=True, kw_only=True``)."""

    project_name: str = "omniq"
    """Keeps the tasks of different programs on one server apart: the prefix of keys, the schema, the file's name."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of an option: alias -> its name."""

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        """What the parts of a URL mean as options, without its query (that is added by the caller).

        ``None`` values are left out. The default takes nothing from the URL but its query.
        """
        return {}

    def describe(self) -> str:
        """Where these options point, for ``repr`` and messages. No secrets."""
        return self.project_name

    @property
    def is_private(self) -> bool:
        """Whether each backend made from these options has a storage of its own, so that no two are the same."""
        return False


def suggest(name: str, known: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    """``"; did you mean 'x'?"`` or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _convert_hook(expected: type[Any], value: Any) -> Any:
    if expected is Secret:
        if isinstance(value, (str, Secret)):
            return Secret(value)
        raise ValueError(f"expected text, got {type(value).__name__}")
    raise NotImplementedError


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__ if annotation is not Secret else "text (a secret)"
    return str(annotation).replace("typing.", "").replace("omniq_core.options.", "")


def convert_option(
    owner: str, name: str, annotation: Any, value: object, *, where: str, is_text: bool
) -> Any:
    """``value`` as the option's type.

    Args:
        owner: whose option it is, for the message.
        name: the option.
        annotation: the type that is expected; durations given as ``timedelta`` become seconds for a ``float``.
        value: what came.
        where: where it came from, for the message; no secrets.
        is_text: whether ``value`` is text that stands for the type (a URL's or the environment's).

    Raises:
        OptionError: it cannot be that type.
    """
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        return msgspec.convert(value, annotation, strict=not is_text, dec_hook=_convert_hook)
    except (msgspec.ValidationError, ValueError) as error:
        shown = "***" if Secret in (annotation, *getattr(annotation, "__args__", ())) else repr(value)
        if _SECRET_WORDS.search(name):
            shown = "***"
        raise OptionError(
            f"{owner}: option {name!r} must be {_type_name(annotation)}, got {shown} in {where}"
        ) from error


# To read every annotation anew is half of the time in which a backend is made.
@lru_cache
def _fields(options_type: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(options_type)


def build_options(
    owner: str,
    options_type: type[O],
    *sources: tuple[str, Mapping[str, object], bool],
) -> O:
    """One options struct from several sources; a later source wins.

    Args:
        owner: the backend's name, for messages.
        options_type: the struct.
        sources: ``(where, mapping, is_text)`` triples; see :func:`convert_option`.

    Raises:
        OptionError: an unknown key (with a suggestion), a value of the wrong type, or one that the struct refuses.
    """
    fields = {field.name: field for field in _fields(options_type)}
    aliases: Mapping[str, str] = getattr(options_type, "aliases", {})
    values: dict[str, Any] = {}
    places: list[str] = []
    for where, mapping, is_text in sources:
        seen: dict[str, str] = {}
        if mapping:
            places.append(where)
        for given, value in mapping.items():
            name = aliases.get(given, given)
            field = fields.get(name)
            if field is None:
                hint = suggest(given, [*fields, *aliases])
                raise OptionError(
                    f"{owner}: unknown option {given!r} in {where}{hint or '; known: ' + ', '.join(sorted(fields))}"
                )
            if name in seen:
                raise OptionError(
                    f"{owner}: {seen[name]!r} and {given!r} are the same option; give one, in {where}"
                )
            seen[name] = given
            values[name] = convert_option(owner, given, field.type, value, where=where, is_text=is_text)
    try:
        return options_type(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{owner}: {error}, in {', '.join(places) or 'its defaults'}") from error


def options_from_url(owner: str, options_type: type[BackendOptions], url: Url) -> BackendOptions:
    """The options that a URL stands for; its query sets options by name."""
    fields = {key: value for key, value in options_type.fields_of_url(url).items() if value is not None}
    where = str(url)
    return build_options(owner, options_type, (where, fields, False), (where, url.query, True))


def options_from_env(
    owner: str, options_type: type[BackendOptions], prefix: str, environ: Mapping[str, str] | None = None
) -> BackendOptions:
    """The options that ``PREFIX`` + the option's name in capitals hold; other variables are not looked at."""
    environ = os.environ if environ is None else environ
    names = [field.name for field in _fields(options_type)]
    sources = [
        (f"the environment variable {prefix}{name.upper()}", {name: environ[prefix + name.upper()]}, True)
        for name in names
        if prefix + name.upper() in environ
    ]
    return build_options(owner, options_type, *sources)
