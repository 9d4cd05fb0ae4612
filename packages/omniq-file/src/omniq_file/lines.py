"""Who is next in a queue: the lines of due tasks by priority, and those who wait for their time. It counts both."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from omniq_file.index import DELAYED, READY, Kind, Task

__all__ = ["Line", "NamedQueue"]


class Line:
    """The due tasks of one queue and priority, by arrival: new ones at the end, returned ones in a heap.

    Nothing is removed from the middle: what is not ``READY`` when it comes up is skipped. A task that left and came back
    may stand here twice, in the same place; the second time it is not ``READY`` any more.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Task] = deque()
        self.returned: list[tuple[int, Task]] = []

    def put_back(self, task: Task) -> None:
        heapq.heappush(self.returned, (task.seq, task))

    def pop(self) -> Task | None:
        if self.returned:
            if not self.fresh or self.returned[0][0] <= self.fresh[0].seq:
                return heapq.heappop(self.returned)[1]
            return self.fresh.popleft()
        return self.fresh.popleft() if self.fresh else None


class NamedQueue:
    """The lines of one queue by priority, who waits for a time, and its counts."""

    __slots__ = ("delayed", "lines", "order", "paused", "ready", "running", "used", "waiting")

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.order: list[int] = []
        """Priorities that have a line, highest first."""
        self.waiting: list[tuple[float, int, Task]] = []
        """``DELAYED`` tasks by due time, and some that are so no more."""
        self.paused = False
        self.used = False
        """Whether it was ever enqueued to, and not just paused."""
        self.ready = self.delayed = self.running = 0

    def line(self, priority: int) -> Line:
        line = self.lines.get(priority)
        if line is None:
            line = self.lines[priority] = Line()
            self.order = sorted(self.lines, reverse=True)
        return line

    def delay(self, task: Task) -> None:
        """A task waits for its ``run_at``."""
        task.state = DELAYED
        self.delayed += 1
        heapq.heappush(self.waiting, (task.run_at, task.seq, task))

    def join(self, task: Task, priority: int) -> None:
        """A task is due: it stands where it arrived."""
        task.state = READY
        self.ready += 1
        self.line(priority).put_back(task)

    def leave(self, task: Task) -> None:
        """A pending task is taken off the counts. Its place is skipped when it comes up."""
        if task.state == READY:
            self.ready -= 1
        else:
            self.delayed -= 1

    def is_due(self, now: float) -> bool:
        """Whether a claim may find something."""
        return not self.paused and bool(self.ready or (self.waiting and self.waiting[0][0] <= now))

    def promote(self, now: float, most: int, kinds: Sequence[Kind]) -> None:
        """What fell due joins the line, first due first."""
        waiting = self.waiting
        while waiting and waiting[0][0] <= now and most:
            run_at, _, task = heapq.heappop(waiting)
            if task.state == DELAYED and task.run_at == run_at:
                self.delayed -= 1
                self.join(task, kinds[task.kind].priority)
                most -= 1

    def sweep(self) -> None:
        """Forgets places of tasks that left a line otherwise than by a claim, once there is nobody else in it."""
        if not self.ready and self.lines:
            self.lines.clear()
            self.order = []
        if not self.delayed and self.waiting:
            self.waiting.clear()

    def drop_line(self, priority: int) -> None:
        """Forgets an empty line, so that old priorities cost a claim nothing."""
        del self.lines[priority]
        self.order = sorted(self.lines, reverse=True)
