"""Tries specimens in other processes, several at once: much of a suite's time is waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass

from omniq_conformance.guard import TookTooLong
from specimens import mutants_of_features
from specimens.lesser import LESSER, Plain
from specimens.mutants_of_queues import MUTANTS
from specimens.trial import Specimen, hold, of_topics

assert mutants_of_features  # importing it adds its mutants


@dataclass(frozen=True)
class Verdict:
    """What became of one specimen, in words that cross a process boundary."""

    checks: int
    failed: dict[str, str]
    ran: dict[str, str]
    clear: bool
    """Whether every failure is an assertion with a sentence."""
    seconds: float


def try_specimen(kind: str, what: str) -> Verdict:
    """Tries a mutant on the topics that must notice it, or by random histories alone, or a lesser one on everything."""
    if kind == "mutant":
        backend, topics = MUTANTS[what]
        return _try(backend, topics, fail_fast=True, timeout_s=4.0)
    if kind == "by_chance":
        return _try(MUTANTS[what][0], ("machine",), timeout_s=1.0, examples=30)
    backend = LESSER[what]
    return _try(backend, (), controllable_clock=backend is not Plain, timeout_s=15.0)


def _try(backend: type[Specimen], topics: tuple[str, ...], **how: object) -> Verdict:
    started = time.monotonic()
    trial = hold(backend, of_topics(*topics), **how)  # type: ignore[arg-type]
    failed = {name: f"{type(error).__name__}: {error}" for name, error in trial.failed.items()}
    clear = all(
        isinstance(error, TookTooLong) or (isinstance(error, AssertionError) and str(error))
        for error in trial.failed.values()
    )
    return Verdict(len(trial.ran) + len(failed), failed, trial.ran, clear, time.monotonic() - started)
