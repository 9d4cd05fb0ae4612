"""Every check of the suite: its sentence, its topic, what it needs, and how much a failure matters.

A check is a coroutine function whose name is a sentence; ``test_`` + that name is the test that pytest shows. One that
needs a capability which the opened backend does not declare is not skipped: the capability's negative twin runs in its
place (see :mod:`omniq_conformance.twins`).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Literal

from omniq_core import Capability

if TYPE_CHECKING:
    from omniq_conformance.bench import Bench

__all__ = ["Check", "Level", "all_checks", "check", "manifest"]

Level = Literal["core", "extended"]
CheckFunction = Callable[["Bench"], Awaitable[None]]

_SAFETY = frozenset(
    {
        Capability.DURABLE,
        Capability.MULTI_PROCESS,
        Capability.MULTI_HOST,
        Capability.FENCED_SETTLE,
        Capability.ATOMIC_BATCH,
        Capability.ATOMIC_SETTLE,
        Capability.SERVER_CLOCK,
    }
)


@dataclass(frozen=True)
class Check:
    """One promise, as a test.

    Args:
        name: the sentence, as an identifier.
        topic: the file that it stands in.
        level: a deviation from a ``core`` check makes a backend non-conformant, from an ``extended`` one ``partial``.
        needs: the capabilities without which its twin runs instead.
        run: the check.
        real_time: it gets the machine's clock, since other processes or the backend's own waiting take part.
        slow: how many times a test's usual time it may take.
        wide: it pushes much data or many steps; self-tests of many backends leave it out.
    """

    name: str
    topic: str
    level: Level
    needs: tuple[Capability, ...]
    run: CheckFunction
    real_time: bool = False
    slow: float = 1.0
    wide: bool = False

    @property
    def test(self) -> str:
        """The name of its test."""
        return f"test_{self.name}"


_checks: dict[str, Check] = {}


def check(
    *needs: Capability, real_time: bool = False, slow: float = 1.0, wide: bool = False
) -> Callable[[CheckFunction], CheckFunction]:
    """Puts a coroutine function into the catalogue. One that needs no feature, only safety, is ``core``."""

    def put(function: CheckFunction) -> CheckFunction:
        name = getattr(function, "__name__")  # noqa: B009 - a Callable has no __name__ to a type checker
        if name in _checks:
            raise ValueError(f"two checks are called {name}")
        topic = function.__module__.rpartition(".")[2]
        level: Level = "core" if _SAFETY.issuperset(needs) else "extended"
        _checks[name] = Check(name, topic, level, needs, function, real_time, slow, wide)
        return function

    return put


@functools.cache
def all_checks() -> tuple[Check, ...]:
    """Every check, topic by topic in the order in which they should be read."""
    import omniq_conformance.checks  # noqa: F401 - importing a topic puts its checks into the catalogue

    return tuple(_checks.values())


@functools.cache
def manifest() -> dict[str, tuple[Level, str]]:
    """The tests that this version of the suite promises to run: test name -> level and topic.

    Read from a file that is shipped, not from the code that runs: a check that got lost is missed by name.
    """
    lines = resources.files("omniq_conformance").joinpath("manifest.txt").read_text("utf-8").splitlines()
    promised: dict[str, tuple[Level, str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            level, topic, name = line.split()
            promised[name] = ("core" if level == "core" else "extended", topic)
    return promised
