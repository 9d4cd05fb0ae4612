"""Writing inside the caller's own transaction.

Accepted are psycopg's ``Connection`` and ``AsyncConnection``, and over psycopg (``postgresql+psycopg://``) SQLAlchemy's
``Connection``, ``Session``, ``AsyncConnection`` and ``AsyncSession``. One function is called on it; it is neither committed,
rolled back nor closed, and none of its settings is changed: whether the commit is durable is the caller's matter.

A synchronous connection is used in a thread, so that the event loop goes on; the caller must not use it meanwhile, as with
any connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from omniq_postgres.connection import Row
from omniq_postgres.statements import Statement

__all__ = ["run_within"]


async def run_within(transaction: Any, schema: str, statement: Statement, values: Sequence[Any]) -> list[Row]:
    """Calls a statement on the caller's connection.

    Args:
        transaction: see above; a transaction must be open on it.
        schema: quoted.
        statement: what to call.
        values: its parameters.

    Raises:
        TypeError: it is none of the accepted kinds.
        ValueError: no transaction is open.
    """
    sql = statement.client_sql.replace("@schema", schema.replace("%", "%%"))
    parameters = tuple(values)
    if isinstance(transaction, psycopg.AsyncConnection):
        _check_open(transaction)
        async with transaction.cursor(binary=True, row_factory=tuple_row) as cursor:
            await cursor.execute(sql.encode(), parameters)
            return await cursor.fetchall()
    if isinstance(transaction, psycopg.Connection):
        _check_open(transaction)
        return await asyncio.to_thread(_on_psycopg, transaction, sql, parameters)
    if any(cls.__module__.startswith("sqlalchemy.ext.asyncio") for cls in type(transaction).__mro__):
        return await _on_async_alchemy(transaction, sql, parameters)
    if any(cls.__module__.startswith("sqlalchemy.") for cls in type(transaction).__mro__):
        return await asyncio.to_thread(_on_alchemy, transaction, sql, parameters)
    raise TypeError(
        "the transaction must be a psycopg Connection or AsyncConnection, or a SQLAlchemy Connection, Session, "
        f"AsyncConnection or AsyncSession over psycopg; got {type(transaction).__module__}.{type(transaction).__qualname__}"
    )


def _check_open(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    # Without autocommit psycopg begins one by itself. With it, ours would be committed on the spot.
    if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        raise ValueError(
            "the connection is in autocommit mode and no transaction is open on it; "
            "enter 'with connection.transaction():' first"
        )


def _on_psycopg(connection: psycopg.Connection[Any], sql: str, parameters: tuple[Any, ...]) -> list[Row]:
    with connection.cursor(binary=True, row_factory=tuple_row) as cursor:
        cursor.execute(sql.encode(), parameters)
        return cursor.fetchall()


# SQLAlchemy is the caller's: it is imported only when the caller has, and its asyncio part needs greenlet.


def _on_alchemy(transaction: Any, sql: str, parameters: tuple[Any, ...]) -> list[Row]:
    from sqlalchemy.engine import Connection

    connection = transaction if isinstance(transaction, Connection) else transaction.connection()
    _check_driver(connection)
    return [tuple(row) for row in connection.exec_driver_sql(sql, parameters)]


async def _on_async_alchemy(transaction: Any, sql: str, parameters: tuple[Any, ...]) -> list[Row]:
    from sqlalchemy.ext.asyncio import AsyncConnection

    connection = transaction if isinstance(transaction, AsyncConnection) else await transaction.connection()
    _check_driver(connection)
    return [tuple(row) for row in await connection.exec_driver_sql(sql, parameters)]


def _check_driver(connection: Any) -> None:
    dialect = connection.dialect
    if dialect.driver not in ("psycopg", "psycopg_async"):
        raise TypeError(
            f"the SQLAlchemy engine must use psycopg 3, as in 'postgresql+psycopg://', not {dialect.name}+{dialect.driver}"
        )
