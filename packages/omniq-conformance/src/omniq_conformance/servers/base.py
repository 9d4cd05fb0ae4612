"""What every test server is and can: a real server on a free loopback port, or one that the environment names."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from omniq_conformance.servers import _reaper

Profile: TypeAlias = Literal["default", "durable"]

LOOPBACK: Final = "127.0.0.1"
START_SECONDS: Final = 30.0  # a loaded machine; the usual start takes well below one second
STOP_SECONDS: Final = 15.0
INSTALL: Final = 'pip install "omniq-conformance[servers]"'
FOLDER: Final = "OMNIQ_TEST_SERVERS_FOLDER"
MEMORY: Final = "/dev/shm"
ROOM_BYTES: Final = 2 << 30


class ServerError(Exception):
    """A test server did not do what was asked; the message says which, and ends with its log."""


class MissingServer(ServerError):
    """The server's program is not installed. A missing server is a failure, never a skip; the message says what to do."""


class NotOurServer(ServerError):
    """A test wants to kill, freeze or stop a server that an environment variable named: it is not ours to end."""


def wheel_folder(package: str, server: str) -> Path:
    """Where an installed package lies, without importing it: its own start-up code is none of our business."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingServer(f"{server} for tests comes from a wheel that is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def until(
    done: Callable[[], bool], seconds: float, otherwise: Callable[[], str], *, every: float = 0.005
) -> None:
    """Return when it is done, raise :class:`ServerError` when time is up.

    Other processes' ends and readiness have no signal that we could wait for, so we look again and again.
    """
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise ServerError(otherwise())
        time.sleep(every)


class HeldPort:
    """A free loopback port that stays ours while the server is down.

    On Linux two sockets that both set SO_REUSEADDR share an address until one listens, and neither an outgoing connection
    nor a bind to port 0 is given it. So we keep ours bound, never listening: the server takes the port whenever it starts,
    and a client that comes meanwhile is refused, as it should be. Elsewhere the port is only likely to be free.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((LOOPBACK, 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Call this right before the port is listened on: elsewhere than on Linux it must be free for that."""
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        self._socket.close()


class _Care:
    """Our line to the reaper; see :mod:`omniq_conformance.servers._reaper`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def tell(self, line: str) -> None:
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", _reaper.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd=tempfile.gettempdir(),
                )
                self._owner = os.getpid()
                atexit.register(self._end)
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode(errors="surrogateescape") + b"\n")
            self._process.stdin.flush()

    def _end(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.communicate()  # closes its input: it cleans up, and then it ends


_care = _Care()


def place_of_data() -> str:
    """The folder that our servers' folders are made in: the one that ``OMNIQ_TEST_SERVERS_FOLDER`` names; else one in memory,
    where there is room; else the system's place for temporary files."""
    if named := os.environ.get(FOLDER):
        return named
    try:
        with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
            os.setxattr(
                file.name, "user.metadata", bytes(1000)
            )  # in these the server of GCS keeps its metadata
        if shutil.disk_usage(MEMORY).free >= ROOM_BYTES:
            return MEMORY
    except (OSError, AttributeError):  # none, an old kernel, or no Linux
        pass
    return tempfile.gettempdir()


def temporary_folder(kind: str, within: str | None = None) -> Path:
    """A new folder that vanishes when this process ends, however it ends; in the system's place for such, or in another."""
    folder = Path(tempfile.mkdtemp(prefix=f"omniq-{kind}-", dir=within))
    _care.tell(f"/ {folder}")
    return folder


class Server(ABC):
    """A server for tests: ours, from a wheel, or the one that an environment variable names.

    Ours listens on a free port of 127.0.0.1 and nowhere else. Port, URL and data stay the same over :meth:`stop`,
    :meth:`kill` and :meth:`restart`; :meth:`close` removes the data. It dies with the process that started it, however that
    one dies. Every method returns when what it promises has come true, and may be called from any thread.

    Its files are in memory where that can be, since new files and syncs are most of what a disk costs and no test cuts the
    power. Who measures, or wants a disk, names a folder in ``OMNIQ_TEST_SERVERS_FOLDER``.

    A server that a variable names is only used: what would end it raises :class:`NotOurServer`.
    """

    kind: ClassVar[str]
    """The name in messages and folders, such as ``postgres``."""
    variable: ClassVar[str]
    """The environment variable with the URL of a server to use instead of ours."""
    durable: ClassVar[Mapping[str, str]]
    """The settings of the profile ``durable``: with them, and with its files on a disk, what the server has acknowledged
    survives a power cut."""
    unprivileged: ClassVar[bool] = False
    """Whether the server refuses to run as root."""
    stop_signal: ClassVar[int] = signal.SIGTERM
    """What ends the server cleanly, with clients connected or not."""

    def __init__(
        self,
        profile: Profile = "default",
        *,
        settings: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        external: str | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            profile: ``default`` is the server as it comes; ``durable`` adds :attr:`durable`.
            settings: more settings of the server, over those of the profile.
            env: more environment variables for our server's process, such as ``LD_PRELOAD``.
            external: the URL of a server to use instead of starting one.
        """
        self.profile: Profile = profile
        self._settings = {**(self.durable if profile == "durable" else {}), **(settings or {})}
        self._env = dict(env or {})
        self._external = external
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._port: HeldPort | None = None
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._checked = False
        self._version: str | None = None

    @classmethod
    def from_env(cls, profile: Profile = "default", *, settings: Mapping[str, str] | None = None) -> Self:
        """The server that :attr:`variable` names, if it is set and not empty, else one of ours."""
        return cls(profile, settings=settings, external=os.environ.get(cls.variable) or None)

    # What each kind of server says about itself.

    def _new_folder(self) -> Path:
        """Where its data, its log and its temporary files will be."""
        return temporary_folder(self.kind, place_of_data())

    @abstractmethod
    def _prepare(self, folder: Path) -> None:
        """Make the data, once, in a folder that belongs to the server's user."""

    @abstractmethod
    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        """The command line; it stays in the foreground and logs to its output."""

    @abstractmethod
    def _url(self, port: int) -> str:
        """The URL of our server."""

    @abstractmethod
    def _ask_version(self) -> str: ...

    @abstractmethod
    def ping(self, timeout: float = 1.0) -> bool:
        """Whether the server answers, in its own protocol, that it is ready to work."""

    @abstractmethod
    def setting(self, name: str) -> str:
        """What the running server says is the value of a setting."""

    # What a test uses.

    @property
    def is_ours(self) -> bool:
        """Whether we may kill it. False for a server that an environment variable named."""
        return self._external is None

    @property
    def url(self) -> str:
        """Where clients connect. Stays the same over stops and restarts."""
        if self._external is not None:
            return self._external
        if self._port is None:
            raise ServerError(f"{self.kind} has no URL before start()")
        return self._url(self._port.number)

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        if port is None:
            raise ServerError(f"the URL of {self.kind} names no port")
        return port

    @property
    def version(self) -> str:
        """The version that the server tells, such as ``18.6``. It must have been up once."""
        if self._version is None:
            self._version = self._ask_version()
        return self._version

    @property
    def pid(self) -> int | None:
        """Our server's process while it runs (a frozen one runs), else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_up(self) -> bool:
        """Whether our server runs and is not frozen. Of a server that is not ours we assume it."""
        return not self.is_ours or (self.pid is not None and not self._frozen)

    @property
    def log(self) -> str:
        """Everything that our server has logged since the first start."""
        if self._folder is None:
            return ""
        try:
            return (self._folder / "log").read_text("utf-8", "replace")
        except OSError:
            return ""

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.splitlines()[-lines:])

    def start(self) -> Self:
        """Return when the server answers: it is started if it is down, thawed if it is frozen, and else left alone."""
        with self._lock:
            if self._external is not None:
                if not self._checked:
                    self._check_external()
                    self._checked = True
            elif self.pid is None:
                self._mine()
                self._start()
            elif self._frozen:
                self.thaw()
            return self

    def stop(self) -> None:
        """End the server as its manual says, with the data kept. Does nothing while it is down; a frozen one is thawed."""
        with self._lock:
            self._mine("stop")
            if self._process is not None and self.pid is not None:
                pids = _reaper.tree(self._process.pid)
                self._signal(pids, signal.SIGCONT)
                self._process.send_signal(self.stop_signal)
                try:
                    self._process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self.kill()
                    raise self._failed(f"did not stop within {STOP_SECONDS:.0f} s and was killed") from None
                self._gone(pids)

    def kill(self) -> None:
        """SIGKILL the server and all its children at one moment, frozen or not. The data stays as it is."""
        with self._lock:
            self._mine("kill")
            if self._process is not None:
                pids = _reaper.kill_tree(self._process.pid) if self.pid is not None else []
                self._process.wait(STOP_SECONDS)
                self._gone(pids)

    def freeze(self) -> None:
        """SIGSTOP the server and all its children: connections stay open, and nobody answers."""
        with self._lock:
            self._mine("freeze")
            root = self._running()
            self._frozen = True
            pids = _reaper.stop_tree(root)

            def stopped() -> bool:
                table = _reaper.processes()
                return all(pid not in table or table[pid][1] in "TtZ" for pid in pids)

            until(stopped, STOP_SECONDS, lambda: f"{self.kind} could not be frozen")

    def thaw(self) -> None:
        """SIGCONT: undoes :meth:`freeze`, and returns when the server answers."""
        with self._lock:
            self._mine("thaw")
            self._signal(_reaper.tree(self._running()), signal.SIGCONT)
            self._frozen = False
            self._await_ready()

    def restart(self) -> Self:
        """:meth:`stop`, unless it is down already, and :meth:`start`: same port, same data."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """End our server, in whatever state, and remove its data. Does nothing to a server that is not ours."""
        with self._lock:
            if self._external is not None or self._owner != os.getpid():
                return
            if self._process is not None:
                self.kill()
                self._process = None
            if self._folder is not None:
                _reaper.remove_shared_memory(self._folder)
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None
            if self._port is not None:
                self._port.close()
                self._port = None

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

    def __repr__(self) -> str:
        state = "external" if not self.is_ours else f"pid {self.pid}" if self.pid else "down"
        return f"<{type(self).__name__} {self.profile} {state}>"

    # How ours runs.

    def _mine(self, verb: str | None = None) -> None:
        if self._external is not None:
            raise NotOurServer(
                f"this test wants to {verb} {self.kind}, but {self.variable} names a server that is not ours to {verb}. "
                f"Unset {self.variable}, and the tests start a server of their own ({INSTALL}); or leave this test out."
            )
        if self._owner != os.getpid():
            raise ServerError(f"{self.kind} belongs to process {self._owner}, and this is a fork of it")

    def _running(self) -> int:
        pid = self.pid
        if pid is None:
            raise self._failed("is not running")
        return pid

    def _failed(self, what: str) -> ServerError:
        return ServerError(f"{self.kind} {what}; the end of its log:\n{self.log_tail() or '(empty)'}")

    def _check_external(self) -> None:
        if not self.ping(5.0):
            raise ServerError(f"no {self.kind} answers at the address in {self.variable}")
        if self.profile == "durable":
            wrong = [f"{k}={is_!r}" for k, v in self.durable.items() if (is_ := self.setting(k)) != v]
            if wrong:
                raise ServerError(
                    f"a test needs a durable {self.kind}, and the one in {self.variable} has {', '.join(wrong)}; "
                    f"wanted are {dict(self.durable)}"
                )

    def _start(self) -> None:
        folder = self._folder
        if folder is None:
            folder = self._folder = self._new_folder()
            self._give(folder)
            self._prepare(folder)
        first = self._port is None
        for attempt in range(5):
            if self._port is None:
                self._port = HeldPort()
            before = len(self.log)
            self._port.release()
            if self._process is not None:  # it ended by itself
                _care.tell(f"- {self._process.pid}")
            with open(folder / "log", "ab") as output:
                self._process = self._spawn(self._command(folder, self._port.number), folder, output)
            self._frozen = False
            _care.tell(f"+ {self._process.pid}")
            try:
                return self._await_ready()
            except ServerError:
                if self.pid is not None:
                    self.kill()
                # Only a port that nobody has been told may be exchanged for another.
                if not (first and attempt < 4 and "ddress already in use" in self.log[before:]):
                    raise
                self._port.close()
                self._port = None

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            answers = self.ping(max(0.05, min(1.0, deadline - time.monotonic())))
            if self.pid is None:  # also when something answers: then it is not ours, and sits on the port
                assert self._process is not None
                raise self._failed(f"ended with status {self._process.returncode} before it was ready")
            if answers:
                return
            if time.monotonic() > deadline:
                raise self._failed(f"was not ready within {START_SECONDS:.0f} s")
            time.sleep(0.005)

    def _user(self) -> int | None:
        """The user to run as, when we are root and the server refuses root."""
        if not self.unprivileged or os.geteuid() != 0:
            return None
        import pwd

        try:
            return pwd.getpwnam("nobody").pw_uid
        except KeyError:
            return 65534

    def _give(self, path: Path) -> None:
        user = self._user()
        if user is not None:
            os.chown(path, user, user)

    def _spawn(
        self, command: Sequence[str | Path], folder: Path, output: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        # Not our environment: a PGDATA, a PYTHONPATH or a strange locale of the developer would become the server's.
        kept = ("PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env |= {"HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C", **self._env}
        user = self._user()
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=env,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            start_new_session=True,  # a Ctrl-C is for the tests
        )

    def _signal(self, pids: Sequence[int], number: int) -> None:
        for pid in pids:
            _reaper.send(pid, number)

    def _gone(self, pids: list[int]) -> None:
        assert self._process is not None
        _care.tell(f"- {self._process.pid}")
        until(
            lambda: not _reaper.alive(pids),
            STOP_SECONDS,
            lambda: f"{self.kind} left processes behind: {pids}",
        )
