"""The PostgreSQL backend of OmniQ. Start with :mod:`omniq_postgres.schema`, which tells what every table is for."""

from omniq_postgres.backend import PostgresBackend
from omniq_postgres.options import PostgresOptions

__version__ = "0.1.0"
__all__ = ["PostgresBackend", "PostgresOptions"]
