"""Names, ids and bytes that break whoever pastes them into a path, a pattern, a query or a format."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import (
    MAX_ID_BYTES,
    MAX_NAME_BYTES,
    Capability,
    Event,
    EventFilter,
    Outcome,
    TaskFilter,
    TaskState,
    Verb,
    check_name,
    check_task_id,
)

NASTY = (
    "../x", "..", ".", "...", "a/b", "/", "//", "/etc/passwd", "a/../b", "\\", "a\\b", "C:\\x", "~", "$HOME", "-rf",
    "*", "a*", ">", "a.>", "a.*", "a.b", ".a", "a.", "?", "[a-z]", "{a}", "{", "}", "a:b", "::", "#", "&", "|", ";",
    "%s", "%", "%%", "%2F", "%00", "{x}", "{0}", "$1", "\\0", "\\n", "'", '"', "`", "''", "';--",
    "'; DROP TABLE task;--", "<script>", " ", " a", "a ", "a b", "NUL", "con", "null", "None", "true", "1", "01", "-1",
    "1e5", "a", "A", "ä", "a\u0308", "İ", "ı", "ß", "ſ", "é", "e\u0301", "Å", "\u212b", "مرحبا", "\u202eabc", "日本語",
    "🦄", "👩\u200d👩\u200d👧", "\u200b", "\u2028", "\ufeff", "\ufffd", "\U0010ffff", "🦄" * 30, "x" * 128,
)  # fmt: skip
"""All of them different, and all of them allowed: tests/ checks both."""
LONGEST = (
    "n" * MAX_NAME_BYTES,
    "é" * 127 + "n",
    "🦄" * 63 + "nnn",
    "." * MAX_NAME_BYTES,
    "%" * MAX_NAME_BYTES,
)


@check(slow=3)
async def queues_with_nasty_names_are_kept_apart(b: Bench) -> None:
    names = [check_name("queue name", name) for name in NASTY + LONGEST]
    records = [b.record(queue=name, body=name.encode()) for name in names]
    await b.put_records(records)
    for name, record in zip(names, records, strict=True):
        claims = await b.claim(name, max_tasks=10)
        found = [(c.queue, c.body) for c in claims]
        assert found == [(name, name.encode())], f"the queue {name!r} gave {found}"
        await b.finish(claims[0])
        state = await b.state(record.id)
        assert state is TaskState.SUCCEEDED, f"a settled task of the queue {name!r} is {state}"


@check(Capability.STATS)
async def nasty_queue_names_come_back_as_they_were(b: Bench) -> None:
    names = list(NASTY + LONGEST)
    await b.put_records([b.record(queue=name) for name in names])
    found = list(await b.queue.queue_names())
    assert sorted(found) == sorted(names), f"queue_names() differs in {set(found) ^ set(names)}"
    for name in names[:: len(names) // 20]:
        [stats] = await b.queue.stats([name])
        assert (stats.queue, stats.ready) == (name, 1), f"stats of {name!r} say {stats}"


@check(slow=3)
async def tasks_with_nasty_ids_are_kept_apart(b: Bench) -> None:
    longest = ("i" * MAX_ID_BYTES, "é" * 64, "🦄" * 32)
    ids = list(dict.fromkeys(check_task_id(text) for text in NASTY + longest))
    await b.put_records([b.record(id=text, body=text.encode()) for text in ids])
    answers = await b.enqueue([b.record(id=text) for text in ids])
    assert {a.outcome for a in answers} == {Outcome.DUPLICATE}, "an id was not recognised"
    claims = await b.claim_all()
    assert sorted(c.task_id for c in claims) == sorted(ids), (
        "claimed ids differ from those that were enqueued"
    )
    for claim in claims:
        assert claim.body == claim.task_id.encode(), f"the id {claim.task_id!r} has another task's body"
        await b.finish(claim, Verb.DEAD, reason=claim.task_id)
    for text in ids:
        task = await b.look(text)
        assert (task.id, task.reason) == (text, text), (
            f"get({text!r}) gave {task.id!r} with reason {task.reason!r}"
        )


@check(Capability.RESULTS)
async def results_of_nasty_ids_are_kept_apart(b: Bench) -> None:
    for text in NASTY:
        assert await b.put_result(text, 1, text.encode()) is Outcome.OK, (
            f"the id {text!r} had a result already"
        )
    for text in NASTY:
        record = await b.result(text)
        assert record is not None and record.task_id == text and record.body == text.encode(), (
            f"the result of {text!r} is {record}"
        )


@check(Capability.EVENTS)
async def events_with_nasty_texts_come_back(b: Bench) -> None:
    events = [
        Event(
            f"{text} {number}"[:100],
            text,
            text,
            1.0,
            queue=text,
            name=text,
            worker_id=text,
            data=b'"\\u0000"',
        )
        for number, text in enumerate(NASTY)
    ]
    for event in events:
        await b.events.append([event])
    page = await b.events.read(EventFilter())
    assert list(page.items) == events, "an event came back changed, or not at all"
    for text in NASTY[::7]:
        for which in (EventFilter(task_ids=[text]), EventFilter(types=[text]), EventFilter(queues=[text])):
            found = [event.task_id for event in (await b.events.read(which)).items]
            assert found == [text], f"{which} found the events of {found}"


@check(Capability.QUERY)
async def filters_take_nasty_names_literally(b: Bench) -> None:
    names = NASTY[::3]
    await b.put_records([b.record(queue=name, name=name) for name in names])
    for name in names:
        for which in (TaskFilter(queues=[name]), TaskFilter(names=[name])):
            found = [task.queue for task in (await b.queue.query(which)).items]
            assert found == [name], f"{which} found tasks of {found}"


@check()
async def names_workers_and_reasons_are_kept_as_they_are(b: Bench) -> None:
    for text in (*NASTY[::5], *LONGEST):
        record = b.record(name=text)
        await b.put_records([record])
        claim = await b.claim_one(worker_id=text)
        assert claim.name == text, f"a task's name {text!r} became {claim.name!r}"
        assert (await b.look(record.id)).worker_id == text, f"a worker's id {text!r} was changed"
        await b.finish(claim, Verb.DEAD, reason=text)
        task = await b.look(record.id)
        assert task.reason == text, f"the reason {text!r} became {task.reason!r}"


@check()
async def a_body_may_be_any_bytes(b: Bench) -> None:
    bodies = [b"", b"\x00", bytes(range(256)), b"\xff\xfe", b"\r\n.\r\n", b"'\"\\%s{}", b"\x80" * 1000]
    await b.put_records([b.record(id=f"body-{number}", body=body) for number, body in enumerate(bodies)])
    for claim in await b.claim_all():
        wanted = bodies[int(claim.task_id.partition("-")[2])]
        assert claim.body == wanted, f"a body of {len(wanted)} bytes came back as {claim.body[:50]!r}..."
        assert isinstance(claim.body, bytes), f"a body came back as {type(claim.body).__name__}"
        await b.finish(claim, Verb.DEAD, error=wanted)
        assert (await b.look(claim.task_id)).error == wanted, "an error's bytes were changed"


@check(slow=3)
async def the_largest_body_is_taken(b: Bench) -> None:
    body = bytes(range(256)) * (b.limits.max_body_bytes // 256) + b"x" * (b.limits.max_body_bytes % 256)
    claim = await b.running(body=body)
    assert claim.body == body, (
        f"a body of limits.max_body_bytes = {len(body)} came back with {len(claim.body)}"
    )
    error = b"e" * min(b.limits.max_result_bytes, 4 * 1024 * 1024)
    await b.finish(claim, Verb.DEAD, error=error)
    assert (await b.look(claim.task_id)).error == error, "an error of the largest size was changed"


@check(Capability.RESULTS, slow=3)
async def the_largest_result_is_taken(b: Bench) -> None:
    body = b"\x00r" * (min(b.limits.max_result_bytes, 16 * 1024 * 1024) // 2)
    task_id = b.new_id()
    outcome = await b.put_result(task_id, 1, body)
    assert outcome is Outcome.OK, f"a result of limits.max_result_bytes was answered {outcome}"
    record = await b.result(task_id)
    assert record is not None and record.body == body, f"a result of {len(body)} bytes came back changed"


@check()
async def numbers_keep_their_range(b: Bench) -> None:
    record = b.record(max_attempts=2**31 - 1, max_crashes=2**31 - 1)
    await b.put_records([record])
    claim = await b.claim_one()
    assert (claim.max_attempts, claim.max_crashes) == (2**31 - 1, 2**31 - 1), (
        f"large numbers came back as {claim}"
    )
    await b.finish(claim)


@check(Capability.RESULTS)
async def fences_may_be_large(b: Bench) -> None:
    task_id = b.new_id()
    for fence in (2**31, 2**53 - 1):
        assert await b.put_result(task_id, fence, b"x") is Outcome.OK, (
            f"a record of fence {fence} was not stored"
        )
    record = await b.result(task_id)
    assert record is not None and record.fence == 2**53 - 1, f"fence 2**53 - 1 came back in {record}"
