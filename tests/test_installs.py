"""What users get: wheels in a clean environment, with third-party libraries from the package index and ours from files.

The names of ours on the index belong to somebody else, so every wheel that takes part stands on one command line, and what
was installed is looked at: a stranger's `omniq` would be seen.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow  # wheels are built and installed

ROOT = Path(__file__).resolve().parents[1]
PROJECTS: Mapping[str, Any] = {
    path.parent.name: tomllib.loads(path.read_text("utf-8"))["project"]
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
VERSION = PROJECTS["omniq"]["version"]

WHAT_IS_INSTALLED = """
import importlib.metadata, json
print(json.dumps({
    dist.metadata["Name"]: {
        "version": dist.version,
        "requires": dist.requires or [],
        "origin": json.loads(dist.read_text("direct_url.json") or "{}").get("url", ""),
    }
    for dist in importlib.metadata.distributions()
}))
"""
WHAT_AN_IMPORT_LOADS = """
import importlib.metadata, json, sys
before = {name.partition(".")[0] for name in sys.modules}
import omniq
loaded = {name.partition(".")[0] for name in sys.modules} - before
print(json.dumps(sorted(loaded & set(importlib.metadata.packages_distributions()))))
"""
OPENS_POSTGRES = """
import omniq_core
from omniq import OmniQ
try:
    OmniQ("postgresql://u:secret@localhost/x")
except omniq_core.NotInstalled as error:
    print(error)
"""


def run(*command: str | Path, cwd: Path) -> str:
    # Neither the source tree nor what the caller's Python was told: what is imported comes from the environment alone.
    unset = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environ = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """An environment with wheels of ours, and nothing of the source tree."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def python(self, code: str) -> str:
        return run(self.programs / "python", "-c", code, cwd=self.folder)

    def distributions(self) -> dict[str, dict[str, Any]]:
        """By canonical name, without the installer itself."""
        found = json.loads(self.python(WHAT_IS_INSTALLED))
        return {
            canonicalize_name(name): about
            for name, about in found.items()
            if name not in ("pip", "setuptools")
        }


def needed(requirements: list[str], about: Mapping[str, list[str]]) -> set[str]:
    """The distributions that these requirements bring; ``about`` tells what each of them requires in turn."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for asked in {"", *requirement.extras}:
            if (name, asked) not in found:
                found.add((name, asked))
                waiting += [(Requirement(line), asked) for line in about.get(name, [])]
    return {name for name, _ in found}


def ours(requirement: str) -> set[str]:
    """Those distributions of ours that a requirement brings, by what their pyproject.toml say."""
    about = {}
    for name, project in PROJECTS.items():
        about[name] = list(project["dependencies"])
        for extra, lines in project.get("optional-dependencies", {}).items():
            for line in map(Requirement, lines):
                inner = f"({line.marker}) and " if line.marker else ""
                line.marker = None
                about[name].append(f'{line} ; {inner}extra == "{extra}"')
    return needed([requirement], about) & set(PROJECTS)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The wheel of every package of ours."""
    folder = tmp_path_factory.mktemp("wheels")
    builds = [
        subprocess.Popen(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
            cwd=ROOT / "packages" / name,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in PROJECTS
    ]
    for build in builds:
        output, _ = build.communicate()
        assert build.returncode == 0, output.decode()
    built = {
        name: folder / f"{name.replace('-', '_')}-{project['version']}-py3-none-any.whl"
        for name, project in PROJECTS.items()
    }
    assert {*folder.iterdir()} == {*built.values()}
    return built


def install(folder: Path, wheels: Mapping[str, Path], extras: str) -> Installed:
    """A clean environment with ``omniq`` and those siblings that it asks for, in one command. Nothing is compiled ahead: few
    of the modules are imported here, and compiling them all is much of what an installer does."""
    files = [f"{wheels[name]}{extras if name == 'omniq' else ''}" for name in sorted(ours(f"omniq{extras}"))]
    installed = Installed(folder)
    python = installed.programs / "python"
    uv = shutil.which("uv")
    if uv:
        run(uv, "venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
        run(uv, "pip", "install", "--quiet", "--python", python, *files, cwd=folder.parent)
    elif importlib.util.find_spec("pip"):  # a pip less to unpack
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        pip = (sys.executable, "-m", "pip", "--python", python)
        run(*pip, "install", "--quiet", "--no-compile", *files, cwd=folder.parent)
    else:
        run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
        run(python, "-m", "pip", "install", "--quiet", "--no-compile", *files, cwd=folder.parent)
    return installed


@pytest.fixture(scope="session")
def environments(
    wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Installed]:
    """By the extras; made at the same time, since an installer mostly waits."""
    extras = ("[all]", "[redis,postgres]", "")
    folders = [tmp_path_factory.mktemp("clean") / "env" for _ in extras]
    with ThreadPoolExecutor() as pool:
        return dict(zip(extras, pool.map(install, folders, [wheels] * len(extras), extras), strict=True))


@pytest.fixture
def with_servers(environments: Mapping[str, Installed]) -> Installed:
    return environments["[redis,postgres]"]


@pytest.fixture
def with_all(environments: Mapping[str, Installed]) -> Installed:
    return environments["[all]"]


@pytest.fixture
def plain(environments: Mapping[str, Installed]) -> Installed:
    return environments[""]


@pytest.fixture(params=["with_all", "with_servers", "plain"])
def each(request: pytest.FixtureRequest) -> Installed:
    found: Installed = request.getfixturevalue(request.param)
    return found


def test_every_distribution_with_our_name_is_ours_and_came_from_a_file(each: Installed) -> None:
    for name, about in each.distributions().items():
        if name.startswith("omniq"):
            assert name in PROJECTS, f"{name} is a stranger's"
            assert about["version"] == PROJECTS[name]["version"]
            assert about["origin"].startswith("file:"), f"{name} came from {about['origin'] or 'an index'}"


def test_the_extras_bring_our_backends_and_their_clients_and_nothing_else(with_servers: Installed) -> None:
    found = with_servers.distributions()
    assert {name for name in found if name.startswith("omniq")} == {
        "omniq",
        "omniq-core",
        "omniq-file",
        "omniq-memory",
        "omniq-postgres",
        "omniq-redis",
        "omniq-sqlite",
    }
    assert {"psycopg", "psycopg-binary", "hiredis", "aiosqlite"} <= set(found)
    declared = needed(["omniq[redis,postgres]"], {name: about["requires"] for name, about in found.items()})
    assert set(found) == declared


def test_without_extras_there_is_no_client_of_a_server(plain: Installed) -> None:
    found = plain.distributions()
    assert {name for name in found if name.startswith("omniq")} == {
        "omniq",
        "omniq-core",
        "omniq-file",
        "omniq-memory",
        "omniq-sqlite",
    }
    assert set(found) == needed(["omniq"], {name: about["requires"] for name, about in found.items()})
    assert set(found).isdisjoint(
        {"psycopg", "asyncpg", "hiredis", "redis", "nats-py", "s3fs", "gcsfs", "adlfs", "gevent"}
    )


def test_every_extra_brings_its_part_and_all_of_them_only_ours(with_all: Installed) -> None:
    found = with_all.distributions()
    assert {name for name in found if name.startswith("omniq")} == set(PROJECTS) - {"omniq-conformance"}
    assert {"psycopg", "hiredis", "s3fs", "gcsfs", "adlfs", "gevent"} <= set(found)
    declared = needed(["omniq[all]"], {name: about["requires"] for name, about in found.items()})
    assert set(found) == declared


def test_the_command_line_lists_what_is_installed(with_servers: Installed) -> None:
    program = with_servers.programs / "omniq"
    rows = json.loads(run(program, "plugins", "--json", cwd=with_servers.folder))
    backends = {row["name"]: row["distribution"] for row in rows if row["kind"] == "backend"}
    of_files = dict.fromkeys(["file", "s3", "gs", "gcs", "abfs", "az"], "omniq-file")
    assert backends == of_files | {
        "memory": "omniq-memory",
        "postgres": "omniq-postgres",
        "postgresql": "omniq-postgres",
        "redis": "omniq-redis",
        "rediss": "omniq-redis",
        "sqlite": "omniq-sqlite",
        "valkey": "omniq-redis",
    }
    assert {row["version"] for row in rows} == {VERSION}


def test_every_plugin_that_is_listed_can_be_loaded(each: Installed) -> None:
    run(each.programs / "omniq", "check", cwd=each.folder)


def test_a_backend_that_is_not_installed_says_what_to_install_and_no_password(plain: Installed) -> None:
    message = plain.python(OPENS_POSTGRES)
    assert 'pip install "omniq[postgres]"' in message
    assert "secret" not in message


def test_importing_omniq_loads_no_backend_and_no_client_library(each: Installed) -> None:
    assert set(json.loads(each.python(WHAT_AN_IMPORT_LOADS))) <= {"omniq", "omniq_core"}
