"""The class that an author subclasses, and the tests that it gets from the catalogue."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from omniq_conformance.bench import Bench, Chance, NotOffered, bench_of
from omniq_conformance.catalogue import Check, all_checks
from omniq_conformance.env import Env, Unavailable
from omniq_conformance.guard import run_guarded
from omniq_conformance.twins import TWINS
from omniq_core import Backend, Capability, Health, Unsupported

__all__ = ["BackendSuite", "Facts", "run_check"]

MIN_REASON = 15
"""Shortest reason for a known deviation: a word explains nothing."""


@dataclass
class Facts:
    """What the suite saw of a backend, for the report."""

    backend: type[Backend]
    capabilities: frozenset[Capability]
    absent: Mapping[Capability, str]
    health: Health | None = None


class BackendSuite:
    """Everything that a backend must do, as tests. Subclass it, write :meth:`backend`, and let pytest collect it::

        class TestAcme(BackendSuite):
            @asynccontextmanager
            async def backend(self, env):
                yield AcmeBackend(folder=str(env.tmp_path / "acme"), clock=env.clock)

    The tests are the suite's: a subclass that overrides or removes one is refused at collection. Further tests of the
    author's own may stand beside them.
    """

    __test__ = False

    controllable_clock: ClassVar[bool] = True
    """Whether ``backend`` passes on ``env.clock``: then the suite moves time instead of letting it pass. Ignored where
    the opened backend declares ``SERVER_CLOCK``."""
    short_lease_s: ClassVar[float] = 0.3
    """How long a lease or a delay lasts where real time must pass. Longer for a server that is slow or far."""
    timeout_s: ClassVar[float] = 10.0
    """How long one test may take. A test that hangs is stopped from outside and fails."""
    histories: ClassVar[int] = 30
    """How many random histories a run tries unless ``--omniq-examples`` says. Fewer for a server on which they would take
    minutes, or where the same driver code has its thirty elsewhere."""
    known_deviations: ClassVar[Mapping[str, str]] = {}
    """Tests that fail, and why: name -> a reason of at least 15 characters, ideally with a link. Strict: the reason is
    refused once the test passes."""

    facts: ClassVar[Facts | None] = None

    # --- the author's part --------------------------------------------------------------------------------------

    @abstractmethod
    def backend(self, env: Env, /) -> AbstractAsyncContextManager[Backend]:
        """A new, *closed* backend on the storage that ``env.namespace`` and ``env.tmp_path`` name; an
        ``@asynccontextmanager`` that yields it and afterwards removes what it left on a shared server.

        It is called again and again, also twice for one ``env``: then both backends must see the same storage.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say how its backend is made: def backend(self, env)"
        )

    def url_for(self, env: Env, /) -> str:
        """The URL of the storage that ``backend(env)`` uses, for other processes. Needed with ``MULTI_PROCESS``."""
        raise NotImplementedError(
            f"the backend declares MULTI_PROCESS, so {type(self).__name__} must tell other processes where its "
            "storage is: def url_for(self, env)"
        )

    def transaction(self, env: Env, /) -> AbstractAsyncContextManager[object]:
        """A transaction of the backend's client library on that storage: committed at the end of the block, rolled
        back if it raises. Needed with ``TX_ENQUEUE``."""
        raise NotImplementedError(
            f"the backend declares TX_ENQUEUE, so {type(self).__name__} must open transactions: "
            "def transaction(self, env)"
        )

    async def restart(self, env: Env, /) -> None:
        """Restarts the server, as after a crash; returns when it answers again. Optional: makes more fault tests run."""
        raise NotImplementedError

    async def drop_connections(self, env: Env, /) -> None:
        """Cuts the connections of every client to the server. Optional: makes more fault tests run."""
        raise NotImplementedError

    def native_errors(self) -> Mapping[BaseException, str]:
        """Exceptions of the client library, and the error code that ``classify`` must give to each. Optional."""
        return {}

    # --- the suite's part ---------------------------------------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.facts = None
        # `__test__ = False` is inherited: each subclass is collected unless it says otherwise itself.
        if "__test__" not in vars(cls):
            cls.__test__ = True
        refuse_cheating(cls)


def refuse_cheating(cls: type[BackendSuite]) -> None:
    """Raises unless every test of the class is the suite's own, and every deviation is named and explained.

    Raises:
        pytest.UsageError: a test was overridden, replaced or removed; a deviation has no reason.
    """
    for name, test in TESTS.items():
        if getattr(cls, name, None) is not test or getattr(BackendSuite, name, None) is not test:
            raise pytest.UsageError(
                f"{cls.__name__} overrides or removes {name}, which is the suite's. If the backend deviates, say so: "
                f'known_deviations = {{"{name}": "why, in at least {MIN_REASON} characters"}}'
            )
    for name, reason in cls.known_deviations.items():
        if name not in TESTS:
            raise pytest.UsageError(
                f"{cls.__name__}.known_deviations names {name!r}, which is no test of the suite"
            )
        if len(str(reason).strip()) < MIN_REASON:
            raise pytest.UsageError(
                f"{cls.__name__}.known_deviations[{name!r}] needs a reason of at least {MIN_REASON} characters, "
                f"got {reason!r}"
            )


def run_check(suite: BackendSuite, check: Check, tmp_path: Path, chance: Chance = Chance()) -> str:  # noqa: B008 - frozen
    """Runs one check, or the negative twin of the capability that it lacks, on a new storage.

    Returns:
        What ran: ``"check"``, ``"twin of CANCEL"``, or ``"not claimed: DURABLE"`` for what cannot be probed.
    """
    __tracebackhide__ = True
    ran = "check"

    async def main() -> None:
        nonlocal ran
        __tracebackhide__ = True
        manual = suite.controllable_clock and not check.real_time
        async with bench_of(suite, Env(tmp_path, manual=manual), chance) as bench:
            await _note(suite, bench)
            lacking = [capability for capability in check.needs if capability not in bench.capabilities]
            if not lacking:
                try:
                    await check.run(bench)
                except NotOffered as what:
                    ran = f"{'not run' if what.needed else 'not offered'}: {what}"
                except Unsupported as error:
                    name = error.capability.name
                    declared = (
                        "is declared" if error.capability in bench.capabilities else "is not needed here"
                    )
                    raise AssertionError(
                        f"{name} {declared}, and a call was refused with: {error}"
                    ) from error
                return
            twin = TWINS[lacking[0]]
            ran = f"twin of {lacking[0].name}" if twin else f"not claimed: {lacking[0].name}"
            if twin is not None:
                await twin(bench)

    run_guarded(main, timeout_s=suite.timeout_s * check.slow, what=check.test)
    return ran


async def _note(suite: BackendSuite, bench: Bench) -> None:
    cls = type(suite)
    if cls.facts is None:
        backend = bench.backend
        cls.facts = Facts(type(backend), backend.capabilities, dict(backend.absent))
        try:
            async with asyncio.timeout(2.0):
                cls.facts.health = await backend.check()
        except Exception:  # only for the report; a check of its own fails with the reason
            cls.facts.health = None


def _test_of(check: Check) -> Callable[..., None]:
    def test(
        self: BackendSuite,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        record_property: Callable[[str, object], None],
    ) -> None:
        __tracebackhide__ = True

        def option(name: str, default: Any) -> Any:
            return request.config.getoption(name, default)

        given = option("--omniq-examples", None)
        histories = self.histories if given is None else given
        chance = Chance(histories, repeatable=not option("--omniq-random", False))
        try:
            ran = run_check(self, check, tmp_path, chance)
        except Unavailable as missing:
            if option("--omniq-allow-unavailable", False):
                record_property("omniq_unavailable", str(missing))
                pytest.skip(f"unavailable: {missing}")
            pytest.fail(
                f"unavailable: {missing}. A missing service is a failure; --omniq-allow-unavailable makes the "
                "verdict 'incomplete' instead",
                pytrace=False,
            )
        record_property("omniq_ran", ran)

    test.__name__ = check.test
    test.__qualname__ = f"BackendSuite.{check.test}"
    return test


TESTS: dict[str, Callable[..., None]] = {check.test: _test_of(check) for check in all_checks()}
for _name, _test in TESTS.items():
    setattr(BackendSuite, _name, _test)
