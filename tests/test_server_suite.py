"""The suite for servers tells an honest backend from each that breaks one of its rules: here Redis', made dishonest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest

from omniq_conformance import ServerSuite, server_suite
from omniq_conformance.servers import ValkeyServer
from omniq_core import Capability, ErrorCode
from omniq_redis import RedisBackend
from omniq_redis.errors import CannotConnect
from omniq_redis.queue import RedisQueue
from omniq_redis.results import RedisResultStore

pytestmark = pytest.mark.slow  # servers are killed and frozen


class Trial(ServerSuite):
    __test__ = False

    def backend_at(self, url: str, namespace: str, *, patience_s: float = 10.0) -> RedisBackend:
        return RedisBackend.from_url(
            url, project_name=namespace, timeout_s=patience_s, connect_timeout_s=patience_s
        )


class Endless(Trial):
    __test__ = False

    def backend_at(self, url: str, namespace: str, *, patience_s: float = 10.0) -> RedisBackend:
        return super().backend_at(url, namespace, patience_s=60.0)


class Less(RedisBackend):
    async def open(self) -> None:
        await super().open()
        self.capabilities -= {Capability.QUERY, Capability.EVENTS, Capability.RESULTS}


class Lesser(Trial):
    __test__ = False

    def backend_at(self, url: str, namespace: str, *, patience_s: float = 10.0) -> RedisBackend:
        return Less.from_url(url, project_name=namespace, timeout_s=patience_s, connect_timeout_s=patience_s)


@pytest.fixture
def forgetful() -> Iterator[ValkeyServer]:
    """A server that keeps nothing when it is killed."""
    with ValkeyServer(settings={"save": "", "appendonly": "no"}) as server:
        yield server


@pytest.fixture(autouse=True)
def not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_suite, "AWHILE_S", 1.0)


get = RedisQueue.get


def sleeps(self: RedisQueue, queues: Sequence[str], *, timeout_s: float) -> Any:
    return asyncio.sleep(timeout_s, False)


async def gives_up(self: RedisResultStore, task_ids: Sequence[str], *, timeout_s: float) -> Any:
    await asyncio.sleep(0.1)
    return [None for _ in task_ids]


async def mixes_up(self: RedisQueue, task_ids: Sequence[str]) -> Any:
    """Whoever comes after a call that was cancelled is given its answer."""
    left = vars(self).setdefault("left", [])
    try:
        answer = await get(self, task_ids)
    except asyncio.CancelledError:
        left.append(task_ids)
        raise
    return await get(self, left.pop()) if left else answer


def says_nothing_was_done(self: RedisBackend, error: BaseException) -> ErrorCode:
    return ErrorCode.UNAVAILABLE


async def opens_in_silence(self: RedisBackend) -> None:
    await asyncio.sleep(0)
    raise CannotConnect("no server")


KILLED = (
    Trial.test_what_was_acknowledged_and_nothing_else_is_there_after_the_server_was_killed_again_and_again
)
FROZEN = Trial.test_a_frozen_server_hangs_nobody_and_everything_goes_on_when_it_thaws
WAITS = Trial.test_who_waits_for_tasks_is_woken_when_the_server_dies_and_hears_again_when_it_is_back
RESULT = Trial.test_who_waits_for_a_result_hears_of_it_after_its_connections_were_cut
MIXED = Trial.test_cancelled_calls_never_mix_up_the_answers_of_others
AWAY = Trial.test_a_server_that_is_not_there_is_told_in_time_and_by_its_address


def test_a_server_that_forgets_what_it_acknowledged_is_found_out(forgetful: ValkeyServer) -> None:
    with pytest.raises(AssertionError, match=r"an acknowledged task is gone|handed out twice|was answered"):
        KILLED(Trial(), forgetful, "forgetful")


def test_a_backend_that_can_do_less_and_says_so_is_accepted(
    valkey_server: ValkeyServer, valkey_server_durable: ValkeyServer
) -> None:
    KILLED(Lesser(), valkey_server_durable, "lesser")
    FROZEN(Lesser(), valkey_server, "lesser")
    with pytest.raises(pytest.skip.Exception, match="no results"):
        RESULT(Lesser(), valkey_server, "lesser")


@pytest.mark.parametrize("check", [FROZEN, AWAY])
def test_a_backend_that_hangs_is_found_out(check: Callable[..., None], valkey_server: ValkeyServer) -> None:
    with pytest.raises((AssertionError, TimeoutError)):
        check(Endless(), valkey_server, "endless")


@pytest.mark.parametrize(
    ("check", "fault", "complaint"),
    [
        (FROZEN, patch.object(RedisBackend, "classify", says_nothing_was_done), "may yet be done"),
        (WAITS, patch.object(RedisQueue, "wait", sleeps), None),
        (RESULT, patch.object(RedisResultStore, "wait", gives_up), "it waited no longer"),
        (MIXED, patch.object(RedisQueue, "get", mixes_up), "an answer of another call"),
        (AWAY, patch.object(RedisBackend, "open", opens_in_silence), "which server"),
    ],
)
def test_a_backend_that_breaks_a_rule_is_found_out(
    check: Callable[..., None],
    fault: AbstractContextManager[object],
    complaint: str | None,
    valkey_server: ValkeyServer,
) -> None:
    with fault, pytest.raises((AssertionError, TimeoutError), match=complaint):
        check(Trial(), valkey_server, "broken")
