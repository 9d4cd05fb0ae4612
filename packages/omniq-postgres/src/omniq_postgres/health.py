"""What the server's settings mean for tasks, and what about it should worry somebody."""

from __future__ import annotations

from omniq_core import Durability, Finding, Health, Loss, Severity
from omniq_postgres.connection import Row
from omniq_postgres.pool import Pool
from omniq_postgres.vacuum import may_vacuum

__all__ = ["durability_of", "examine", "settings"]

SETTINGS = (
    "fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names", "wal_writer_delay", "wal_level",
    "server_version", "autovacuum", "max_connections",
)  # fmt: skip
OLD_SNAPSHOT_S = 60.0
MANY_DEAD = 100_000


async def settings(pool: Pool) -> dict[str, str]:
    """The server's settings, as our sessions have them."""
    columns = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    [row] = await pool.query(f"select {columns}", (), ())
    found: dict[str, str] = dict(zip(SETTINGS, row, strict=True))
    found["synchronous_commit"] = pool.options.synchronous_commit  # ours, in every call or session
    return found


def durability_of(found: dict[str, str]) -> Durability:
    window_s = None
    server_killed = power_cut = Loss.NONE
    if found["synchronous_commit"] == "off":
        server_killed = power_cut = Loss.WINDOW
        window_s = 3 * _seconds(found["wal_writer_delay"])  # so the manual: at most three times the delay
    if found["full_page_writes"] != "on":
        power_cut = Loss.UNKNOWN  # a page that was half written cannot be repaired
    if found["fsync"] != "on":
        power_cut = Loss.ALL
    return Durability(server_killed=server_killed, power_cut=power_cut, window_s=window_s)


def _seconds(text: str) -> float:
    for unit, factor in (("ms", 0.001), ("us", 0.000001), ("min", 60.0), ("s", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text) * 0.001


async def examine(pool: Pool) -> Health:
    found = await settings(pool)
    findings: list[Finding] = []
    if found["fsync"] != "on":
        findings.append(
            Finding(
                Severity.ERROR,
                "fsync is off: a power cut may lose or destroy the whole database",
                "set fsync = on in postgresql.conf",
            )
        )
    if found["full_page_writes"] != "on":
        findings.append(
            Finding(
                Severity.ERROR,
                "full_page_writes is off: a power cut may leave pages that cannot be read",
                "set full_page_writes = on, unless the file system writes whole pages atomically",
            )
        )
    if found["synchronous_commit"] == "off":
        findings.append(
            Finding(
                Severity.WARNING,
                "synchronous_commit is off: what was acknowledged in the last moments is lost if the server crashes",
                "leave the option synchronous_commit at 'on'",
            )
        )
    if found["autovacuum"] != "on":
        findings.append(
            Finding(
                Severity.WARNING,
                "autovacuum is off: claims get slower with every task",
                "set autovacuum = on",
            )
        )
    if not pool.options.is_pooled and await _is_behind_a_pooler(pool):
        findings.append(
            Finding(
                Severity.WARNING,
                "the connection leads through a pooler: in transaction mode wake-ups are lost and prepared statements fail",
                "set notify=False, or listen_url to the server itself",
            )
        )
    [facts] = await pool.query(
        """select date_part('epoch', clock_timestamp()),
                  (select count(*) from pg_catalog.pg_stat_replication),
                  (select date_part('epoch', max(clock_timestamp() - a.xact_start))
                     from pg_catalog.pg_stat_activity a where a.backend_xmin is not null and a.pid <> pg_backend_pid()),
                  (select count(*) from pg_catalog.pg_prepared_xacts),
                  (select count(*) from pg_catalog.pg_replication_slots s
                    where not s.active and (s.xmin is not null or s.catalog_xmin is not null))""",
        (),
        (),
    )
    now, replicas, oldest_s, prepared, slots = facts
    findings += _of_horizon(oldest_s, prepared, slots)
    if not await may_vacuum(pool):
        findings.append(
            Finding(
                Severity.WARNING,
                "this role may not vacuum the tables: claims get slower until autovacuum comes, once a minute",
                "grant maintain (since PostgreSQL 17) on all tables in the schema, or let their owner's role run the workers",
            )
        )
    rows = await pool.query(
        "select relname::text, n_dead_tup, n_live_tup from pg_catalog.pg_stat_user_tables where schemaname = {}",
        ("text",),
        (pool.options.schema_name,),
    )
    findings += _of_dead_rows(rows)
    found["replicas"] = str(replicas)
    return Health(
        server=f"PostgreSQL {found['server_version'].split(' ')[0]}",
        now=now,
        durability=durability_of(found),
        findings=findings,
        settings=found,
    )


async def _is_behind_a_pooler(pool: Pool) -> bool:
    link = await pool.take()
    try:
        [(pid,)] = await link.script("select pg_backend_pid()", timeout_s=pool.call_timeout_s)
        return bool(pid != link.server_pid)  # a pooler tells its clients numbers of its own
    finally:
        pool.give_back(link)


def _of_horizon(oldest_s: float | None, prepared: int, slots: int) -> list[Finding]:
    found = []
    if oldest_s is not None and oldest_s > OLD_SNAPSHOT_S:
        found.append(
            Finding(
                Severity.WARNING,
                f"a transaction has been open for {oldest_s:.0f} s: rows that were deleted since stay, and claims step "
                "over them",
                "find it in pg_stat_activity by backend_xmin; set idle_in_transaction_session_timeout for its role",
            )
        )
    if prepared:
        found.append(
            Finding(
                Severity.WARNING,
                f"{prepared} prepared transactions are open, and keep deleted rows as an open one does",
                "commit or roll back what pg_prepared_xacts shows",
            )
        )
    if slots:
        found.append(
            Finding(
                Severity.WARNING,
                f"{slots} replication slots keep deleted rows",
                "drop the slots in pg_replication_slots that nobody uses",
            )
        )
    return found


def _of_dead_rows(rows: list[Row]) -> list[Finding]:
    return [
        Finding(
            Severity.WARNING,
            f"the table {table} has {dead} dead rows beside {live} live ones: vacuum does not keep up",
            "look for long transactions, and give autovacuum more workers or a higher cost limit",
        )
        for table, dead, live in rows
        if dead > MANY_DEAD and dead > live
    ]
