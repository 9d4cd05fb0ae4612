"""Random histories: the backend must answer as its model does, the reference backend that keeps everything in memory.

The model cannot say which of several due tasks an unordered store hands out, nor when a store that reaps by itself does
so. Where the contract leaves a choice, the rules avoid it rather than guess:

* either claims take a few tasks and nothing is ever delayed or lost, so that the order is certain (with ``FIFO`` and
  ``PRIORITY``), or claims take everything that a queue has, and time passes;
* upkeep follows each step of time at once, on both sides;
* leases are extended claim by claim, since a driver may keep one lease for a whole claim;
* times are chosen so that no two of them coincide.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from omniq_conformance.bench import Bench, close
from omniq_conformance.env import Env
from omniq_conformance.hand import chunks
from omniq_core import (
    Backend,
    Capability,
    Claim,
    Lease,
    Outcome,
    Queue,
    ResultRecord,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
    TaskState,
    Verb,
)
from omniq_memory import MemoryBackend

T = TypeVar("T")

TASKS = [f"t{number}" for number in range(20)]
"""Few enough that ids come again, many enough that not all have ended after some steps."""
QUEUES = ["a", "b"]
KEYS = ["k0", "k1"]
RESULTS = ["r0", "r1"]
LEASE_S, DELAY_S, TTL_S = 10.5, 5.25, 20.125
STEPS_S = [1.0, 7.0, 31.0]
LOST_S = 13.0
SLOW_AND_LARGE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
"""What is allowed here: a backend may be far, and a history long."""
OPEN_ENDED = (Outcome.DUPLICATE, Outcome.STALE)

tasks = st.sampled_from(TASKS)
queues = st.sampled_from(QUEUES)


class OutOfTime(KeyboardInterrupt):
    """Ends the shortening: of all exceptions only an interrupt is none that a failing test could have raised."""


@dataclass(frozen=True)
class New:
    """A task to be enqueued; what the backend does not offer, or the history does not allow, is left out."""

    task_id: str
    queue: str
    delayed: bool
    expires: bool
    priority: int
    key: str | None
    max_crashes: int


news = st.builds(
    New,
    task_id=tasks,
    queue=queues,
    delayed=st.sampled_from([False, False, True]),
    expires=st.booleans(),
    priority=st.sampled_from([0, 0, 3, -1]),
    key=st.sampled_from([None, None, None, *KEYS]),
    max_crashes=st.sampled_from([2, 1, 3]),
)


@dataclass
class Held:
    """One lease as both sides know it."""

    task_id: str
    ours: Lease
    models: Lease
    settled: bool = False


class History(RuleBasedStateMachine):
    """One random history."""

    ends_at = math.inf
    """When no further history is begun, on the monotonic clock."""


def _machine(bench: Bench) -> type[History]:
    """A machine class for this backend: its rules are those that its capabilities allow."""
    has = bench.has
    timed = bench.moves_time and bench.reaps_in_maintain and not bench.limits.reclaim_delay_s
    ordered = has(Capability.FIFO, Capability.PRIORITY)
    number = 0

    class Machine(History):
        """The backend and its model, side by side."""

        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.stack = AsyncExitStack()
            self.claims: list[list[Held]] = []
            self.fences: dict[str, int] = {}
            self.reasons: dict[str, str | None] = {}
            self.few = False

        def run(self, call: Coroutine[Any, Any, T]) -> T:
            return self.runner.run(call)

        def both(self, make: Callable[[Queue], Coroutine[Any, Any, T]]) -> tuple[T, T]:
            return self.run(make(self.ours.queue())), self.run(make(self.model.queue()))

        def same(self, what: str, make: Callable[[Queue], Coroutine[Any, Any, T]]) -> T:
            ours, models = self.both(make)
            found = list(ours) if isinstance(ours, Sequence) else ours
            wanted = list(models) if isinstance(models, Sequence) else models
            assert found == wanted, f"{what}: the backend answered {found}, the model {wanted}"
            return ours

        @initialize(few=st.sampled_from([False, False, True]))
        def start(self, few: bool) -> None:
            nonlocal number
            if time.monotonic() > self.ends_at:
                raise OutOfTime
            number += 1
            folder = bench.env.tmp_path / f"run{number}"
            folder.mkdir()
            self.few = few and ordered
            env = Env(folder, manual=bench.env.manual is not None)
            self.clock = env.manual
            self.ours: Backend = self.run(self.stack.enter_async_context(bench.suite.backend(env)))
            self.model: Backend = MemoryBackend(clock=env.clock)
            for backend in (self.ours, self.model):
                self.run(backend.open())

        def teardown(self) -> None:
            try:
                if hasattr(self, "ours"):
                    self.run(close(self.ours))
                    self.run(self.stack.aclose())
            finally:
                self.runner.close()

        # --- the life of a task -----------------------------------------------------------------------------------

        @rule(news=st.lists(news, min_size=1, max_size=min(4, bench.limits.max_batch)))
        def enqueue(self, news: list[New]) -> None:
            self.put(news)

        def put(self, news: Sequence[New]) -> None:
            waits = timed and not self.few
            records = [
                TaskRecord(
                    new.task_id,
                    new.queue,
                    "work",
                    new.task_id.encode(),
                    priority=new.priority if has(Capability.PRIORITY) else 0,
                    delay_s=DELAY_S if new.delayed and waits and has(Capability.DELAYED) else 0.0,
                    ttl_s=TTL_S if new.expires and waits and has(Capability.EXPIRY) else None,
                    max_crashes=new.max_crashes,
                    unique_key=new.key if has(Capability.UNIQUE) else None,
                )
                for new in news
            ]
            self.same("enqueue", lambda q: q.enqueue(records))

        @rule(new=news, names=st.permutations(QUEUES), count=st.integers(1, 3))
        def claim(self, new: New, names: list[str], count: int) -> None:
            self.put([new])
            self.take(names, count)

        def take(self, names: Sequence[str], count: int = 1) -> list[Held]:
            """Claims on both sides: a few tasks of all queues, or all of the first."""
            if not self.few and len(TASKS) > bench.limits.max_batch:
                return []
            names, wanted = (names, count) if self.few else (names[:1], len(TASKS))
            wanted = min(wanted, bench.limits.max_batch)
            claim_id = bench.new_id("c")

            def make(q: Queue) -> Coroutine[Any, Any, Sequence[Claim]]:
                return q.claim(names, max_tasks=wanted, lease_s=LEASE_S, worker_id="w", claim_id=claim_id)

            ours, models = self.both(make)
            again = self.run(make(self.ours.queue())) if ours else ours
            assert _shown(again) == _shown(ours), "a repeated claim gave other tasks"
            if self.few:
                assert [c.task_id for c in ours] == [c.task_id for c in models], (
                    f"claim({names}, max_tasks={wanted}): the backend handed out {[c.task_id for c in ours]}, the "
                    f"model {[c.task_id for c in models]}"
                )
            ours = sorted(ours, key=lambda c: c.task_id)
            models = sorted(models, key=lambda c: c.task_id)
            assert [_plain(c) for c in ours] == [_plain(c) for c in models], (
                f"claim({names}): the backend handed out {ours}, the model {models}"
            )
            for c in ours:
                assert c.lease.fence > self.fences.get(c.task_id, 0), f"the fence of {c.task_id} did not rise"
                self.fences[c.task_id] = c.lease.fence
            held = [Held(c.task_id, c.lease, m.lease) for c, m in zip(ours, models, strict=True)]
            if held:
                self.claims.append(held)
            return held

        @rule(new=news, verb=st.sampled_from(list(Verb)), requested=st.booleans(), crashed=st.booleans())
        def claim_and_settle(self, new: New, verb: Verb, requested: bool, crashed: bool) -> None:
            self.put([new])
            held = self.take([new.queue])[: bench.limits.max_batch]
            if requested and held and has(Capability.CANCEL):
                self.cancel_one(held[0].task_id)
            self.settle_both([(h, verb) for h in held], crashed=crashed)

        @precondition(lambda self: timed and not self.few)
        @rule(new=news, requested=st.booleans(), zombie=st.sampled_from([None, *Verb]))
        def claim_and_lose(self, new: New, requested: bool, zombie: Verb | None) -> None:
            self.put([new])
            held = self.take([new.queue])
            if requested and held and has(Capability.CANCEL):
                self.cancel_one(held[0].task_id)
            self.pass_time(LOST_S)
            if zombie is not None:
                self.settle_both([(h, zombie) for h in held[: bench.limits.max_batch]])

        @precondition(lambda self: self.claims)
        @rule(data=st.data(), verbs=st.lists(st.sampled_from(list(Verb)), min_size=1, max_size=3))
        def settle(self, data: st.DataObject, verbs: list[Verb]) -> None:
            held = [h for claim in self.claims for h in claim]
            picked = [data.draw(st.sampled_from(held)) for _ in verbs[: bench.limits.max_batch]]
            later = timed and not self.few and has(Capability.DELAYED) and data.draw(st.booleans())
            self.settle_both(
                list(zip(picked, verbs, strict=False)), later=later, crashed=data.draw(st.booleans())
            )

        def settle_both(
            self, items: Sequence[tuple[Held, Verb]], *, later: bool = False, crashed: bool = False
        ) -> None:
            def make(h: Held, lease: Lease, verb: Verb) -> Settlement:
                final = verb in (Verb.SUCCEED, Verb.DEAD, Verb.CANCEL)
                return Settlement(
                    lease,
                    verb,
                    delay_s=0.0 if final or not later else DELAY_S,
                    reason=verb.value,
                    error=h.task_id.encode(),
                    result=b"result" if final and has(Capability.ATOMIC_SETTLE) else None,
                    crashed=crashed,
                )

            ours = self.run(self.ours.queue().settle([make(h, h.ours, verb) for h, verb in items]))
            models = self.run(self.model.queue().settle([make(h, h.models, verb) for h, verb in items]))
            for (h, verb), found, wanted in zip(items, ours, models, strict=True):
                told = f"{verb.name} of {h.task_id}: the backend answered {found}, the model {wanted}"
                if wanted is Outcome.OK:
                    h.settled = True
                    self.reasons[h.task_id] = verb.value
                if wanted in OPEN_ENDED:
                    assert found in OPEN_ENDED, told
                    # Nobody settled under this lease: it can only be stale. The other way round a driver may forget.
                    assert found is Outcome.STALE or h.settled, told
                else:
                    assert found is wanted, told

        @precondition(lambda self: self.claims and not self.few)
        @rule(data=st.data(), longer=st.booleans())
        def extend(self, data: st.DataObject, longer: bool) -> None:
            held = data.draw(st.sampled_from(self.claims))[: bench.limits.max_batch]
            lease_s = LEASE_S * 2 if longer else LEASE_S / 4
            ours = self.run(self.ours.queue().extend([h.ours for h in held], lease_s=lease_s))
            models = self.run(self.model.queue().extend([h.models for h in held], lease_s=lease_s))
            for h, found, wanted in zip(held, ours, models, strict=True):
                told = (found.outcome, found.cancel_requested)
                assert told == (wanted.outcome, wanted.cancel_requested), (
                    f"extend of {h.task_id}: the backend answered {found}, the model {wanted}"
                )

        # --- time -------------------------------------------------------------------------------------------------

        @precondition(lambda self: timed and not self.few)
        @rule(seconds=st.sampled_from(STEPS_S))
        def time_passes(self, seconds: float) -> None:
            self.pass_time(seconds)

        def pass_time(self, seconds: float) -> None:
            assert self.clock is not None, "time is moved only where the clock is ours"
            self.clock.advance(seconds)
            moved = []
            for backend in (self.ours, self.model):
                told = {}
                while True:
                    done = self.run(backend.queue().maintain())
                    told.update({m.task_id: (m.state, m.queue, m.attempt, m.crashes) for m in done.moved})
                    if not done.more:
                        break
                moved.append(told)
            assert moved[0] == moved[1], f"maintain: the backend told {moved[0]}, the model {moved[1]}"
            for task_id in moved[0]:
                self.reasons.pop(task_id, None)

        # --- features ---------------------------------------------------------------------------------------------

        @precondition(lambda self: has(Capability.CANCEL))
        @rule(task_id=tasks)
        def cancel(self, task_id: str) -> None:
            self.cancel_one(task_id)

        def cancel_one(self, task_id: str) -> None:
            self.same(f"cancel({task_id})", lambda q: q.cancel([task_id]))

        @precondition(lambda self: has(Capability.REQUEUE) and not self.few)
        @rule(task_id=tasks)
        def requeue(self, task_id: str) -> None:
            self.requeue_one(task_id)

        @precondition(lambda self: has(Capability.REQUEUE) and not self.few)
        @rule()
        def requeue_everything(self) -> None:
            for task_id in TASKS:
                self.requeue_one(task_id)

        def requeue_one(self, task_id: str) -> None:
            outcomes = self.same(f"requeue({task_id})", lambda q: q.requeue([task_id]))
            if list(outcomes) == [Outcome.OK]:
                self.reasons.pop(task_id, None)

        @precondition(lambda self: has(Capability.PAUSE))
        @rule(queue=queues, paused=st.booleans())
        def pause(self, queue: str, paused: bool) -> None:
            self.same("pause", lambda q: q.pause([queue]) if paused else q.resume([queue]))

        @precondition(lambda self: has(Capability.PURGE))
        @rule(queue=queues, state=st.sampled_from(list(TaskState)))
        def purge(self, queue: str, state: TaskState) -> None:
            which = TaskFilter(queues=[queue], states=[state])
            self.same(f"purge({which})", lambda q: q.purge(which))
            known = {
                task_id for task_id in TASKS if list(self.run(self.model.queue().get([task_id]))) != [None]
            }
            self.reasons = {task_id: reason for task_id, reason in self.reasons.items() if task_id in known}

        # --- results ----------------------------------------------------------------------------------------------

        @precondition(lambda self: has(Capability.RESULTS))
        @rule(
            task_id=st.sampled_from(RESULTS),
            fence=st.integers(1, 4),
            final=st.booleans(),
            expires=st.booleans(),
        )
        def put_result(self, task_id: str, fence: int, final: bool, expires: bool) -> None:
            ttl_s = TTL_S if expires and timed and has(Capability.RESULT_TTL) else None
            record = ResultRecord(task_id, fence, TaskState.SUCCEEDED, b"%d" % fence, ttl_s, final)
            answers = [list(self.run(x.result_store().put([record]))) for x in (self.ours, self.model)]
            assert answers[0] == answers[1], (
                f"put({record}): the backend answered {answers[0]}, the model {answers[1]}"
            )

        @precondition(lambda self: has(Capability.RESULTS))
        @rule(task_id=st.sampled_from(RESULTS))
        def delete_result(self, task_id: str) -> None:
            counts = [self.run(x.result_store().delete([task_id])) for x in (self.ours, self.model)]
            assert counts[0] == counts[1], f"delete: the backend counted {counts[0]}, the model {counts[1]}"

        # --- what must hold after every step ----------------------------------------------------------------------

        @invariant()
        def the_tasks_are_the_same(self) -> None:
            if not hasattr(self, "model"):
                return
            for ids in chunks(TASKS, bench.limits.max_batch):
                ours, models = self.both(lambda q, ids=ids: q.get(ids))  # type: ignore[misc]
                for task_id, found, wanted in zip(ids, ours, models, strict=True):
                    assert _facts(found) == _facts(wanted), (
                        f"{task_id}: the backend keeps {found}, the model {wanted}"
                    )
                    if found is not None and task_id in self.reasons:
                        assert found.reason == self.reasons[task_id], (
                            f"the reason of {task_id} is {found.reason!r}"
                        )

        @invariant()
        def the_results_are_the_same(self) -> None:
            if not hasattr(self, "model") or not has(Capability.RESULTS):
                return
            known = [*RESULTS, *TASKS] if has(Capability.ATOMIC_SETTLE) else RESULTS
            for ids in chunks(known, bench.limits.max_batch):
                ours, models = [self.run(x.result_store().get(ids)) for x in (self.ours, self.model)]
                for task_id, found, wanted in zip(ids, ours, models, strict=True):
                    facts = [r and (r.state, r.body, r.final) for r in (found, wanted)]
                    assert facts[0] == facts[1], (
                        f"the result of {task_id}: the backend keeps {found}, the model {wanted}"
                    )

        @invariant()
        def the_counts_are_the_same(self) -> None:
            if hasattr(self, "model") and has(Capability.STATS):
                for names in chunks(QUEUES, bench.limits.max_batch):
                    ours, models = self.both(lambda q, names=names: q.stats(names))  # type: ignore[misc]
                    facts = [
                        [(s.ready, s.delayed, s.running, s.paused) for s in side] for side in (ours, models)
                    ]
                    assert facts[0] == facts[1], f"stats: the backend says {ours}, the model {models}"

    return Machine


def _shown(claims: Sequence[Claim]) -> list[tuple[str, int]]:
    return sorted((c.task_id, c.lease.fence) for c in claims)


def _plain(c: Claim) -> tuple[object, ...]:
    return (c.task_id, c.queue, c.body, c.attempt, c.crashes, c.max_attempts, c.max_crashes)


def _facts(task: TaskSnapshot | None) -> tuple[object, ...] | None:
    if task is None:
        return None
    return (
        task.queue, task.state, task.body, task.priority, task.attempt, task.crashes, task.max_crashes,
        task.worker_id, task.unique_key, task.cancel_requested, task.error,
    )  # fmt: skip


def search(bench: Bench, patience_s: float) -> None:
    """Looks for a history on which the two sides disagree, and shortens it as long as that does not take too long.

    Args:
        bench: of a backend that is open; each history gets a storage of its own.
        patience_s: how long a history that fails is shortened before it is shown.
    """
    machine, chance = _machine(bench), bench.chance
    how = settings(
        max_examples=chance.examples,
        stateful_step_count=50,
        derandomize=chance.repeatable,
        database=None,
        deadline=None,
        suppress_health_check=SLOW_AND_LARGE,
        phases=[Phase.generate],
        print_blob=False,
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(machine, settings=how)
    except Exception as long:
        if not chance.repeatable:
            raise
        machine.ends_at = time.monotonic() + patience_s
        try:
            run_state_machine_as_test(machine, settings=settings(how, phases=[Phase.generate, Phase.shrink]))
        except OutOfTime:
            raise long from None
