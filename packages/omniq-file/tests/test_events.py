"""The log of events over restarts, checkpoints and truncation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniq_core import Event, EventFilter, Outcome
from omniq_file import FileBackend, tidying
from omniq_file.event_machine import APPEND, TRUNCATE, EventMachine

EVERYTHING = EventFilter()


def event(number: int, at: float | None = None) -> Event:
    return Event(
        f"e{number}", f"t{number % 3}", "tick", float(number) if at is None else at, data=f"{number}".encode()
    )


def on_folder(folder: Path, work: Callable[[Any], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), FileBackend(base_dir=str(folder), **settings) as backend:
            await work(backend.event_store())

    asyncio.run(main())


async def tidied(store: Any) -> None:
    """Until the tidying up that is under way has ended."""
    clerk = store._opened.clerk()

    async def ended() -> None:
        await asyncio.gather(*clerk.events._tidying.tasks)

    await clerk._run_there(ended())


def numbers(events: Any) -> list[int]:
    return [int(e.id[1:]) for e in events]


def test_an_id_is_known_again_after_a_restart_and_not_after_it_was_truncated(tmp_path: Path) -> None:
    async def first(store: Any) -> None:
        assert await store.append([event(0), event(1), event(0)]) == [
            Outcome.OK,
            Outcome.OK,
            Outcome.DUPLICATE,
        ]

    async def second(store: Any) -> None:
        assert await store.append([event(1), event(2)]) == [Outcome.DUPLICATE, Outcome.OK]
        assert numbers((await store.read(EVERYTHING)).items) == [0, 1, 2]
        assert await store.truncate(before=1.0) == 1
        assert await store.append([event(0), event(1)]) == [Outcome.OK, Outcome.DUPLICATE]
        assert numbers((await store.read(EVERYTHING)).items) == [1, 2, 0]

    on_folder(tmp_path, first)
    on_folder(tmp_path, second)


def test_cursors_stay_true_over_truncation_checkpoints_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidying.Tidying, "due_bytes", 2000)
    cursors: list[str] = []

    async def fill(store: Any) -> None:
        for number in range(0, 300, 3):
            await store.append([event(number), event(number + 1), event(number + 2)])
        page = await store.read(EVERYTHING, limit=100)
        assert numbers(page.items) == list(range(100))
        cursors.append(page.cursor)
        assert await store.truncate(before=50.0, limit=20) == 20
        assert await store.truncate(before=50.0) == 30
        assert numbers((await store.read(EVERYTHING, limit=3)).items) == [50, 51, 52]
        await tidied(store)
        for number in range(300, 400):
            await store.append([event(number)])

    async def look(store: Any) -> None:
        assert numbers((await store.read(EVERYTHING, after=cursors[0])).items) == list(range(100, 400))
        assert numbers((await store.read(EVERYTHING)).items) == list(range(50, 400))
        some = await store.read(EventFilter(task_ids=["t1"], since=390.0), limit=2)
        assert numbers(some.items) == [391, 394]

    on_folder(tmp_path, fill)
    on_folder(tmp_path, look)
    files = [path for path in (tmp_path / "omniq/events/log").rglob("*") if path.is_file()]
    assert len(files) < 200
    assert any((tmp_path / "omniq/events/horizon").iterdir())


def test_the_oldest_events_go_when_there_are_too_many(tmp_path: Path) -> None:
    async def work(store: Any) -> None:
        for number in range(0, 500, 5):
            await store.append([event(number + i) for i in range(5)])
        found = numbers((await store.read(EVERYTHING)).items)
        assert found == list(range(500 - len(found), 500))
        assert 100 <= len(found) <= 110

    on_folder(tmp_path, work, max_events=100)


def test_events_of_many_appenders_come_once_each_and_in_one_order_for_all(tmp_path: Path) -> None:
    async def main() -> None:
        backends = [FileBackend(base_dir=str(tmp_path), cache_mb=size) for size in (1, 2)]
        for backend in backends:
            await backend.open()
        stores = [backend.event_store() for backend in backends]
        await asyncio.gather(*(stores[n % 2].append([event(n), event(n + 1)]) for n in range(200)))
        orders = [numbers((await store.read(EVERYTHING)).items) for store in stores]
        assert orders[0] == orders[1]
        assert sorted(orders[0]) == list(range(201))
        for backend in backends:
            await backend.close()

    asyncio.run(main())


def test_an_id_that_was_truncated_and_came_again_is_known_until_it_goes_again() -> None:
    def append(*ids: str) -> list[Any]:
        return [(APPEND, [(id_, "t", "x", 0.0, "", "", None, 1) for id_ in ids])]

    live, restored = EventMachine(), EventMachine()
    live.apply(1, 0.0, (20,), append("a", "b"), 0, 0)
    live.apply(2, 0.0, (20,), [(TRUNCATE, 1, 1)], 0, 0)
    live.apply(3, 0.0, (20,), append("a"), 0, 0)
    for _ in restored.restore(live.save()):
        pass
    for machine in (live, restored):
        assert machine.apply(4, 0.0, (20,), append("a"), 0, 0) == [[Outcome.DUPLICATE]]
        machine.apply(5, 0.0, (20,), [(TRUNCATE, 2, 0)], 0, 0)
        assert machine.apply(6, 0.0, (20,), append("a"), 0, 0) == [[Outcome.DUPLICATE]]
        assert machine.count == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(0, 30), min_size=1, max_size=5)),
        st.tuples(st.just("truncate"), st.integers(1, 12), st.integers(0, 4)),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(history=steps, data=st.data())
def test_the_machine_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    history: Any, data: st.DataObject
) -> None:
    live, replica = EventMachine(), EventMachine()
    for number, step in enumerate(history, 1):
        if step[0] == "append":
            operation: Any = (APPEND, [(f"e{n}", "t", "x", float(n), "", "", None, 1) for n in step[1]])
        else:
            operation = (TRUNCATE, step[1], step[2])
        assert live.is_idle(operation, 0.0, (20,)) == replica.is_idle(operation, 0.0, (20,))
        if live.is_idle(operation, 0.0, (20,)):
            before = list(live.save())
            live.answer_idle(operation, 0.0, (20,))
            assert list(live.save()) == before
        answers = [machine.apply(number, 0.0, (20,), [operation], 0, 0) for machine in (live, replica)]
        assert answers[0] == answers[1]
        if data.draw(st.booleans()):
            fresh = EventMachine()
            for _ in fresh.restore(iter(list(replica.save()))):
                pass
            replica = fresh
        assert list(live.save()) == list(replica.save())
        assert live.count == sum(len(batch.digests) for batch in live.batches) - live.skip == len(live._ids)
