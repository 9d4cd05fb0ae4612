"""The log of events: each once, in one order, and nobody who follows it misses any."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_conformance.hand import Hand, chunks
from omniq_core import Capability, Closed, Event, EventFilter, Outcome

EVENTS, TRUNCATE = Capability.EVENTS, Capability.EVENT_TRUNCATE
OK, DUPLICATE = Outcome.OK, Outcome.DUPLICATE
ANY = EventFilter()


def _event(number: int = 0, **fields: object) -> Event:
    base: dict[str, object] = {"id": Hand.new_id("e"), "task_id": "t", "type": "tick", "at": 1000.0 + number}
    return Event(**(base | fields))  # type: ignore[arg-type]


async def _append(hand: Hand, events: Sequence[Event]) -> list[Outcome]:
    found: list[Outcome] = []
    for batch in chunks(events, hand.limits.max_batch):
        answers = await hand.events.append(batch)
        assert len(answers) == len(batch), f"append answered {len(batch)} events with {len(answers)} answers"
        found += answers
    return found


async def _follow(
    hand: Hand, which: EventFilter = ANY, after: str | None = None, limit: int = 1000
) -> list[Event]:
    """Everything from a cursor to the end of the log."""
    found: list[Event] = []
    while True:
        page = await hand.events.read(which, after=after, limit=limit)
        assert len(page.items) <= limit, f"read(limit={limit}) gave {len(page.items)} events"
        if not page.items:
            return found
        assert page.cursor is not None, "a page with events has no cursor: nobody could follow the log"
        found += page.items
        after = page.cursor


@check(EVENTS)
async def events_are_read_as_they_were_written_in_their_order(b: Bench) -> None:
    events = [
        _event(5, type="first", queue="mail", name="send", worker_id="w1", data=b'{"a": 1}'),
        _event(3, type="second", data='{"text": "\\u00e9 é"}'.encode()),
        _event(4, type="third", data=b"{}", worker_id=None),
    ]
    assert await _append(b, events) == [OK] * 3, "new events must be answered OK"
    found = await _follow(b)
    assert found == events, (
        f"wrote {events} and read {found}: the order is that of the log, whatever `at` says"
    )


@check(EVENTS)
async def an_event_is_stored_once(b: Bench) -> None:
    first, second = _event(1), _event(2)
    await _append(b, [first])
    changed = _event(9, id=first.id, type="changed")
    outcomes = await _append(b, [changed, second, second])
    assert outcomes == [DUPLICATE, OK, DUPLICATE], f"known, new, new again were answered {outcomes}"
    assert await _follow(b) == [first, second], "an event is there twice, or was changed"


@check(EVENTS)
async def events_are_found_by_task_type_queue_and_time(b: Bench) -> None:
    events = [
        _event(0, task_id="a", type="x", queue="q1"),
        _event(1, task_id="a", type="y", queue="q2"),
        _event(2, task_id="b", type="x", queue="q1"),
        _event(3, task_id="b", type="y", queue="q1"),
    ]
    await _append(b, events)
    for which, wanted in (
        (EventFilter(task_ids=["a"]), [0, 1]),
        (EventFilter(task_ids=["a", "b"]), [0, 1, 2, 3]),
        (EventFilter(types=["y"]), [1, 3]),
        (EventFilter(queues=["q1"]), [0, 2, 3]),
        (EventFilter(since=1001.0), [1, 2, 3]),
        (EventFilter(until=1001.0), [0]),
        (EventFilter(since=1001.0, until=1003.0), [1, 2]),
        (EventFilter(task_ids=["b"], types=["x"]), [2]),
        (EventFilter(task_ids=["nobody"]), []),
    ):
        found = await _follow(b, which)
        assert found == [events[number] for number in wanted], (
            f"{which} found {len(found)} events, not {wanted}"
        )


@check(EVENTS)
async def a_reader_follows_page_by_page(b: Bench) -> None:
    events = [_event(number, type="odd" if number % 2 else "even") for number in range(25)]
    await _append(b, events)
    for limit in (1, 7, 25, 100):
        assert await _follow(b, limit=limit) == events, (
            f"pages of {limit} do not hold every event once, in order"
        )
        odd = await _follow(b, EventFilter(types=["odd"]), limit=limit)
        assert odd == events[1::2], f"pages of {limit} of a filter do not hold every event once, in order"


@check(EVENTS)
async def a_reader_at_the_end_comes_back_with_its_cursor(b: Bench) -> None:
    await _append(b, [_event(number) for number in range(3)])
    page = await b.events.read(ANY)
    assert page.cursor is not None, "the cursor is given also when nothing follows yet"
    nothing = await b.events.read(ANY, after=page.cursor)
    assert list(nothing.items) == [], "a reader at the end of the log got events again"
    later = [_event(number) for number in range(2)]
    await _append(b, later)
    found = await b.events.read(ANY, after=nothing.cursor or page.cursor)
    assert list(found.items) == later, f"after its cursor a reader found {len(found.items)} of 2 new events"
    other = await b.another()
    found = await other.events.read(ANY, after=page.cursor)
    assert list(found.items) == later, "a cursor is good only on the backend that gave it"


@check(EVENTS)
async def an_empty_log_can_be_followed_from_its_beginning(b: Bench) -> None:
    page = await b.events.read(ANY)
    assert list(page.items) == [], "a new storage has events"
    events = [_event(1), _event(2)]
    await _append(b, events)
    found = await b.events.read(ANY, after=page.cursor)
    assert list(found.items) == events, "a reader that began before the first event missed it"


@check(EVENTS)
async def a_reader_misses_nothing_while_many_append(b: Bench) -> None:
    writers, each = 4, 40
    done = 0

    async def write(hand: Hand, number: int) -> None:
        for count in range(each):
            await _append(hand, [_event(count, task_id=f"w{number}")])
            await asyncio.sleep(0)

    seen: list[Event] = []
    cursor: str | None = None

    async def read_on() -> None:
        nonlocal cursor
        page = await b.events.read(ANY, after=cursor, limit=7)
        seen.extend(page.items)
        cursor = page.cursor or cursor

    other = await b.another()
    async with b.on_another_thread() as elsewhere:
        jobs = [
            asyncio.ensure_future(write(b, 0)),
            asyncio.ensure_future(write(other, 1)),
            asyncio.ensure_future(elsewhere.do(lambda hand: write(hand, 2))),
            asyncio.ensure_future(elsewhere.do(lambda hand: write(hand, 3))),
        ]
        while not all(job.done() for job in jobs):
            await read_on()
            await asyncio.sleep(0)
        for job in jobs:
            await job
        while done != len(seen):
            done = len(seen)
            await read_on()
    ids = [event.id for event in seen]
    assert len(ids) == writers * each, (
        f"a reader that followed the cursors saw {len(ids)} of {writers * each} events"
    )
    assert len(set(ids)) == len(ids), "a reader that followed the cursors saw an event twice"
    for number in range(writers):
        times = [event.at for event in seen if event.task_id == f"w{number}"]
        assert times == sorted(times), "the events of one writer are out of order"


@check(EVENTS)
async def tailing_gives_what_is_there_and_what_comes(b: Bench) -> None:
    first, second, third = _event(1), _event(2), _event(3)
    await _append(b, [first])
    tail = aiter(b.events.tail(ANY))
    found = [await anext(tail)]
    following = asyncio.ensure_future(anext(tail))
    await asyncio.sleep(0.02)
    await _append(await b.another(), [second, third])
    async with asyncio.timeout(3.0):
        found += [await following, await anext(tail)]
    assert found == [first, second, third], f"tail gave {found}"
    await tail.aclose()  # type: ignore[attr-defined]


@check(EVENTS)
async def tailing_starts_after_a_cursor_and_keeps_to_its_filter(b: Bench) -> None:
    await _append(b, [_event(1, type="x"), _event(2, type="x")])
    cursor = (await b.events.read(EventFilter(types=["x"]))).cursor
    tail = aiter(b.events.tail(EventFilter(types=["x"]), after=cursor))
    following = asyncio.ensure_future(anext(tail))
    wanted = _event(4, type="x")
    await _append(b, [_event(3, type="y"), wanted])
    async with asyncio.timeout(3.0):
        found = await following
    assert found == wanted, f"tail after a cursor gave {found}"
    await tail.aclose()  # type: ignore[attr-defined]


@check(EVENTS)
async def closing_the_backend_ends_its_tails(b: Bench) -> None:
    other = await b.another()
    tail = aiter(other.events.tail(ANY))
    following = asyncio.ensure_future(anext(tail))
    await asyncio.sleep(0.02)
    await other.backend.close()
    done, _ = await asyncio.wait({following}, timeout=2.0)
    assert done, "a tail goes on two seconds after its backend was closed"
    error = following.exception()
    assert isinstance(error, Closed), f"a tail of a closed backend must raise Closed, got {error!r}"


@check(EVENTS, Capability.EVENT_TAIL)
async def a_tail_is_pushed(b: Bench) -> None:
    tail = aiter(b.events.tail(ANY))
    following = asyncio.ensure_future(anext(tail))
    await asyncio.sleep(0.05)
    event = _event(1)
    await _append(await b.another(), [event])
    async with asyncio.timeout(1.0):
        assert await following == event, "EVENT_TAIL is declared, and the tail gave another event"
    await tail.aclose()  # type: ignore[attr-defined]


@check(EVENTS, TRUNCATE)
async def truncating_deletes_the_oldest_up_to_a_time(b: Bench) -> None:
    events = [_event(number) for number in range(10)]
    await _append(b, events)
    assert await b.events.truncate(before=1000.0) == 0, "truncate deleted an event that is not older"
    assert await b.events.truncate(before=1006.0, limit=4) == 4, "truncate(limit=4) of six old events"
    assert await _follow(b) == events[4:], "truncate did not delete the oldest first"
    assert await b.events.truncate(before=1006.0) == 2, "truncate of the two old events that are left"
    assert await _follow(b) == events[6:], "truncate deleted the wrong events"
    assert await b.events.truncate(before=1006.0) == 0, "truncate deleted something a second time"


@check(EVENTS, TRUNCATE)
async def truncating_disturbs_no_reader(b: Bench) -> None:
    events = [_event(number) for number in range(6)]
    await _append(b, events)
    page = await b.events.read(ANY, limit=4)
    await b.events.truncate(before=1003.0)
    found = await _follow(b, after=page.cursor)
    assert found == events[4:], f"after a truncation a reader's cursor gave {len(found)} events instead of 2"
    await b.events.truncate(before=2000.0)
    later = [_event(100), _event(101)]
    await _append(b, later)
    found = await _follow(b, after=page.cursor)
    assert found == later, "after the whole log was truncated a reader's cursor lost its place"
