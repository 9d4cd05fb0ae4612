"""The layout in the database: what each table is for, and how an older layout becomes this one.

Everything is in one schema per project. Times are seconds since the epoch, UTC, by the server's ``clock_timestamp()``;
``to_timestamp(run_at)`` shows one to people.

**A claim is one row, not one write per task.** Nothing in ``task`` says that a task is running: it is, if its number is in
a row of ``claim`` whose token is above the task's ``fence``. So claiming a batch deletes a range of the narrow ``ready`` and
inserts one row; extending it touches that row; and settling it rewrites each task once, in place (a HOT update: no index
of ``task`` holds a column that changes), with the result in the same row.

=========  ==============================================================================================================
meta       the version of this layout, and the name of the channel on which its processes notify each other: a random one,
           as anybody in the database may listen to a channel that they can name. One row
queue      a queue's number, name, whether it is paused, and whether anything was ever enqueued to it. Never deleted
task       a task, from enqueue until it is purged or its retention ends. ``seq`` is its number and its place in line:
           a block of 1024 per call of enqueue and the place in the batch. ``fence`` is that of its last settlement (even)
           or reaping (odd), 0 before. ``state``: 0 pending or running, 2 succeeded, 3 dead, 4 cancelled, 5 expired.
           ``rank`` is -1 - priority. ``attempt`` does not count a run that is under way. ``result`` is the record that came
           with the settlement: its fence and state are the task's
ready      one row per pending task that is due, in the order of claiming. A claim deletes it; a retry inserts it again
delayed    one row per pending task that was not due when it came; the claims move it to ``ready`` when its time comes.
           So a pending task is in exactly one of the two, and its row in ``task`` says at which place
claim      one row per claim that has tasks open. ``token`` is the fence of all its tasks, from a sequence of even numbers
           (the reaper's fence is the next odd one); ``seqs`` are its tasks in the order in which they were handed out,
           ``open`` how many are not settled, ``until`` the end of the lease, ``claim_id`` what a repeated call is known
           by. Deleted with the last settlement, or by the reaper
uniq       one row per unique key that a pending or running task holds
failed     the numbers of dead, cancelled and expired tasks, so that operators find them without a scan, and without an
           index in ``task`` on its state
look       "at this time, look at these tasks": written when tasks end, so that upkeep finds what to delete without an
           index in ``task``. A task that was requeued since is passed over
tally      how many tasks of each queue are pending, delayed (of these), and running, up to what is still in ``delta``
delta      one row per call that changed a count. Upkeep adds them to ``tally``; counts are the sum of both
result     result records that did not come with a settlement here: the result store of a queue on another backend. The
           records in ``task`` and here are read together, and the higher fence counts
event      the log. ``pos`` rises in the order of the commits, since appending takes a lock: a block of 1024 per call of
           append and the place in the batch
=========  ==============================================================================================================

Locks, in this order: a claim's row; tasks' rows, by number; a task's place in ``delayed``, then in ``ready``. A claim of new
tasks takes places in line only, and skips those that somebody holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from omniq_core import SchemaOutOfDate
from omniq_postgres.connection import Link

__all__ = ["VERSION", "channel", "migrate", "quoted", "statements", "version"]

FUNCTIONS = ("queue.sql", "upkeep.sql", "reading.sql")
MIGRATIONS: tuple[Sequence[str], ...] = (("tables.sql",),)
"""Step *n* brings the tables from version *n* to *n* + 1. The functions are replaced after every step."""
VERSION = len(MIGRATIONS)
OLDEST_SERVER = 13


def quoted(name: str) -> str:
    """The schema's name as an identifier. It holds no quotes: the options refuse them."""
    return f'"{name}"'


def statements(schema: str, since: int) -> list[str]:
    """What brings a schema from a version to this one.

    Args:
        schema: quoted.
        since: the version that is there; 0 for none.
    """
    if since == VERSION:
        return []
    found: list[str] = []
    if since == 0:
        # "if not exists": an administrator may have made it for us, who cannot.
        found.append("create schema if not exists @schema")
        found.append(
            "create table @schema.meta (version integer not null, channel uuid not null default gen_random_uuid())"
        )
        found.append("insert into @schema.meta (version) values (0)")
    for step in MIGRATIONS[since:]:
        for file in step:
            found += _read(file)
    for file in FUNCTIONS:
        found += _read(file)
    found.append(f"update @schema.meta set version = {VERSION}")
    return [statement.replace("@schema", schema) for statement in found]


def _read(file: str) -> list[str]:
    text = resources.files("omniq_postgres").joinpath("sql", file).read_text("utf-8")
    parts = (part.strip() for part in text.split("\n--\n"))
    return [part for part in parts if part and not all(line.startswith("--") for line in part.splitlines())]


async def version(link: Link, schema: str, *, timeout_s: float) -> int:
    """The version that is there; 0 if there is none."""
    name = schema.strip('"')
    found = await link.script(
        f"select 1 from pg_catalog.pg_tables where schemaname = '{name}' and tablename = 'meta'",
        timeout_s=timeout_s,
    )
    if not found:
        return 0
    rows = await link.script(f"select version from {schema}.meta", timeout_s=timeout_s)
    return int(rows[0][0]) if rows else 0


async def channel(link: Link, schema: str, *, timeout_s: float) -> str:
    """The channel of a schema, which who may not read the schema cannot guess."""
    [(found,)] = await link.script(f"select channel::text from {schema}.meta", timeout_s=timeout_s)
    return f"omniq_{found}"


async def migrate(
    link: Link, schema: str, *, change: bool, dry_run: bool = False, timeout_s: float
) -> list[str]:
    """Brings the schema to this version; what was done for it, or would be.

    Safe when two start at once: the second waits for the first, and finds nothing to do.

    Raises:
        SchemaOutOfDate: it is newer, or older and ``change`` is false.
    """
    there = await version(link, schema, timeout_s=timeout_s)
    if there == VERSION:
        return []
    if there > VERSION:
        raise SchemaOutOfDate(
            f"the schema {schema} has version {there}, made by a newer omniq-postgres; this one knows {VERSION}. "
            "Upgrade omniq-postgres here",
            "postgres",
        )
    steps = statements(schema, there)
    if dry_run:
        return steps
    if not change:
        raise SchemaOutOfDate(
            f"the schema {schema} has version {there} (0: none) and omniq-postgres needs {VERSION}, but migrate=False. "
            "Run setup() as a role that may create tables",
            "postgres",
        )
    name = schema.strip('"')
    await link.script("begin", timeout_s=timeout_s)
    try:
        await link.script(
            f"select pg_advisory_xact_lock(hashtextextended('omniq schema {name}', 0))", timeout_s=timeout_s
        )
        steps = statements(schema, await version(link, schema, timeout_s=timeout_s))
        await link.script(
            ";\n".join(["set local client_min_messages = warning", *steps]), timeout_s=timeout_s
        )
        await link.script("commit", timeout_s=timeout_s)
    except BaseException:
        link.close()  # and with it the transaction
        raise
    return steps
