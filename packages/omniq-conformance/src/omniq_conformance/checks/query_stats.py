"""Looking at many tasks: by filter and page, and as counts."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_conformance.hand import Hand
from omniq_core import Capability, TaskFilter, TaskState, Verb

QUERY, STATS = Capability.QUERY, Capability.STATS


async def _all(hand: Hand, which: TaskFilter, limit: int = 100) -> list[str]:
    """The ids over all pages."""
    found: list[str] = []
    cursor = None
    for _ in range(1000):
        page = await hand.queue.query(which, limit=limit, cursor=cursor)
        assert len(page.items) <= limit, f"query(limit={limit}) gave {len(page.items)} tasks"
        found += [task.id for task in page.items]
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError("query gave a thousand pages and no end")


@check(QUERY)
async def a_query_finds_tasks_by_queue_name_and_state(b: Bench) -> None:
    a1 = await b.put_one(queue="a", name="one")
    a2 = await b.put_one(queue="a", name="two")
    b1 = await b.put_one(queue="b", name="one")
    claim = await b.claim_one("b")
    ids = {a1.id, a2.id, b1.id}
    for which, wanted in (
        (TaskFilter(queues=["a"]), {a1.id, a2.id}),
        (TaskFilter(queues=["a", "b"]), ids),
        (TaskFilter(queues=["nowhere"]), set()),
        (TaskFilter(names=["one"]), {a1.id, b1.id}),
        (TaskFilter(queues=["a"], names=["one"]), {a1.id}),
        (TaskFilter(states=[TaskState.RUNNING]), {b1.id}),
        (TaskFilter(states=[TaskState.PENDING, TaskState.RUNNING]), ids),
        (TaskFilter(states=[TaskState.DEAD]), set()),
        (TaskFilter(queues=["b"], states=[TaskState.PENDING]), set()),
    ):
        found = await _all(b, which)
        assert sorted(found) == sorted(wanted), (
            f"{which} found {len(found)} tasks, not the {len(wanted)} that match"
        )
    await b.finish(claim, Verb.DEAD)
    assert await _all(b, TaskFilter(states=[TaskState.DEAD])) == [b1.id], "a query missed a change of state"


@check(QUERY)
async def a_query_gives_whole_snapshots(b: Bench) -> None:
    claim = await b.running(body=b"\x00\xff")
    page = await b.queue.query(TaskFilter(queues=["q"]))
    assert list(page.items) == [await b.look(claim.task_id)], "query and get show one task differently"


@check(QUERY)
async def a_query_finds_tasks_by_the_time_of_their_arrival(b: Bench) -> None:
    early = await b.put_one()
    await b.pass_span(0.3)
    late = await b.put_one()
    between = ((await b.look(early.id)).enqueued_at + (await b.look(late.id)).enqueued_at) / 2
    found = await _all(b, TaskFilter(enqueued_after=between))
    assert found == [late.id], f"enqueued_after found {len(found)} tasks instead of the later one"
    found = await _all(b, TaskFilter(enqueued_before=between))
    assert found == [early.id], f"enqueued_before found {len(found)} tasks instead of the earlier one"


@check(QUERY)
async def pages_are_newest_first_and_hold_every_task_once(b: Bench) -> None:
    records = []
    for _ in range(4):
        records += await b.put(6)
        await b.advance(0.25 if b.moves_time else 0.0)
    wanted = [record.id for record in reversed(records)]
    for limit in (1, 5, 24, 100):
        found = await _all(b, TaskFilter(queues=["q"]), limit)
        assert sorted(found) == sorted(wanted), f"pages of {limit} held {len(found)} of {len(wanted)} tasks"
        if b.has(Capability.FIFO):
            assert found == wanted, f"pages of {limit} are not newest first"


@check(QUERY)
async def pages_lose_nothing_while_other_tasks_come_and_go(b: Bench) -> None:
    stays = [record.id for record in await b.put(20, queue="stays")]
    found: list[str] = []
    cursor = None
    for _ in range(100):
        page = await b.queue.query(TaskFilter(), limit=4, cursor=cursor)
        found += [task.id for task in page.items if task.queue == "stays"]
        await b.put(2, queue="comes")
        if claims := await b.claim("comes", max_tasks=1):
            await b.finish(claims[0])
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(stays), (
        f"pages showed {len(found)} times a task of 20 that stayed as they were"
    )


@check(STATS)
async def counts_follow_the_tasks(b: Bench) -> None:
    await b.put(5)
    first, second = await b.claim_one(), await b.claim_one()
    [stats] = await b.queue.stats(["q"])
    found = (stats.queue, stats.ready, stats.delayed, stats.running, stats.paused)
    assert found == ("q", 3, 0, 2, False), f"3 of 5 tasks wait and 2 run; stats say {stats}"
    await b.finish(first)
    await b.finish(second, Verb.RETRY)
    [stats] = await b.queue.stats(["q"])
    assert (stats.ready, stats.running) == (4, 0), f"after one success and one retry stats say {stats}"
    await b.finish(await b.claim_one(), Verb.DEAD)
    [stats] = await b.queue.stats(["q"])
    assert (stats.ready, stats.running) == (3, 0), f"a dead task is not counted; stats say {stats}"


@check(STATS, Capability.DELAYED)
async def what_is_not_due_is_counted_as_delayed(b: Bench) -> None:
    await b.put(2)
    await b.put(3, delay_s=b.span_s)
    [stats] = await b.queue.stats(["q"])
    assert (stats.ready, stats.delayed) == (2, 3), f"2 tasks are due and 3 delayed; stats say {stats}"
    await b.pass_span()
    [stats] = await b.queue.stats(["q"])
    assert (stats.ready, stats.delayed) == (5, 0), f"all 5 tasks are due; stats say {stats}"


@check(STATS)
async def an_unknown_queue_counts_zero(b: Bench) -> None:
    await b.put(1, queue="known")
    names = ["nowhere", "known", "never"][: b.limits.max_batch]
    stats = await b.queue.stats(names)
    assert [s.queue for s in stats] == names, f"stats of {names} answered for {[s.queue for s in stats]}"
    assert [s.ready for s in stats] == [0, 1, 0][: len(names)], f"stats say {stats}"


@check(STATS)
async def the_age_of_the_first_in_line_is_told_where_it_is_known(b: Bench) -> None:
    await b.put(1)
    await b.pass_span(0.5)
    await b.put(1)
    [stats] = await b.queue.stats(["q"])
    if stats.oldest_ready_s is not None:
        assert stats.oldest_ready_s >= b.span_s * 0.5 - b.limits.time_resolution_s, (
            f"the first in line has been due for {b.span_s * 0.5:g} s, stats say {stats.oldest_ready_s:g} s"
        )
    [empty] = await b.queue.stats(["empty"])
    assert empty.oldest_ready_s is None, "an empty queue has a first in line"


@check(STATS, Capability.PAUSE)
async def a_pause_is_shown(b: Bench) -> None:
    await b.put(1)
    await b.queue.pause(["q"])
    [stats] = await b.queue.stats(["q"])
    assert stats.paused and stats.ready == 1, f"a paused queue with one task shows {stats}"
    await b.queue.resume(["q"])
    [stats] = await b.queue.stats(["q"])
    assert not stats.paused, "a resumed queue is shown as paused"


@check(STATS)
async def queue_names_are_all_that_were_ever_used_sorted(b: Bench) -> None:
    assert list(await b.queue.queue_names()) == [], "a new storage has queues"
    for name in ("zebra", "apple", "mango"):
        await b.put(1, queue=name)
    await b.finish(await b.claim_one("mango"))
    await b.claim("asked for, never used")
    found = list(await b.queue.queue_names())
    assert found == ["apple", "mango", "zebra"], f"queue_names() gave {found}"


@check(STATS, Capability.PAUSE)
async def a_queue_that_was_only_paused_has_not_been_used(b: Bench) -> None:
    await b.put(1, queue="used")
    await b.queue.pause(["only paused"])
    found = list(await b.queue.queue_names())
    assert found == ["used"], f"queue_names() tells every queue that was ever enqueued to, and gave {found}"
