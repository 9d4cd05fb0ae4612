"""The suite accepts backends that promise less and keep it: one that rejects them teaches authors to skip."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

import pytest
from specimens.lesser import LESSER
from specimens.verdicts import Verdict

accepted: set[str] = set()


@pytest.mark.parametrize("lesser", LESSER)
def test_the_suite_accepts_an_honest_backend(
    lesser: str, trials: Mapping[tuple[str, str], Future[Verdict]]
) -> None:
    verdict = trials["lesser", lesser].result()
    assert not verdict.failed, f"an honest backend failed {len(verdict.failed)} of {verdict.checks} checks"
    if lesser.startswith("without "):
        name = lesser.removeprefix("without ")
        assert any(name in ran for ran in verdict.ran.values()), f"no check needs {name}"
    accepted.add(lesser)


def test_every_honest_backend_was_accepted(told: list[str]) -> None:
    told.append(f"omniq conformance: {len(accepted)} of {len(LESSER)} honest lesser backends accepted")
