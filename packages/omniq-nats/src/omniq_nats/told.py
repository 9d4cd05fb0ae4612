"""Who waits for which results, and what is known of them between two calls of ``wait``.

One call often stands for a thousand coroutines, returns with the first few results, and is made again for the rest. If
each of them subscribed and looked anew, waiting for many results would cost the server more than all else that is done with
their tasks: it grows with the square of how many there are. So the subscription to a task's results outlives the call for a
moment, and a task of which there was nothing, and nothing was heard since, is not looked at again: not for a while, as a
message may be lost with a connection, or come from a server that does not know yet that we listen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from omniq_nats.connection import Client, Message
from omniq_nats.subjects import Subjects

__all__ = ["LOOK_AGAIN_S", "Told"]

LOOK_AGAIN_S, LONGEST_LOOK_S = 1.0, 4.0
"""How long it is believed that there is nothing of a task because nothing was heard: at first, when the servers of a cluster
may not all know that we listen, and after some looks that found nothing."""
KEEP_S = 1.0
"""How long a subscription outlives the last call that waits for its task."""

NEVER = -1e9


class _Ear:
    """The subscription to one task's results."""

    __slots__ = ("absent_at", "believed_s", "heard", "left_at", "number", "waiting")

    def __init__(self) -> None:
        self.number = 0
        self.waiting: set[asyncio.Event] = set()
        self.heard = 0
        """How many messages: who looks knows by it whether one came meanwhile."""
        self.absent_at = NEVER
        """When a look began that found nothing; ``NEVER`` once something was heard since."""
        self.believed_s = LOOK_AGAIN_S / 2
        self.left_at = 0.0

    def hear(self, _: Message | None = None) -> None:
        self.heard += 1
        self.absent_at = NEVER
        for woken in self.waiting:
            woken.set()


class Told:
    """The subscriptions of one backend's waits.

    Args:
        client: its connection.
        subjects: the project's.
    """

    def __init__(self, client: Client, subjects: Subjects) -> None:
        self._client = client
        self._subjects = subjects
        self._ears: dict[str, _Ear] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def listen(self, task_ids: Iterable[str], woken: asyncio.Event) -> None:
        """Has ``woken`` set with the next message about any of these tasks."""
        for task_id in task_ids:
            ear = self._ears.get(task_id)
            if ear is None:
                ear = self._ears[task_id] = _Ear()
                subject = self._subjects.finished_of(task_id).encode()
                ear.number = self._client.listen(subject, ear.hear)
            ear.waiting.add(woken)

    def unknown(self, task_ids: Iterable[str], now: float) -> dict[str, int]:
        """Those that have to be looked at, for :meth:`looked`. By the loop's clock; at its infinity nothing is believed."""
        found = {}
        for task_id in task_ids:
            ear = self._ears[task_id]
            if now - ear.absent_at >= ear.believed_s:
                found[task_id] = ear.heard
        return found

    def looked(self, asked: dict[str, int], found: Sequence[Any], began: float) -> None:
        """Takes note of a look at what :meth:`unknown` told, and of what it found, by position."""
        for (task_id, heard), record in zip(asked.items(), found, strict=True):
            ear = self._ears[task_id]
            if record is None and ear.heard == heard:
                ear.absent_at = began
                ear.believed_s = min(LONGEST_LOOK_S, 2 * ear.believed_s)

    def leave(self, task_ids: Iterable[str], over: set[str], woken: asyncio.Event) -> None:
        """Ends what :meth:`listen` began; of those that are ``over`` nobody wants to hear again."""
        now = asyncio.get_running_loop().time()
        is_any_left = False
        for task_id in task_ids:
            ear = self._ears[task_id]
            ear.waiting.discard(woken)
            if ear.waiting:
                continue
            if task_id in over:
                self._drop(task_id)
            else:
                ear.left_at = now
                is_any_left = True
        if is_any_left and self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(KEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        loop = asyncio.get_running_loop()
        before = loop.time() - KEEP_S
        deserted = {task_id: ear.left_at for task_id, ear in self._ears.items() if not ear.waiting}
        for task_id, left_at in deserted.items():
            if left_at <= before:
                self._drop(task_id)
        left = [left_at for left_at in deserted.values() if left_at > before]
        if left:
            self._sweeping = loop.call_at(min(left) + KEEP_S, self._sweep)

    def _drop(self, task_id: str) -> None:
        self._client.unsubscribe(self._ears.pop(task_id).number)

    def lost(self) -> None:
        """The connection broke: nothing is known any more, and whoever waits looks again."""
        for ear in self._ears.values():
            ear.believed_s = LOOK_AGAIN_S / 2
            ear.hear()

    def close(self) -> None:
        """Wakes whoever waits, for the last time."""
        self.lost()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
