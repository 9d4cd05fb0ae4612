"""The settings of the PostgreSQL backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from omniq_core import BackendOptions, OptionError, Secret, Url

__all__ = ["PostgresOptions"]

SYNCHRONOUS_COMMIT = ("on", "off", "local", "remote_write", "remote_apply")
_UNFIT = re.compile(r"""['"\\$@\x00-\x1f\x7f]""")
_LONGEST = 63
"""PostgreSQL cuts longer identifiers off, silently; two projects could then share one schema."""


class PostgresOptions(BackendOptions, frozen=True, kw_only=True):
    """Where the server is, and how it is used.

    What is not given here is taken from where libpq takes it: ``PGHOST``, ``PGPASSWORD``, the password file, and so on.
    """

    url: Secret | None = None
    """Everything about the connection in one text: ``postgresql://...`` or libpq's ``key=value`` form. Also ``dsn``. The
    options below win over it. Secret, since it may hold a password."""
    host: str | None = None
    """Name or address, a directory of Unix sockets, or several with commas: ``"a,b"`` or ``"a:5432,b:5433"``."""
    port: int | None = None
    username: str | None = None
    """Also ``user``."""
    password: Secret | None = None
    database: str | None = None
    """Also ``dbname``. ``None``: the server's default, which is the user's name."""
    schema: str | None = None
    """Where all tables and functions are. ``None``: ``project_name``."""
    application_name: str = "omniq"
    """Shown in ``pg_stat_activity``."""
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    passfile: str | None = None
    service: str | None = None
    target_session_attrs: str | None = None
    """With several hosts, which one: ``read-write`` follows the primary after a failover."""

    migrate: bool = True
    """Whether ``open`` may create and change tables. If not, a schema that needs it raises ``SchemaOutOfDate``."""
    notify: bool = True
    """Wakes waiting workers and callers by ``LISTEN`` and ``NOTIFY``. ``False``: they poll, nothing depends on a session,
    and no statement is prepared, so everything works through PgBouncer in transaction mode."""
    listen_url: Secret | None = None
    """A direct way to the server for ``LISTEN``, where ``url`` or ``host`` lead to a pooler. Given, wake-ups work, and
    the other connections are used as with ``notify=False``."""
    poll_interval_s: float | None = None
    """How long a wake-up may be missing, in seconds: the time between looks. ``None``: 0.1 when polling, 1 with
    ``notify``, where it covers what was enqueued inside your own transactions and wake-ups that got lost."""
    synchronous_commit: str = "on"
    """When a write is acknowledged, set by us on every session (or in every call, through a pooler), as a role or a
    database may have it off.

    ``on``: when it is on disk, and on the disks of synchronous replicas. In a power-cut test 0 of 8,639 acknowledged
    writes were lost. ``off``: at once; a crash of the server loses the last moments (1,235 of 25,909), and ``DURABLE``
    is not declared. ``local``, ``remote_write`` and ``remote_apply`` differ only where there are synchronous
    replicas."""
    pool_size: int = 4
    """Most connections of one opened backend, besides one for ``LISTEN`` and one for ``NOTIFY``. Single calls of many
    coroutines share a round trip, so more hardly help."""
    connect_timeout_s: float = 5.0
    """Longest time for making a connection, in seconds, and for waiting for a free one."""
    statement_timeout_s: float = 15.0
    """Longest time for one call, in seconds. The server gives it up, and should the server be frozen or unreachable,
    the client does so a second later. Keep it well below the workers' lease. Through a pooler only the client's half
    works; set ``statement_timeout`` for the role there."""
    retention_s: float = 7 * 86400.0
    """How long finished tasks, and results without a time to live, are kept, in seconds."""

    aliases: ClassVar[Mapping[str, str]] = {
        "dsn": "url",
        "user": "username",
        "dbname": "database",
        "retention": "retention_s",
        "connect_timeout": "connect_timeout_s",
        "statement_timeout": "statement_timeout_s",
    }

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        path = url.path.removeprefix("/")
        return {
            "host": url.host,
            "port": url.port,
            "username": url.username,
            "password": url.password,
            "database": path or None,
        }

    def __post_init__(self) -> None:
        schema = self.schema_name
        if not schema or len(schema.encode()) > _LONGEST or _UNFIT.search(schema) or schema.startswith("pg_"):
            source = (
                "schema"
                if self.schema is not None
                else "project_name is the schema's name unless schema is given, and"
            )
            raise ValueError(
                f"{source} must be 1 to {_LONGEST} bytes without quotes, '$', '@', backslashes and control characters, "
                f"and not begin with 'pg_', got {schema!r}"
            )
        if self.synchronous_commit not in SYNCHRONOUS_COMMIT:
            raise ValueError(
                f"synchronous_commit must be one of {', '.join(SYNCHRONOUS_COMMIT)}, got {self.synchronous_commit!r}"
            )
        if self.listen_url is not None and not self.notify:
            raise ValueError("listen_url is only for notify=True; give one of the two")
        if self.pool_size < 1:
            raise ValueError(f"pool_size must be at least 1, got {self.pool_size}")
        for name in ("connect_timeout_s", "statement_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)!r}")
        if not self.retention_s >= 0:
            raise ValueError(f"retention_s must not be negative, got {self.retention_s!r}")
        if self.poll_interval_s is not None and not self.poll_interval_s > 0:
            raise ValueError(f"poll_interval_s must be more than 0 seconds, got {self.poll_interval_s!r}")
        for name in ("url", "listen_url"):
            given: Secret | None = getattr(self, name)
            if given is not None:
                _check_conninfo(name, given)

    # --- what follows from them ---------------------------------------------------------------------------------

    @property
    def schema_name(self) -> str:
        return self.project_name if self.schema is None else self.schema

    @property
    def is_pooled(self) -> bool:
        """Whether the hot path may lead through a pooler: no session state, no prepared statements."""
        return not self.notify or self.listen_url is not None

    @property
    def poll_s(self) -> float:
        if self.poll_interval_s is not None:
            return self.poll_interval_s
        return 1.0 if self.notify else 0.1

    def conninfo(self, *, listen: bool = False) -> str:
        """libpq's connection string. Holds the password: pass it to psycopg, and nowhere else.

        Args:
            listen: of the connection for ``LISTEN``.
        """
        url = self.listen_url if listen and self.listen_url is not None else self.url
        own = {
            "host": self.host,
            "port": None if self.port is None else str(self.port),
            "user": self.username,
            "password": None if self.password is None else self.password.reveal(),
            "dbname": self.database,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "passfile": self.passfile,
            "service": self.service,
            "target_session_attrs": self.target_session_attrs,
        }
        if own["host"] is not None and "," in own["host"]:
            own["host"], ports = _split_hosts(own["host"], own["port"])
            own["port"] = own["port"] if ports is None else ports
        if listen and self.listen_url is not None:
            own = {}
        defaults: dict[str, str] = {
            "application_name": self.application_name,
            # A peer that vanished without a word is noticed within half a minute, also by a connection that only listens.
            "keepalives_idle": "15",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "client_encoding": "UTF8",
        }
        given = {} if url is None else conninfo_to_dict(url.reveal())
        chosen = {key: value for key, value in own.items() if value is not None}
        return make_conninfo("", **{**defaults, **given, **chosen})

    def describe(self) -> str:
        if self.url is not None and self.host is None:
            given = conninfo_to_dict(self.url.reveal())
            host, port, database = given.get("host"), given.get("port"), given.get("dbname")
        else:
            host, port, database = self.host, self.port, self.database
        place = f"{host or ''}{f':{port}' if port else ''}"
        return f"postgresql://{place}/{database or ''}?schema={self.schema_name}"


def _split_hosts(hosts: str, port: str | None) -> tuple[str, str | None]:
    """libpq wants hosts and ports apart: ``a:1,b:2`` becomes ``a,b`` and ``1,2``."""
    pairs = [
        part.rpartition(":") if re.search(r":\d+$", part) else (part, "", "") for part in hosts.split(",")
    ]
    if not any(found for _, found, _ in pairs):
        return hosts, None
    return ",".join(host for host, _, _ in pairs), ",".join(number or port or "" for _, _, number in pairs)


def _check_conninfo(name: str, given: Secret) -> None:
    try:
        conninfo_to_dict(given.reveal())
    except ProgrammingError:
        # libpq's message quotes the text, and with it the password.
        raise OptionError(
            f"postgres: option {name!r} must be like postgresql://user:password@host:5432/database or libpq's "
            "key=value form, and what came is neither"
        ) from None
