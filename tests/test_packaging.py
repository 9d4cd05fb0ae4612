"""What all distributions under packages/ have in common, read from their files: nothing is installed here."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {path.parent.name: path.parent for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECTS = {
    name: tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    for name, folder in PACKAGES.items()
}

each_package = pytest.mark.parametrize("name", PACKAGES)


def module_of(name: str) -> str:
    return name.replace("-", "_")


def is_ours(name: str) -> bool:
    return name == "omniq" or name.startswith("omniq-")


def requirements(name: str) -> list[Requirement]:
    """Every requirement of a distribution, those of its extras included."""
    lines = [*PROJECTS[name]["dependencies"]]
    for extra in PROJECTS[name].get("optional-dependencies", {}).values():
        lines += extra
    return [Requirement(line) for line in lines]


def contract(id_: str) -> dict[str, Any]:
    [found] = [c for c in WORKSPACE["tool"]["importlinter"]["contracts"] if c["id"] == id_]
    return found


BACKENDS = {
    module_of(n) for n, project in PROJECTS.items() if "omniq.backends" in project.get("entry-points", {})
}


def test_all_packages_carry_one_version() -> None:
    versions = {name: project["version"] for name, project in PROJECTS.items()}
    assert len(set(versions.values())) == 1, versions


@each_package
def test_a_sibling_is_asked_for_by_range(name: str) -> None:
    version = Version(PROJECTS[name]["version"])
    for requirement in requirements(name):
        if is_ours(canonicalize_name(requirement.name)):
            assert {spec.operator for spec in requirement.specifier} == {">=", "<"}, (
                f"{requirement}: `==` would force users to upgrade everything at once"
            )
            assert requirement.specifier.contains(version), f"{requirement} does not admit our own {version}"


@each_package
def test_no_requirement_could_bring_a_strangers_distribution(name: str) -> None:
    # The name `omniq` on the package index is not ours: what we name must be a folder here.
    for requirement in requirements(name):
        own = canonicalize_name(requirement.name)
        assert not is_ours(own) or own in PACKAGES, f"{requirement} is not in packages/"


@each_package
def test_extra_all_brings_what_the_other_extras_bring(name: str) -> None:
    extras: dict[str, list[str]] = PROJECTS[name].get("optional-dependencies", {})
    if extras:
        others = {line for extra, lines in extras.items() if extra != "all" for line in lines}
        assert set(extras["all"]) == others


@each_package
def test_a_package_has_its_readme_licence_and_type_marker(name: str) -> None:
    folder, project = PACKAGES[name], PROJECTS[name]
    assert project["name"] == name
    assert project["readme"] == "README.md"
    assert (folder / "README.md").read_text("utf-8").startswith(f"# {name}\n")
    assert project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    assert (folder / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")
    assert (folder / "src" / module_of(name) / "py.typed").is_file()
    assert project["requires-python"] == ">=3.11"


@each_package
def test_a_package_ships_one_import_name(name: str) -> None:
    # Flat siblings, no namespace package: two distributions never write into one folder.
    shipped = [path.name for path in (PACKAGES[name] / "src").iterdir() if not path.name.startswith(".")]
    assert shipped == [module_of(name)]


@each_package
def test_a_package_takes_nothing_private_from_a_sibling(name: str) -> None:
    own = {module_of(other) for other in PACKAGES if other != name}
    taken = []
    for path in (PACKAGES[name] / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for dotted in names:
                first, *rest = dotted.split(".")
                if first in own and any(part.startswith("_") and not part.endswith("__") for part in rest):
                    taken.append(f"{path.relative_to(ROOT)}:{node.lineno} {dotted}")
    assert not taken


def test_the_workspace_takes_every_package_from_its_folder() -> None:
    assert set(WORKSPACE["tool"]["uv"]["sources"]) == set(PACKAGES)


def test_every_package_stands_in_the_import_contracts() -> None:
    modules = {module_of(name) for name in PACKAGES}
    suite, core, workers = {"omniq_conformance"}, {"omniq_core"}, {"omniq_gevent"}
    assert set(WORKSPACE["tool"]["importlinter"]["root_packages"]) == modules
    assert set(WORKSPACE["tool"]["coverage"]["run"]["source_pkgs"]) == modules
    assert set(contract("core-imports-none-of-ours")["forbidden_modules"]) == modules - core
    assert set(contract("omniq-asks-the-registry")["forbidden_modules"]) >= BACKENDS | workers
    assert set(contract("backends-know-only-the-contract")["source_modules"]) == BACKENDS | suite
    assert set(contract("backends-are-strangers")["modules"]) == BACKENDS
    assert set(contract("suite-knows-one-backend")["forbidden_modules"]) == (BACKENDS | workers) - {
        "omniq_memory"
    }
    assert set(contract("only-tests-import-the-suite")["source_modules"]) == modules - suite
