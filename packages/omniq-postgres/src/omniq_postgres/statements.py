"""What is said to the server, each a call of one function: one round trip, and nothing of the caller's pasted into SQL.

A statement is written once and spoken in three ways: prepared on our own connections, with parameters but not prepared
through a pooler, and with psycopg's placeholders on the caller's connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from omniq_postgres.encoding import TYPES

__all__ = ["Statement", "call"]


class Statement:
    """One statement.

    Args:
        name: of the prepared statement.
        sql: ``@schema`` stands for the schema, ``{}`` for each parameter.
        types: of the parameters.
        writes: whether it must be durable when it is acknowledged.
    """

    def __init__(self, name: str, sql: str, types: Sequence[str], *, writes: bool = True) -> None:
        self.name = name.encode()
        self.sql = sql
        self.types = tuple(types)
        self.oids = [TYPES[type_][0] for type_ in types]
        self.writes = writes

    def text(self, schema: str) -> bytes:
        """With ``$1::type``, for our own connections."""
        marks = [f"${number}::{type_}" for number, type_ in enumerate(self.types, 1)]
        return self.sql.format(*marks).replace("@schema", schema).encode()

    def pooled_text(self, schema: str, synchronous_commit: str) -> bytes:
        """As ``text``, and sets ``synchronous_commit`` for this transaction: a pooled session keeps no settings.

        When in the statement that happens does not matter, as long as it is before the commit.
        """
        if not self.writes:
            return self.text(schema)
        inner = self.text(schema).decode()
        head, star, rest = inner.partition("select * from ")
        if head or not star:
            raise ValueError(
                f"a statement that writes must be 'select * from function(...)', got {self.sql!r}"
            )
        return (
            f"select f.* from (select set_config('synchronous_commit', '{synchronous_commit}', true) as x) s, "
            f"{rest} f where s.x <> ''"
        ).encode()

    @cached_property
    def client_sql(self) -> str:
        """With psycopg's ``%s::type``, for the caller's connection; ``@schema`` is still in it."""
        return self.sql.replace("%", "%%").format(*(f"%s::{type_}" for type_ in self.types))


def call(function: str, *types: str, writes: bool = True) -> Statement:
    """The call of one of our functions."""
    marks = ", ".join("{}" for _ in types)
    return Statement(f"omniq_{function}", f"select * from @schema.{function}({marks})", types, writes=writes)


ENQUEUE = call(
    "enqueue", "text[]", "integer[]", "text[]", "text[]", "bytea[]", "smallint[]", "float8[]", "float8[]", "integer[]",
    "integer[]", "text[]",
)  # fmt: skip
ENQUEUE_ONE = call("enqueue_one", "text", "text", "text", "bytea", "smallint", "float8", "integer", "integer")
CLAIM = call("claim", "text[]", "integer", "float8", "text", "text", "float8")
SETTLE = call(
    "settle", "bigint[]", "bigint[]", "bigint[]", "smallint[]", "boolean[]", "float8[]", "float8[]", "text[]", "bytea[]",
    "bytea[]", "float8", "boolean",
)  # fmt: skip
SETTLE_ONE = call("settle_one", "bigint", "bigint", "float8", "bytea", "float8")
EXTEND = call("extend", "bigint[]", "bigint[]", "bigint[]", "float8")
LOCATE = call("locate", "text[]", "bigint[]", writes=False)
PEEK = call("peek", "text[]", writes=False)
REAP = call("reap", "integer", "float8")
TIDY = call("tidy", "integer", "float8", "boolean")
CANCEL = call("cancel", "text[]", "float8")
REQUEUE = call("requeue", "text[]")
PAUSE = call("pause", "text[]", "boolean")
STATS = call("stats", "text[]", writes=False)
QUEUE_IDS = call("queue_ids", "text[]")
QUEUE_NAMES = Statement(
    "omniq_queue_names", "select name from @schema.queue where is_used order by name", (), writes=False
)
GET = Statement("omniq_get", "select * from @schema.snapshots(null, {})", ("text[]",), writes=False)
PUT_RESULTS = call(
    "put_results", "text[]", "bigint[]", "smallint[]", "bytea[]", "float8[]", "boolean[]", "float8"
)
GET_RESULTS = Statement(
    "omniq_get_results",
    # With the server's time, also when nothing is found.
    "select s.now, r.* from (select @schema.now_s() as now offset 0) s left join @schema.get_results({}) r on true",
    ("text[]",),
    writes=False,
)
DELETE_RESULTS = call("delete_results", "text[]")
APPEND = call(
    "append", "text[]", "text[]", "float8[]", "bytea[]", "smallint[]", "text[]", "text[]", "text[]", "text[]"
)
TRUNCATE = call("truncate", "float8", "integer")
NOTIFY = Statement(
    "omniq_notify",
    # Its commit is worth no fsync: a wake-up that is lost is found by the waiters' own looking.
    "select set_config('synchronous_commit', 'off', true), pg_notify({}, {})",
    ("text", "text"),
    writes=False,
)
TELL = Statement(
    "omniq_tell",
    "select @schema.tell({}, {}, {}, {})",
    ("text", "text", "bigint[]", "bigint[]"),
    writes=False,
)
