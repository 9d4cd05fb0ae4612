"""What operators do: cancelling, requeuing, purging."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

from omniq_core import Outcome, TaskFilter
from omniq_nats.documents import CANCELLED, PENDING, RUNNING, SUCCEEDED, Document, encode
from omniq_nats.enqueueing import Enqueueing
from omniq_nats.jetstream import CONFLICT, head
from omniq_nats.lines import payload
from omniq_nats.looking import Looking
from omniq_nats.tasks import PATIENCE_S, Tasks

__all__ = ["Operating"]

OK = Outcome.OK


class Operating:
    """See ``cancel``, ``requeue`` and ``purge`` of :class:`omniq_core.Queue`."""

    def __init__(self, tasks: Tasks, enqueueing: Enqueueing, looking: Looking) -> None:
        self._tasks = tasks
        self._enqueueing = enqueueing
        self._looking = looking

    async def cancel(self, task_ids: Sequence[str]) -> list[Outcome]:
        tasks = self._tasks
        answers: dict[str, Outcome] = {}
        now = await tasks.lines.now()
        left = list(dict.fromkeys(task_ids))
        hints: list[int] = []
        while left:
            versions = await tasks.read(left)
            changes: list[tuple[Document, int]] = []
            for task_id in left:
                version = versions.get(task_id)
                if version is None:
                    answers[task_id] = Outcome.NOT_FOUND
                    continue
                seq, document = version
                if document.is_final:
                    answers[task_id] = Outcome.FINISHED
                    continue
                if document.state == RUNNING and document.cancel:
                    answers[task_id] = Outcome.REQUESTED
                    continue
                changed = copy.copy(document)
                if document.state == PENDING:
                    changed.state, changed.finished_at = CANCELLED, now
                else:
                    changed.cancel = True
                changes.append((changed, seq))
            left = []
            for (document, _), answer in zip(changes, await tasks.change(changes, now), strict=True):
                if answer == CONFLICT:
                    left.append(document.id)
                elif document.state == CANCELLED:
                    answers[document.id] = OK
                    hints.append(document.hint)
                else:
                    answers[document.id] = Outcome.REQUESTED
        await tasks.lines.drop(hints)
        # An id that comes twice was cancelled by its first mention.
        found = []
        seen: set[str] = set()
        for task_id in task_ids:
            again = task_id in seen and answers[task_id] is OK
            found.append(Outcome.FINISHED if again else answers[task_id])
            seen.add(task_id)
        return found

    async def requeue(self, task_ids: Sequence[str]) -> list[Outcome]:
        answers: dict[str, Outcome] = {}
        found = []
        queues: list[str] = []
        for task_id in task_ids:
            if task_id in answers:
                again = answers[task_id] is OK
                found.append(Outcome.DUPLICATE if again else answers[task_id])
                continue
            answers[task_id] = await self._requeue(task_id, queues)
            found.append(answers[task_id])
        self._tasks.wake(queues)
        return found

    async def _requeue(self, task_id: str, queues: list[str]) -> Outcome:
        tasks = self._tasks
        while True:
            version = (await tasks.read([task_id])).get(task_id)
            if version is None:
                return Outcome.NOT_FOUND
            seq, document = version
            if not document.is_final:
                return Outcome.DUPLICATE
            if document.state == SUCCEEDED:
                return Outcome.FINISHED
            started = time.monotonic()
            now = await tasks.lines.now()
            changed = copy.copy(document)
            changed.state, changed.run_at = PENDING, now
            changed.attempt = changed.crashes = 0
            changed.cancel = False
            changed.expires_at = changed.finished_at = changed.reason = changed.error = None
            changed.result = changed.result_ends_at = None
            key = document.unique_key
            if key is None:
                [answer] = await tasks.make_pending([(changed, seq)], now, returned=False)
            else:
                key_seq, holder = (await self._enqueueing.holders([key]))[key]
                if holder is not None:
                    return Outcome.CONFLICT
                subject, _ = tasks.lines.place_for(document.queue, document.priority, now, now)
                [changed.hint] = await tasks.lines.put([(subject, payload(document.id, document.born))])
                answer = await tasks.js.write_atomically(
                    [
                        (tasks.subjects.key(key), head(key_seq), task_id.encode()),
                        (tasks.subjects.task(task_id), head(seq), encode(changed)),
                    ]
                )
                if answer == CONFLICT:
                    await tasks.lines.drop([changed.hint])
                elif time.monotonic() - started > PATIENCE_S:
                    await tasks.put_again([task_id])
            if answer != CONFLICT:
                await tasks.js.purge(tasks.subjects.tasks, tasks.subjects.result(task_id))
                queues.append(document.queue)
                return OK

    async def purge(self, which: TaskFilter, limit: int) -> int:
        tasks = self._tasks
        purged = 0
        async for page in self._looking.walk(which):
            doomed = [version for version in page if version[1].state != RUNNING][: limit - purged]
            if doomed:
                # A task that was claimed or changed meanwhile has another sequence, and stays.
                deleted = await tasks.js.delete(tasks.subjects.tasks, [seq for seq, _ in doomed])
                gone = [document for (_, document), was in zip(doomed, deleted, strict=True) if was]
                await tasks.lines.drop([document.hint for document in gone if document.state == PENDING])
                results = [tasks.subjects.result(document.id) for document in gone]
                found = await tasks.js.newest(tasks.subjects.tasks, results, fresh=True) if results else {}
                await tasks.js.delete(tasks.subjects.tasks, [stored.seq for stored in found.values()])
                purged += len(gone)
            if purged >= limit:
                break
        return purged
