"""The tasks of the quickstart: what a team might want to know about a folder of Python sources.

The worker imports this module (`python -m omniq worker tasks:oq`), and so does `run.py`, which enqueues.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from omniq import OmniQ, current_task

oq = OmniQ(db_path=os.environ.get("QUICKSTART_DB", "quickstart.db"), queues=["surveys", "checksums"])


@dataclass
class Survey:
    lines: int
    functions: int
    classes: int
    longest: str
    """The longest function."""
    longest_lines: int


@oq.task(queue_name="surveys")
def survey(path: str) -> Survey:
    """A plain function: the worker runs it in a thread."""
    source = Path(path).read_text("utf-8", errors="replace")
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    longest = max(functions, key=_length, default=None)
    return Survey(
        lines=len(source.splitlines()),
        functions=len(functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        longest="" if longest is None else longest.name,
        longest_lines=0 if longest is None else _length(longest),
    )


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@oq.task(queue_name="checksums")
async def checksum(path: str) -> str:
    """An async function: the worker runs many of them at once on its event loop."""
    data = await asyncio.to_thread(Path(path).read_bytes)
    return hashlib.sha256(data).hexdigest()


@oq.task(max_retries=3, retry_delay=0.2)
async def publish(path: str) -> int:
    """Pretends to talk to a server that always refuses the first time. The task is retried."""
    attempt = current_task().attempt
    if attempt == 1:
        raise ConnectionError(f"the server was busy with {Path(path).name}")
    return attempt


@oq.task(max_retries=0)
def compile_draft(text: str) -> int:
    """Fails for good: it is tried once, and its error is kept."""
    return len(ast.parse(text).body)
