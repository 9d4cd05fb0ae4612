"""Which tasks a filter means, and in what order they are looked at. Reads the state and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from omniq_core import TaskState
from omniq_file.index import GONE, RUNNING, Task
from omniq_file.operations import STATES

if TYPE_CHECKING:
    from omniq_file.machine import TaskMachine

__all__ = ["matching", "newest_first"]


def matching(
    machine: TaskMachine, which: Sequence[Any], tasks: Iterable[Task], *, running: bool = True
) -> Iterator[Task]:
    """Those of ``tasks`` that a filter names, running ones or not.

    Args:
        machine: whose tasks they are.
        which: ``(queues, names, states, enqueued after, enqueued before)``; none of a kind: any.
        tasks: where to look.
        running: whether those that run count as well.
    """
    queues, names, states, after, before = which
    wanted = [
        (not queues or kind.queue in queues) and (not names or kind.name in names) for kind in machine.kinds
    ]
    codes = {code for code in range(GONE) if not states or STATES[code] in states}
    if not running:
        codes.discard(RUNNING)
    for task in tasks:
        if (
            task.state in codes
            and wanted[task.kind]
            and (after is None or task.enqueued_at >= after)
            and (before is None or task.enqueued_at < before)
        ):
            yield task


def newest_first(machine: TaskMachine, states: Sequence[TaskState]) -> Iterator[Task]:
    """Every task that can be in one of these states (of none: in any), the one that arrived last first."""
    if states and set(states) == {TaskState.RUNNING}:
        running = [task for claim in machine.claims.values() for task in claim.open.values()]
        return iter(sorted(running, key=_by_arrival, reverse=True))
    return reversed(machine.tasks.values())


def _by_arrival(task: Task) -> int:
    return task.seq
