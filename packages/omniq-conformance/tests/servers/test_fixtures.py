"""The fixtures, as the author of a plugin uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # servers are started

TESTS = """
    import pytest
    {plugins}

    def test_one_kills(redis_server):
        redis_server.kill()

    def test_two_finds_it_up_and_freezes(redis_server, redis_prefix):
        assert redis_server.ping()
        redis_server.command("SET", redis_prefix, 1)
        redis_server.freeze()

    def test_three_finds_it_thawed(redis_server):
        assert redis_server.ping()
        assert redis_server.command("DBSIZE") == 0

    def test_four_gets_a_proxy(redis_server, server_proxy):
        assert server_proxy(redis_server).url_for(redis_server.url) != redis_server.url

    def test_five_fails(redis_server):
        assert False
"""


def run(folder: Path) -> str:
    """What pytest says to this folder. It loads no plugin unasked: what is tested is asked for by the folder's own files."""
    (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("way", ["a conftest at the top", "a test module", "a conftest further down"])
def test_a_killed_server_is_up_again_for_the_next_test_and_a_failure_shows_the_log(
    way: str, tmp_path: Path
) -> None:
    plugins = 'pytest_plugins = ["omniq_conformance.servers.fixtures"]\n'
    below = tmp_path / "below"
    below.mkdir()
    if way == "a conftest at the top":
        (tmp_path / "conftest.py").write_text(plugins, "utf-8")
    elif way == "a conftest further down":
        (below / "conftest.py").write_text("from omniq_conformance.servers.fixtures import *\n", "utf-8")
        # Beside it nobody has asked for them, and they are not there.
        (tmp_path / "test_beside.py").write_text("def test_it(redis_server): pass\n", "utf-8")
    code = textwrap.dedent(TESTS).format(plugins=plugins if way == "a test module" else "")
    (below / "test_it.py").write_text(code, "utf-8")
    said = run(tmp_path)
    if way == "a conftest further down":
        assert "1 failed, 4 passed, 1 error" in said, said
        assert "fixture 'redis_server' not found" in said
    else:
        assert "1 failed, 4 passed" in said, said
    assert "log of redis (default)" in said
    assert "Ready to accept connections" in said


def test_the_fixtures_are_not_there_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(redis_server): pass\n", "utf-8")
    assert "fixture 'redis_server' not found" in run(tmp_path)
