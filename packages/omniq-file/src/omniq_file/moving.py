"""Moving what still lives out of commits that hold little else, so that their files can go.

A move is an operation like any other. It names what is moved and from where: what does not lie there any more when the commit
is applied (another process moved it, or it was deleted) stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from omniq_file.commit import Place

if TYPE_CHECKING:
    from omniq_file.machine import TaskMachine

__all__ = ["Row", "lies", "lying_in", "move", "repacking"]

Row = tuple[int, str, int, int, int]
"""What, whose, and where: commit, offset, length."""
BODY, ERROR, RESULT = range(3)
"""What is moved: a task's body or error, or a result's body."""

SMALL_FILE_BYTES = 64 * 1024
"""What a file is taken to cost at least, whatever it holds."""
MUCH_BYTES = 16 * 1024 * 1024
"""Dead weight below this is not worth moving anything for."""
MOST_MOVED = 20_000
"""How many bodies are moved after one checkpoint."""
BATCH, BATCH_BYTES = 1000, 1024 * 1024


def lies(machine: TaskMachine, row: Sequence[Any]) -> bool:
    """Whether something still lies where a row says."""
    what, task_id, number, at = row[:4]
    if what == RESULT:
        result = machine.results.by_task.get(task_id)
        return bool(result is not None and result.body_in == number and result.body_at == at)
    task = machine.tasks.get(task_id)
    if task is None:
        return False
    if what == BODY:
        return bool(task.body_in == number and task.body_at == at)
    return task.rare is not None and task.rare.error is not None and task.rare.error[:2] == (number, at)


def move(machine: TaskMachine, row: Sequence[Any], place: Place) -> bool:
    """Moves it to ``place``, if it lies there."""
    if not lies(machine, row):
        return False
    what, task_id, number, _, length = row
    machine.blobs.release(number, length)
    machine.blobs.hold(place[0], length)
    if what == RESULT:
        result = machine.results.by_task[task_id]
        result.body_in, result.body_at, result.body_bytes = place
    elif what == BODY:
        task = machine.tasks[task_id]
        task.body_in, task.body_at, task.body_bytes = place
    else:
        rare = machine.tasks[task_id].rare
        assert rare is not None
        rare.error = place
    return True


def lying_in(machine: TaskMachine, numbers: set[int]) -> Iterator[Row]:
    """Everything that lies in these commits."""
    for task in machine.tasks.values():
        if task.body_in in numbers:
            yield BODY, task.id, task.body_in, task.body_at, task.body_bytes
        if task.rare is not None and task.rare.error is not None and task.rare.error[0] in numbers:
            yield ERROR, task.id, *task.rare.error
    for result in machine.results.by_task.values():
        if result.body_in in numbers:
            yield RESULT, result.task_id, result.body_in, result.body_at, result.body_bytes


def repacking(machine: TaskMachine, horizon: int) -> Iterator[list[Row]]:
    """What should be moved, in batches, if the files up to ``horizon`` are mostly dead weight."""
    old = [(number, live) for number, live in machine.blobs.live.items() if number <= horizon]
    weight = {number: max(machine.size_of(number), SMALL_FILE_BYTES) for number, _ in old}
    if sum(weight.values()) < max(MUCH_BYTES, 2 * sum(live for _, live in old)):
        return
    doomed = {number for number, live in old if live * 4 < weight[number]}
    batch: list[Row] = []
    size = 0
    # The rows first: while a batch is being moved, others change the state.
    for row in list(islice(lying_in(machine, doomed), MOST_MOVED)):
        batch.append(row)
        size += row[4]
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
