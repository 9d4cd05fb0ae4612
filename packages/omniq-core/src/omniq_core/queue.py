"""The task queue of a backend: the heart of the contract.

Leases and fencing
------------------
A claim gives a worker a :class:`~omniq_core.records.Lease` on each task: a **fencing token** and a time. Time makes a
take-over *possible*; the token alone decides who may write (Kleppmann, "How to do distributed locking", 2016):

    **A worker's write takes effect only if the task is running and its fence is the writer's, in one atomic write.**

The end of the lease is no part of that condition. An owner that is late but was not reaped still owns its task; an
owner that was reaped does not, whatever its clock says.

A driver may keep one lease record *per call of claim* instead of one per task: a token from a counter, its end, and the
tasks that are still open in it. Then nothing is written per task on claim, ``extend`` touches one record per claim, and
a settle checks that its claim still stands and that its own place in it is open. ``Lease.fence`` rises per task either
way, and ``Lease.handle`` is the driver's to use. ``omniq_memory`` shows the plain form, ``omniq_sqlite`` the other.

The states, and who moves a task between them
---------------------------------------------
=====================  =======================  =======================================  ======================
from -> to             by                       condition, in one atomic write           effect
=====================  =======================  =======================================  ======================
- -> pending           ``enqueue``              the id is new, and so is the unique key
pending -> running     ``claim``                due, not expired, queue not paused       attempt + 1, fence + 1
running -> running     ``extend``               running, fence = mine                    longer lease
running -> final       ``settle``               running, fence = mine                    result written with it
running -> pending     ``settle`` RETRY         running, fence = mine                    due later
running -> pending     ``settle`` RELEASE       running, fence = mine                    due later, attempt - 1
running -> pending     ``maintain`` (reap)      the lease has ended, crashes + 1 < max   fence + 1, crashes + 1
running -> dead        ``maintain`` (reap)      the lease has ended, crashes + 1 = max   fence + 1, crashes + 1
running -> cancelled   ``maintain`` (reap)      the lease has ended, cancel requested    fence + 1, crashes + 1
pending -> cancelled   ``cancel``
pending -> expired     ``claim``, ``maintain``  ``ttl_s`` has passed (also for a retry)
final -> pending       ``requeue``              dead, cancelled or expired               attempt, crashes = 0
=====================  =======================  =======================================  ======================

A lost lease spends the crash budget, never the retry budget: a task that did not fail is not charged for its worker.
Finished tasks are kept for a time (the driver's option), so that enqueuing one again is still a ``DUPLICATE``.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from omniq_core.capabilities import Capability, Limits
from omniq_core.errors import Unsupported
from omniq_core.records import (
    Claim,
    Enqueued,
    Extension,
    Lease,
    Maintained,
    Outcome,
    Page,
    QueueStats,
    Settlement,
    TaskFilter,
    TaskRecord,
    TaskSnapshot,
)

__all__ = ["Queue"]


class Queue(Protocol):
    """Tasks, and who works on them. The rules in :mod:`omniq_core.backend` hold for every method."""

    # --- required ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def enqueue(self, records: Sequence[TaskRecord], /) -> Sequence[Enqueued]:
        """Stores new tasks, durably by the store's settings, before it returns.

        Idempotent by ``id``: a task that is known already, in whatever state and also twice in one batch, is answered
        with ``DUPLICATE`` and left as it is. A ``unique_key`` that another pending or running task holds is answered
        with ``CONFLICT`` and that task's id. The id is looked at before the key.

        With ``ATOMIC_BATCH`` a call that raises stored nothing. Without it some records may be stored; repeating the
        call completes it.

        Fields that need an undeclared capability must be at their default, else it raises before storing anything:
        ``delay_s`` (``DELAYED``), ``priority`` (``PRIORITY``), ``ttl_s`` (``EXPIRY``), ``unique_key`` (``UNIQUE``).

        Raises:
            Unsupported: as above.
        """
        ...

    @abstractmethod
    async def claim(
        self, queues: Sequence[str], /, *, max_tasks: int, lease_s: float, worker_id: str, claim_id: str
    ) -> Sequence[Claim]:
        """Hands due tasks to a worker, for a time. Returns at once, with what there is; see :meth:`wait`.

        Takes only pending tasks that are due and not expired, of the given queues, at most ``max_tasks``. A queue is
        looked at only when the ones before it in ``queues`` have nothing more to give: strictly in that order. Within
        one queue a higher priority goes first, then what arrived first (a delayed task may count from when it fell due),
        where the capabilities ``PRIORITY`` and ``FIFO`` say so. Paused queues give nothing.

        Until its lease ends a claimed task is claimed by nobody, this worker included. Each claim adds one to the
        task's ``attempt`` and to its fence.

        **Repeating a call.** After a lost reply the caller calls again with the same ``claim_id``: the tasks that this
        claim took, and that are still open in it, come back with the same fences, and nothing new is taken. A
        ``claim_id`` is remembered at least while one of its tasks is open.

        If the call is cancelled, what it took comes back when the lease ends at the latest.

        Args:
            queues: names in order of preference, without repeats.
            max_tasks: at least 1, at most ``limits.max_batch``.
            lease_s: how long until others may take a task over, in seconds; at least ``limits.min_lease_s``.
            worker_id: kept with the tasks while they run, for people.
            claim_id: made by the caller, unique per claim (UUID text).
        """
        ...

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement], /) -> Sequence[Outcome]:
        """Writes what the ends of some runs mean, each under its own fence. A batch mixes verbs and claims.

        Per item: ``OK``: done. ``DUPLICATE``: this very lease was settled before (a repeated call), or an earlier item
        of this batch did it; nothing changed. ``STALE``: the task was taken over, nothing changed. ``NOT_FOUND``: no
        such task (it may have been purged).

        How long a driver can tell ``DUPLICATE`` from ``STALE`` may depend on the claim's record; what it must always
        do is change nothing, and never answer ``OK`` twice for one lease. While the task is in the final state that
        this very fence gave it, the answer is ``DUPLICATE``.

        The verbs: ``SUCCEED``, ``DEAD``, ``CANCEL`` make the task final and free its unique key. ``RETRY`` and
        ``RELEASE`` make it pending, due after ``delay_s`` (0: now, in its old place, before what was enqueued later);
        ``RELEASE`` takes one off ``attempt``. ``reason``, ``error`` replace what the task had. ``crashed`` adds one to
        ``crashes``.
        A final verb does not look at a request to cancel: the owner decides. ``RETRY`` and ``RELEASE`` of a task whose
        cancellation was requested make it ``CANCELLED`` instead (a ``RELEASE`` still gives its attempt back).

        With ``ATOMIC_SETTLE`` a ``result`` is stored in the same write, as a final
        :class:`~omniq_core.records.ResultRecord` of the state that the verb gives and under the settling fence.

        Raises:
            Unsupported: ``delay_s`` without ``DELAYED``, ``result`` without ``ATOMIC_SETTLE``.
        """
        ...

    @abstractmethod
    async def extend(self, leases: Sequence[Lease], /, *, lease_s: float) -> Sequence[Extension]:
        """Lets owners keep their tasks until ``lease_s`` from now; ``OK`` or ``STALE`` for each.

        Called by a worker for everything it holds, about three times per lease. Extending one task of a claim may
        extend the others of that claim as well. The answer carries a request to cancel. A lease that ended and was not
        reaped is extended: its owner still owns it.

        Args:
            leases: as they came from ``claim``.
            lease_s: from now, in seconds. A lease is never shortened by it.
        """
        ...

    @abstractmethod
    async def get(self, task_ids: Sequence[str], /) -> Sequence[TaskSnapshot | None]:
        """What is known of some tasks now; ``None`` for an unknown or pruned one."""
        ...

    # --- with a default ----------------------------------------------------------------------------------------

    async def wait(self, queues: Sequence[str], /, *, timeout_s: float) -> bool:
        """Returns when a claim on one of ``queues`` may find something new, at ``timeout_s`` at the latest.

        True: claim now. Something was enqueued, released, reaped, resumed or fell due, here or in another process;
        false alarms are allowed, and so is waking only one of several that wait. False: nothing was noticed.
        A wake-up may get lost: callers claim after a time-out as well. Something that was enqueued between an empty
        ``claim`` and the following ``wait`` of the same caller must wake it (or be covered by a poll within
        ``limits.poll_interval_s``).

        The default sleeps ``limits.poll_interval_s`` and answers True; declare ``WAKEUP`` where it is better.
        """
        await asyncio.sleep(min(timeout_s, self.limits.poll_interval_s))
        return True

    async def maintain(self, *, limit: int = 1000) -> Maintained:
        """One round of upkeep; every worker calls it every few seconds, any number at once, and it is idempotent.

        Reaps leases that have ended (see the table above), expires pending tasks whose time has passed, and deletes
        what was finished longer ago than the store keeps it, at most about ``limit`` of each, oldest first. It must
        not hold up claims.

        A reaped task is due at once. Its ``reason`` says that its worker was lost. ``claim`` after ``maintain`` must
        hand out a task whose lease has ended, within ``limits.reclaim_delay_s``.

        The default does nothing, for stores that do all this by themselves.
        """
        return Maintained()

    async def cancel(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        """Cancels pending tasks, and asks the owners of running ones to stop (``CANCEL``).

        ``OK``: it was pending and is now ``CANCELLED``. ``REQUESTED``: it is running; ``extend`` will tell its owner,
        and should the owner die, the reaper cancels it instead of handing it out. ``FINISHED``, ``NOT_FOUND``.
        Cancelling again gives the same answer or ``FINISHED``; so does an id that comes twice in one call.
        """
        raise self._unsupported(Capability.CANCEL)

    async def requeue(self, task_ids: Sequence[str], /) -> Sequence[Outcome]:
        """Makes dead, cancelled and expired tasks pending again, due now, with ``attempt`` and ``crashes`` 0 and no
        request to cancel, reason, error or expiry; the fence stays (``REQUEUE``). Their result records are deleted.

        ``OK``; ``FINISHED``: it succeeded, and is not run again; ``CONFLICT``: its unique key is held by another;
        ``DUPLICATE``: it is pending or running already; ``NOT_FOUND``.
        """
        raise self._unsupported(Capability.REQUEUE)

    async def query(
        self, which: TaskFilter, /, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskSnapshot]:
        """Tasks by filter, newest enqueued first, a page at a time (``QUERY``). It may be a moment old; no task that
        stays as it is all the while is left out or comes twice over the pages."""
        raise self._unsupported(Capability.QUERY)

    async def stats(self, queues: Sequence[str], /) -> Sequence[QueueStats]:
        """Counts of some queues, zeros for an unknown one (``STATS``). It must not scan the tasks."""
        raise self._unsupported(Capability.STATS)

    async def queue_names(self) -> Sequence[str]:
        """Every queue that was ever enqueued to, sorted (``STATS``). Workers without a list of queues ask now and
        then, so it must be cheap."""
        raise self._unsupported(Capability.STATS)

    async def pause(self, queues: Sequence[str], /) -> None:
        """Stops claims from these queues, in every process, until ``resume``; running tasks go on (``PAUSE``).
        Idempotent; a queue may be paused before its first task."""
        raise self._unsupported(Capability.PAUSE)

    async def resume(self, queues: Sequence[str], /) -> None:
        """Ends ``pause``. Idempotent (``PAUSE``)."""
        raise self._unsupported(Capability.PAUSE)

    async def purge(self, which: TaskFilter, /, *, limit: int = 1000) -> int:
        """Deletes tasks that are not running, with their result records, at most ``limit``; the number (``PURGE``).
        Afterwards their ids are unknown and their unique keys free."""
        raise self._unsupported(Capability.PURGE)

    async def enqueue_within(
        self, transaction: object, records: Sequence[TaskRecord], /
    ) -> Sequence[Enqueued]:
        """``enqueue`` as a part of the caller's own transaction: seen by nobody before it commits (``TX_ENQUEUE``).

        Args:
            transaction: a connection of the driver's client library with a transaction open; the driver's README says
                which kinds. It is neither committed, rolled back nor closed.
            records: as for ``enqueue``.
        """
        raise self._unsupported(Capability.TX_ENQUEUE)

    async def settle_within(
        self, transaction: object, settlements: Sequence[Settlement], /
    ) -> Sequence[Outcome]:
        """``settle`` as a part of the caller's own transaction (``TX_ENQUEUE``)."""
        raise self._unsupported(Capability.TX_ENQUEUE)

    # --- for drivers -------------------------------------------------------------------------------------------

    limits: Limits = Limits()
    """The opened backend's."""
    backend_name: str = "this"

    def _unsupported(self, capability: Capability) -> Unsupported:
        return Unsupported(capability, self.backend_name)
