"""Random histories of a backend, beside its model."""

from __future__ import annotations

import asyncio

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import Capability
from omniq_core.native import make_thread


@check(Capability.FENCED_SETTLE, slow=12, wide=True)
async def random_histories_agree_with_the_model(b: Bench) -> None:
    from omniq_conformance.histories import search  # here, as it loads a large library

    # A machine runs loops of its own, so it cannot run on this one; and nobody could stop a pool's thread.
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        error: BaseException | None = None
        try:
            search(b, b.suite.timeout_s)
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(_end, ended, error)

    make_thread(run, name="conformance: machine").start()
    await ended


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
