"""No statement of the queue walks through the tasks: its cost depends on the batch, not on the backlog."""

from __future__ import annotations

import importlib
import re
import sqlite3
from collections.abc import Iterator

import pytest

from omniq_sqlite import schema
from omniq_sqlite.statements import Rows

MODULES = (
    "claiming",
    "enqueueing",
    "events",
    "looking",
    "moves",
    "operating",
    "results",
    "settling",
    "upkeep",
)
SMALL = {
    "omniq_claim": "one row per claim that is under way",
    "omniq_queue": "one row per queue",
    "v": "the rows that the statement brings along",
}
# Within a limit, in the order of the primary key.
BOUNDED = {("events", "TRUNCATE"): "omniq_event"}


def is_whole(name: str, text: str) -> bool:
    """Whether it is a statement and not a piece of one."""
    is_statement = re.match(r"(select|insert|update|delete|with) ", text) is not None
    return is_statement and text.count("(") == text.count(")") and "%s" not in text and name[0] != "_"


def statements() -> Iterator[tuple[str, str, str]]:
    for module in MODULES:
        for name, value in vars(importlib.import_module(f"omniq_sqlite.{module}")).items():
            if isinstance(value, Rows):
                yield from ((module, name, text) for text in value.texts())
            elif isinstance(value, str) and is_whole(name, value):
                yield module, name, value


def plan(database: sqlite3.Connection, statement: str) -> list[str]:
    values = [None] * statement.count("?")
    return [str(row[3]) for row in database.execute(f"explain query plan {statement}", values)]


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(":memory:")
    for step in schema.MIGRATIONS:
        for statement in step:
            database.execute(statement)
    yield database
    database.close()


def test_every_statement_searches_in_an_index(database: sqlite3.Connection) -> None:
    seen = set()
    for module, name, text in statements():
        seen.add(name)
        for line in plan(database, text):
            scanned = re.match(r"SCAN (?!.*VIRTUAL TABLE|.*CONSTANT ROW|\()(\w+)", line)
            if scanned is not None and scanned[1] not in SMALL:
                assert BOUNDED.get((module, name)) == scanned[1], f"{module}.{name}: {line}\n{text[:300]}"
    assert {
        "FIRST_IN_LINE",
        "TAKE",
        "TASKS",
        "DONE_ALIKE",
        "BACK",
        "STATS",
        "FACTS_BY_ID",
        "SNAPSHOTS_BY_ID",
    } <= seen


def test_no_parameter_has_a_number_or_a_name_which_the_driver_would_look_for_with_each_value() -> None:
    for module, name, text in statements():
        bare = re.sub(r"'[^']*'", "''", text)
        assert re.search(r"\?\d|[:@$]\w", bare) is None, f"{module}.{name}: {text[:300]}"


def test_a_claim_finds_the_beginning_of_the_line_without_sorting_it(database: sqlite3.Connection) -> None:
    from omniq_sqlite.claiming import FIRST_IN_LINE, TAKE

    lines = plan(database, FIRST_IN_LINE)
    assert any("SEARCH r USING PRIMARY KEY (queue=?)" in line for line in lines), lines
    assert not any("TEMP B-TREE" in line for line in lines), lines
    assert any("(queue=? AND (rank,seq)<(?,?))" in line for line in plan(database, TAKE)), plan(
        database, TAKE
    )


def test_the_events_of_a_task_are_found_by_its_index(database: sqlite3.Connection) -> None:
    from omniq_sqlite.events import IN, READ

    lines = plan(database, f"{READ} and task_id {IN} order by no limit ?)")
    assert any("omniq_event_task (task_id=?" in line for line in lines), lines
