"""One server, many tests: each gets a schema or a prefix that nobody else has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

from omniq_conformance.servers.base import ServerError
from omniq_conformance.servers.object_store import ObjectStore
from omniq_conformance.servers.postgres import SpeaksPostgres
from omniq_conformance.servers.redis import SpeaksRedis


def fresh_name() -> str:
    """A name that no other test has: lower-case letters, digits and `_`, short enough for any storage."""
    return f"omniq_test_{token_hex(6)}"


@contextmanager
def fresh_schema(server: SpeaksPostgres) -> Iterator[str]:
    """The name of a schema that does not exist yet; at the end the schema is dropped, if a test has made it.

    Raises:
        ServerError: at the end, when a connection that the test left open still locks a table.
    """
    name = fresh_name()
    yield name
    if server.is_up:  # one that a test has killed or frozen takes its data with it in the end
        server.execute(
            f"SET client_min_messages = error; SET lock_timeout = '5s'; DROP SCHEMA IF EXISTS {name} CASCADE"
        )


@contextmanager
def fresh_prefix(server: SpeaksRedis) -> Iterator[str]:
    """A prefix that no key has yet; at the end every key with it, or with it as a hash tag (`{prefix}`), is removed."""
    prefix = fresh_name()
    yield prefix
    if server.is_up:
        cursor: str | bytes = "0"
        while True:
            # Not KEYS: the server may be someone's, with millions of keys.
            reply = server.command("SCAN", cursor, "MATCH", f"*{prefix}*", "COUNT", 1000)
            if (
                not isinstance(reply, list)
                or not isinstance(reply[0], bytes)
                or not isinstance(reply[1], list)
            ):
                raise ServerError(f"{server.kind} answered SCAN with {reply!r}")
            if keys := [key for key in reply[1] if isinstance(key, bytes)]:
                server.command("UNLINK", *keys)
            cursor = reply[0]
            if cursor == b"0":
                break


@contextmanager
def fresh_bucket(server: ObjectStore) -> Iterator[str]:
    """The name of an empty bucket that was made for this; at the end it is removed with all that is in it."""
    name = fresh_name().replace("_", "-")  # what every object store takes in the name of a bucket
    server.make_bucket(name)
    yield name
    if server.is_up:
        server.drop_bucket(name)
