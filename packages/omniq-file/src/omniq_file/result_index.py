"""The results in the state of the tasks: which records there are, which of two stays, and when each ends. Pure.

A record belongs to a task's id, not to the task: it may be there before the task has ended (provisional), and after the task
was pruned. A lower fence never overwrites a higher one.
"""

from __future__ import annotations

import heapq

from omniq_core import Outcome
from omniq_file.blobs import Blobs
from omniq_file.commit import Place
from omniq_file.index import Result

__all__ = ["ResultIndex"]

OK, DUPLICATE, STALE = Outcome.OK, Outcome.DUPLICATE, Outcome.STALE


class ResultIndex:
    """At most one record per task.

    Args:
        blobs: where the bodies are, and who is told which are needed.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.by_task: dict[str, Result] = {}
        self.ends: list[tuple[float, str]] = []
        """When each ends, and when some did that were replaced."""
        self.ended: list[str] = []
        """Tasks with a new final record since the last look of whoever waits; he empties it."""

    def live(self, task_id: str, now: float) -> Result | None:
        result = self.by_task.get(task_id)
        return None if result is None or result.expires_at <= now else result

    def may_put(self, task_id: str, fence: int, final: bool, now: float) -> Outcome:
        old = self.live(task_id, now)
        if old is not None:
            if old.fence > fence:
                return STALE
            if old.fence == fence and (old.final or not final):
                return DUPLICATE
        return OK

    def put(
        self, task_id: str, fence: int, state: int, place: Place, ttl_s: float | None, final: bool, now: float,
        retention_s: float,
    ) -> Outcome:  # fmt: skip
        """Stores a record, if it may stand; without a time of its own it lives for ``retention_s``."""
        if task_id in self.by_task:
            outcome = self.may_put(task_id, fence, final, now)
            if outcome is not OK:
                return outcome
            self.drop(task_id)
        expires_at = now + (retention_s if ttl_s is None else ttl_s)
        self.by_task[task_id] = Result(task_id, fence, state, final, ttl_s, now, expires_at, *place)
        heapq.heappush(self.ends, (expires_at, task_id))
        self._blobs.hold(place[0], place[2])
        if final:
            self.ended.append(task_id)
        return OK

    def drop(self, task_id: str) -> Result | None:
        """Deletes the record of a task, and returns it; None: there was none."""
        result = self.by_task.pop(task_id, None)
        if result is not None:
            self._blobs.release(result.body_in, result.body_bytes)
        return result

    def drop_with_task(self, task_id: str) -> None:
        """Deletes it because its task was pruned: one with a time of its own lives on until then."""
        result = self.by_task.get(task_id)
        if result is not None and result.ttl_s is None:
            self.drop(task_id)

    def has_ended(self, now: float) -> bool:
        """Whether there may be something to prune."""
        return bool(self.ends and self.ends[0][0] <= now)

    def prune(self, now: float, limit: int) -> int:
        """Deletes records whose time is over; how many."""
        pruned, ends = 0, self.ends
        while ends and ends[0][0] <= now and pruned < limit:
            ends_at, task_id = heapq.heappop(ends)
            result = self.by_task.get(task_id)
            # Of an older record of that task, otherwise: one that a restored state does not have.
            if result is not None and result.expires_at == ends_at:
                self.drop(task_id)
                pruned += 1
        return pruned

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def restore(self, result: Result) -> None:
        """Takes a record out of a checkpoint. Followed by :meth:`restored`."""
        self.by_task[result.task_id] = result
        self._blobs.hold(result.body_in, result.body_bytes)
        self.ends.append((result.expires_at, result.task_id))

    def restored(self) -> None:
        heapq.heapify(self.ends)
