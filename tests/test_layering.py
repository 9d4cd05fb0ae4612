"""Who may import whom is kept by import-linter; here a deliberate breach shows that each contract holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
BREACHES = [
    ("omniq_core", "omniq", "omniq_core imports nothing of ours"),
    ("omniq_core", "omniq_memory", "omniq_core imports nothing of ours"),
    ("omniq", "omniq_sqlite", "omniq imports no backend: it asks the registry"),
    ("omniq_memory", "omniq", "a backend imports the contract, never the library that uses it"),
    ("omniq_conformance", "omniq", "a backend imports the contract, never the library that uses it"),
    ("omniq", "omniq_gevent", "omniq imports no backend: it asks the registry"),
    (
        "omniq_gevent",
        "omniq.engine",
        "a worker type imports of omniq its workers, its runners and its command line",
    ),
    ("omniq_sqlite", "omniq_memory", "no backend imports another"),
    ("omniq_conformance", "omniq_sqlite", "the suite knows no backend but its model, the memory backend"),
    ("omniq_memory", "omniq_conformance", "only tests import omniq_conformance"),
    ("omniq", "redis", "the contract and the library import no client library of a storage"),
    ("omniq_core", "aiosqlite", "the contract and the library import no client library of a storage"),
    ("omniq.lifecycle", "omniq.cli", "inside omniq, imports go downward"),
    ("omniq.task", "omniq.queue", "inside omniq, imports go downward"),
    ("omniq.engine", "omniq.app", "inside omniq, imports go downward"),
]

LINT = """
import contextlib, io, json, sys
from importlinter.cli import lint_imports_command

def lint():
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = 0
        try:
            lint_imports_command(["--no-cache"], standalone_mode=False)
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()

answers = [lint()]
for file, breach in json.load(sys.stdin):
    with open(file, "r+", encoding="utf-8") as module:
        before = module.read()
        module.write(breach)
    answers.append(lint())
    with open(file, "w", encoding="utf-8") as module:
        module.write(before)
json.dump(answers, sys.stdout)
"""


class Linted(NamedTuple):
    """What import-linter said."""

    code: int
    said: str


@pytest.fixture(scope="module")
def linted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str] | None, Linted]:
    """By the breach, which is the only one in a copy of our tree, and by None for the tree as it is.

    One process lints them all: loading import-linter takes longer than what it does.
    """
    root = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", root)
    ignored = shutil.ignore_patterns("__pycache__")
    for source in ROOT.glob("packages/*/src"):
        shutil.copytree(source, root / source.relative_to(ROOT), ignore=ignored)

    def module(dotted: str) -> Path:
        """The file of a module, made when there is none yet."""
        package = dotted.split(".")[0]
        path = root / "packages" / package.replace("_", "-") / "src" / Path(*dotted.split("."))
        if path.is_dir():
            return path / "__init__.py"
        path.with_suffix(".py").touch()
        return path.with_suffix(".py")

    breaches = []
    for importer, imported, _ in BREACHES:
        if imported.startswith("omniq"):
            module(imported)
        breaches.append((str(module(importer)), f"\n\nimport {imported}\n"))
    sources = [str(path) for path in sorted(root.glob("packages/*/src"))]
    done = subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=root,
        # Before site-packages, where the same packages are installed from the real tree.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sources), "COLUMNS": "200"},
        input=json.dumps(breaches),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = [None, *((importer, imported) for importer, imported, _ in BREACHES)]
    return {name: Linted(*answer) for name, answer in zip(names, json.loads(done.stdout), strict=True)}


def test_our_tree_keeps_its_contracts(linted: Mapping[tuple[str, str] | None, Linted]) -> None:
    assert linted[None].code == 0, linted[None].said
    assert "0 broken" in linted[None].said


@pytest.mark.parametrize(("importer", "imported", "broken"), BREACHES)
def test_an_upward_import_breaks_its_contract(
    linted: Mapping[tuple[str, str] | None, Linted], importer: str, imported: str, broken: str
) -> None:
    found = linted[importer, imported]
    assert found.code == 1, found.said
    assert f"{broken} BROKEN" in found.said
    assert f"{importer} -> {imported}" in found.said
