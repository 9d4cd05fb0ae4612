"""The suite accepts backends that promise less and keep it: one that rejects them teaches authors to skip."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
from omniq_core import Capability
from specimens.lesser import LESSER
from specimens.verdicts import Verdict, try_lesser, try_unchanged

accepted: set[str] = set()


@pytest.fixture(scope="module")
def trials(pool: ProcessPoolExecutor, request: pytest.FixtureRequest) -> Mapping[str, Future[Verdict]]:
    chosen = [item.callspec.params["what"] for item in request.session.items if hasattr(item, "callspec")]
    longest_first = sorted(LESSER, key=lambda what: what != "in real time")
    return {what: pool.submit(try_lesser, what) for what in longest_first if what in chosen}


def test_the_unchanged_specimen_is_accepted(pool: ProcessPoolExecutor) -> None:
    assert not pool.submit(try_unchanged).result().failed, "the mutants may die of something else"


@pytest.mark.parametrize("what", LESSER)
def test_the_suite_accepts_an_honest_backend(what: str, trials: Mapping[str, Future[Verdict]]) -> None:
    verdict = trials[what].result()
    assert not verdict.failed, f"an honest backend {what} failed {len(verdict.failed)} of {verdict.checks} checks"
    if what.startswith("without "):
        name = what.removeprefix("without ")
        ran = {ran for ran in verdict.ran.values() if name in ran}
        assert ran, f"no check needs {name}, so nothing holds a backend to it"
        assert Capability[name]
    accepted.add(what)


def test_every_honest_backend_was_accepted(told: list[str]) -> None:
    told.append(f"omniq conformance: {len(accepted)} of {len(LESSER)} honest lesser backends accepted")
