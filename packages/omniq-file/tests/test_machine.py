"""The machine is deterministic, goes on from a checkpoint as if nothing had been, and knows what would change nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from omniq_core import Outcome, Verb
from omniq_file import moving
from omniq_file import operations as op
from omniq_file.commit import CRC_BYTES
from omniq_file.index import DELAYED, READY, RUNNING
from omniq_file.machine import MOST_DUE, TaskMachine

POLICY = (50.0, 6)
IDS = [f"t{number}" for number in range(9)]
QUEUES, NAMES, KEYS = ["a", "b"], ["x", "y"], ["k0", "k1"]


def restored(machine: TaskMachine) -> TaskMachine:
    new = TaskMachine()
    for _ in new.restore(iter(list(machine.save()))):
        pass
    return new


def state(machine: TaskMachine) -> list[bytes]:
    return list(machine.save())


def apply(machine: TaskMachine, number: int, now: float, *operations: Any, policy: Any = POLICY) -> list[Any]:
    return machine.apply(number, now, policy, operations, 100, 100_000)


def enqueue(*rows: Any, kinds: Any = (("a", "x", 0, 1, 3),)) -> Any:
    return (op.ENQUEUE, kinds, rows)


# --- any history -----------------------------------------------------------------------------------------------------

ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=4)
kinds = st.tuples(
    st.sampled_from(QUEUES), st.sampled_from(NAMES), st.integers(-1, 1), st.just(1), st.integers(1, 2)
)
lengths = st.integers(0, 9)
plain_rows = st.tuples(st.sampled_from(IDS), st.just(0), lengths)
full_rows = st.tuples(
    st.sampled_from(IDS), st.just(0), lengths, st.sampled_from([0.0, 5.0, 30.0]),
    st.sampled_from([None, 1.0, 20.0]), st.sampled_from([None, *KEYS]),
)  # fmt: skip
enqueues = st.tuples(
    st.just(op.ENQUEUE), st.tuples(kinds), st.lists(st.one_of(plain_rows, full_rows), min_size=1, max_size=5)
)
claims = st.tuples(
    st.just(op.CLAIM), st.permutations(QUEUES), st.integers(1, 3), st.sampled_from([1.0, 10.0]), st.just("w"),
    st.sampled_from(["c0", "c1", "c2", "c3"]),
)  # fmt: skip
LEASE = st.integers(0, 40)
"""Which of the leases that were given out so far."""
short_rows = st.tuples(LEASE, st.integers(0, 4), st.sampled_from([None, 3]), st.sampled_from([None, 7.0]))
long_rows = st.tuples(
    LEASE, st.integers(0, 4), st.sampled_from([None, 3]), st.sampled_from([None, 7.0]), st.sampled_from([0.0, 4.0]),
    st.sampled_from([None, "why"]), st.sampled_from([None, 2]), st.booleans(),
)  # fmt: skip
settles = st.tuples(st.just(op.SETTLE), st.lists(st.one_of(short_rows, long_rows), min_size=1, max_size=4))
extends = st.tuples(st.just(op.EXTEND), st.lists(st.tuples(LEASE), min_size=1, max_size=3), st.just(10.0))
filters = st.tuples(
    st.sampled_from([[], ["a"]]), st.sampled_from([[], ["x"]]), st.sampled_from([[], ["pending"], ["dead", "expired"]]),
    st.none(), st.none(),
)  # fmt: skip
others = st.one_of(
    st.tuples(st.just(op.MAINTAIN), st.integers(1, 4)),
    st.tuples(st.just(op.CANCEL), ids),
    st.tuples(st.just(op.REQUEUE), ids),
    st.tuples(st.just(op.PAUSE), st.lists(st.sampled_from(QUEUES), min_size=1), st.booleans()),
    st.tuples(st.just(op.PURGE), filters, st.integers(1, 3)),
    st.tuples(st.just(op.DELETE), ids),
    st.tuples(st.just(op.PRUNE), st.integers(1, 3)),
    st.tuples(
        st.just(op.PUT),
        st.lists(
            st.tuples(
                st.sampled_from(IDS), st.integers(1, 9), st.sampled_from([3, 4]), lengths,
                st.sampled_from([None, 7.0]), st.booleans(),
            ),
            min_size=1, max_size=3,
        ),
    ),
)  # fmt: skip
operations = st.one_of(enqueues, claims, claims, settles, settles, extends, others)
commits = st.tuples(
    st.sampled_from([0.0, 0.0, 0.5, 2.0, 12.0, 60.0, -3.0]), st.lists(operations, min_size=1, max_size=3)
)


def resolved(operation: Any, leases: list[tuple[str, int]]) -> Any:
    """With real leases in place of their numbers."""
    if operation[0] not in (op.SETTLE, op.EXTEND):
        return operation
    rows = []
    for row in operation[1]:
        task_id, fence = leases[row[0] % len(leases)] if leases else ("t0", 1)
        rows.append((task_id, fence, *row[1:]))
    return (operation[0], rows, *operation[2:])


@settings(max_examples=120, deadline=None)
@given(history=st.lists(commits, max_size=30), data=st.data())
def test_replays_and_checkpoints_lead_to_the_same_state_and_answers(
    history: Any, data: st.DataObject
) -> None:
    live, replica = TaskMachine(), TaskMachine()
    leases: list[tuple[str, int]] = []
    now = 1000.0
    for number, (step, asked) in enumerate(history, 1):
        now += step
        asked = [resolved(operation, leases) for operation in asked]
        answers = apply(live, number, now, *asked)
        again = apply(replica, number, now, *asked)
        for operation, answer, other in zip(asked, answers, again, strict=True):
            if operation[0] == op.CLAIM:
                leases += [(task.id, task.fence) for task in answer]
                assert [task.id for task in answer] == [task.id for task in other]
            else:
                assert answer == other
        assert state(live) == state(replica)
        if data.draw(st.booleans(), label="checkpoint"):
            replica = restored(replica)
            assert state(live) == state(replica)
        check_counts(live)
        check_counts(replica)


@settings(max_examples=120, deadline=None)
@given(
    history=st.lists(commits, max_size=20),
    probes=st.lists(operations, min_size=1, max_size=12),
    later=st.floats(0, 90),
)
def test_what_is_said_to_be_idle_changes_nothing(history: Any, probes: Any, later: float) -> None:
    machine = TaskMachine()
    leases: list[tuple[str, int]] = []
    now = 1000.0
    for number, (step, asked) in enumerate(history, 1):
        now += step
        asked = [resolved(operation, leases) for operation in asked]
        for operation, answer in zip(asked, apply(machine, number, now, *asked), strict=True):
            if operation[0] == op.CLAIM:
                leases += [(task.id, task.fence) for task in answer]
    now += later
    for probe in probes:
        operation = resolved(probe, leases)
        if machine.is_idle(operation, now, POLICY):
            before, twin = state(machine), restored(machine)
            answer = machine.answer_idle(operation, now, POLICY)
            assert state(machine) == before
            # And the answer is the one that a commit would have given.
            applied = apply(twin, len(history) + 1, now, operation)[0]
            if operation[0] == op.CLAIM:
                assert [t.id for t in answer] == [t.id for t in applied]
            else:
                assert answer == applied


def check_counts(machine: TaskMachine) -> None:
    """What is counted along the way is what is there."""
    states = [task.state for task in machine.tasks.values()]
    assert machine.finished == sum(state > RUNNING for state in states)
    for name, queue in machine.queues.items():
        mine = [t.state for t in machine.tasks.values() if machine.kinds[t.kind].queue == name]
        assert (queue.ready, queue.delayed, queue.running) == tuple(
            mine.count(state) for state in (READY, DELAYED, RUNNING)
        )
    running = {task.id for task in machine.tasks.values() if task.state == RUNNING}
    assert running == {task_id for claim in machine.claims.values() for task_id in claim.open}
    bytes_in: dict[int, int] = {}
    places = [(t.body_in, t.body_bytes) for t in machine.tasks.values()]
    places += [(r.body_in, r.body_bytes) for r in machine.results.by_task.values()]
    places += [(t.rare.error[0], t.rare.error[2]) for t in machine.tasks.values() if t.rare and t.rare.error]
    for number, length in places:
        bytes_in[number] = bytes_in.get(number, 0) + length + CRC_BYTES
    assert machine.blobs.live == bytes_in
    assert set(machine.blobs.sizes) == set(machine.blobs.live)
    held = {t.rare.unique_key: t.id for t in machine.tasks.values() if t.state <= RUNNING and t.rare}
    held.pop(None, None)
    assert machine.unique == held


# --- single rules ----------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_gives_no_task_before_its_time() -> None:
    machine = TaskMachine()
    kinds = (("a", "x", 0, 1, 3), ("a", "x", 1, 1, 3))
    apply(machine, 1, 100.0, enqueue(("late", 0, 1, 10.0, None, None), ("urgent", 1, 1), kinds=kinds))
    # It joins the line at 111, behind the urgent one, and is asked for at 105 by a host whose clock is behind.
    first = apply(machine, 2, 111.0, (op.CLAIM, ["a"], 1, 5.0, "w", "c0"))[0]
    assert [task.id for task in first] == ["urgent"]
    assert machine.tasks["late"].state == READY
    assert apply(machine, 3, 105.0, (op.CLAIM, ["a"], 5, 5.0, "w", "c1"))[0] == []
    assert [t.id for t in apply(machine, 4, 111.0, (op.CLAIM, ["a"], 5, 5.0, "w", "c2"))[0]] == ["late"]


def test_of_a_million_that_fall_due_at_once_a_claim_moves_some_thousand() -> None:
    machine = TaskMachine()
    rows = [(f"d{number}", 0, 1, 1.0, None, None) for number in range(3 * MOST_DUE)]
    apply(machine, 1, 0.0, enqueue(*rows))
    taken = apply(machine, 2, 5.0, (op.CLAIM, ["a"], 10, 5.0, "w", "c0"))[0]
    assert [task.id for task in taken] == [f"d{number}" for number in range(10)]
    assert machine.queues["a"].ready + 10 == MOST_DUE
    for number in range(3, 3 + 3 * MOST_DUE // 500):
        apply(machine, number, 5.0, (op.CLAIM, ["a"], 500, 5.0, "w", f"c{number}"))
    assert machine.queues["a"].delayed == machine.queues["a"].ready == 0


def test_a_settlement_is_repeated_without_effect_until_somebody_else_owns_the_task() -> None:
    machine = TaskMachine()
    apply(machine, 1, 0.0, enqueue(("t0", 0, 1)))
    (task,) = apply(machine, 2, 0.0, (op.CLAIM, ["a"], 1, 5.0, "w", "c0"))[0]
    row = ("t0", task.fence, op.VERB_CODES[Verb.RETRY], None, None)
    assert apply(machine, 3, 0.0, (op.SETTLE, [row, row])) == [[Outcome.OK, Outcome.DUPLICATE]]
    apply(machine, 4, 0.0, (op.CLAIM, ["a"], 1, 5.0, "w", "c1"))
    assert apply(machine, 5, 0.0, (op.SETTLE, [row])) == [[Outcome.STALE]]


def test_moved_bodies_are_found_where_they_are_now_and_the_old_commit_is_needed_no_more() -> None:
    machine = TaskMachine()
    apply(machine, 1, 0.0, enqueue(("t0", 0, 10), ("t1", 0, 10)))
    rows = list(moving.lying_in(machine, {1}))
    assert len(rows) == 2
    assert apply(machine, 2, 0.0, (op.MOVE, rows)) == [2]
    assert not machine.needs(1)
    assert machine.needs(2)
    assert machine.tasks["t1"].body_in == 2
    assert apply(machine, 3, 0.0, (op.MOVE, rows)) == [0]
    check_counts(machine)


def test_files_that_are_mostly_dead_weight_are_repacked_and_full_ones_left_alone() -> None:
    machine = TaskMachine()
    for number in range(1, 400):
        machine.apply(number, 0.0, POLICY, [enqueue((f"s{number}", 0, 10))], 100, 14)
    machine.apply(400, 0.0, POLICY, [enqueue(*((f"b{n}", 0, 1000) for n in range(500)))], 100, 500 * 1004)
    rows = [row for batch in machine.repacking(400) for row in batch]
    assert {row[2] for row in rows} == set(range(1, 400))
    assert list(machine.repacking(100)) == []  # not much


def test_finished_tasks_beyond_the_limit_go_oldest_first() -> None:
    machine = TaskMachine()
    for number in range(10):
        apply(machine, 2 * number + 1, float(number), enqueue((f"t{number}", 0, 1)), policy=(1e9, 3))
        apply(machine, 2 * number + 2, float(number), (op.CANCEL, [f"t{number}"]), policy=(1e9, 3))
    assert list(machine.tasks) == ["t7", "t8", "t9"]


def test_who_leaves_a_line_without_being_claimed_is_not_remembered_for_ever() -> None:
    machine = TaskMachine()
    apply(machine, 1, 0.0, enqueue(*((f"t{n}", 0, 1) for n in range(100))))
    apply(machine, 2, 0.0, enqueue(*((f"d{n}", 0, 1, 9.0, None, None) for n in range(100))))
    apply(machine, 3, 0.0, (op.CANCEL, [f"t{n}" for n in range(100)]))
    apply(machine, 4, 0.0, (op.PURGE, (["a"], [], ["pending"], None, None), 1000))
    queue = machine.queues["a"]
    assert (queue.lines, queue.order, queue.waiting) == ({}, [], [])
    apply(machine, 5, 0.0, enqueue(("again", 0, 1)))
    assert [task.id for task in apply(machine, 6, 0.0, (op.CLAIM, ["a"], 5, 5.0, "w", "c"))[0]] == ["again"]
