"""What an operator does with a queue: look, count, cancel, requeue, pause, clean up."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.component import OnEachLoop
from omniq.door import Door
from omniq.models import EventType, TaskInfo
from omniq.parameters import TaskId, task_id_of
from omniq.stores import explain
from omniq_core import Backend, Capability, Health, Outcome, QueueStats, check_name

__all__ = ["QueueOperations"]


class QueueOperations(OnEachLoop[Door]):
    """The part of :class:`~omniq.queue.AsyncTaskQueue` that does not enqueue."""

    backend: Backend
    queues: list[str]
    """The declared queues, in their order."""

    # --- tasks --------------------------------------------------------------------------------------------------

    async def get_task(self, task_id: TaskId) -> TaskInfo | None:
        """What the queue knows of a task now; ``None`` for an unknown one."""
        door = await self._here()
        try:
            [snapshot] = await door.stores.queue.get([task_id_of(task_id)])
        except Exception as error:
            raise explain(self.backend, error, "look up a task") from error
        return None if snapshot is None else TaskInfo.of(snapshot)

    async def cancel(self, task_id: TaskId) -> bool:
        """Cancels a task that has not started, or asks the worker that runs it to stop it.

        Returns:
            whether it was or will be stopped; ``False`` for one that has ended or is unknown.

        Raises:
            MissingCapability: the backend cannot do it.
        """
        door = await self._here()
        door.stores.need(Capability.CANCEL, "cancel()")
        task_id = task_id_of(task_id)
        try:
            [outcome] = await door.stores.queue.cancel([task_id])
        except Exception as error:
            raise explain(self.backend, error, "cancel a task") from error
        if outcome is Outcome.OK:
            await self._note(door, EventType.CANCELLED, task_id)
        return outcome in (Outcome.OK, Outcome.REQUESTED)

    async def requeue(self, task_id: TaskId) -> bool:
        """Lets a task that is dead, cancelled or expired run again, with fresh tries.

        Returns:
            whether it is waiting now; ``False`` for one that succeeded, is unknown, or whose unique key is taken.

        Raises:
            MissingCapability: the backend cannot do it.
        """
        door = await self._here()
        door.stores.need(Capability.REQUEUE, "requeue()")
        task_id = task_id_of(task_id)
        try:
            [outcome] = await door.stores.queue.requeue([task_id])
        except Exception as error:
            raise explain(self.backend, error, "requeue a task") from error
        if outcome is Outcome.OK:
            await self._note(door, EventType.REQUEUED, task_id)
        return outcome in (Outcome.OK, Outcome.DUPLICATE)

    async def retry(self, task_id: TaskId) -> bool:
        """The same as :meth:`requeue`."""
        return await self.requeue(task_id)

    @staticmethod
    async def _note(door: Door, kind: EventType, task_id: str) -> None:
        if door.journal is None:
            return
        [snapshot] = await door.stores.queue.get([task_id])
        queue, name = ("", "") if snapshot is None else (snapshot.queue, snapshot.name)
        door.journal.note(kind, task_id, queue=queue, name=name)

    async def flush_events(self) -> None:
        """Waits until what was noted here so far is in the event log."""
        journal = (await self._here()).journal
        if journal is not None:
            await journal.flush()

    # --- queues -------------------------------------------------------------------------------------------------

    async def get_queue_size(self, queue_name: str = "default") -> int:
        """How many tasks of a queue wait: those that are due, and those that will be."""
        [stats] = await self.stats([queue_name])
        return stats.ready + stats.delayed

    async def list_queues(self) -> list[str]:
        """The declared queues in their order, then ``default`` if it is used, then all others by name."""
        door = await self._here()
        if Capability.STATS not in door.stores.capabilities:
            return list(self.queues)
        try:
            used = set(await door.stores.queue.queue_names())
        except Exception as error:
            raise explain(self.backend, error, "list queues") from error
        return [*self.queues, *sorted(used - set(self.queues), key=lambda name: (name != "default", name))]

    def get_queue_names(self) -> list[str]:
        """The declared queues, in their order."""
        return list(self.queues)

    def add_queue(self, queue_name: str) -> None:
        """Declares one more queue, after the others. Idempotent; workers that run already do not see it."""
        check_name("queue name", queue_name)
        if queue_name not in self.queues:
            self.queues.append(queue_name)

    async def remove_queue(self, queue_name: str) -> bool:
        """Takes a declaration back, if nothing waits in that queue; whether it was."""
        if queue_name not in self.queues or await self.get_queue_size(queue_name):
            return False
        self.queues.remove(queue_name)
        return True

    async def pause_queue(self, queue_name: str) -> None:
        """Lets no worker take anything from a queue until :meth:`resume_queue`. Running tasks go on. Idempotent.

        Raises:
            MissingCapability: the backend cannot do it.
        """
        door = await self._here()
        door.stores.need(Capability.PAUSE, "pause_queue()")
        try:
            await door.stores.queue.pause([check_name("queue name", queue_name)])
        except Exception as error:
            raise explain(self.backend, error, "pause a queue") from error

    async def resume_queue(self, queue_name: str) -> None:
        """Ends :meth:`pause_queue`. Idempotent."""
        door = await self._here()
        door.stores.need(Capability.PAUSE, "resume_queue()")
        try:
            await door.stores.queue.resume([check_name("queue name", queue_name)])
        except Exception as error:
            raise explain(self.backend, error, "resume a queue") from error

    async def stats(self, queue_names: Sequence[str] | None = None) -> list[QueueStats]:
        """Counts of some queues (of all by default); they may be a moment old.

        Raises:
            MissingCapability: the backend does not count.
        """
        door = await self._here()
        door.stores.need(Capability.STATS, "stats()")
        names = await self.list_queues() if queue_names is None else list(queue_names)
        for name in names:
            check_name("queue name", name)
        try:
            return list(await door.stores.queue.stats(names))
        except Exception as error:
            raise explain(self.backend, error, "count tasks") from error

    async def cleanup_expired(self) -> int:
        """Expires what was not started in time, takes back what lost its worker, and deletes what was finished long ago;
        how many tasks. Workers do it by and by as well."""
        door = await self._here()
        done = 0
        try:
            while True:
                round_ = await door.stores.queue.maintain()
                done += len(round_.moved) + round_.pruned
                if not round_.more:
                    return done
        except Exception as error:
            raise explain(self.backend, error, "clean up") from error

    async def check(self) -> Health:
        """What the server is, and what its settings mean for tasks."""
        door = await self._here()
        try:
            return await door.stores.queue_backend.check()
        except Exception as error:
            raise explain(self.backend, error, "check") from error
