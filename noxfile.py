"""How OmniQ is tested, checked, measured and built; `nox -l` lists the sessions.

The name `omniq` on the package index is someone else's project, so no installer may ever look for one of our names
there. Our distributions are installed by path (a folder, or a wheel that we built), and all those that need one another
stand on ONE command line, where the path wins over the index. `siblings` sees to that; the packages folder is the list
of what is ours, so a new package joins every session by being there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
PACKAGES = {path.parent.name: path.parent for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}

TEST_REQUIREMENTS = [
    "pytest>=8.3",
    "pytest-timeout>=2.3",  # a hanging test fails with a stack
    "hypothesis>=6.100",
    "psutil>=6",  # which child processes are left
    "import-linter>=2.3",  # tests/test_layering.py
    "packaging>=24",  # tests/test_packaging.py
    "hatchling>=1.27",  # tests/test_installs.py builds our wheels
    "sqlalchemy[asyncio]>=2.0",  # omniq-postgres: tasks that are enqueued within its transactions
]
LINT_REQUIREMENTS = ["ruff>=0.12", "import-linter>=2.3"]
# pyright is a Node program: with [nodejs] its runtime is a wheel as well, and nothing is downloaded at run time.
TYPES_REQUIREMENTS = [
    "mypy>=1.17",
    "pyright[nodejs]>=1.1.400",
    "types-PyYAML",
    "types-gevent",
    "sqlalchemy[asyncio]>=2.0",
]
# benchmarks/: what is measured beside ours, by storage. A peer that a run does not ask for is not installed.
BENCH_REQUIREMENTS = {
    "always": ["psutil>=6", "huey>=3.5"],
    "redis": ["dramatiq[redis]>=2.2", "celery[redis]>=5.7", "taskiq-redis>=1.2", "rq>=3.0", "hiredis>=3.2"],
    "nats": ["taskiq-nats>=0.7", "nats-py>=2.16"],
    "postgres": ["procrastinate>=3.10", "pgqueuer>=1.6", "asyncpg>=0.32", "psycopg[binary,pool]>=3.3"],
}
# These two stay below redis-py 8, which taskiq-redis asks for: they get a folder of their own, seen by them alone.
BENCH_OLDER_REDIS = ["arq>=0.28", "saq[hiredis]>=0.26", "redis[hiredis]<6"]
BUILD_REQUIREMENTS = ["build>=1.2", "hatchling>=1.27"]
PYTHONS = ["3.11", "3.12", "3.13"]
# docs/conformance/NAME.json: a backend on a server, and what pytest is given. tests/test_reports.py misses a backend.
REPORTS = {
    "memory": "omniq-memory/tests/test_conformance.py",
    "sqlite": "omniq-sqlite/tests/test_conformance.py",
    "file-local": "omniq-file/tests/test_conformance.py::TestLocalDisk",
    "file-memory": "omniq-file/tests/test_conformance.py::TestMemory",
    "file-s3": "omniq-file/tests/objects/test_conformance.py::TestS3",
    "file-gcs": "omniq-file/tests/objects/test_conformance.py::TestGCS",
    "nats": "omniq-nats/tests/test_conformance.py",
    "redis-valkey9": "omniq-redis/tests/test_conformance.py::TestValkey",
    "redis-redis8": "omniq-redis/tests/test_conformance.py::TestRedis",
    "postgres-postgresql18": "omniq-postgres/tests/test_conformance.py",
}

nox.needs_version = ">=2025.2.9"  # `requires=`
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
# An interpreter that is absent is reported as a skipped session, also where CI is set; none is downloaded.
nox.options.error_on_missing_interpreters = False
if hasattr(nox.options, "download_python"):  # a newer option than the version asked for above
    nox.options.download_python = "never"


def project(name: str) -> dict[str, Any]:
    """The [project] table of one of our distributions."""
    table: dict[str, Any] = tomllib.loads((PACKAGES[name] / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def siblings(names: Iterable[str]) -> list[str]:
    """The named distributions and all of ours that they need. Without the folder of each we stop: no index is asked."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if name not in PACKAGES:
            raise SystemExit(f"{name} is needed, is one of our names, and is not a folder in packages/")
        found.add(name)
        needed = (re.match(r"[\w.-]+", line) for line in project(name).get("dependencies", []))
        waiting += [m[0].lower() for m in needed if m and re.fullmatch(r"omniq(-.*)?", m[0].lower())]
    return sorted(found)


def editable(names: Iterable[str], *, extras: bool = False) -> list[str]:
    """Installer arguments for our folders; with extras, everything that each calls `all`."""
    arguments: list[str] = []
    for name in siblings(names):
        all_ = "[all]" if extras and "all" in project(name).get("optional-dependencies", {}) else ""
        arguments += ["-e", f"./packages/{name}{all_}"]
    return arguments


def backends() -> list[str]:
    """Our distributions that offer a backend: each must pass the conformance suite."""
    return [name for name in PACKAGES if "omniq.backends" in project(name).get("entry-points", {})]


def wheel(name: str) -> Path:
    """Where the `build` session puts the wheel."""
    return ROOT / "dist" / f"{name.replace('-', '_')}-{project(name)['version']}-py3-none-any.whl"


LONGEST_FIRST = [
    "tests/crashes",
    "packages/omniq-file/tests",
    "packages/omniq-postgres/tests",
    "packages/omniq/tests",
    "packages/omniq-nats/tests",
    "packages/omniq-gevent/tests",
    "packages/omniq-redis/tests",
    "packages/omniq-conformance/tests",
    "tests",
]
"""The folders of tests that take more than a few seconds, in the order in which they are begun."""
NO_TESTS = 5
"""What pytest returns where it has found none."""


def install(session: nox.Session, *what: str) -> None:
    """Installs into the session's environment by uv, which takes a quarter of pip's time.

    `pip install nox` brings no uv: then the environment gets one of its own. Where that fails (no wheel of it for this
    machine, or an index that only pip was told of), pip does all of it.
    """
    # It trusts the certificates that the system does, like pip; the second name is an older uv's.
    session.env.update({"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"})
    if session.venv_backend != "uv":
        try:
            session.install("--only-binary", "uv", "uv>=0.5")
            session.run_install("uv", "pip", "install", "--quiet", *what)
            return
        except nox.command.CommandFailed:
            session.warn("uv could not: pip does it, in more time")
            # tests/test_installs.py takes a uv that it finds.
            session.run_install("python", "-m", "pip", "uninstall", "--quiet", "--yes", "uv")
    session.install(*what)


def run_tests(session: nox.Session, *options: str) -> None:
    """Everything that pytest finds, a run for each folder of tests and several at once; with arguments it is one run, of what
    they say.

    Args:
        options: for pytest, which may leave a folder without tests.
    """
    # The type checkers are under test as well: packages/omniq/tests/typing lets them judge users' code.
    install(session, *editable(PACKAGES, extras=True), *TEST_REQUIREMENTS, *TYPES_REQUIREMENTS)
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    if session.run("python", "--version", silent=True) is None:  # nox --install-only
        return
    found = {*(f"packages/{name}/tests" for name in PACKAGES), "tests", "tests/crashes"}
    folders = [*LONGEST_FIRST, *sorted(found.difference(LONGEST_FIRST))]
    # Tests start hundreds of interpreters: each would compile what it imports anew where this is set.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    environment = {**os.environ, **{name: value for name, value in session.env.items() if value is not None}}

    def run(folder: str) -> bool:
        within = (other for other in folders if other.startswith(f"{folder}/"))
        # The cache is a file that all would write.
        command = [
            Path(session.bin) / "pytest",
            "-p",
            "no:cacheprovider",
            *options,
            folder,
            *(f"--ignore={path}" for path in within),
        ]
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.flush()
        session.log(f"{folder}: {time.monotonic() - begun:.0f} s")
        return done.returncode == 0 or (bool(options) and done.returncode == NO_TESTS)

    # Most tests wait for a server, a lease or a disk: two runs for each processor, and one more, keep them busy.
    with ThreadPoolExecutor(2 * (os.cpu_count() or 2) + 1) as pool:
        passed = dict(zip(folders, pool.map(run, folders), strict=True))
    if not all(passed.values()):
        session.error(f"see above: {', '.join(folder for folder in folders if not passed[folder])}")


@nox.session
def quickstart(session: nox.Session) -> None:
    """What a newcomer does first: install omniq alone, run the first example."""
    install(session, *editable(["omniq"]))
    session.run("python", "examples/quickstart/run.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, conformance included, on the Python that runs nox. What follows `--` goes to pytest."""
    run_tests(session)


@nox.session
def quick(session: nox.Session) -> None:
    """The tests that are not marked slow: a minute, while you work."""
    run_tests(session, "-m", "not slow")


@nox.session(python=PYTHONS)
def tests_matrix(session: nox.Session) -> None:
    """Every test on each Python that we support; those that this machine lacks are reported as skipped."""
    run_tests(session)


@nox.session(requires=["build"])
@nox.parametrize("backend", backends())
def conformance(session: nox.Session, backend: str) -> None:
    """One backend as its users get it: from wheels, in a fresh environment, away from the source tree."""
    names = siblings([backend, "omniq-conformance"])
    # With its real servers; those that the backend does not need cost an unpacking.
    extras = {"omniq-conformance": "[servers]"}
    install(session, *(f"{wheel(name)}{extras.get(name, '')}" for name in names), *TEST_REQUIREMENTS)
    files = sorted((PACKAGES[backend] / "tests").glob("test_conformance*.py"))
    if not files:
        session.error(
            f"packages/{backend}/tests has no test_conformance*.py: what is not tested is not conformant"
        )
    session.chdir(session.create_tmp())
    for module in (name.replace("-", "_") for name in names):
        check = f"import {module} as m; assert 'site-packages' in m.__file__, m.__file__; print(m.__file__)"
        session.run("python", "-c", check)
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    session.run("pytest", *options, *map(str, files), *session.posargs)


@nox.session
def reports(session: nox.Session) -> None:
    """Writes the conformance reports in docs/conformance and the table in docs/compatibility.md; names choose some."""
    unknown = set(session.posargs) - set(REPORTS)
    if unknown:
        session.error(f"no such report: {', '.join(sorted(unknown))}; there are {', '.join(REPORTS)}")
    install(session, *editable(PACKAGES, extras=True), *TEST_REQUIREMENTS)
    for name in session.posargs or REPORTS:
        session.run(
            "pytest",
            f"packages/{REPORTS[name]}",
            "--omniq-examples=30",
            f"--omniq-report=docs/conformance/{name}.json",
        )
    files = [
        f"docs/conformance/{path.name}" for path in sorted((ROOT / "docs" / "conformance").glob("*.json"))
    ]
    table = session.run("python", "-m", "omniq_conformance", "table", *files, silent=True, stderr=None)
    page = ROOT / "docs" / "compatibility.md"
    words, marker, _ = page.read_text("utf-8").partition("<!-- nox -s reports -->\n")
    page.write_text(f"{words}{marker}\n{table}", "utf-8", newline="\n")


@nox.session
def bench(session: nox.Session) -> None:
    """OmniQ and its peers side by side in one run; arguments go to benchmarks/run.py (``--help`` lists them)."""
    asked = " ".join(session.posargs)
    peers = [
        line
        for kind, lines in BENCH_REQUIREMENTS.items()
        if kind == "always" or kind in asked
        for line in lines
    ]
    install(session, *editable(PACKAGES, extras=True), *peers)
    env = {}
    if "redis" in asked:
        layer = Path(session.virtualenv.location) / "older-redis"
        session.install("--target", str(layer), *BENCH_OLDER_REDIS)
        env["OMNIQ_BENCH_LAYER_REDIS5"] = str(layer)
    session.run("python", "benchmarks/run.py", *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and who may import whom."""
    install(session, *editable(PACKAGES), *LINT_REQUIREMENTS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Both type checkers over the sources, and over tests/typing: users' code that must pass or be refused."""
    install(session, *editable(PACKAGES, extras=True), *TYPES_REQUIREMENTS)
    found = sorted([*ROOT.glob("packages/*/src"), *ROOT.glob("tests/typing")])
    paths = [str(path.relative_to(ROOT)) for path in found]
    session.run("mypy", "--strict", *paths)
    session.run("pyright", *paths)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist of every package into dist/, and a look into each wheel."""
    install(session, *BUILD_REQUIREMENTS)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for name, folder in PACKAGES.items():
        # No isolation: the build backend is in this environment already; no need to install it once per package.
        session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist", str(folder), silent=True)
        entries = zipfile.ZipFile(wheel(name)).namelist()
        if f"{name.replace('-', '_')}/py.typed" not in entries:
            session.error(f"{wheel(name).name} holds no py.typed: type checkers would ignore its annotations")
        if not any(entry.endswith("/licenses/LICENSE") for entry in entries):
            session.error(f"{wheel(name).name} holds no licence")
        session.log(f"{wheel(name).name}: {len(entries)} files")
