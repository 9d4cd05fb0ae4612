"""The settings, and what is said of bad ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omniq_core import OptionError, backend_class
from omniq_sqlite import SQLiteBackend


def test_the_file_is_named_after_the_project_unless_it_is_given() -> None:
    assert SQLiteBackend().path == os.path.abspath("omniq.db")
    assert SQLiteBackend(base_dir="data", project_name="shop").path == os.path.abspath("data/shop.db")
    assert SQLiteBackend({"db_path": "a.db"}, project_name="shop").path == os.path.abspath("a.db")


@pytest.mark.parametrize("alias", ["path", "database_path", "db_path"])
def test_the_file_may_be_given_under_each_of_its_names(alias: str) -> None:
    assert SQLiteBackend({alias: "a.db"}).path == os.path.abspath("a.db")


def test_three_slashes_are_relative_and_four_absolute() -> None:
    assert SQLiteBackend.from_url("sqlite:///data/a.db").path == os.path.abspath("data/a.db")
    assert SQLiteBackend.from_url("sqlite:////data/a.db").path == "/data/a.db"
    options = SQLiteBackend.from_url("sqlite:///a.db?synchronous=NORMAL&timeout=5&retention_s=60").options
    assert (options.synchronous, options.timeout, options.retention_s) == ("NORMAL", 5.0, 60.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://", "memory://"),
        ("sqlite:///", "memory://"),
        ("sqlite://tasks.db", "three|sqlite:///tasks.db"),
        ("sqlite:///a.db?synchronous=MAYBE", "OFF, NORMAL, FULL, EXTRA"),
        ("sqlite:///a.db?synchronus=FULL", "did you mean 'synchronous'"),
        ("sqlite:///a.db?timeout=0", "positive"),
        ("sqlite:///a.db?cache_mb=0", "at least 1"),
        ("sqlite:///data/", "directory"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_what_to_write(url: str, hint: str) -> None:
    with pytest.raises(OptionError, match=hint):
        SQLiteBackend.from_url(url)


@pytest.mark.parametrize("project", ["a/b", "", ".."])
def test_a_project_that_cannot_name_a_file_needs_a_path(project: str) -> None:
    with pytest.raises(OptionError, match="file's name"):
        SQLiteBackend(project_name=project)
    assert SQLiteBackend(project_name=project, db_path="a.db").path.endswith("a.db")


def test_a_twin_means_the_same_file_after_a_change_of_directory(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = SQLiteBackend(db_path="a.db")
    place = backend.path
    monkeypatch.chdir("/")
    assert backend.twin().path == place == str(tmp_path) + "/a.db"


def test_missing_directories_are_made_only_if_that_is_allowed(tmp_path: os.PathLike[str]) -> None:
    where = os.path.join(tmp_path, "a", "b", "c.db")

    async def main() -> None:
        refusing = SQLiteBackend(db_path=where, create_dirs=False)
        with pytest.raises(FileNotFoundError):
            await refusing.open()
        async with SQLiteBackend(db_path=where):
            pass

    asyncio.run(main())
    assert Path(where).is_file()


def test_importing_the_package_imports_no_database() -> None:
    source = "import omniq_sqlite, sys; assert not {'sqlite3', 'aiosqlite'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)


def test_without_aiosqlite_the_registry_says_what_is_missing() -> None:
    source = """
import sys
sys.modules["aiosqlite"] = None
from omniq_core import MissingLibrary, backend_class
try:
    backend_class("sqlite")
except MissingLibrary as error:
    assert "aiosqlite" in str(error), error
else:
    raise SystemExit("it was loaded")
"""
    subprocess.run([sys.executable, "-c", source], check=True)
    assert backend_class("sqlite") is SQLiteBackend
