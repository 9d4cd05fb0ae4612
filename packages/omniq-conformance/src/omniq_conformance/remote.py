"""Another process that works on the same storage, driven line by line over its pipes: no test sleeps to wait for it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from omniq_core import Outcome, Verb

__all__ = ["Remote", "RemoteFailed"]

START_S = 20.0
"""How long a new interpreter may take to import and open: generous, since a loaded machine is no fault of a backend."""
END_S = 3.0


class RemoteFailed(AssertionError):
    """The other process answered with an exception, or ended."""


class Remote:
    """A process that was started by :meth:`start`. It keeps the leases that it claimed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, url: str) -> AsyncIterator[Self]:
        """A new process with the storage open.

        Args:
            url: of the storage, as the author's ``url_for`` gives it.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "omniq_conformance.remote_main",
            url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**22,
        )
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
        # Left to the garbage collector, the transport would close its pipes after its loop, and complain.
        getattr(self._process, "_transport").close()  # noqa: B009 - it has none to a type checker

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
