"""Where everything of a project lies in NATS: every stream and subject, what is in it, and how long.

A project has four streams, ``OMNIQ-<project>-TASKS`` and so on, and all its subjects begin with ``omniq.<project>.``.
Names are data: a name or id that is plain (letters, digits, ``-``, and ``_`` but not in front) stands as it is, any other as
``_`` and the hexadecimal digits of its UTF-8. So a ``.``, ``*`` or ``>`` in a name never means anything to NATS.

**TASKS**: the truth. One message per subject, the newest; each change is a compare-and-set on its sequence.

``t.<id>``            The task: its document, see ``documents``. From enqueue until it is purged; one that has ended carries a
                      ``Nats-TTL`` and goes by itself.
``u.<key>``           Who holds a unique key: the id of a task. It counts only while that task is pending or running, so
                      nobody has to take it away. Written in one atomic batch with the task's document.
``r.<id>``            A result record that was put by itself. (One that came with a settlement stands in the document.)
``n.<queue>``         An empty message for each queue that was ever enqueued to.

**LINES**: where tasks wait. A work-queue stream of *hints*: each is the id of a task, and holds only while that task is
pending and its document names this very hint (by its sequence). Any other hint is dropped by whoever comes across it. A hint
is always published before the document that names it: whatever dies in between, there is no task without one.

``l.<queue>.p.<priority>``                  New tasks and such that fell due, in order. A consumer of its own deals them out.
``l.<queue>.r.<priority>``                  Those that came back and are due: retried, released, reaped. Taken first, by age.
``l.<queue>.d.<priority>.<from>.<length>``  Not yet due: a bucket of time (ms). A claim moves them on when its time comes.
``l.<queue>.x``                             There while the queue is paused.
``x.<from>.<length>``                       Pending tasks with a time to live, by the bucket in which it ends.

The server counts messages per subject, so one request tells a claim which priorities wait, what falls due, and how many.

**CLAIMS**: one pair of messages per claim that still holds tasks.

``c.<claim id>``         Worker, end of the lease, and which of its tasks are settled. Extending a lease touches this alone.
``k.<claim id>.<part>``  The ids of its tasks. Written before the other.

**EVENTS**: ``e``, one message per event.

Not stored, only said: ``w.<queue>`` (there is something to claim), ``w`` (an event), and ``f.<id>.>`` (there may be a
result). The last is where the server answers whoever stores the result, so that it costs no message of its own.
"""

from __future__ import annotations

import functools
import hashlib
import re

__all__ = ["Subjects", "text_of", "token"]

_PLAIN = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]*").fullmatch


# Until a task is settled, its id is asked for three times.
@functools.lru_cache(4096)
def token(name: str) -> str:
    """A name as one token of a subject."""
    return name if _PLAIN(name) else "_" + name.encode().hex()


def text_of(token: str) -> str:
    """The name that a token stands for."""
    return bytes.fromhex(token[1:]).decode() if token.startswith("_") else token


class Subjects:
    """The names of one project's streams and subjects."""

    def __init__(self, project: str) -> None:
        short = token(project)
        if len(short) > 64:  # the name of a stream is a folder on the server
            short = "_" + hashlib.sha256(project.encode()).hexdigest()[:40]
        self.root = f"omniq.{short}."
        self.tasks = f"OMNIQ-{short}-TASKS"
        self.lines = f"OMNIQ-{short}-LINES"
        self.claims = f"OMNIQ-{short}-CLAIMS"
        self.events = f"OMNIQ-{short}-EVENTS"
        self._task = self.root + "t."
        self._result = self.root + "r."

    def task(self, task_id: str) -> str:
        return self._task + token(task_id)

    def key(self, key: str) -> str:
        return f"{self.root}u.{token(key)}"

    def result(self, task_id: str) -> str:
        return self._result + token(task_id)

    def queue(self, queue: str) -> str:
        return f"{self.root}n.{token(queue)}"

    def line(self, queue: str, priority: int) -> str:
        return f"{self.root}l.{token(queue)}.p.{priority}"

    def returned(self, queue: str, priority: int) -> str:
        return f"{self.root}l.{token(queue)}.r.{priority}"

    def delayed(self, queue: str, priority: int, start: int, length: int) -> str:
        return f"{self.root}l.{token(queue)}.d.{priority}.{start}.{length}"

    def paused(self, queue: str) -> str:
        return f"{self.root}l.{token(queue)}.x"

    def lines_of(self, queue: str) -> str:
        """All that waits in a queue, as a pattern."""
        return f"{self.root}l.{token(queue)}.>"

    def expiring(self, start: int, length: int) -> str:
        return f"{self.root}x.{start}.{length}"

    def lease(self, claim_id: str) -> str:
        return f"{self.root}c.{token(claim_id)}"

    def claimed(self, claim_id: str, part: str) -> str:
        return f"{self.root}k.{token(claim_id)}.{part}"

    def wake(self, queue: str) -> str:
        return f"{self.root}w.{token(queue)}"

    @property
    def finished(self) -> str:
        """Where results are told of: under this and a task's token, anything."""
        return self.root + "f"

    def finished_of(self, task_id: str) -> str:
        """All that tells of a task's result, as a pattern."""
        return f"{self.root}f.{token(task_id)}.>"

    def dealer(self, queue: str, priority: int) -> str:
        """The name of a line's consumer."""
        return f"P-{hashlib.sha256(queue.encode()).hexdigest()[:32]}-{priority}"
