"""What the tests of this package share."""

from __future__ import annotations

import asyncio
import itertools
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from omniq_core import Claim, Queue, TaskRecord


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Of a file that does not exist yet."""
    return str(tmp_path / "tasks.db")


@pytest.fixture
def tasks() -> Callable[..., list[TaskRecord]]:
    """``tasks(3, queue="mail")``: new tasks."""

    def make(count: int = 1, **fields: object) -> list[TaskRecord]:
        given = {"queue": "q", "name": "task", "body": b"body", **fields}
        return [TaskRecord(id=str(uuid.uuid4()), **given) for _ in range(count)]  # type: ignore[arg-type]

    return make


@pytest.fixture
def claim() -> Callable[..., object]:
    """``await claim(queue)``: up to a thousand tasks of the queue ``q``."""
    numbers = itertools.count()

    async def take(queue: Queue, max_tasks: int = 1000, queues: tuple[str, ...] = ("q",)) -> list[Claim]:
        claim_id = f"claim-{next(numbers)}"
        return list(
            await queue.claim(queues, max_tasks=max_tasks, lease_s=30, worker_id="w", claim_id=claim_id)
        )

    return take


class Child:
    """Another Python process: it speaks by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert line, "the child ended"
        return line.decode().rstrip("\n")

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@pytest.fixture
def child() -> Callable[..., object]:
    """``async with child(source, argument, ...) as process``: runs the source in another Python."""

    @asynccontextmanager
    async def start(source: str, *arguments: str) -> AsyncIterator[Child]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            source,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield Child(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    return start
