"""Another process that works on the same storage, driven line by line over its pipes: no test sleeps to wait for it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.streams import FlowControlMixin
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, Protocol, Self

from omniq_conformance import nursery
from omniq_conformance.nursery import Child, code_of
from omniq_core import Outcome, Url, Verb

__all__ = ["Remote", "RemoteFailed"]

PROGRAM = "omniq_conformance.remote_main"
START_S = 20.0
"""How long a new interpreter may take to import and open: generous, since a loaded machine is no fault of a backend."""
END_S = 3.0
LINE_BYTES = 2**22


class RemoteFailed(AssertionError):
    """The other process answered with an exception, or ended."""


class Process(Protocol):
    """What is used here of asyncio's processes."""

    @property
    def stdin(self) -> asyncio.StreamWriter | None: ...
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...
    @property
    def returncode(self) -> int | None: ...
    def send_signal(self, signal: int, /) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int: ...


class Fate(asyncio.Protocol):
    """Hears how a child of the nursery ends."""

    def __init__(self) -> None:
        self._text = b""
        self.told = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._text += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.told.done():
            self.told.set_result(self._text)


class Raised:
    """A child of the nursery."""

    def __init__(
        self, child: Child, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader, fate: Fate
    ) -> None:
        self._fate = fate
        self.stdin, self.stdout = stdin, stdout
        self.send_signal, self.kill = child.send_signal, child.kill

    @property
    def returncode(self) -> int | None:
        return code_of(self._fate.told.result()) if self._fate.told.done() else None

    async def wait(self) -> int:
        return code_of(await asyncio.shield(self._fate.told))

    @classmethod
    @asynccontextmanager
    async def start(cls, url: str) -> AsyncIterator[Self]:
        """One, until the end of the block."""
        # In a thread, as the nursery may have to import.
        child = await asyncio.to_thread(
            nursery.start, f"{PROGRAM}:main", url, schemes=[Url.parse(url).scheme]
        )
        with closing(child):
            loop = asyncio.get_running_loop()
            stdout = asyncio.StreamReader(LINE_BYTES)
            hearing, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(stdout), child.stdout
            )
            knowing, fate = await loop.connect_read_pipe(Fate, child.fate)
            saying, flow = await loop.connect_write_pipe(FlowControlMixin, child.stdin)
            try:
                yield cls(child, asyncio.StreamWriter(saying, flow, None, loop), stdout, fate)
            finally:
                for transport in (hearing, knowing, saying):
                    transport.close()


@asynccontextmanager
async def by_itself(url: str) -> AsyncIterator[Process]:
    """A new interpreter, until the end of the block: for systems that have no nursery."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        PROGRAM,
        url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    try:
        yield process
    finally:
        # Left to the garbage collector, the transport would close its pipes after its loop, and complain.
        getattr(process, "_transport").close()  # noqa: B009 - it has none to a type checker


class Remote:
    """A process that was started by :meth:`start`. It keeps the leases that it claimed."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, url: str) -> AsyncIterator[Self]:
        """Another process with the storage open.

        Args:
            url: of the storage, as the author's ``url_for`` gives it.
        """
        async with Raised.start(url) if nursery.HAS_NURSERY else by_itself(url) as process:
            remote = cls(process)
            try:
                async with asyncio.timeout(START_S):
                    await remote.answer()
                yield remote
            finally:
                await remote._end()

    async def _end(self) -> None:
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self.resume()  # a stopped process sees no end of its input
                async with asyncio.timeout(END_S):
                    await self._process.wait()
            except (TimeoutError, ProcessLookupError):
                await self.kill()

    # --- talking ------------------------------------------------------------------------------------------------

    async def send(self, op: str, **arguments: Any) -> None:
        """Sends a command without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op} | arguments).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self) -> Any:
        """The next answer."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RemoteFailed(
                f"the other process ended with code {await self._process.wait()}; see its stderr"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteFailed(f"in the other process: {answer['error']}")
        return answer["ok"]

    async def do(self, op: str, **arguments: Any) -> Any:
        """Sends a command and waits for its answer."""
        await self.send(op, **arguments)
        return await self.answer()

    # --- commands -----------------------------------------------------------------------------------------------

    async def claim(self, *queues: str, max_tasks: int, lease_s: float) -> list[str]:
        """Claims, and keeps the leases; the tasks' ids."""
        found: list[str] = await self.do("claim", queues=queues, max_tasks=max_tasks, lease_s=lease_s)
        return found

    async def settle(self, task_ids: Sequence[str], verb: Verb) -> list[Outcome]:
        """Settles tasks under the leases that this process had claimed them with."""
        return [Outcome(text) for text in await self.do("settle", task_ids=list(task_ids), verb=verb.value)]

    async def extend(self, task_ids: Sequence[str], *, lease_s: float) -> list[Outcome]:
        answers = await self.do("extend", task_ids=list(task_ids), lease_s=lease_s)
        return [Outcome(text) for text in answers]

    # --- accidents ----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """SIGSTOP: it stands still, as a machine that was suspended, and does not know."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        try:
            self._process.kill()
        except ProcessLookupError:  # it ended by itself meanwhile
            return
        await self._process.wait()
