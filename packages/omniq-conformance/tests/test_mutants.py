"""The suite rejects backends that break a promise: one that lets them pass is worth nothing."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

import pytest
from specimens.mutants_of_queues import MUTANTS
from specimens.verdicts import Verdict

Trials = Mapping[tuple[str, str], Future[Verdict]]
rejected: dict[str, str] = {}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_suite_rejects_a_backend_where(mutant: str, trials: Trials) -> None:
    verdict = trials["mutant", mutant].result()
    assert verdict.failed, (
        f"a backend where {mutant} passed all {verdict.checks} checks of {MUTANTS[mutant][1]}"
    )
    [(name, message)] = verdict.failed.items()
    assert verdict.clear, f"{name} rejected it with {message}, which tells an author nothing"
    rejected[mutant] = name


def test_every_mutant_was_rejected(told: list[str]) -> None:
    told.append(f"omniq conformance: {len(rejected)} of {len(MUTANTS)} mutants rejected, where")
    told.extend(f"  {what} <- {name}" for what, name in rejected.items())


@pytest.mark.parametrize(
    "by_chance",
    [
        "a task dies one crash before max_crashes",
        "RELEASE spends the attempt",
        "the unique key is looked at before the id",
        "a lower fence overwrites a result",
    ],
)
def test_random_histories_alone_reject_a_backend_where(by_chance: str, trials: Trials) -> None:
    verdict = trials["by_chance", by_chance].result()
    assert verdict.failed, "random histories are a net behind the net, and this one has a hole"
    [message] = verdict.failed.values()
    assert "the model" in message, message
