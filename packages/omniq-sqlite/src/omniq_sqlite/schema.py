"""The layout of the file: every table, its columns and its life; and how an older layout becomes this one.

All names begin with ``omniq_``, so that the tables may stand in the file of your own program (``enqueue_within`` needs
that). The version is kept in ``omniq_meta`` and not in ``user_version``, which may be yours. Times are microseconds since
the epoch, UTC.

**Where a task is says what it is.** Each task has one row in ``omniq_task``, and its number (``seq``) is in exactly one place
more: in ``omniq_ready`` or ``omniq_delayed`` it is pending, in the list ``open`` of a row of ``omniq_claim`` it is running,
in ``omniq_done`` it is finished. So moving a task never rewrites its row with the body in it, and there is no index on a
state that changes. Per task, a claim deletes one entry of the narrow ``omniq_ready`` (all of a batch in one range) and
writes nothing; the success of a task adds one short row to the end of ``omniq_done``.

=====================  ====================================================================================================
omniq_meta             ``version`` of this layout, ``project`` that the file belongs to. Written by migrations
omniq_counter          ``seq``, ``token``, ``event``: the last number given out. They only rise, so that no number comes
                       back when the newest rows are deleted: a fence must never repeat, a cursor never point anew
omniq_queue            a queue's number, name, whether it is paused, and its counts, written in the same transaction as what
                       they count. ``enqueued`` counts all that ever came. Never deleted
omniq_task             what was enqueued. Inserted by enqueue, rewritten when the task comes back (retry, release, reap,
                       requeue), deleted by purge and pruning. ``attempt`` does not count the run under way, ``fence`` is
                       that of the last write to the row: 0, a settling token, or a reaper's token. ``run_at`` and
                       ``priority`` say where in ``omniq_delayed`` or ``omniq_ready`` it is while it is pending
omniq_ready            the line of each queue: pending and due (or found due by the last claim), in the order of claiming.
                       ``rank`` is minus the priority
omniq_delayed          pending and not yet due, by time. A claim first moves what has become due to ``omniq_ready``
omniq_expiring         when a pending task expires. An entry may outlive its reason: upkeep looks at the task
omniq_claim            one row per call of claim that took something. ``token`` is the fence of all its tasks; ``open`` the
                       numbers of those that are not settled, by queue, as JSON ``{"queue": [seq, ...]}``, ``low`` and
                       ``high`` their first bounds; ``cancelled`` those whose owner is to be told; ``keyed`` whether one of
                       them has a unique key. ``expires_at`` is the lease's end. Deleted with its last task, and by the
                       reaper
omniq_done             how a task ended. ``fence`` is that of the settling claim or the reaper; ``ran`` is 1 if the last
                       start counts as an attempt, ``crashed`` 1 if it counts as a crash (both to be added to what
                       ``omniq_task`` has). ``settled`` 1: by the task's owner, and ``reason`` and ``error`` are the task's;
                       0: by others, and what ``omniq_task`` has of them holds but for ``reason``, if it is given. Deleted
                       by requeue, purge and pruning
omniq_finished         the numbers that one batch finished at one time: pruning walks over these, so no column that changes
                       has an index. An entry may be out of date (a requeue): pruning looks at ``omniq_done``
omniq_unique           unique keys that a pending or running task holds
omniq_result           result records by task id. ``own_ttl`` 0: lives exactly as long as its finished task, and is deleted
                       with it. 1: until ``expires_at``, and then found by way of ``omniq_result_end``
omniq_result_end       the ids of results that one batch stored with one end
omniq_event            the log. ``no`` rises in the order of commits, since SQLite has one writer at a time
=====================  ====================================================================================================
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence

from omniq_core import OptionError, SchemaOutOfDate, TaskState

__all__ = ["MIGRATIONS", "OLDEST_SQLITE", "STATES", "STATE_NUMBERS", "ensure", "missing_steps"]

OLDEST_SQLITE = (3, 38, 0)
"""RETURNING came with 3.35, STRICT with 3.37, JSON in every build with 3.38 (2022-02-22)."""

STATES = {
    2: TaskState.SUCCEEDED,
    3: TaskState.DEAD,
    4: TaskState.CANCELLED,
    5: TaskState.EXPIRED,
    0: TaskState.PENDING,
    1: TaskState.RUNNING,
}
"""The states by their stored number; 0 and 1 are never stored, they are seen from where the task is."""
STATE_NUMBERS = {state: number for number, state in STATES.items()}

_V1 = """
create table omniq_meta(key text primary key, value any not null) strict, without rowid;
create table omniq_counter(name text primary key, value integer not null) strict, without rowid;
create table omniq_queue(no integer primary key, name text not null unique, paused integer not null default 0,
  ready integer not null default 0, delayed integer not null default 0, running integer not null default 0,
  enqueued integer not null default 0) strict;
create table omniq_task(seq integer primary key, id text not null, queue integer not null, name text not null,
  body blob not null, priority integer not null, attempt integer not null default 0, max_attempts integer not null,
  crashes integer not null default 0, max_crashes integer not null, fence integer not null default 0,
  enqueued_at integer not null, run_at integer not null, expires_at integer, unique_key text, reason text,
  error blob) strict;
create unique index omniq_task_id on omniq_task(id);
create table omniq_ready(queue integer not null, rank integer not null, seq integer not null,
  primary key(queue, rank, seq)) strict, without rowid;
create table omniq_delayed(queue integer not null, run_at integer not null, seq integer not null,
  primary key(queue, run_at, seq)) strict, without rowid;
create table omniq_expiring(expires_at integer not null, seq integer not null,
  primary key(expires_at, seq)) strict, without rowid;
create table omniq_claim(token integer primary key, claim_id text not null unique, worker_id text not null,
  expires_at integer not null, low integer not null, high integer not null, keyed integer not null,
  cancelled text not null default '[]', open text not null) strict;
create table omniq_done(seq integer primary key, state integer not null, fence integer not null, at integer not null,
  ran integer not null, crashed integer not null, cancel_requested integer not null, settled integer not null,
  reason text, error blob) strict;
create index omniq_done_unsuccessful on omniq_done(state, seq) where state > 2;
create table omniq_finished(no integer primary key, at integer not null, seqs text not null) strict;
create index omniq_finished_at on omniq_finished(at);
create table omniq_unique(key text primary key, seq integer not null unique) strict, without rowid;
create table omniq_result(task_id text primary key, fence integer not null, state integer not null,
  final integer not null, own_ttl integer not null, stored_at integer not null, expires_at integer not null,
  body blob not null) strict, without rowid;
create table omniq_result_end(no integer primary key, at integer not null, ids text not null) strict;
create index omniq_result_end_at on omniq_result_end(at);
create table omniq_event(no integer primary key, id text not null unique, task_id text not null, type text not null,
  at real not null, queue text not null, name text not null, worker_id text, data blob not null) strict;
create index omniq_event_task on omniq_event(task_id, no);
insert into omniq_counter values ('seq', 0), ('token', 0), ('event', 0)
"""

MIGRATIONS: list[Sequence[str]] = [tuple(" ".join(step.split()) for step in _V1.split(";\n"))]
"""Step *n* makes layout *n* + 1 of layout *n*; a new file takes all of them. Never change one that was released."""


def stored_version(connection: sqlite3.Connection) -> int:
    """The layout of an open file; 0 if it has none of ours yet."""
    found = connection.execute(
        "select 1 from sqlite_schema where type = 'table' and name = 'omniq_meta'"
    ).fetchall()
    if not found:
        return 0
    rows = connection.execute("select value from omniq_meta where key = 'version'").fetchall()
    return int(rows[0][0])


def missing_steps(connection: sqlite3.Connection, path: str, project: str) -> list[str]:
    """The statements that bring the file to this layout.

    Raises:
        SchemaOutOfDate: the file is of a newer driver.
        OptionError: the file belongs to another project.
    """
    version = stored_version(connection)
    if version > len(MIGRATIONS):
        raise SchemaOutOfDate(
            f"{path} has layout {version}, and this omniq-sqlite knows layouts up to {len(MIGRATIONS)}; "
            "install a newer omniq-sqlite",
            "sqlite",
        )
    if version:
        owner = connection.execute("select value from omniq_meta where key = 'project'").fetchall()[0][0]
        if owner != project:
            raise OptionError(
                f"sqlite: {path} belongs to the project {owner!r}, not to {project!r}; "
                f"set project_name={owner!r}, or give each project its own file"
            )
    return [statement for step in MIGRATIONS[version:] for statement in step]


def ensure(connection: sqlite3.Connection, path: str, project: str, *, may_change: bool) -> list[str]:
    """Brings the file to this layout, in one transaction; the statements that did it.

    Call it with the turn (:mod:`omniq_sqlite.lockfile`): of two processes that start at once, the second finds the work
    done. ``BEGIN IMMEDIATE`` holds that off programs that take no turns.

    Raises:
        SchemaOutOfDate: of a newer driver; or ``may_change`` is false and there is something to do.
        OptionError: the file belongs to another project.
    """
    if not missing_steps(connection, path, project):
        return []
    if not may_change:
        raise SchemaOutOfDate(
            f"the tables of {path} are missing or of an older layout, and migrate=False forbids to change them; "
            "run 'omniq setup', or open it once with migrate=True",
            "sqlite",
        )
    connection.execute("begin immediate")
    try:
        steps = missing_steps(connection, path, project)
        for step in steps:
            connection.execute(step)
        connection.execute("insert or ignore into omniq_meta values ('project', ?)", (project,))
        connection.execute("insert or replace into omniq_meta values ('version', ?)", (len(MIGRATIONS),))
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise
    return steps


def inspect(path: str, project: str) -> list[str]:
    """What :func:`ensure` would do, without touching the file; it need not exist."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return [statement for step in MIGRATIONS for statement in step]
    # Not mode=ro: a reader of a WAL file that was left by a crash must be able to recover it.
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        return missing_steps(connection, path, project)
    finally:
        connection.close()
