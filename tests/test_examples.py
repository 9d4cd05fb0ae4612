"""Every example runs, as its README says, from a folder of its own; notebooks run inside an event loop, as Jupyter's do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

CELLS = """
import ast, asyncio, json, sys

async def main(path):
    names = {"__name__": "__main__"}
    for cell in json.load(open(path))["cells"]:
        if cell["cell_type"] == "code":
            code = compile("".join(cell["source"]), path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            waiting = eval(code, names)
            if waiting is not None:
                await waiting

asyncio.run(main(sys.argv[1]))
"""


def run(*command: str, folder: Path, timeout: float = 120) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PYTHONWARNINGS": "error::RuntimeWarning"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "never awaited" not in done.stderr, done.stderr
    return done.stdout


def test_the_quickstart_adds_up(tmp_path: Path) -> None:
    out = run(str(EXAMPLES / "quickstart" / "run.py"), folder=tmp_path)
    assert "The numbers add up." in out
    assert not list(tmp_path.iterdir())  # it cleans up after itself


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "01_basic_usage/basic_usage.py",
            ["multiply: 42", "not yet: None", "later: 12", "['<a>', '<b>', '<c>']"],
        ),
        (
            "02_component_based_usage/component_usage.py",
            ["started in this order: high, medium, low", "it is fine, async"],
        ),
        (
            "03_backend_based_usage/backend_usage.py",
            ["one backend: 1024", "several backends: 81", "async: 49"],
        ),
    ],
)
def test_a_script_prints_what_it_promises(tmp_path: Path, script: str, expected: list[str]) -> None:
    out = run(str(EXAMPLES / script), folder=tmp_path)
    for line in expected:
        assert line in out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(tmp_path: Path, path: Path) -> None:
    run("-c", CELLS, str(path), folder=tmp_path)


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "packages/omniq/README.md", *sorted(EXAMPLES.glob("*/README.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_python_of_a_readme_runs_as_it_stands(tmp_path: Path, path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    outputs = []
    for number, block in enumerate(blocks):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "app.py").write_text(block, "utf-8")
        outputs.append(run("app.py", folder=folder))
    if path == ROOT / "README.md":
        assert outputs == ["3\n", "4\n"]
