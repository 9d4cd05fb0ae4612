"""What every shelf promises, on memory, local disk and the object stores alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omniq_conformance.nursery import start
from omniq_core import Closed
from omniq_file.shelves.shelf import Shelf

pytestmark = pytest.mark.slow  # on real servers

New = Callable[[], Shelf]
Run = Callable[[Coroutine[Any, Any, None]], None]
RACER = f"{Path(__file__).parents[1] / 'racer.py'}:main"


@asynccontextmanager
async def opened(new: New) -> AsyncIterator[Shelf]:
    shelf = new()
    await shelf.open(create=True)
    try:
        yield shelf
    finally:
        await shelf.close()


def test_of_twenty_that_create_one_name_exactly_one_wins_and_its_bytes_stay(new_shelf: New) -> None:
    async def main() -> None:
        async with opened(new_shelf) as one, opened(new_shelf) as two:
            for n in range(3):
                calls = [(one, two)[i % 2].create(f"log/{n}", b"%d" % i) for i in range(20)]
                won = await asyncio.gather(*calls)
                assert won.count(True) == 1
                assert await two.read(f"log/{n}") == b"%d" % won.index(True)
                assert await one.create(f"log/{n}", b"late") is False

    asyncio.run(main())


def test_what_was_created_is_read_whole_or_in_part(new_shelf: New) -> None:
    async def main() -> None:
        async with opened(new_shelf) as shelf:
            data = bytes(range(256)) * 5
            assert await shelf.create("a/b/c", data)
            assert await shelf.create("a/empty", b"")
            assert await shelf.read("a/b/c") == data
            for start, length in [
                (0, 10),
                (7, 1),
                (250, 300),
                (1279, 10),
                (1280, 5),
                (5000, 5),
                (3, 0),
                (0, 0),
            ]:
                assert await shelf.read("a/b/c", start=start, length=length) == data[start : start + length]
            assert await shelf.read("a/b/c", start=1000) == data[1000:]
            assert await shelf.read("a/empty") == b""
            assert await shelf.read("a/empty", start=0, length=4) == b""
            assert await shelf.read("a/empty", start=3) == b""

    asyncio.run(main())


def test_a_missing_name_is_none_and_deleting_it_no_error(new_shelf: New) -> None:
    async def main() -> None:
        async with opened(new_shelf) as shelf:
            assert await shelf.read("log/1") is None
            assert await shelf.read("log/1", start=3, length=2) is None
            assert await shelf.read("log/1", length=0) is None
            assert list(await shelf.list("log")) == []
            await shelf.delete(["log/1", "log/2"])
            await shelf.delete([])
            assert await shelf.create("log/1", b"x")
            await shelf.delete(["log/0", "log/1", "log/2"])
            assert await shelf.read("log/1") is None
            assert await shelf.create("log/1", b"y"), "a deleted name is free again"
            assert await shelf.read("log/1") == b"y"

    asyncio.run(main())


def test_a_listing_is_sorted_begins_where_it_is_told_and_ends_where_it_is_told(new_shelf: New) -> None:
    async def main() -> None:
        async with opened(new_shelf) as shelf:
            names = [f"log/{n // 10}/{n:03d}" for n in range(45)]
            names += ["log/4x/1", "log/zz/1"]
            other = ["lof/1", "logs/1", "zog/1"]
            await asyncio.gather(*(shelf.create(name, b"x") for name in names + other))
            names.sort()
            assert list(await shelf.list("log")) == names
            for after in ["log/", "log/0/000", "log/2/025", "log/2/0255", "log/4", "log/zz/0", names[-1]]:
                later = [name for name in names if name > after]
                for limit in (1, 2, 7, 100):
                    assert list(await shelf.list("log", after=after, limit=limit)) == later[:limit]
            assert list(await shelf.list("log", after="a")) == names
            assert list(await shelf.list("log", after="m")) == []
            assert list(await shelf.list("lo")) == []
            assert list(await shelf.list("log/4", limit=3)) == ["log/4/040", "log/4/041", "log/4/042"]

    asyncio.run(main())


def test_a_listing_of_several_pages_misses_nothing(place: Any, run: Run) -> None:
    async def main() -> None:
        async with place.opened() as shelf:
            names = [f"log/{n:06d}" for n in range(1100)]
            room = asyncio.Semaphore(30)

            async def create(name: str) -> None:
                async with room:
                    assert await shelf.create(name, b"")

            await asyncio.gather(*map(create, names))
            assert list(await shelf.list("log", limit=5000)) == names
            assert list(await shelf.list("log", after=names[9], limit=1050)) == names[10:1060]
            await shelf.delete(names)
            assert list(await shelf.list("log")) == []

    run(main())


def test_a_second_shelf_sees_at_once_what_the_first_has_done(new_shelf: New) -> None:
    async def main() -> None:
        async with opened(new_shelf) as one, opened(new_shelf) as two:
            for n in range(20):
                assert list(await two.list("log", after=f"log/{n - 1:03d}")) == []
                await one.create(f"log/{n:03d}", b"%d" % n)
                assert await two.read(f"log/{n:03d}") == b"%d" % n
                assert list(await two.list("log", after=f"log/{n - 1:03d}")) == [f"log/{n:03d}"]
            await one.delete(["log/019"])
            assert await two.read("log/019") is None
            assert len(await two.list("log")) == 19

    asyncio.run(main())


def test_a_closed_shelf_says_so_and_closing_twice_is_no_error(place: Any, run: Run) -> None:
    async def main() -> None:
        shelf = place.shelf()
        await shelf.close()
        await shelf.open(create=False)
        waiting = asyncio.gather(*(shelf.read("a") for _ in range(50)), return_exceptions=True)
        await asyncio.sleep(0)
        await shelf.close()
        await shelf.close()
        assert {type(answer) for answer in await waiting} <= {Closed, type(None)}
        for call in (shelf.read("a"), shelf.create("a", b""), shelf.list("a"), shelf.delete(["a"])):
            with pytest.raises(Closed):
                await call

    run(main())


def test_of_two_processes_that_create_the_same_names_each_is_won_by_one(place: Any, run: Run) -> None:
    with ExitStack() as stack:
        racers = [stack.enter_context(start(RACER, place.code, me, 40)) for me in "ab"]
        for racer in racers:
            assert racer.stdout.readline() == b"ready\n"
        for racer in racers:
            racer.stdin.write(b"\n")
        won = [[int(n) for n in racer.stdout.read().split()] for racer in racers]
    assert sorted(won[0] + won[1]) == list(range(40))

    async def main() -> None:
        async with place.opened() as shelf:
            for me, numbers in zip("ab", won, strict=True):
                for n in numbers:
                    assert await shelf.read(f"race/{n}") == me.encode()

    run(main())
