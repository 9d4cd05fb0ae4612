"""What the settings of the backend and of its server mean, and that secrets stay secrets."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniq_conformance.hand import Hand
from omniq_conformance.servers import NatsServer, Proxy, Server
from omniq_core import (
    Capability,
    Claim,
    ErrorCode,
    Event,
    EventFilter,
    Health,
    Loss,
    OptionError,
    Outcome,
    Queue,
    ResultRecord,
    SchemaOutOfDate,
    Settlement,
    Severity,
    TaskFilter,
    TaskRecord,
    TaskState,
    TooLarge,
    Verb,
    check_name,
    check_task_id,
)
from omniq_nats import NatsBackend, NatsOptions
from omniq_nats.errors import CannotConnect, Forbidden, Refused
from omniq_nats.subjects import Subjects, text_of, token

Make = Callable[..., NatsBackend]
README = Path(__file__).parents[1] / "README.md"
CERTIFICATE = str(Path(__file__).with_name("certificate.pem"))


async def look(backend: NatsBackend) -> Health:
    async with backend:
        return await backend.check()


async def works(backend: NatsBackend) -> None:
    """Everything that a program does with it."""
    async with backend:
        queue, results, events = backend.queue(), backend.result_store(), backend.event_store()
        await queue.enqueue(Hand.records(3) + Hand.records(1, delay_s=60, ttl_s=90, unique_key="k"))
        claims = await queue.claim(["q"], max_tasks=3, lease_s=60, worker_id="w", claim_id="c")
        ends = [
            Settlement(c.lease, v, result=r)
            for c, v, r in zip(claims, Verb, (b"r", None, None), strict=False)
        ]
        assert set(await queue.settle(ends)) == {Outcome.OK}
        assert (await queue.claim(["q"], max_tasks=3, lease_s=0.05, worker_id="w", claim_id="d"))[
            0
        ].attempt == 2
        await queue.maintain()
        await queue.pause(["q"])
        await queue.resume(["q"])
        assert await queue.wait(["nothing"], timeout_s=0.01) is False
        assert len((await queue.query(TaskFilter())).items) == 4
        assert await queue.queue_names() == ["q"]
        await queue.stats(["q"])
        await queue.cancel([claims[1].task_id])
        await queue.requeue([claims[2].task_id])
        await results.put([ResultRecord("x", 1, TaskState.DEAD)])
        assert (await results.wait(["x"], timeout_s=1))[0] is not None
        assert await results.delete(["x"]) == 1
        await events.append([Event("e", "t", "x", 1.0)])
        assert len((await events.read(EventFilter())).items) == 1
        await events.truncate(before=2.0)
        await backend.check()
        await queue.purge(TaskFilter())


# --- durability --------------------------------------------------------------------------------------------------


def test_what_a_power_cut_costs_is_unknown_without_a_monitor(
    nats_server: NatsServer, backend_at: Make
) -> None:
    health = asyncio.run(look(backend_at(nats_server.url)))
    assert (health.durability.server_killed, health.durability.power_cut) == (Loss.NONE, Loss.UNKNOWN)
    [finding] = [f for f in health.findings if "power cut" in f.message]
    assert finding.severity is Severity.WARNING
    assert "sync_interval: always" in finding.advice
    assert health.server == f"NATS {nats_server.version}"


@pytest.mark.parametrize(
    ("kind", "lost", "window_s", "told"),
    [("nats_server", Loss.WINDOW, 120.0, "120s"), ("nats_server_durable", Loss.NONE, None, "always")],
)
def test_the_monitor_tells_the_sync_interval(
    kind: str,
    lost: Loss,
    window_s: float | None,
    told: str,
    request: pytest.FixtureRequest,
    backend_at: Make,
) -> None:
    server: NatsServer = request.getfixturevalue(kind)
    health = asyncio.run(look(backend_at(server.url, monitoring_url=server.monitoring_url)))
    assert (health.durability.power_cut, health.durability.window_s) == (lost, window_s)
    assert health.settings["sync_interval"] == told
    named = [finding for finding in health.findings if "sync_interval is 120 s" in finding.message]
    assert bool(named) is (lost is Loss.WINDOW)


def test_a_monitor_that_does_not_answer_is_a_finding_and_no_failure(
    nats_server: NatsServer, backend_at: Make
) -> None:
    for url in ("http://127.0.0.1:1", "not a url"):
        health = asyncio.run(look(backend_at(nats_server.url, monitoring_url=url)))
        assert health.durability.power_cut is Loss.UNKNOWN
        assert any("monitoring_url" in finding.message for finding in health.findings)


def test_streams_that_answer_before_they_write_are_not_durable(
    nats_server: NatsServer, backend_at: Make, project: str
) -> None:
    names = Subjects(project)
    made = nats_server.api(
        f"STREAM.CREATE.{names.events}",
        {
            "name": names.events,
            "subjects": [names.root + "e"],
            "storage": "memory",
            "allow_direct": True,
            "metadata": {"omniq-layout": "1"},
        },
    )
    assert "error" not in made, made

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            assert Capability.DURABLE not in backend.capabilities
            assert "memory" in backend.absent[Capability.DURABLE]
            assert (await backend.check()).durability.server_killed is Loss.ALL

    asyncio.run(main())


def test_streams_of_another_layout_are_refused(
    nats_server: NatsServer, backend_at: Make, project: str
) -> None:
    names = Subjects(project)
    stream = {"name": names.tasks, "subjects": [names.root + "t.*"], "metadata": {"omniq-layout": "99"}}
    assert "error" not in nats_server.api(f"STREAM.CREATE.{names.tasks}", stream)

    async def main() -> None:
        with pytest.raises(SchemaOutOfDate, match="layout 99"):
            await backend_at(nats_server.url).open()

    asyncio.run(main())


def test_a_server_without_jetstream_is_refused_and_told_what_to_do(backend_at: Make) -> None:
    class Plain(NatsServer):
        def ping(self, timeout: float = 1.0) -> bool:
            try:
                return bool(self._greet(timeout, lambda _, info: info["version"]))
            except OSError:
                return False

        def _config(self, folder: Path, port: int, monitor: int) -> str:
            return f"listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\n"

    async def main(url: str) -> None:
        with pytest.raises(Exception, match="no JetStream") as error:
            await backend_at(url).open()
        assert backend_at(url).classify(error.value) is ErrorCode.UNSUPPORTED

    with Plain() as server:
        asyncio.run(main(server.url))


# --- rights ------------------------------------------------------------------------------------------------------


def recipe(project: str, password: str) -> str:
    """The block that the README gives, with a user without rules for the test's own looks."""
    [block] = re.findall(r"^authorization \{\n(.*?)^\}", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    text = block.replace("PROJECT", project).replace("PASSWORD", password)
    return "{" + text.replace("users: [", "users: [ { user: anyone, password: anyone }", 1) + "}"


def test_who_may_not_hear_of_results_is_told_at_once_when_one_is_to_be_stored(
    backend_at: Make, project: str
) -> None:
    rules = recipe(project, "s3cret-word").replace(f', "omniq.{project}.f.>"', "")

    async def main(url: str) -> None:
        async with backend_at(url, timeout_s=60.0) as backend:
            queue = backend.queue()
            await queue.enqueue(Hand.records(1))
            [found] = await queue.claim(["q"], max_tasks=1, lease_s=60, worker_id="w", claim_id="c")
            for _ in range(2):
                with pytest.raises(Refused, match="Permissions Violation") as refused:
                    async with asyncio.timeout(10):
                        await queue.settle([Settlement(found.lease, Verb.SUCCEED, result=b"r")])
                assert backend.classify(refused.value) is ErrorCode.PERMISSION

    with NatsServer(settings={"authorization": rules, "no_auth_user": "anyone"}) as server:
        asyncio.run(main(server.url.replace("://", "://omniq:s3cret-word@")))


def test_a_user_with_the_rights_of_the_readme_can_do_everything(backend_at: Make, project: str) -> None:
    rules = recipe(project, "s3cret-word")
    with NatsServer(settings={"authorization": rules, "no_auth_user": "anyone"}) as server:
        url = server.url.replace("://", "://omniq:s3cret-word@")
        asyncio.run(works(backend_at(url)))

        async def main() -> None:
            other = NatsBackend.from_url(url, project_name="somebody_elses", timeout_s=1.0)
            with pytest.raises(Refused, match="Permissions Violation") as refused:
                async with other:
                    await Hand(other).put_one()
            assert other.classify(refused.value) is ErrorCode.PERMISSION
            wrong = backend_at(url.replace("s3cret-word", "wrong-word"))
            with pytest.raises(Forbidden) as forbidden:
                await wrong.open()
            assert wrong.classify(forbidden.value) is ErrorCode.PERMISSION
            assert "word" not in str(forbidden.value)

        asyncio.run(main())


def test_a_token_lets_us_in(backend_at: Make) -> None:
    class Tokened(NatsServer):
        def _url(self, port: int) -> str:
            return f"nats://s3cret-token@127.0.0.1:{port}"

    with Tokened(settings={"authorization": "{ token: s3cret-token }"}) as server:
        asyncio.run(works(backend_at(server.url)))
        asyncio.run(look(backend_at(server.url.replace("s3cret-token@", ""), token="s3cret-token")))
        with pytest.raises(Forbidden):
            asyncio.run(look(backend_at(server.url.replace("s3cret", "wrong"))))


def test_an_nkey_signs_the_servers_challenge(backend_at: Make, tmp_path: Path) -> None:
    import nkeys

    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(seed).public_key.decode()
    users = f"{{ users: [ {{ nkey: {public} }}, {{ user: anyone, password: anyone }} ] }}"
    with NatsServer(settings={"authorization": users, "no_auth_user": "anyone"}) as server:
        made = backend_at(server.url, nkey_seed=seed.decode())
        assert seed.decode() not in repr(made) + repr(made.config)
        asyncio.run(works(made))
        other = nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode()
        with pytest.raises(Forbidden):
            asyncio.run(look(backend_at(server.url, nkey_seed=other)))
        with pytest.raises(OptionError, match="no nkey seed") as error:
            asyncio.run(look(backend_at(server.url, nkey_seed="SUSECRET")))
        assert "SUSECRET" not in str(error.value)
    credentials = tmp_path / "user.creds"
    credentials.write_text("-----BEGIN NATS USER JWT-----\nabc\n------END NATS USER JWT------\n")
    with pytest.raises(OptionError, match="no JWT and seed"), NatsServer() as server:
        asyncio.run(look(backend_at(server.url, credentials_file=str(credentials))))


def test_a_credentials_file_signs_as_well(tmp_path: Path) -> None:
    import nkeys

    from omniq_nats.signing import proof

    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER).decode()
    file = tmp_path / "user.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\nthe.jwt.text\n------END NATS USER JWT------\n\n****\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    words = proof(NatsOptions(credentials_file=str(file)), "challenge")
    assert words["jwt"] == "the.jwt.text"
    signature = base64.urlsafe_b64decode(words["sig"] + "==")
    key: Any = nkeys.from_seed(seed.encode())
    assert key.verify(b"challenge", signature) in (True, None)


def test_an_encrypted_connection_is_verified(backend_at: Make) -> None:
    settings = {
        "tls": f'{{ cert_file: "{CERTIFICATE}", key_file: "{CERTIFICATE}" }}',
        "allow_non_tls": "true",
    }
    with NatsServer(settings=settings) as server:
        url = server.url.replace("nats://", "tls://")
        made = NatsBackend(servers=url, tls=True, tls_ca_file=CERTIFICATE, project_name="encrypted")
        asyncio.run(works(made))
        with pytest.raises(CannotConnect, match="certificate"):
            asyncio.run(look(NatsBackend(servers=url, tls=True)))
        by_name = f"localhost:{server.port}"
        with pytest.raises(CannotConnect, match="certificate"):
            asyncio.run(look(NatsBackend(servers=by_name, tls=True, tls_ca_file=CERTIFICATE)))
        named = NatsBackend(servers=by_name, tls=True, tls_ca_file=CERTIFICATE, tls_hostname="127.0.0.1")
        asyncio.run(look(named))


# --- options -----------------------------------------------------------------------------------------------------


def test_secrets_are_shown_nowhere(
    nats_server: NatsServer,
    backend_at: Make,
    server_proxy: Callable[[Server], Proxy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = server_proxy(nats_server)
    proxy.refuse()
    secret = "s3cret-word"
    with caplog.at_level(logging.DEBUG):
        for url in (f"nats://me:{secret}@127.0.0.1:{proxy.port}", f"nats://{secret}@127.0.0.1:{proxy.port}"):
            backend = backend_at(url)
            with pytest.raises(CannotConnect) as error:
                asyncio.run(look(backend))
            shown = f"{backend!r} {backend.config!r} {backend.options!r} {backend.options.describe()} {error.value!r}"
            assert secret not in shown
    assert secret not in caplog.text


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"servers": "here:port"}, "host:port"),
        ({"servers": "http://here:4222"}, "nats:// or tls://"),
        ({"servers": "nats://me:pass@here:4222"}, "no credentials"),
        ({"servers": ""}, "names no server"),
        ({"replicas": 0}, "from 1 to 5"),
        ({"connect_timeout_s": 0.0}, "above 0"),
        ({"retention_s": -1.0}, "negative"),
        ({"token": "a", "password": "b"}, "give one of"),
        ({"tls_key_file": "k"}, "needs tls_cert_file"),
        ({"server": "here"}, "did you mean 'servers'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_the_reason(
    settings: dict[str, object], says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        NatsBackend(**settings)


def test_urls_and_lists_of_servers_mean_the_same() -> None:
    wanted = [("a", 4222), ("b", 1), ("::1", 2)]
    for made in (
        NatsBackend(servers=["a", "nats://b:1", "[::1]:2"]),
        NatsBackend(url="a,b:1,[::1]:2"),
        NatsBackend.from_url("nats://a,b:1,[::1]:2"),
        NatsBackend.from_env(environ={"OMNIQ_NATS_SERVERS": "a,b:1,[::1]:2"}),
    ):
        assert isinstance(made.options, NatsOptions)
        assert list(made.options.addresses) == wanted
    with pytest.raises(OptionError, match="path"):
        NatsBackend.from_url("nats://a/b")
    one = NatsBackend.from_url("tls://me:word@a:1?replicas=3&project_name=shop")
    assert isinstance(one.options, NatsOptions)
    assert (one.options.tls, one.options.username, one.options.replicas) == (True, "me", 3)


# --- names and sizes ---------------------------------------------------------------------------------------------

HOSTILE = [
    "*", ">", ".", "..", "a.b", "a.*", "a.>", ".>", "*.*", "$JS.API.>", "$SYS.>", "../../x", "a b", "a\tb", "_", "_61", "_2a",
    "a\r\nPUB x 0\r\n\r\n", "a\x00b", "\x00", "l.q.p.0", "-", "a-b", "A", "a", "é", "e\u0301", "q", "Q", "n" * 255, "." * 255,
]  # fmt: skip


def test_names_are_told_apart_by_their_tokens_and_hold_nothing_that_means_something_to_nats() -> None:
    tokens = [token(name) for name in HOSTILE]
    assert len(set(tokens)) == len(HOSTILE)
    for name, made in zip(HOSTILE, tokens, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_-]+", made), f"{name!r} became {made!r}"
        assert text_of(made) == name


def test_hostile_names_of_queues_ids_and_keys_touch_nothing_else(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            queue = backend.queue()
            records = [
                TaskRecord(f"id {n} {name}"[:40], name, name, name.encode(), unique_key=name)
                for n, name in enumerate(HOSTILE)
            ]
            assert {a.outcome for a in await queue.enqueue(records)} == {Outcome.OK}
            assert set(await queue.queue_names()) == set(HOSTILE)
            for record in records:
                [stats] = await queue.stats([record.queue])
                assert stats.ready == 1
                [found] = await _claim(queue, record.queue)
                assert (found.task_id, found.body) == (record.id, record.body)
                ends = [Settlement(found.lease, Verb.DEAD, reason=record.queue, result=b"r")]
                assert await queue.settle(ends) == [Outcome.OK]
                [task] = (await queue.query(TaskFilter(queues=[record.queue]))).items
                assert (task.id, task.reason, task.unique_key) == (record.id, record.queue, record.queue)
                await queue.pause([record.queue])
            for record in records:
                assert (await queue.stats([record.queue]))[0].paused
                await queue.resume([record.queue])
            streams = nats_server.api("STREAM.NAMES", {"subject": backend._opened().subjects.root + ">"})
            assert len(streams["streams"]) == 4, "nothing was made beside its four streams"

    asyncio.run(main())


async def _claim(queue: Queue, name: str) -> list[Claim]:
    return list(
        await queue.claim([name], max_tasks=5, lease_s=60, worker_id=name, claim_id=f"claim {name}"[:60])
    )


def test_hostile_projects_are_kept_apart(nats_server: NatsServer) -> None:
    async def main() -> None:
        for name in ("*", ">", "a.b", "a", "../../x", "a\r\nb", "A", "p" * 255, "p" * 254):
            async with NatsBackend(servers=nats_server.url, project_name=name) as backend:
                queue = backend.queue()
                assert await queue.queue_names() == [], f"the project {name!r} is not new"
                await queue.enqueue(Hand.records(1, queue="mine"))
                assert len(await _claim(queue, "mine")) == 1
                await queue.purge(TaskFilter())

    asyncio.run(main())


def test_what_is_no_name_is_refused_clearly(nats_server: NatsServer, backend_at: Make) -> None:
    for bad in ("a\x00b", "a\r\nb", "", "x" * 1024):
        with pytest.raises(ValueError, match="queue name"):
            check_name("queue name", bad)
        with pytest.raises(ValueError, match="task id"):
            check_task_id(bad)

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            for record in (
                TaskRecord("id", "q" * 1024, "n", b""),
                TaskRecord("i" * 1024, "q", "n", b""),
                TaskRecord("id", "q", "n" * 1024, b""),
                TaskRecord("id", "q", "n", b"", unique_key="k" * 1024),
                TaskRecord("id", "é" * 200, "n", b""),
            ):
                with pytest.raises(TooLarge):
                    await backend.queue().enqueue([record])

    asyncio.run(main())


def test_a_body_over_the_servers_limit_is_told_before_it_is_sent(
    nats_server: NatsServer, backend_at: Make
) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            body = b"x" * (backend._opened().client.max_payload + 1)
            with pytest.raises(TooLarge, match="max_payload"):
                await backend.queue().enqueue([TaskRecord("id", "q", "n", body)])
            most = backend.limits.max_body_bytes
            assert most >= 500 * 1024
            large = [TaskRecord(f"large {n}", "q", "n", b"x" * most) for n in range(40)]
            assert {a.outcome for a in await backend.queue().enqueue(large)} == {Outcome.OK}
            claims = await backend.queue().claim(["q"], max_tasks=40, lease_s=60, worker_id="w", claim_id="c")
            assert [len(c.body) for c in claims] == [most] * 40, "more than the server sends at once"
            result = b"r" * backend.limits.max_result_bytes
            ends = [Settlement(c.lease, Verb.DEAD, error=result, result=result) for c in claims]
            assert set(await backend.queue().settle(ends)) == {Outcome.OK}

    asyncio.run(main())


def test_a_dead_server_is_told_in_time(backend_at: Make) -> None:
    started = time.monotonic()
    with pytest.raises(CannotConnect):
        asyncio.run(look(backend_at("nats://192.0.2.1:4222", connect_timeout_s=0.3)))
    assert time.monotonic() - started < 2.0
