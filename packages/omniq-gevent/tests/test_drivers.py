"""A gevent worker in a patched process on each kind of storage, with real servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

PROGRAM = """
import asyncio, sys, time, gevent
from omniq import OmniQ, current_task
oq = OmniQ(sys.argv[1], worker_type="gevent")

@oq.task
def plain(number):
    time.sleep(0.02)
    return [number, current_task().task_id]

@oq.task
async def coroutine(number):
    await asyncio.sleep(0.02)
    return [number, current_task().task_id]

@oq.task(max_retries=1, retry_delay=0.01)
def fails(number):
    raise LookupError(number)

def check(task, number):
    handle = task.enqueue(number)
    found = handle.result(timeout=60)
    assert found == [number, handle.id], found
    return 1

with oq:
    oq.start_worker()
    calls = [gevent.spawn(check, (plain, coroutine)[number % 2], number) for number in range(400)]
    gevent.joinall(calls, raise_error=True)
    [failed] = [oq.get_result(oq.enqueue(fails, 1), timeout=60)]
    oq.stop_worker()
    report = oq.worker.report
    print(sum(call.value for call in calls), report.succeeded, report.retried, report.dead, report.stale)
    print(failed.status, failed.attempts, "in fails" in failed.error_traceback, "omniq" in failed.error_traceback)
"""
EXPECTED = "400 400 1 1 0\nerror 2 True False"
Patched = Callable[..., str]


def test_memory(patched: Patched) -> None:
    assert patched(PROGRAM, "memory://") == EXPECTED


def test_sqlite(patched: Patched, tmp_path: Path) -> None:
    assert patched(PROGRAM, f"sqlite:///{tmp_path}/tasks.db") == EXPECTED


@pytest.mark.slow
def test_redis(patched: Patched, redis_server: Any) -> None:
    assert patched(PROGRAM, redis_server.url) == EXPECTED


@pytest.mark.slow
def test_postgres(patched: Patched, postgres_server: Any) -> None:
    assert patched(PROGRAM, postgres_server.url) == EXPECTED


@pytest.mark.slow
def test_nats(patched: Patched, nats_server: Any) -> None:
    assert patched(PROGRAM, nats_server.url) == EXPECTED


def test_files(patched: Patched, tmp_path: Path) -> None:
    assert patched(PROGRAM, f"file://{tmp_path}/tasks") == EXPECTED


@pytest.mark.slow
def test_s3(patched: Patched, s3_server: Any, s3_bucket: str) -> None:
    key, secret = s3_server.login
    settings = urlencode({"endpoint_url": s3_server.endpoint, "key": key, "secret": secret})
    assert patched(PROGRAM, f"s3://{s3_bucket}/tasks?{settings}") == EXPECTED
