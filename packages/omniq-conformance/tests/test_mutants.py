"""The suite rejects backends that break a promise: one that lets them pass is worth nothing."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
from specimens.mutants_of_queues import MUTANTS
from specimens.verdicts import Verdict, try_mutant

rejected: dict[str, str] = {}


@pytest.fixture(scope="module")
def trials(pool: ProcessPoolExecutor, request: pytest.FixtureRequest) -> Mapping[str, Future[Verdict]]:
    chosen = [item.callspec.params["what"] for item in request.session.items if hasattr(item, "callspec")]
    return {what: pool.submit(try_mutant, what) for what in MUTANTS if what in chosen}


@pytest.mark.parametrize("what", MUTANTS)
def test_the_suite_rejects_a_backend_where(what: str, trials: Mapping[str, Future[Verdict]]) -> None:
    verdict = trials[what].result()
    assert verdict.failed, f"a backend where {what} passed all {verdict.checks} checks of {MUTANTS[what][1]}"
    [(name, message)] = verdict.failed.items()
    assert verdict.clear, f"{name} rejected it with {message}, which tells an author nothing"
    rejected[what] = name


def test_every_mutant_was_rejected(told: list[str]) -> None:
    told.append(f"omniq conformance: {len(rejected)} of {len(MUTANTS)} mutants rejected, where")
    told.extend(f"  {what} <- {name}" for what, name in rejected.items())
