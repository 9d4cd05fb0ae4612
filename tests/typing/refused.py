"""Mistakes that both type checkers must find. Each line that ends in an ignore is one; mypy --strict also complains where an
ignore is not needed, so the file as it stands says that mypy finds them all. A test takes the ignores away and counts again,
with pyright as well."""

from __future__ import annotations

from omniq import AsyncOmniQ, OmniQ

oq = OmniQ("memory://")
aq = AsyncOmniQ("memory://")


@oq.task
def add(a: int, b: int = 1) -> int:
    return a + b


@aq.task(max_retries=2)
async def fetch(url: str) -> bytes:
    return url.encode()


def wrong_arguments() -> None:
    add.enqueue("no")  # type: ignore[arg-type]
    add.enqueue(1, c=3)  # type: ignore[call-arg]
    add.enqueue()  # type: ignore[call-arg]
    add.with_options(priority=1).enqueue(1, "b")  # type: ignore[arg-type]
    add(1, 2, 3)  # type: ignore[call-arg]


async def wrong_async_arguments() -> None:
    await fetch.enqueue(1)  # type: ignore[arg-type]
    await fetch.enqueue(address="x")  # type: ignore[call-arg]
    await fetch(1)  # type: ignore[arg-type]


def wrong_results() -> None:
    text: str = add.enqueue(1).result()  # type: ignore[assignment]
    text.upper()


async def wrong_async_results() -> None:
    text: str = await (await fetch.enqueue("x"))  # type: ignore[assignment]
    text.upper()


def wrong_parameters() -> None:
    oq.enqueue(add, 1, queue="low")  # type: ignore[call-arg]
    oq.enqueue(add, 1, priority="high")  # type: ignore[arg-type]
    add.with_options(retries=3)  # type: ignore[call-arg]
    oq.task(queue="low")  # type: ignore[call-overload]
    oq.start_worker(workers=3)  # type: ignore[call-arg]
    oq.get_result(7)  # type: ignore[arg-type]
