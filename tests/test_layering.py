"""Who may import whom is kept by import-linter; here a deliberate breach shows that each contract holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Tree:
    """A copy of our sources and contracts, in which a test may write what must not be written."""

    root: Path

    def module(self, dotted: str) -> Path:
        """The file of a module, made when there is none yet."""
        package = dotted.split(".")[0]
        path = self.root / "packages" / package.replace("_", "-") / "src" / Path(*dotted.split("."))
        if path.is_dir():
            return path / "__init__.py"
        path.with_suffix(".py").touch()
        return path.with_suffix(".py")

    def write_import(self, importer: str, imported: str) -> None:
        if imported.startswith("omniq"):
            self.module(imported)
        file = self.module(importer)
        file.write_text(f"{file.read_text('utf-8')}\n\nimport {imported}\n", "utf-8")

    def lint(self) -> subprocess.CompletedProcess[str]:
        sources = [str(path) for path in sorted(self.root.glob("packages/*/src"))]
        command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        return subprocess.run(
            [sys.executable, "-c", command, "--no-cache"],
            cwd=self.root,
            # Before site-packages, where the same packages are installed from the real tree.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sources), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in ROOT.glob("packages/*/src"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / source.relative_to(ROOT), ignore=ignored)
    return Tree(tmp_path)


def test_our_tree_keeps_its_contracts(tree: Tree) -> None:
    run = tree.lint()
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("importer", "imported", "broken"),
    [
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
    ],
)
def test_an_upward_import_breaks_its_contract(tree: Tree, importer: str, imported: str, broken: str) -> None:
    tree.write_import(importer, imported)
    run = tree.lint()
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"{broken} BROKEN" in run.stdout
