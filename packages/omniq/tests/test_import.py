"""What ``import omniq`` costs and loads: next to nothing. Seen from fresh interpreters."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

import omniq

CLIENTS = (
    "aiosqlite",
    "sqlite3",
    "psycopg",
    "asyncpg",
    "redis",
    "nats",
    "fsspec",
    "click",
    "pluggy",
    "cloudpickle",
    "yaml",
    "rich",
)
BACKENDS = ("omniq_memory", "omniq_sqlite", "omniq_file", "omniq_postgres", "omniq_redis", "omniq_nats")


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_omniq_loads_no_backend_no_client_library_and_little_of_omniq() -> None:
    loaded = loaded_after("import omniq")
    assert loaded.isdisjoint({*BACKENDS, *CLIENTS, "asyncio", "msgspec", "omniq_core", "omniq.app"})


def test_making_a_program_loads_only_the_backend_that_it_names() -> None:
    loaded = loaded_after("from omniq import OmniQ\nOmniQ('memory://')")
    assert loaded.isdisjoint({*BACKENDS, *CLIENTS} - {"omniq_memory"})


def test_importing_omniq_takes_less_than_150_ms_more_than_an_empty_interpreter() -> None:
    def seconds(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    extra = [seconds("import omniq") - seconds("pass") for _ in range(7)]
    assert statistics.median(extra) < 0.150


@pytest.mark.parametrize("name", omniq.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(omniq, name) is not None
    assert name in dir(omniq)


def test_another_name_is_absent() -> None:
    with pytest.raises(AttributeError, match="module 'omniq' has no attribute 'Omniq'"):
        omniq.Omniq  # type: ignore[attr-defined]
