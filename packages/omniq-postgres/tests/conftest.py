"""The test servers: PostgreSQL 18 from a wheel, or the one that OMNIQ_TEST_POSTGRES_URL names."""

from omniq_conformance.servers.fixtures import *  # noqa: F403 - fixtures are found by their names
