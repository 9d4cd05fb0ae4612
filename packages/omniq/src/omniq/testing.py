"""Helpers for the tests of programs that use OmniQ.

::

    def test_a_welcome_mail_is_sent():
        oq = OmniQ("memory://")
        sign_up(oq, "a@example.org")
        report = run_until_idle(oq)
        assert report.succeeded == 1
"""

from __future__ import annotations

from typing import Any, overload

from omniq.app import AsyncOmniQ
from omniq.portal import run_sync
from omniq.sync import OmniQ
from omniq_core import WorkerReport

__all__ = ["run_until_idle"]


@overload
def run_until_idle(oq: OmniQ, **worker_config: Any) -> WorkerReport: ...


@overload
async def run_until_idle(oq: AsyncOmniQ, **worker_config: Any) -> WorkerReport: ...


def run_until_idle(oq: OmniQ | AsyncOmniQ, **worker_config: Any) -> Any:
    """Runs everything that is due, with what it enqueues in turn, and returns; to be awaited with an ``AsyncOmniQ``. Tasks
    that are not due yet stay where they are.

    Args:
        oq: the program.
        worker_config: of the worker that does it, see :class:`~omniq.workers.Worker`.

    Returns:
        what the worker did.
    """
    if isinstance(oq, AsyncOmniQ):
        return oq.make_worker(worker_config=worker_config).run(burst=True)
    return run_sync(oq.aio.make_worker(worker_config=worker_config).run(burst=True))
