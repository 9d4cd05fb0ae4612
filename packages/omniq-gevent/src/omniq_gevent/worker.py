"""The worker type ``gevent``.

The engine has a thread of the system to itself, so claiming, settling and leases go on whatever greenlets do. Plain functions
run in greenlets of the hub of the thread that started the worker: in a process that was patched, that is where the program's
sockets and locks are at home. Async functions run on an event loop in one more thread.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import gevent.hub

from omniq.runners.runner import Runner
from omniq.workers import Worker
from omniq_core.native import is_patched
from omniq_gevent.runner import GreenletRunner

__all__ = ["GeventWorker"]

log = logging.getLogger("omniq.worker")


class GeventWorker(Worker):
    """Runs plain functions in greenlets, and async ones on an event loop of their own. See :class:`~omniq.workers.Worker`
    for the parameters; ``max_workers`` is how many greenlets run at once, by default ``OMNIQ_GEVENT_WORKERS``, else 100.

    The process should be patched (``gevent.monkey.patch_all()``, before anything else is imported; the command
    ``omniq-gevent worker`` does it). In one that is not, greenlets have a hub in a thread of its own, and a function that
    waits by way of the standard library stops all the others.
    """

    worker_type: ClassVar[str] = "gevent"
    runs_apart: ClassVar[bool] = True

    def make_runner(self) -> Runner:
        """See :class:`~omniq.workers.Worker`."""
        if is_patched():
            return GreenletRunner(gevent.hub.get_hub())
        log.warning(
            "this process is not patched by gevent, so a task that sleeps or waits for a socket stops all others: start "
            "the worker with omniq-gevent worker, or call gevent.monkey.patch_all() before anything else is imported"
        )
        return GreenletRunner()
