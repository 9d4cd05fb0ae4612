"""What a checkpoint holds of a :class:`~omniq_file.machine.TaskMachine`, and how it becomes one again.

Tasks and results are encoded as they are, in C: a million of them in some tenths of a second. What follows from them (lines,
heaps, counts, keys, who needs which commit) is not stored but made again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from omniq_file.index import DELAYED, GONE, READY, RUNNING, ClaimRecord, Kind, Result, Task

if TYPE_CHECKING:
    from omniq_file.machine import TaskMachine

__all__ = ["restore", "save"]

CHUNK = 10_000
"""How many tasks are encoded at a time: a few milliseconds."""


class Saved(msgspec.Struct, array_like=True):
    """What a checkpoint holds besides tasks and results."""

    seq: int
    last_fence: int
    kinds: list[Kind]
    queues: list[tuple[str, bool, bool]]
    """Name, paused, used."""
    claims: list[tuple[int, str, str, float, list[str]]]
    """Fence, claim id, worker, end, open tasks."""
    sizes: dict[int, int]


_encode = msgspec.msgpack.Encoder().encode
_decode_saved = msgspec.msgpack.Decoder(Saved).decode
_decode_tasks = msgspec.msgpack.Decoder(list[Task]).decode
_decode_results = msgspec.msgpack.Decoder(list[Result]).decode


def save(machine: TaskMachine) -> Iterator[bytes]:
    """The state as parts: first everything else, then the tasks, an empty list, and the results.

    Finished tasks come last and in the order in which they are to be pruned; every one where it stands first.
    """
    yield _encode(
        Saved(
            machine.seq, machine.last_fence, machine.kinds,
            [(name, queue.paused, queue.used) for name, queue in machine.queues.items()],
            [(c.fence, c.claim_id, c.worker_id, c.until, list(c.open)) for c in machine.claims.values()],
            machine.blobs.sizes,
        )
    )  # fmt: skip
    yield from _chunks(task for task in machine.tasks.values() if task.state <= RUNNING)
    yield from _chunks(_in_order_of_pruning(machine))
    yield _encode([])
    yield from _chunks(iter(machine.results.by_task.values()))


def _in_order_of_pruning(machine: TaskMachine) -> Iterator[Task]:
    seen: set[str] = set()
    for finished_at, task in machine.pruning:
        if task.state <= RUNNING or task.state == GONE or task.rare is None or task.id in seen:
            continue
        if task.rare.finished_at == finished_at:
            seen.add(task.id)
            yield task


def restore(machine: TaskMachine, parts: Iterator[bytes]) -> Iterator[None]:
    """Fills a new machine from :func:`save`'s parts. Yields after each, so that the caller can let others run."""
    saved = _decode_saved(next(parts))
    machine.seq, machine.last_fence, machine.blobs.sizes = saved.seq, saved.last_fence, saved.sizes
    for name, paused, used in saved.queues:
        queue = machine.queue(name)
        queue.paused, queue.used = paused, used
    for kind in saved.kinds:
        machine.kind_code(kind)
    tasks: list[Task] = []
    yield
    for part in parts:
        found = _decode_tasks(part)
        if not found:
            break
        tasks += found
        yield
    for task in tasks:
        if task.state > RUNNING:
            assert task.rare is not None
            assert task.rare.finished_at is not None
            machine.pruning.append((task.rare.finished_at, task))
            machine.finished += 1
    tasks.sort(key=_by_arrival)
    for first in range(0, len(tasks), CHUNK):
        _restore_tasks(machine, tasks[first : first + CHUNK])
        yield
    for fence, claim_id, worker_id, until, open_ids in saved.claims:
        claim = machine.claims[fence] = machine.claims_by_id[claim_id] = ClaimRecord(
            fence, claim_id, worker_id, until
        )
        claim.open = {task_id: machine.tasks[task_id] for task_id in open_ids}
    for part in parts:
        for result in _decode_results(part):
            machine.results.restore(result)
        yield
    machine.results.restored()
    heapq.heapify(machine.expiring)
    for queue in machine.queues.values():
        heapq.heapify(queue.waiting)


def _restore_tasks(machine: TaskMachine, tasks: list[Task]) -> None:
    number, when = 0, 0.0
    for task in tasks:
        # Neighbours share their numbers: one object for many.
        if task.body_in == number:
            task.body_in = number
        number = task.body_in
        if task.enqueued_at == when:
            task.enqueued_at = when
        when = task.enqueued_at
        if task.run_at == when:
            task.run_at = when
        machine.tasks[task.id] = task
        machine.blobs.hold(number, task.body_bytes)
        home, rare = machine.homes[task.kind], task.rare
        if task.state == READY:
            home.ready += 1
            home.line(machine.kinds[task.kind].priority).fresh.append(task)
        elif task.state == DELAYED:
            home.delayed += 1
            home.waiting.append((task.run_at, task.seq, task))
        elif task.state == RUNNING:
            home.running += 1
        if rare is not None:
            if rare.error is not None:
                machine.blobs.hold(rare.error[0], rare.error[2])
            if task.state <= RUNNING and rare.unique_key is not None:
                machine.unique[rare.unique_key] = task.id
            if task.state <= DELAYED and rare.expires_at is not None:
                machine.expiring.append((rare.expires_at, task.seq, task))


def _by_arrival(task: Task) -> int:
    return task.seq


def _chunks(items: Iterator[Any]) -> Iterator[bytes]:
    while chunk := list(islice(items, CHUNK)):
        yield _encode(chunk)
