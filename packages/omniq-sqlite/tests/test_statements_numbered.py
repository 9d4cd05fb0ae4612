"""Python 3.14 fills numbered parameters from a mapping only; that way is tried on every Python."""

from __future__ import annotations

import asyncio

import pytest

from omniq_core import Outcome, Settlement, TaskRecord, Verb
from omniq_sqlite import SQLiteBackend, statements


def test_numbered_parameters_are_filled_by_name_as_well(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "_numbered", statements._by_name)

    async def main() -> None:
        async with SQLiteBackend(db_path=path) as backend:
            queue = backend.queue()
            await queue.enqueue(
                [TaskRecord(f"t{number}", "q", "n", b"x", unique_key=f"k{number}") for number in range(70)]
            )
            claims = await queue.claim(["q"], max_tasks=70, lease_s=30, worker_id="w", claim_id="c")
            ends = [
                Settlement(claim.lease, Verb.DEAD, reason="why", error=b"e", result=b"r") for claim in claims
            ]
            assert set(await queue.settle(ends)) == {Outcome.OK}
            assert (await queue.get(["t69"]))[0].reason == "why"  # type: ignore[union-attr]

    asyncio.run(main())
