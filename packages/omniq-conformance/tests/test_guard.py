"""Nothing that a backend does can hang the run."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from omniq_conformance import guard
from omniq_conformance.guard import TookTooLong, run_guarded


@pytest.fixture(autouse=True)
def _forget_what_was_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "OBEY_S", 0.2)
    monkeypatch.setattr(guard, "_left_behind", 0)


def test_a_result_and_an_exception_come_back() -> None:
    async def fine() -> None:
        await asyncio.sleep(0)

    async def broken() -> None:
        raise LookupError("broken")

    run_guarded(fine, timeout_s=5, what="fine")
    with pytest.raises(LookupError, match="broken"):
        run_guarded(broken, timeout_s=5, what="broken")


def test_a_skip_comes_back_as_a_skip() -> None:
    async def skipping() -> None:
        pytest.skip("not today")

    with pytest.raises(pytest.skip.Exception):
        run_guarded(skipping, timeout_s=5, what="skipping")


def test_a_coroutine_that_waits_for_ever_fails_and_shows_where() -> None:
    async def waiting() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TookTooLong, match=r"(?s)waiting did not end within 0.1 s.*in waiting"):
        run_guarded(waiting, timeout_s=0.1, what="waiting")


def test_a_coroutine_that_swallows_its_cancellation_fails() -> None:
    free = threading.Event()

    async def stubborn() -> None:
        while not free.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    started = time.monotonic()
    with pytest.raises(TookTooLong):
        run_guarded(stubborn, timeout_s=0.1, what="stubborn")
    assert time.monotonic() - started < 5
    free.set()


def test_a_blocked_event_loop_fails_and_shows_where() -> None:
    lock = threading.Lock()
    lock.acquire()

    async def blocked() -> None:
        lock.acquire()

    started = time.monotonic()
    with pytest.raises(TookTooLong, match=r"(?s)blocked its event loop.*in blocked"):
        run_guarded(blocked, timeout_s=0.1, what="blocked")
    assert time.monotonic() - started < 5
    assert guard._left_behind == 1
    lock.release()
