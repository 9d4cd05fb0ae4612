"""Asking for tasks: as many as will be started soon, in one call.

Claiming one task at a time runs at a hundredth of the batched rate, on every backend; claiming many ahead hoards what
another worker could run, and condemns it should this one die. So it adapts: the first claim asks for as many as there are
free slots, and what is claimed ahead grows with the rate at which tasks really end here, up to a sixth of a second's worth.
Where a task takes longer than that, nothing is claimed ahead. What was, and still waits after a second, is given back.

A call that got no answer is repeated with the same claim id, and the store hands out the same tasks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from omniq.engine.ending import Endings
from omniq.engine.held import Desk, Held
from omniq.engine.rest import Rest
from omniq.engine.settings import WorkerSettings
from omniq.engine.settle import Settler
from omniq.engine.trouble import Trouble
from omniq.ids import new_id
from omniq.outcome import Ending
from omniq.plugins import Hooks
from omniq_core import Backend, Capability, Claim, Clock

__all__ = ["Claimer"]

log = logging.getLogger("omniq.worker")

LARGEST_CLAIM = 1000
AHEAD_S = 0.15
"""How much work is claimed ahead, in seconds of this worker's own rate."""
RATE_WINDOW_S = 0.02
"""Shortest time over which a rate is measured."""
SETTLING_S = 0.002
"""How long the claim after one that found less than it asked for lets a settlement go first."""
UNSTARTED_S = 1.0
"""What was claimed ahead and waits longer is given back."""
SUSPECT_TURN_S = 0.25
"""How long a suspect may hold up the claims after it. Most are innocent, and quick."""
SUSPECT_DELAY_S = 2.0
"""When a suspect that found another one running is offered again."""
REFRESH_IDLE_S, REFRESH_BUSY_S = 1.0, 5.0
"""How often to ask for the names of queues."""


class Claimer:
    """Keeps the slots of one worker supplied.

    Args:
        desk: what the worker holds.
        backend: the queue's.
        settings: the worker's.
        settler: for what is given back, and to stop when it is behind.
        endings: for what is given back.
        hooks: for ``omniq_tasks_claimed``.
        worker_id: this worker.
        clock: measures rates and trust.
        call_timeout_s: a call that is not answered by then is repeated.
        idle_slots: how many slots have nothing to run.
        on_claimed: called with the number of tasks that became ready.
    """

    def __init__(
        self,
        desk: Desk,
        backend: Backend,
        settings: WorkerSettings,
        settler: Settler,
        endings: Endings,
        *,
        hooks: Hooks,
        worker_id: str,
        clock: Clock,
        call_timeout_s: float,
        idle_slots: Callable[[], int],
        on_claimed: Callable[[int], None],
    ) -> None:
        self._desk = desk
        self._queue = backend.queue()
        self._settings = settings
        self._settler = settler
        self._endings = endings
        self._on_tasks_claimed = hooks.caller("omniq_tasks_claimed")
        self._worker_id = worker_id
        self._clock = clock
        self._call_timeout_s = call_timeout_s
        self._idle_slots = idle_slots
        self._on_claimed = on_claimed
        self._trouble = Trouble("claim tasks", backend, clock)
        self._largest = min(LARGEST_CLAIM, backend.limits.max_batch)
        self._knows_names = Capability.STATS in backend.capabilities
        self._takes_all = settings.and_others or not settings.queues
        self._names: dict[str, None] = dict.fromkeys(
            (*settings.queues, "default") if self._takes_all else settings.queues
        )
        self._names_at = float("-inf")
        self._queues: Sequence[str] = tuple(self._names)
        self._prefetch = 0
        self._rate_at = clock.monotonic()
        self._ended_then = 0
        self._rate = 0.0
        self._most: int | None = None
        """After suspects were claimed: most tasks of the next claim. It grows with each claim that brings none."""
        self._suspect: Held | None = None
        """The one suspect that is held."""
        self._claim_id: str | None = None
        self._claim_sent_at = 0.0
        self._burst = False
        self._closing = False
        self.low_water = 0
        """Claim again when so few are ready."""
        self.rest = Rest()
        """Where the claimer rests while it has enough. Slots that run low poke here."""
        self._changed = asyncio.Event()
        """Set by what makes another look worthwhile although the store had nothing, such as a new queue; cleared before
        the look. (A slot that becomes free changes nothing about that.)"""
        self._wait_limit: asyncio.Timeout | None = None
        """Of the wait for work that is under way."""

    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing

    @property
    def prefetch(self) -> int:
        """How many tasks are claimed ahead at present."""
        return self._prefetch

    def learn_queue(self, name: str) -> None:
        """Works on that queue too, if the worker takes all there are."""
        if self._takes_all and name not in self._names:
            self._learn([name])
            self.look_again()

    def look_again(self) -> None:
        """Something has changed: claims now, if there is room."""
        self.rest.poke()
        self._changed.set()
        limit, self._wait_limit = self._wait_limit, None
        if limit is not None and not limit.expired():
            limit.reschedule(0.0)  # in the past: it ends in the next turn of the loop

    def progress(self) -> None:
        """Something was settled: there may be room again, or a burst may be over."""
        if self.rest.is_on:
            self.rest.poke()
        if self._burst and not self._desk.held:
            self.look_again()

    def close(self) -> None:
        """Claims nothing more. A call under way is let finish: cancelling it would leave its tasks leased to nobody."""
        self._closing = True
        self.look_again()

    async def run(self, *, burst: bool) -> None:
        """Claims until :meth:`close`; with ``burst`` until nothing is due and nothing is held."""
        self._burst = burst
        quick_misses = 0
        while not self.is_closed():
            await self._refresh_names(REFRESH_BUSY_S)
            self._give_back_unstarted()
            wanted = self._wanted()
            if wanted <= 0 or self._settler.is_behind or self._suspect_has_its_turn():
                # Poked by a slot that runs low, or by the settler. The time-out is for what was claimed ahead and waits.
                await self.rest.until_poked(0.25)
                continue
            self._changed.clear()
            if self.is_closed():
                return
            wanted = min(wanted, self._most or self._largest)
            claims = await self._claim(wanted)
            if claims is None:
                continue
            if claims:
                quick_misses = 0
                self._take(claims)
                if len(claims) < wanted:
                    # That was all for now. What was claimed starts in the next turn of the loop, and if it is quick it is
                    # written down in the one after; a claim that will hardly find anything must not go before that, nor
                    # take the processor from those who wait for the result.
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    if self._settler.is_writing:
                        await self.rest.until_poked(SETTLING_S)
                continue
            if burst and not self._desk.held:
                return
            # Names are asked for where it holds up no task: not between a wake-up and its claim.
            if await self._refresh_names(REFRESH_IDLE_S):
                continue
            before = self._clock.monotonic()
            await self._wait_for_work()
            # A store whose ``wait`` keeps crying wolf must not make this a busy loop.
            quick_misses = quick_misses + 1 if self._clock.monotonic() - before < 0.002 else 0
            if quick_misses > 3:
                await self._pause(min(0.05, 0.001 * 2 ** min(quick_misses, 10)))

    # --- how many -----------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        self._measure()
        ready = len(self._desk.ready)
        if ready > self.low_water:
            return 0
        return self._idle_slots() + self._prefetch - ready

    def _measure(self) -> None:
        """Sets ``prefetch`` by the rate at which tasks end."""
        now = self._clock.monotonic()
        elapsed_s = now - self._rate_at
        if elapsed_s < RATE_WINDOW_S:
            return
        ended = self._desk.ended
        rate = (ended - self._ended_then) / elapsed_s
        self._rate_at, self._ended_then = now, ended
        # Down at once, up by halves: a burst of quick tasks is no promise.
        self._rate = rate if rate < self._rate else (self._rate + rate) / 2
        self._set_prefetch(self._by_rate(self._rate))

    def _by_rate(self, rate: float) -> int:
        ahead = int(rate * AHEAD_S)
        # Less than one for each slot: a task takes longer than the time for which we look ahead.
        return 0 if ahead < self._settings.max_workers else min(ahead, self._settings.max_prefetch)

    def _set_prefetch(self, prefetch: int) -> None:
        self._prefetch = prefetch
        self.low_water = prefetch // 2

    # --- claiming -----------------------------------------------------------------------------------------------

    async def _claim(self, wanted: int) -> Sequence[Claim] | None:
        now = self._clock.monotonic()
        if self._claim_id is None or now - self._claim_sent_at > self._settings.lease_s / 2:
            self._claim_id, self._claim_sent_at = new_id(), now
        try:
            async with asyncio.timeout(self._call_timeout_s):
                claims = await self._queue.claim(
                    self._queues,
                    max_tasks=wanted,
                    lease_s=self._settings.lease_s,
                    worker_id=self._worker_id,
                    claim_id=self._claim_id,
                )
        except Exception as error:
            await self._pause(self._trouble.failed(error))
            return None
        self._claim_id = None
        self._trouble.worked()
        return claims

    def _take(self, claims: Sequence[Claim]) -> None:
        desk = self._desk
        desk.counts.claimed += len(claims)
        if self._on_tasks_claimed is not None:
            self._on_tasks_claimed(claims=claims, worker_id=self._worker_id)
        now = self._clock.monotonic()
        trusted_until = self._claim_sent_at + self._settings.lease_s - self._settings.trust_margin_s
        new = [Held(claim, now, trusted_until) for claim in claims]
        desk.held.update(new)
        if any(_is_suspect(claim) for claim in claims):
            new = self._set_suspects_apart(new)
        elif self._most is not None:
            self._most = self._most * 2 if self._most < self._largest else None
        if self._closing:
            self.give_back(new, "its worker stopped before it was started")
            return
        desk.ready.extend(new)
        self._on_claimed(len(new))

    def _set_suspects_apart(self, new: list[Held]) -> list[Held]:
        """A task that would be dead if this worker died runs only where no other such task is held: one that kills its
        worker must not condemn those that merely stood beside it. So after the first, claims are of one task at a time: a
        batch of them is worked off one by one, each running alone, instead of going back and forth."""
        delay_s = SUSPECT_DELAY_S if self._suspect_is_held() and self._most == 1 else 0.0
        self._most = 1
        kept = []
        for held in new:
            if _is_suspect(held.claim):
                if self._suspect_is_held():
                    self._endings.never_started(
                        held,
                        Ending.STOPPED,
                        "its worker was lost before; it waits for a worker that holds no other such task",
                        delay_s=delay_s,
                    )
                    self._settler.add(held)
                    continue
                self._suspect = held
            kept.append(held)
        return kept

    def _suspect_is_held(self) -> bool:
        if self._suspect is not None and self._suspect not in self._desk.held:
            self._suspect = None
        return self._suspect is not None

    def _suspect_has_its_turn(self) -> bool:
        return (
            self._most == 1
            and self._suspect_is_held()
            and self._suspect is not None
            and self._clock.monotonic() < self._suspect.claimed_at + SUSPECT_TURN_S
        )

    # --- giving back --------------------------------------------------------------------------------------------

    def give_back(self, unstarted: Sequence[Held], reason: str) -> None:
        """Releases tasks that were not started; their attempt is not counted."""
        for held in unstarted:
            if held.lost:
                self._desk.held.discard(held)
                continue
            self._endings.never_started(held, Ending.STOPPED, reason)
            self._settler.add(held)

    def _give_back_unstarted(self) -> None:
        ready = self._desk.ready
        overdue = self._clock.monotonic() - UNSTARTED_S
        late = []
        while ready and ready[0].claimed_at < overdue:
            late.append(ready.popleft())
        if late:
            self._set_prefetch(0)
            self._rate = 0.0
            self.give_back(late, "it was claimed by a worker that turned out to be busy")

    # --- waiting ------------------------------------------------------------------------------------------------

    async def _wait_for_work(self) -> None:
        """Until there may be something to claim, at the latest after ``poll_s``; ends early by :meth:`look_again`."""
        if self._changed.is_set():
            return
        poll_s = self._settings.poll_s
        # No task of its own for the wait, and none for the poke: each would put turns of the loop before the claim.
        limit = self._wait_limit = asyncio.timeout(poll_s + self._call_timeout_s)
        failure: Exception | None = None
        try:
            async with limit:
                await self._queue.wait(self._queues, timeout_s=poll_s)
        except Exception as error:
            failure = error
        finally:
            self._wait_limit = None
        if failure is not None and not limit.expired():
            await self._pause(self._trouble.failed(failure))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    # --- which queues -------------------------------------------------------------------------------------------

    async def _refresh_names(self, every_s: float) -> bool:
        """Asks for the names of queues, if that was last done ``every_s`` ago; whether there are new ones."""
        if not self._takes_all or not self._knows_names:
            return False
        now = self._clock.monotonic()
        if now - self._names_at < every_s:
            return False
        self._names_at = now
        known = len(self._names)
        try:
            async with asyncio.timeout(self._call_timeout_s):
                self._learn(await self._queue.queue_names())
        except Exception as error:  # the claim that follows will tell
            log.debug("cannot list the queues: %s", error)
        return len(self._names) > known

    def _learn(self, names: Sequence[str]) -> None:
        self._names.update(dict.fromkeys(names))
        first = dict.fromkeys((*self._settings.queues, "default"))
        self._queues = (*first, *sorted(name for name in self._names if name not in first))


def _is_suspect(claim: Claim) -> bool:
    return 0 < claim.crashes >= claim.max_crashes - 1
