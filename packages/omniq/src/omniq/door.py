"""The door of a queue: the last checks before tasks are sent, and the calls that many coroutines share.

*Group commit.* One call of ``Backend.enqueue`` is under way at a time on a loop. Who comes meanwhile waits in line, and the
next call takes the whole line along. So a lone producer pays nothing for it (its own call goes out at once), and a hundred
coroutines share a round trip, without a timer.

*Lost replies.* A call that failed in a way that may pass is repeated with the same ids, which is harmless: what was stored
the first time is answered with ``DUPLICATE``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence

from omniq.codec import encode_success
from omniq.context import TaskContext
from omniq.errors import LeaseLost
from omniq.journal import Journal
from omniq.models import EventType
from omniq.plugins import hooks
from omniq.stores import OpenStores, explain
from omniq_core import (
    Capability,
    Enqueued,
    OmniQError,
    Outcome,
    Settlement,
    TaskRecord,
    TooLarge,
    Verb,
    check_name,
    check_task_id,
)

__all__ = ["Door", "Sent"]

MOST_CHECKED = 1024
"""How many pairs of a queue's and a task's name are remembered to be usable."""
TRIES = 5
FIRST_PAUSE_S = 0.05
"""Before the second try, in seconds; it doubles. Five tries with their pauses take about a second."""
PATIENCE_S = 3.0
"""No third or later try begins after so many seconds: a store that lets each call run into its time-out would keep the
caller waiting for five of them. The second is always made, as the first one's reply may be all that was lost."""


class Sent:
    """What became of one record that was sent."""

    __slots__ = ("created", "task_id")

    def __init__(self, task_id: str, created: bool) -> None:
        self.task_id = task_id
        """The task; with a unique key that is held, the task that holds it."""
        self.created = created
        """Whether this very call put it into the queue."""


class _Waiting:
    """Records of one caller that wait for the next call."""

    __slots__ = ("future", "records")

    def __init__(self, records: Sequence[TaskRecord], future: asyncio.Future[list[Sent]]) -> None:
        self.records = records
        self.future = future


class Door:
    """Sends tasks to one opened queue, on one loop.

    Args:
        stores: the queue, and the event log if there is one.
    """

    def __init__(self, stores: OpenStores) -> None:
        self.stores = stores
        self._backend = stores.queue_backend
        self._queue = stores.queue
        self._limits = stores.queue_backend.limits
        self._checks_needs = not stores.capabilities.issuperset(_NEEDS)
        self._checked_names: set[tuple[str, str]] = set()
        self._line: deque[_Waiting] = deque()
        self._is_busy = False
        self._draining: asyncio.Task[None] | None = None
        self.journal: Journal | None = None
        if stores.events is not None and stores.event_backend is not None:
            self.journal = Journal(stores.events, stores.event_backend)

    async def close(self) -> None:
        """Sends what is still waiting, writes what was noted, and gives the stores back."""
        if self._draining is not None:
            await asyncio.wait([self._draining])
        if self.journal is not None:
            await self.journal.flush()
        await self.stores.close()

    async def send(self, records: Sequence[TaskRecord]) -> list[Sent]:
        """Enqueues tasks; when it returns they are stored, as durably as the backend says.

        Raises:
            ValueError, TypeError: a name or id that may not be used.
            TooLarge: a body is over the backend's limit. Nothing was sent.
            MissingCapability: the backend lacks what a record asks for. Nothing was sent.
            BackendError: the store does not answer.
        """
        records = self._adjusted(records)
        for record in records:
            self._check(record)
        largest = self._limits.max_batch
        if len(records) > largest:
            answers: list[Sent] = []
            for start in range(0, len(records), largest):
                answers += await self._share(records[start : start + largest])
            return answers
        return await self._share(records) if records else []

    async def send_within(self, transaction: object, records: Sequence[TaskRecord]) -> list[Sent]:
        """:meth:`send` as a part of the caller's own transaction. Nothing is shared, repeated or logged."""
        self.stores.need(Capability.TX_ENQUEUE, "transaction=")
        records = self._adjusted(records)
        for record in records:
            self._check(record)
        try:
            answers = await self._queue.enqueue_within(transaction, records)
        except (TypeError, ValueError):  # what was given is no transaction of this backend
            raise
        except Exception as error:
            raise explain(self._backend, error, "enqueue within the transaction") from error
        return [Sent(answer.task_id, answer.outcome is Outcome.OK) for answer in answers]

    async def complete_within(
        self, transaction: object, task: TaskContext, value: object, *, keeps_result: bool
    ) -> None:
        """See ``AsyncOmniQ.complete_within``. The worker settles the task once more when its function has returned: it is
        told that this very lease has done so, or, after a rollback, does it then."""
        self.stores.need(Capability.TX_ENQUEUE, "complete_within()")
        result = None
        if keeps_result and Capability.ATOMIC_SETTLE in self.stores.capabilities:
            now = self._backend.clock.time()
            result = encode_success(value, now, now, task.worker_id, task.attempt, task.name, task.queue)
        settlement = Settlement(task.lease, Verb.SUCCEED, result=result)
        try:
            [outcome] = await self._queue.settle_within(transaction, [settlement])
        except (TypeError, ValueError):
            raise
        except Exception as error:
            raise explain(self._backend, error, "complete within the transaction") from error
        if outcome not in (Outcome.OK, Outcome.DUPLICATE):
            raise LeaseLost(f"another worker has task {task.task_id}; roll back", task_id=task.task_id)

    def _adjusted(self, records: Sequence[TaskRecord]) -> Sequence[TaskRecord]:
        """The records that plugins want instead."""
        caller = hooks().caller("omniq_tasks_enqueuing")
        if caller is not None:
            for replacement in caller(records=records):
                if len(replacement) != len(records):
                    raise OmniQError(
                        f"a plugin's omniq_tasks_enqueuing returned {len(replacement)} records for {len(records)}; "
                        "it must return one for each"
                    )
                records = replacement
        return records

    def _check(self, record: TaskRecord) -> None:
        check_task_id(record.id)
        names = (record.queue, record.name)
        if names not in self._checked_names:
            check_name("queue name", record.queue)
            check_name("task name", record.name)
            if len(self._checked_names) < MOST_CHECKED:
                self._checked_names.add(names)
        if record.unique_key is not None:
            check_name("unique key", record.unique_key)
        if len(record.body) > self._limits.max_body_bytes:
            raise TooLarge(
                f"the arguments of {record.name} take {len(record.body):,} bytes; {self._backend!r} takes at most "
                f"{self._limits.max_body_bytes:,} per task. Store them elsewhere and pass their place",
                self._backend.name,
            )
        if self._checks_needs:
            what = f"task {record.name!r}"
            if record.priority:
                self.stores.need(Capability.PRIORITY, f"{what} (priority={record.priority})")
            if record.delay_s > 0:
                self.stores.need(Capability.DELAYED, f"{what} (run_in={record.delay_s:g} s)")
            if record.ttl_s is not None:
                self.stores.need(Capability.EXPIRY, f"{what} (ttl={record.ttl_s:g} s)")
            if record.unique_key is not None:
                self.stores.need(Capability.UNIQUE, f"{what} (unique_key={record.unique_key!r})")

    # --- group commit -------------------------------------------------------------------------------------------

    async def _share(self, records: Sequence[TaskRecord]) -> list[Sent]:
        if self._is_busy:
            future: asyncio.Future[list[Sent]] = asyncio.get_running_loop().create_future()
            self._line.append(_Waiting(records, future))
            return await future
        self._is_busy = True
        try:
            return await self._call(records)
        finally:
            if self._line:
                self._draining = asyncio.get_running_loop().create_task(self._drain())
            else:
                self._is_busy = False

    async def _drain(self) -> None:
        """Sends the line, call by call, until it is empty; the door is busy all the while."""
        try:
            while self._line:
                await self._send_some_of_the_line()
                # Whoever was just answered may come straight back, and can share the next call if it waits this one turn
                # of the loop; else two halves of a crowd would take turns for ever.
                await asyncio.sleep(0)
        finally:
            # In the same step as the last look at the line: who comes next must see that nobody is on the way.
            self._is_busy = False
            self._draining = None
            for waiting in self._line:  # not empty only if we were cancelled: the loop is coming to its end
                waiting.future.cancel()
            self._line.clear()

    async def _send_some_of_the_line(self) -> None:
        batch: list[_Waiting] = []
        size = 0
        while self._line and (not batch or size + len(self._line[0].records) <= self._limits.max_batch):
            waiting = self._line.popleft()
            if not waiting.future.cancelled():
                batch.append(waiting)
                size += len(waiting.records)
        try:
            answers = await self._call([record for waiting in batch for record in waiting.records])
        except Exception as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        except BaseException:
            for waiting in batch:
                waiting.future.cancel()
            raise
        start = 0
        for waiting in batch:
            end = start + len(waiting.records)
            if not waiting.future.done():
                waiting.future.set_result(answers[start:end])
            start = end

    async def _call(self, records: Sequence[TaskRecord]) -> list[Sent]:
        answers: Sequence[Enqueued]
        pause_s = FIRST_PAUSE_S
        begun = time.monotonic()
        tries = 0
        while True:
            tries += 1
            try:
                answers = await self._queue.enqueue(records)
                break
            except Exception as error:
                is_enough = tries == TRIES or (tries > 1 and time.monotonic() - begun > PATIENCE_S)
                if is_enough or not self._backend.classify(error).is_retryable:
                    raise explain(self._backend, error, "enqueue") from error
                await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
                pause_s *= 2
        caller = hooks().caller("omniq_tasks_enqueued")
        if caller is not None:
            caller(records=records, answers=answers)
        sent = []
        journal = self.journal
        for record, answer in zip(records, answers, strict=True):
            # A duplicate of a repeated call is our own, stored by the call whose reply was lost.
            created = answer.outcome is Outcome.OK or (answer.outcome is Outcome.DUPLICATE and tries > 1)
            sent.append(Sent(answer.task_id, created))
            if created and journal is not None:
                journal.note(EventType.ENQUEUED, answer.task_id, queue=record.queue, name=record.name)
        if journal is not None:
            await journal.catch_up()
        return sent


_NEEDS = frozenset({Capability.PRIORITY, Capability.DELAYED, Capability.EXPIRY, Capability.UNIQUE})
