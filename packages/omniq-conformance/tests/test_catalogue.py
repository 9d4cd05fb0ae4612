"""The catalogue of checks is what the manifest promises, and knows no backend by name."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources
from pathlib import Path

import omniq_conformance
from omniq_conformance.catalogue import all_checks, manifest
from omniq_conformance.checks.data_edges import LONGEST, NASTY
from omniq_conformance.suite import TESTS
from omniq_conformance.twins import TWINS
from omniq_core import BACKENDS, Capability, check_name, check_task_id

SOURCE = Path(omniq_conformance.__file__).parent
NAMES = {
    "memory", "sqlite", "file", "postgres", "postgresql", "psycopg", "redis", "valkey", "nats", "jetstream", "s3",
    "mysql", "mongo", "kafka", "rabbitmq",
}  # fmt: skip


def test_the_manifest_lists_every_check_and_nothing_else() -> None:
    found = [f"{check.level} {check.topic} {check.test}" for check in all_checks()]
    promised = [f"{level} {topic} {name}" for name, (level, topic) in manifest().items()]
    assert found == promised, "run: python -m omniq_conformance list"


def test_core_and_extended_have_their_weight() -> None:
    levels = Counter(check.level for check in all_checks())
    assert levels["core"] >= 80
    assert levels["extended"] >= 60
    assert len(TESTS) == levels.total()


def test_every_capability_has_checks_or_cannot_be_probed() -> None:
    needed = {capability for check in all_checks() for capability in check.needs}
    # More than one machine is more than a test has; what several processes may do is checked.
    assert set(Capability) - needed == {Capability.MULTI_HOST}
    assert set(TWINS) == set(Capability)


def test_checks_are_sentences_without_docstrings() -> None:
    for check in all_checks():
        assert check.name.count("_") >= 2, f"{check.name} is no sentence"
        assert check.run.__doc__ is None, f"the name of {check.name} says it all"


def test_every_assertion_has_a_sentence() -> None:
    import ast

    bare = []
    for path in (SOURCE / "checks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assert) and node.msg is None:
                bare.append(f"{path.name}:{node.lineno}")
    assert not bare, "a failing check must tell the author what is wrong"


def test_the_suite_names_no_backend() -> None:
    names = NAMES | set(BACKENDS.names())
    pattern = re.compile(rf"\b({'|'.join(sorted(names))})\b|omniq_({'|'.join(sorted(names))})", re.IGNORECASE)
    # The servers beside the suites are no part of them: all that is imported of them is the proxy, which stands before any.
    files = [path for path in SOURCE.rglob("*.py") if "servers" not in path.relative_to(SOURCE).parts]
    found = []
    for path in files:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            for match in pattern.finditer(line):
                word = match[0].lower()
                if path.name == "histories.py" and word in {"memory", "omniq_memory"}:
                    continue  # its model
                if word == "file" or (word == "memory" and "omniq" not in line.lower()):
                    continue  # also words of the language
                found.append(f"{path.relative_to(SOURCE)}:{number} {match[0]}")
            imported = re.match(r"\s*(from|import) .*\bservers\b", line)
            assert not imported or "servers.proxy import" in line, f"{path.name}:{number} imports a server"
    assert not found


def test_nasty_names_are_allowed_and_all_different() -> None:
    assert len(set(NASTY + LONGEST)) == len(NASTY + LONGEST)
    for text in NASTY + LONGEST:
        assert check_name("queue name", text) == text
    for text in NASTY:
        assert check_task_id(text) == text


def test_the_shim_imports_nothing_of_the_suite() -> None:
    text = resources.files("omniq_conformance").joinpath("pytest_shim.py").read_text("utf-8")
    top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in top if "omniq" in line]
