"""Negative twins: what must be true of a backend that does *not* declare a capability.

They run in the place of the checks that need it. So hiding an ability fails like inventing one, and nothing is skipped.
``None`` stands for what cannot be seen from outside (nobody can show that a store is not durable): it is reported as
"not claimed".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from omniq_conformance.bench import Bench, refused
from omniq_core import (
    Capability,
    EventFilter,
    Outcome,
    ResultRecord,
    TaskFilter,
    TaskState,
    Unsupported,
    Verb,
)

__all__ = ["TWINS"]

Twin = Callable[[Bench], Awaitable[None]]


def _field_is_refused(capability: Capability, **fields: object) -> Twin:
    """A record with such a field is refused, and nothing of its batch is stored."""

    async def twin(b: Bench) -> None:
        plain, special = b.record(), b.record(**fields)
        await refused(b.queue.enqueue([plain, special]), capability)
        stored = await b.queue.get([plain.id, special.id])
        assert list(stored) == [None, None], (
            f"enqueue refused {fields} after it had stored something: the fields must be looked at first"
        )

    return twin


async def _stale_settle_is_taken(b: Bench) -> None:
    old = await b.running(lease_s=b.span_s)
    await b.lose(old.task_id)
    await b.until_claimed(old.task_id)
    outcome = await b.settle(old, Verb.SUCCEED)
    assert outcome is Outcome.OK, (
        f"FENCED_SETTLE is not declared, but a stale settle was refused with {outcome}: declare it"
    )


async def _delays_are_refused(b: Bench) -> None:
    await _field_is_refused(Capability.DELAYED, delay_s=60.0)(b)
    for verb in (Verb.RETRY, Verb.RELEASE):
        claim = await b.running(queue=f"q-{verb}")
        await refused(b.queue.settle([b.settlement(claim, verb, delay_s=60.0)]), Capability.DELAYED)
        assert await b.state(claim.task_id) is TaskState.RUNNING, "a refused settle changed its task"


async def _results_in_settle_are_refused(b: Bench) -> None:
    claim = await b.running()
    await refused(
        b.queue.settle([b.settlement(claim, Verb.SUCCEED, result=b"result")]), Capability.ATOMIC_SETTLE
    )
    assert await b.state(claim.task_id) is TaskState.RUNNING, "a refused settle changed its task"


async def _result_ttl_is_not_kept(b: Bench) -> None:
    task_id = b.new_id()
    record = ResultRecord(task_id, 1, TaskState.SUCCEEDED, b"result", ttl_s=b.span_s)
    try:
        await b.results.put([record])
    except Unsupported as error:
        assert error.capability is Capability.RESULT_TTL, f"the refusal names {error.capability.name}"
        return
    await b.pass_span()
    assert await b.result(task_id) is not None, (
        "RESULT_TTL is not declared, but a result went when its time was over: declare it"
    )


async def _cancel(b: Bench) -> None:
    await refused(b.queue.cancel([b.new_id()]), Capability.CANCEL)


async def _pause(b: Bench) -> None:
    await refused(b.queue.pause(["q"]), Capability.PAUSE)
    await refused(b.queue.resume(["q"]), Capability.PAUSE)


async def _query(b: Bench) -> None:
    await refused(b.queue.query(TaskFilter()), Capability.QUERY)


async def _stats(b: Bench) -> None:
    await refused(b.queue.stats(["q"]), Capability.STATS)
    await refused(b.queue.queue_names(), Capability.STATS)


async def _requeue(b: Bench) -> None:
    await refused(b.queue.requeue([b.new_id()]), Capability.REQUEUE)


async def _purge(b: Bench) -> None:
    await refused(b.queue.purge(TaskFilter(queues=["no such queue"])), Capability.PURGE)


async def _tx_enqueue(b: Bench) -> None:
    await refused(b.queue.enqueue_within(object(), [b.record()]), Capability.TX_ENQUEUE)
    await refused(b.queue.settle_within(object(), []), Capability.TX_ENQUEUE)


async def _results(b: Bench) -> None:
    async def call() -> object:
        return b.backend.result_store()

    await refused(call(), Capability.RESULTS)


async def _events(b: Bench) -> None:
    async def call() -> object:
        return b.backend.event_store()

    await refused(call(), Capability.EVENTS)


async def _event_truncate(b: Bench) -> None:
    await refused(b.events.truncate(before=0.0), Capability.EVENT_TRUNCATE)
    await b.events.read(EventFilter())


TWINS: Mapping[Capability, Twin | None] = {
    Capability.DURABLE: None,
    Capability.MULTI_PROCESS: None,
    Capability.MULTI_HOST: None,
    Capability.FENCED_SETTLE: _stale_settle_is_taken,
    Capability.ATOMIC_BATCH: None,
    Capability.ATOMIC_SETTLE: _results_in_settle_are_refused,
    Capability.SERVER_CLOCK: None,
    Capability.DELAYED: _delays_are_refused,
    Capability.PRIORITY: _field_is_refused(Capability.PRIORITY, priority=1),
    Capability.FIFO: None,
    Capability.UNIQUE: _field_is_refused(Capability.UNIQUE, unique_key="key"),
    Capability.EXPIRY: _field_is_refused(Capability.EXPIRY, ttl_s=60.0),
    Capability.CANCEL: _cancel,
    Capability.PAUSE: _pause,
    Capability.QUERY: _query,
    Capability.STATS: _stats,
    Capability.REQUEUE: _requeue,
    Capability.PURGE: _purge,
    Capability.WAKEUP: None,
    Capability.TX_ENQUEUE: _tx_enqueue,
    Capability.RESULTS: _results,
    Capability.RESULT_TTL: _result_ttl_is_not_kept,
    Capability.RESULT_WAIT: None,
    Capability.EVENTS: _events,
    Capability.EVENT_TAIL: None,
    Capability.EVENT_TRUNCATE: _event_truncate,
}
