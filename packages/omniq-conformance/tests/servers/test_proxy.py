"""The proxy, in front of a server that echoes and in front of a real one."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from omniq_conformance.servers import Proxy, Server, ValkeyServer

pytest_plugins = ["omniq_conformance.servers.fixtures"]

SILENCE = 0.15  # how long nothing must come


class Echo:
    """Sends back what it gets, and tells what it saw: data, `b""` for a FIN, `None` for a reset."""

    def __init__(self) -> None:
        self.seen: queue.Queue[bytes | None] = queue.Queue()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    data = connection.recv(65536)
                    self.seen.put(data)
                    if not data:
                        return
                    connection.sendall(data)
                except OSError:
                    self.seen.put(None)
                    return

    def next(self) -> bytes | None:
        return self.seen.get(timeout=10)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", proxy.port), 10))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    reply = b""
    while len(reply) < len(data):
        chunk = connection.recv(65536)
        assert chunk, "the connection was closed"
        reply += chunk
    return reply


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENCE)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10)
    return False


Connect = Callable[[], socket.socket]


def test_it_forwards_data_and_a_fin_both_ways(connect: Connect, echo: Echo, proxy: Proxy) -> None:
    connection = connect()
    big = bytes(range(256)) * 2000
    threading.Thread(target=connection.sendall, args=[big]).start()
    assert ask(connection, b"") == b""
    got = b""
    while len(got) < len(big):
        got += connection.recv(65536)
    assert got == big
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    counters = proxy.wait_for(lambda c: c.open == 0)
    assert (counters.accepted, counters.reset) == (1, 0)
    assert counters.request_bytes == counters.reply_bytes == len(big)


def test_it_puts_its_address_into_a_url_and_leaves_the_rest(proxy: Proxy) -> None:
    url = proxy.url_for("postgresql://me:s%40crt@db.example:5433/jobs?sslmode=disable")
    assert url == f"postgresql://me:s%40crt@127.0.0.1:{proxy.port}/jobs?sslmode=disable"


def test_a_delay_holds_in_each_direction_and_ends_with_heal(connect: Connect, proxy: Proxy) -> None:
    connection = connect()
    ask(connection, b"warm")
    proxy.delay(0.06, jitter=0.01)
    start = time.monotonic()
    assert ask(connection, b"slow") == b"slow"
    assert time.monotonic() - start >= 0.1
    proxy.heal()
    start = time.monotonic()
    assert ask(connection, b"fast") == b"fast"
    assert time.monotonic() - start < 0.1


def test_a_throttled_line_takes_the_time_that_its_rate_says(connect: Connect, proxy: Proxy) -> None:
    connection = connect()
    ask(connection, b"warm")
    proxy.throttle(50_000)
    start = time.monotonic()
    ask(connection, b"x" * 15_000)
    assert 0.25 < time.monotonic() - start < 3


def test_a_cut_resets_both_sides_and_lets_new_connections_in(
    connect: Connect, echo: Echo, proxy: Proxy
) -> None:
    connection = connect()
    ask(connection, b"hello")
    assert echo.next() == b"hello"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert echo.next() is None
    assert ask(connect(), b"again") == b"again"
    assert proxy.counters.reset == 1


def test_a_cut_reaches_a_connection_that_was_made_just_before(connect: Connect, proxy: Proxy) -> None:
    for _ in range(30):
        connection = connect()
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert proxy.counters.reset == 30
    assert proxy.counters.open == 0


def test_while_it_refuses_open_connections_go_on_and_new_ones_are_refused(
    connect: Connect, proxy: Proxy
) -> None:
    connection = connect()
    ask(connection, b"before")
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert ask(connection, b"still") == b"still"
    proxy.accept()
    assert ask(connect(), b"again") == b"again"


def test_a_half_open_link_is_silent_and_forwards_not_even_a_fin(
    connect: Connect, echo: Echo, proxy: Proxy
) -> None:
    connection = connect()
    ask(connection, b"before")
    assert echo.next() == b"before"
    proxy.half_open()
    connection.sendall(b"lost?")
    assert is_silent(connection)
    connection.close()
    late = connect()
    late.sendall(b"late")
    assert is_silent(late)
    with pytest.raises(queue.Empty):
        echo.seen.get(timeout=SILENCE)
    proxy.heal()
    assert {echo.next(), echo.next(), echo.next()} == {b"lost?", b"", b"late"}
    assert late.recv(10) == b"late"


def test_a_partition_can_work_one_way(connect: Connect, echo: Echo, proxy: Proxy) -> None:
    connection = connect()
    proxy.half_open("replies")
    connection.sendall(b"request")
    assert echo.next() == b"request"
    assert is_silent(connection)
    proxy.heal()
    assert connection.recv(10) == b"request"


def test_a_swallowed_reply_is_a_request_done_and_a_client_that_cannot_know(
    connect: Connect, echo: Echo, proxy: Proxy
) -> None:
    connection = connect()
    ask(connection, b"greeting")
    assert echo.next() == b"greeting"
    proxy.swallow_reply()
    connection.sendall(b"pay")
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert echo.next() == b"pay"
    assert echo.next() == b"", "the server's side ends with a FIN, so that it finishes what it was sent"
    assert proxy.counters.swallowed == proxy.counters.reset == 1
    assert ask(connect(), b"again") == b"again"


def test_a_predicate_a_number_and_a_skip_choose_which_replies_are_swallowed(
    connect: Connect, proxy: Proxy
) -> None:
    proxy.swallow_reply(2, lambda request: b"claim" in request, skip=1)
    outcomes: list[bytes | None] = []
    for request in (b"ping", b"claim 1", b"claim 2", b"ping", b"claim 3", b"claim 4"):
        try:
            outcomes.append(ask(connect(), request))
        except ConnectionResetError:
            outcomes.append(None)
    assert outcomes == [b"ping", b"claim 1", None, b"ping", None, b"claim 4"]
    assert proxy.wait_for(lambda c: c.swallowed == 2).swallowed == 2


def test_a_server_that_is_not_there_resets_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with Proxy(address) as proxy:

        def attempt() -> None:  # on a busy machine the reset arrives while we still connect
            with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
                connection.recv(1)

        with pytest.raises(ConnectionResetError):
            attempt()


def test_waiting_for_what_does_not_happen_tells_the_counters(proxy: Proxy) -> None:
    with pytest.raises(TimeoutError, match="swallowed=0"):
        proxy.wait_for(lambda c: c.swallowed > 0, timeout=0.01)


def test_a_coroutine_may_use_it(echo: Echo) -> None:
    async def scenario() -> None:
        with Proxy(echo.address) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()

    asyncio.run(scenario())


def test_nothing_is_left_of_it_after_close(echo: Echo) -> None:
    before = threading.active_count()
    proxy = Proxy(echo.address)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        ask(connection, b"x")
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert echo.next() == b"x"
    assert echo.next() is None
    assert threading.active_count() <= before + 1  # the echo server's thread for our connection may be ending
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 10)


def test_a_real_server_has_counted_once_though_the_reply_was_lost(
    valkey_server: ValkeyServer, valkey_prefix: str, server_proxy: Callable[[Server], Proxy]
) -> None:
    proxy = server_proxy(valkey_server)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        proxy.swallow_reply(predicate=lambda request: b"INCR" in request)
        connection.sendall(f"INCR {valkey_prefix}:n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    assert valkey_server.command("GET", f"{valkey_prefix}:n") == b"1"
