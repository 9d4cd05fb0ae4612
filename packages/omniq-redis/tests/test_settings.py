"""What the settings of the backend and of its server mean, and that secrets stay secrets."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omniq_conformance.hand import Hand
from omniq_conformance.load import until
from omniq_conformance.servers import ValkeyServer
from omniq_core import (
    Capability,
    ErrorCode,
    Event,
    EventFilter,
    Health,
    Loss,
    OptionError,
    Outcome,
    ResultRecord,
    SchemaOutOfDate,
    Settlement,
    Severity,
    TaskFilter,
    TaskState,
    TooLarge,
    Url,
    Verb,
)
from omniq_redis import RedisBackend, RedisOptions
from omniq_redis.errors import Refused
from omniq_redis.keys import prefix

Make = Callable[..., RedisBackend]
Blocked = Callable[..., Awaitable[None]]
README = Path(__file__).parents[1] / "README.md"


@contextmanager
def server_with(server: ValkeyServer, **settings: str) -> Iterator[None]:
    """The server with other settings, for a moment."""
    names = {name: name.replace("_", "-") for name in settings}
    before = {name: server.setting(name) for name in names.values()}
    for name, value in settings.items():
        server.command("CONFIG", "SET", names[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            server.command("CONFIG", "SET", name, value)


async def look(backend: RedisBackend) -> tuple[Health, bool, str]:
    async with backend:
        health = await backend.check()
        durable = Capability.DURABLE in backend.capabilities
        return health, durable, backend.absent.get(Capability.DURABLE, "")


# --- durability --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "killed", "power_cut", "window_s"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, Loss.NONE, Loss.NONE, None),
        ({"appendonly": "yes", "appendfsync": "everysec"}, Loss.WINDOW, Loss.WINDOW, 2.0),
        ({"appendonly": "yes", "appendfsync": "no"}, Loss.NONE, Loss.WINDOW, 30.0),
        ({"appendonly": "no", "save": "3600 1 60 100"}, Loss.WINDOW, Loss.WINDOW, 3600.0),
        ({"appendonly": "no", "save": ""}, Loss.ALL, Loss.ALL, None),
    ],
)
def test_durability_is_what_the_servers_own_settings_give(
    valkey_server: ValkeyServer,
    backend_at: Make,
    settings: dict[str, str],
    killed: Loss,
    power_cut: Loss,
    window_s: float | None,
) -> None:
    with server_with(valkey_server, **settings):
        health, durable, reason = asyncio.run(look(backend_at(valkey_server.url)))
    found = health.durability
    assert (found.server_killed, found.power_cut, found.window_s) == (killed, power_cut, window_s)
    assert durable is (settings.get("appendfsync") == "always"), (
        "only 'always' loses nothing when a server is killed"
    )
    assert durable or ("append" in reason and any("append" in f.message for f in health.findings))


def test_a_server_that_may_throw_tasks_away_is_an_error(
    valkey_server: ValkeyServer, backend_at: Make
) -> None:
    health, _, _ = asyncio.run(look(backend_at(valkey_server.url)))
    assert not [finding for finding in health.findings if finding.severity is Severity.ERROR]
    with server_with(valkey_server, maxmemory_policy="allkeys-lru"):
        health, _, _ = asyncio.run(look(backend_at(valkey_server.url)))
    [finding] = [finding for finding in health.findings if finding.severity is Severity.ERROR]
    assert "allkeys-lru" in finding.message
    assert "noeviction" in finding.advice


def test_a_full_server_refuses_new_tasks_and_lets_running_ones_end(
    valkey_server: ValkeyServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(valkey_server.url) as backend:
            queue = backend.queue()
            await queue.enqueue(Hand.records(1))
            [claim] = await queue.claim(["q"], max_tasks=1, lease_s=60, worker_id="w", claim_id="c")
            with server_with(valkey_server, maxmemory="1mb"):
                with pytest.raises(Refused, match="OOM") as full:
                    await queue.enqueue(Hand.records(1))
                assert backend.classify(full.value) is ErrorCode.EXHAUSTED
                assert (await queue.extend([claim.lease], lease_s=60))[0].outcome is Outcome.OK
                done = [Settlement(claim.lease, Verb.SUCCEED, result=b"r")]
                assert await queue.settle(done) == [Outcome.OK]

    asyncio.run(main())


# --- rights ------------------------------------------------------------------------------------------------------


@contextmanager
def user_of_the_readme(server: ValkeyServer, project: str, *without: str) -> Iterator[str]:
    """Makes the user that the README describes; gives a URL with its password."""
    [recipe] = re.findall(r"^ACL SETUSER [^`]*", README.read_text("utf-8"), re.MULTILINE)
    name, password = f"user-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    words = [
        word.replace("PROJECT", project).replace("PASSWORD", password)
        for word in recipe.split()
        if word not in without
    ]
    words[2] = name
    server.command(*words)
    try:
        yield server.url.replace("://", f"://{name}:{password}@")
    finally:
        server.command("ACL", "DELUSER", name)


def test_the_user_of_the_readme_can_do_everything_and_only_in_its_project(
    valkey_server: ValkeyServer, backend_at: Make, project: str, blocked: Blocked
) -> None:
    async def main(url: str) -> None:
        backend = backend_at(url)
        assert await backend.setup()
        assert not (await backend.setup())
        async with backend:
            queue, results, events = backend.queue(), backend.result_store(), backend.event_store()
            plain = Hand.records(3)
            await queue.enqueue(plain)
            await queue.enqueue(
                Hand.records(2, unique_key="k", ttl_s=60.0) + Hand.records(1, delay_s=0.001, priority=3)
            )
            assert await queue.wait(["q"], timeout_s=1)
            found = await queue.claim(["q"], max_tasks=9, lease_s=60, worker_id="w", claim_id="c")
            assert found == await queue.claim(["q"], max_tasks=9, lease_s=60, worker_id="w", claim_id="c")
            waiting = asyncio.ensure_future(results.wait([plain[0].id], timeout_s=5))
            await until(lambda: valkey_server.command("PUBSUB", "SHARDCHANNELS", prefix(project) + "*"))
            verbs = [Verb.SUCCEED, Verb.RETRY, Verb.DEAD, Verb.RELEASE, Verb.CANCEL]
            ends = [
                Settlement(c.lease, verb, reason="x", result=b"r" if verb is Verb.SUCCEED else None)
                for c, verb in zip(found, verbs, strict=False)
            ]
            by_id = {c.task_id: c for c in found}
            first = by_id.pop(plain[0].id)
            await queue.settle([Settlement(first.lease, Verb.SUCCEED, result=b"r")])
            [result] = await waiting
            assert result is not None
            assert result.body == b"r"
            await queue.settle([end for end in ends if end.lease.task_id in by_id])
            await queue.extend([first.lease], lease_s=60)
            await queue.cancel([r.id for r in plain])
            await queue.requeue([r.id for r in plain])
            await queue.claim(["q"], max_tasks=1, lease_s=0.05, worker_id="w", claim_id="d")
            while not (await queue.maintain()).moved:
                await queue.wait(["nothing"], timeout_s=0.01)
            await queue.query(TaskFilter())
            await queue.stats(["q"])
            await queue.queue_names()
            await queue.pause(["q"])
            await queue.resume(["q"])
            await queue.purge(TaskFilter())
            assert await queue.wait(["idle"], timeout_s=0.01) is False
            await results.put([ResultRecord("r", 1, TaskState.DEAD)])
            await results.delete(["r"])
            tail = aiter(events.tail(EventFilter()))
            following = asyncio.ensure_future(anext(tail))
            await blocked(valkey_server, command="xread")
            await events.append([Event("e", "t", "x", 1.0)])
            assert (await following).id == "e"
            await tail.aclose()  # type: ignore[attr-defined]
            await events.truncate(before=2.0)
            assert (await backend.check()).durability.server_killed is not Loss.UNKNOWN
        stranger = RedisBackend.from_url(url, project_name="other")
        with pytest.raises(Refused, match="NOPERM") as refused:
            await stranger.open()
        assert stranger.classify(refused.value) is ErrorCode.PERMISSION

    with user_of_the_readme(valkey_server, project) as url:
        asyncio.run(main(url))


def test_without_a_look_at_the_servers_settings_durability_is_unknown(
    valkey_server: ValkeyServer, backend_at: Make, project: str
) -> None:
    with (
        server_with(valkey_server, appendonly="yes", appendfsync="always"),
        user_of_the_readme(valkey_server, project, "+config|get") as url,
    ):
        health, durable, reason = asyncio.run(look(backend_at(url)))
    assert health.durability.server_killed is Loss.UNKNOWN
    assert not durable
    assert "CONFIG GET" in reason
    with user_of_the_readme(valkey_server, project, "+config|get", "+info", "+command|info") as url:
        health, durable, reason = asyncio.run(look(backend_at(url)))
    assert not durable
    assert "INFO" in reason
    assert health.server


def test_a_missing_right_to_subscribe_is_told_and_does_not_spin(
    valkey_server: ValkeyServer, backend_at: Make, project: str
) -> None:
    async def main(url: str) -> None:
        async with backend_at(url) as backend:
            with pytest.raises(Refused, match="NOPERM"):
                await backend.result_store().wait(["x"], timeout_s=2)
            assert await backend.result_store().get(["x"]) == [None], "the common connection is not affected"

    with user_of_the_readme(valkey_server, project, "+ssubscribe") as url:
        asyncio.run(main(url))


def test_a_password_is_shown_nowhere(
    valkey_server: ValkeyServer, backend_at: Make, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with user_of_the_readme(valkey_server, project) as url:
        password = str(Url.parse(url).password.reveal())  # type: ignore[union-attr]

        async def main() -> str:
            shown = []
            backend = backend_at(url)
            async with backend:
                shown += [
                    repr(backend),
                    repr(backend.config),
                    repr(backend.options),
                    repr(await backend.check()),
                ]
                shown.append(repr(valkey_server.command("CLIENT", "LIST")))
            wrong = backend_at(url.replace("@", "x@"), sentinel_password=password)
            with pytest.raises(Refused, match="WRONGPASS") as refused:
                await wrong.open()
            assert wrong.classify(refused.value) is ErrorCode.PERMISSION
            away = backend_at(url.replace(str(valkey_server.port), "1"))
            with pytest.raises(Exception, match="127") as nobody:
                await away.open()
            return "\n".join([*shown, repr(refused.value), repr(nobody.value), repr(nobody.value.__cause__)])

        shown = asyncio.run(main(), debug=True)
    assert password not in shown + caplog.text
    with pytest.raises(OptionError) as bad:
        RedisBackend.from_url(f"redis://u:{password}@h/0?prot=1")
    assert password not in str(bad.value)


# --- options -----------------------------------------------------------------------------------------------------


def test_a_url_says_where_and_how_to_connect() -> None:
    def options(url: str) -> RedisOptions:
        found = RedisBackend.from_url(url).options
        assert isinstance(found, RedisOptions)
        return found

    plain = options("redis://example.org:1234/5?timeout_s=2&project_name=shop")
    assert (plain.host, plain.port, plain.db, plain.timeout_s, plain.tls) == (
        "example.org",
        1234,
        5,
        2.0,
        False,
    )
    assert plain.describe() == "redis://example.org:1234/5 project shop"
    assert options("valkey://h").port == 6379
    safe = options("rediss://u:p@h?ssl_ca_certs=/ca.pem")
    assert (safe.tls, safe.tls_ca_file, safe.username) == (True, "/ca.pem", "u")
    many = options("redis://u:p@a:1,b:2/0?sentinel_master=m")
    assert many.addresses == [("a", 1), ("b", 2)]
    assert many.sentinel_master == "m"
    assert options("redis://[::1]:7/").addresses == [("::1", 7)]


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/notanumber",
        "redis://h/1?cluster=true",
        "redis://a:1,b/0?cluster=true",
        "redis://h?timeout_s=0",
        "redis://h?max_events=0",
        "redis://h?tls_key_file=x",
    ],
)
def test_settings_that_make_no_sense_are_refused_when_they_are_made(url: str) -> None:
    with pytest.raises(OptionError):
        RedisBackend.from_url(url)


def test_a_layout_of_another_version_is_left_alone(
    valkey_server: ValkeyServer, backend_at: Make, project: str
) -> None:
    key = f"{prefix(project)}v"
    valkey_server.command("SET", key, "999")
    with pytest.raises(SchemaOutOfDate, match="999"):
        asyncio.run(look(backend_at(valkey_server.url)))
    assert valkey_server.command("GET", key) == b"999"


def test_what_is_too_large_is_refused_before_it_is_sent(
    valkey_server: ValkeyServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(valkey_server.url) as backend:
            with pytest.raises(TooLarge):
                await backend.queue().enqueue(Hand.records(1, queue="n" * 256))
            body = bytes(1024 * 1024)
            with pytest.raises(TooLarge, match="smaller batches"):
                await backend.queue().enqueue(Hand.records(257, body=body))

    asyncio.run(main())
