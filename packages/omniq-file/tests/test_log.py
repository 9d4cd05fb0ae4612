"""The log under lost replies, lost races, sleepers who wake up in the past, damage, and tidying."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from omniq_core import SYSTEM_CLOCK, BackendError, Durability, ErrorCode, Outcome, SchemaOutOfDate
from omniq_file import operations as op
from omniq_file import tidying
from omniq_file.bodies import Bodies
from omniq_file.commit import COMMIT, HEADER_BYTES, pack
from omniq_file.log import Draft, Log, commit_name, horizon_name, number_of
from omniq_file.machine import TaskMachine
from omniq_file.shelves.in_process import InProcessShelf
from omniq_file.shelves.shelf import Shelf
from omniq_file.tidying import Tidying

POLICY = (1000.0, 5)
Hook = Callable[[str], Awaitable[None]]


class Lost(Exception):
    """The reply was lost: whether it was done is not known."""


class NoSpace(Exception):
    """The disk is full: nothing was done."""


class FaultyShelf(Shelf):
    """Wraps a shelf.

    Args:
        inner: what does the work.
        quick: what ``facts.quick`` says.
    """

    def __init__(self, inner: Shelf, *, quick: bool = True) -> None:
        self.inner = inner
        self.facts = msgspec.structs.replace(inner.facts, quick=quick)
        self.before_create: deque[Hook] = deque()
        """Awaited before a creation, one for each; an exception of it keeps the creation from happening."""
        self.after_create: deque[Hook] = deque()
        """Awaited afterwards; an exception of it takes the place of the answer."""
        self.denies: deque[bool] = deque()
        """Whether a creation that succeeded is said not to have: a client library repeated it."""
        self.before_list: deque[Hook] = deque()
        self.created: list[str] = []
        self.deleted: list[str] = []

    async def open(self, *, create: bool) -> None:
        await self.inner.open(create=create)

    async def close(self) -> None:
        await self.inner.close()

    async def create(self, name: str, data: bytes, /) -> bool:
        if self.before_create:
            await self.before_create.popleft()(name)
        made = await self.inner.create(name, data)
        if made:
            self.created.append(name)
        if self.after_create:
            await self.after_create.popleft()(name)
        if self.denies and self.denies.popleft():
            return False
        return made

    async def read(self, name: str, /, *, start: int = 0, length: int | None = None) -> bytes | None:
        return await self.inner.read(name, start=start, length=length)

    async def list(self, folder: str, /, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        if self.before_list:
            await self.before_list.popleft()(folder)
        return await self.inner.list(folder, after=after, limit=limit)

    async def delete(self, names: Sequence[str], /) -> None:
        self.deleted += names
        await self.inner.delete(names)

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, Lost):
            return ErrorCode.UNKNOWN_EFFECT
        if isinstance(error, NoSpace):
            return ErrorCode.EXHAUSTED
        return self.inner.classify(error)

    def durability(self) -> Durability:
        return self.inner.durability()

    def watch(self, notice: Callable[[], None], /) -> None:
        self.inner.watch(notice)

    def ring(self) -> None:
        self.inner.ring()


async def lose(_name: str) -> None:
    raise Lost


async def fill_up(_name: str) -> None:
    raise NoSpace


Test = Callable[["Place"], Awaitable[None]]


class Party:
    """One process's view of the log, without the thread."""

    def __init__(self, place: str, *, quick: bool) -> None:
        self.shelf = FaultyShelf(InProcessShelf(place, {}), quick=quick)
        bodies = Bodies(self.shelf, lambda number: commit_name("tasks", number), 1 << 20)
        self.log = Log(self.shelf, "tasks", TaskMachine, POLICY, SYSTEM_CLOCK, bodies)
        self.tidying = Tidying(self.log, self.move)

    async def do(self, operation: Any, *blobs: bytes) -> Any:
        answers = await self.log.commit(lambda machine, now: self._compose(machine, now, operation, blobs))
        if answers is None and not self.shelf.facts.quick:
            await self.log.refresh()
            if not self.log.machine.is_idle(operation, SYSTEM_CLOCK.time(), POLICY):
                return await self.do(operation, *blobs)
        if answers is None:
            return self.log.machine.answer_idle(operation, SYSTEM_CLOCK.time(), POLICY)
        return answers[0]

    def _compose(
        self, machine: TaskMachine, now: float, operation: Any, blobs: tuple[bytes, ...]
    ) -> Draft | None:
        if machine.is_idle(operation, now, POLICY):
            return None
        return [operation], [msgspec.Raw(msgspec.msgpack.encode(operation))], list(blobs)

    async def enqueue(self, *task_ids: str, body: bytes = b"body") -> list[Outcome]:
        rows = [(task_id, 0, len(body)) for task_id in task_ids]
        answers = await self.do((op.ENQUEUE, [("q", "n", 0, 1, 3)], rows), *[body] * len(rows))
        return [answer.outcome for answer in answers]

    async def claim(self, most: int = 10) -> list[str]:
        tasks = await self.do((op.CLAIM, ["q"], most, 60.0, "w", uuid.uuid4().hex))
        return [task.id for task in tasks]

    async def cancel(self, *task_ids: str) -> list[Outcome]:
        outcomes: list[Outcome] = await self.do((op.CANCEL, list(task_ids)))
        return outcomes

    async def move(self, operation: Any, blobs: list[bytes]) -> None:
        await self.do(operation, *blobs)

    async def tidy(self) -> None:
        """A checkpoint, whatever the size of the log, and all that follows from it."""
        await self.log.refresh()
        await self.tidying.write(self.log.number, list(self.log.machine.save()))
        await self.tidying.trim()

    def state(self) -> list[bytes]:
        return list(self.log.machine.save())

    async def files(self, folder: str) -> list[str]:
        return list(await self.shelf.inner.list(f"tasks/{folder}", limit=10_000))


class Place:
    """A log that several parties use."""

    def __init__(self) -> None:
        self._url = f"memory://{uuid.uuid4().hex}"

    async def party(self, *, quick: bool = True) -> Party:
        """``quick=False``: one that proposes before it looks, as over a network."""
        party = Party(self._url, quick=quick)
        await party.shelf.open(create=True)
        await party.log.refresh()
        return party


@pytest.fixture
def place() -> Place:
    return Place()


def run(test: Test) -> Callable[[Place], None]:
    def wrapped(place: Place) -> None:
        asyncio.run(asyncio.wait_for(test(place), 20))

    wrapped.__name__ = test.__name__
    return wrapped


# --- lost replies ----------------------------------------------------------------------------------------------------


@run
async def test_a_commit_whose_reply_was_lost_is_known_by_its_token(place: Place) -> None:
    party = await place.party()
    party.shelf.after_create.append(lose)
    assert await party.enqueue("t1") == [Outcome.OK]
    assert await party.files("log") == [commit_name("tasks", 1)]


@run
async def test_a_commit_that_is_said_to_be_there_and_is_ours_has_succeeded(place: Place) -> None:
    party = await place.party()
    party.shelf.denies.append(True)
    assert await party.enqueue("t1") == [Outcome.OK]
    assert party.log.number == 1


@run
async def test_a_call_whose_replies_are_all_lost_says_so_and_is_found_done_when_repeated(
    place: Place,
) -> None:
    party = await place.party()

    async def stay_silent(_name: str) -> None:
        party.shelf.before_create.append(stay_silent)
        if party.shelf.created:
            raise Lost

    party.shelf.before_create.append(stay_silent)
    party.shelf.after_create.append(lose)
    with pytest.raises(Lost):
        await party.enqueue("t1")
    party.shelf.before_create.clear()
    assert await party.enqueue("t1") == [Outcome.DUPLICATE]
    assert await party.enqueue("t2") == [Outcome.OK]


@run
async def test_a_creation_is_not_repeated_beyond_the_time_of_one_call(place: Place) -> None:
    party = await place.party()
    party.shelf.facts = msgspec.structs.replace(party.shelf.facts, timeout_s=0.001)
    party.shelf.after_create.extend([lose] * 2)
    with pytest.raises(Lost):
        await party.enqueue("t1")
    assert len(party.shelf.after_create) == 1
    party.shelf.after_create.clear()
    assert await party.enqueue("t1") == [Outcome.DUPLICATE]


@run
async def test_a_definite_failure_after_a_lost_reply_is_still_in_doubt(place: Place) -> None:
    party = await place.party()
    party.shelf.after_create.append(lose)

    async def then_full(_name: str) -> None:
        party.shelf.before_create.append(fill_up)

    party.shelf.before_create.append(then_full)
    with pytest.raises(BackendError) as caught:
        await party.enqueue("t1")
    assert caught.value.error_code is ErrorCode.UNKNOWN_EFFECT
    assert await party.enqueue("t1") == [Outcome.DUPLICATE]


@run
async def test_a_full_disk_fails_the_call_without_an_effect(place: Place) -> None:
    party = await place.party()
    party.shelf.before_create.append(fill_up)
    with pytest.raises(NoSpace):
        await party.enqueue("t1")
    assert party.shelf.classify(NoSpace()) is ErrorCode.EXHAUSTED
    assert await party.files("log") == []
    assert await party.enqueue("t1") == [Outcome.OK]


@run
async def test_a_commit_that_cannot_be_confirmed_is_in_doubt_and_found_by_the_next_look(place: Place) -> None:
    party = await place.party(quick=False)
    party.shelf.before_list.append(lose)
    with pytest.raises(BackendError) as caught:
        await party.enqueue("t1")
    assert caught.value.error_code is ErrorCode.UNKNOWN_EFFECT
    assert await party.enqueue("t1") == [Outcome.DUPLICATE]


# --- races -----------------------------------------------------------------------------------------------------------


@run
async def test_who_loses_a_race_looks_again_at_what_is_left_to_do(place: Place) -> None:
    first, second = await place.party(quick=False), await place.party(quick=False)
    await first.enqueue("t1", "t2", "t3")
    stolen: list[str] = []

    async def steal(_name: str) -> None:
        stolen.extend(await second.claim(2))

    first.shelf.before_create.append(steal)
    assert await first.claim(3) == ["t3"]
    assert stolen == ["t1", "t2"]
    await second.log.refresh()
    assert first.state() == second.state()


@run
async def test_of_two_that_enqueue_one_id_at_once_one_is_told_that_it_is_a_duplicate(place: Place) -> None:
    first, second = await place.party(quick=False), await place.party(quick=False)
    others: list[Outcome] = []

    async def be_faster(_name: str) -> None:
        others.extend(await second.enqueue("t1"))

    first.shelf.before_create.append(be_faster)
    assert await first.enqueue("t1") == [Outcome.DUPLICATE]
    assert others == [Outcome.OK]
    assert await first.files("log") == [commit_name("tasks", 1)]


@run
async def test_many_parties_at_once_agree_and_no_task_goes_to_two(place: Place) -> None:
    parties = [await place.party(quick=index % 2 == 0) for index in range(6)]
    for party in parties:
        # Each step lets the others go first.
        for hooks in (party.shelf.before_create, party.shelf.after_create, party.shelf.before_list):
            hooks.extend([lambda _name: asyncio.sleep(0)] * 200)

    async def work(party: Party, index: int) -> list[str]:
        mine: list[str] = []
        for turn in range(10):
            await party.enqueue(f"{index}-{turn}")
            mine += await party.claim(1)
        return mine

    claimed = await asyncio.gather(*(work(party, index) for index, party in enumerate(parties)))
    every = [task_id for mine in claimed for task_id in mine]
    assert len(every) == len(set(every)) == 60
    for party in parties:
        await party.log.refresh()
    assert len({tuple(party.state()) for party in parties}) == 1


# --- the past --------------------------------------------------------------------------------------------------------


async def move_on(party: Party) -> None:
    """Until everything that a sleeper could know of is deleted."""
    for turn in range(3):
        for number in range(10):
            await party.enqueue(f"m{turn}-{number}")
            await party.cancel(f"m{turn}-{number}")
        await party.tidy()


@run
async def test_what_a_sleeper_commits_into_the_past_is_void_and_done_again_at_the_end(place: Place) -> None:
    awake, sleeper = await place.party(), await place.party(quick=False)
    await sleeper.enqueue("early")
    await awake.claim(1)
    await awake.cancel("early")
    lie = commit_name("tasks", sleeper.log.number + 1)
    await move_on(awake)
    assert lie not in await awake.files("log")
    assert await sleeper.enqueue("t1") == [Outcome.OK]
    assert lie in sleeper.shelf.created  # the trap was there, and it fell into it
    assert sleeper.log.number > awake.log.number
    await awake.log.refresh()
    assert "t1" in awake.log.machine.tasks
    assert awake.state() == sleeper.state()
    newcomer = await place.party()
    assert newcomer.state() == awake.state()
    await awake.tidy()
    await awake.tidy()
    assert lie not in await awake.files("log")


@run
async def test_a_claim_in_the_past_hands_out_nothing_that_is_done(place: Place) -> None:
    awake, sleeper = await place.party(), await place.party(quick=False)
    await sleeper.enqueue("t1", "t2")
    await awake.log.refresh()
    await awake.cancel("t1", "t2")
    await move_on(awake)
    await awake.enqueue("t3")
    assert await sleeper.claim() == ["t3"]


@run
async def test_a_reader_who_slept_does_not_believe_a_lie(place: Place) -> None:
    awake, liar, reader = await place.party(), await place.party(quick=False), await place.party(quick=False)
    await awake.enqueue("t1")
    await liar.log.refresh()
    await reader.log.refresh()
    await awake.cancel("t1")
    await move_on(awake)
    seen: list[Any] = []

    async def let_the_reader_look(name: str) -> None:
        assert number_of(name) == 2
        await reader.log.refresh()
        seen.append((sorted(reader.log.machine.tasks), reader.log.number))

    liar.shelf.after_create.append(let_the_reader_look)
    await liar.enqueue("lie")
    assert seen == [(sorted(awake.log.machine.tasks), awake.log.number)]


@run
async def test_a_reader_who_slept_and_finds_nothing_new_looks_whether_it_is_in_the_past(place: Place) -> None:
    awake, reader = await place.party(), await place.party()
    await awake.enqueue("t1")
    await reader.log.refresh()
    await awake.cancel("t1")
    await move_on(awake)
    await reader.log.refresh()
    assert reader.state() == awake.state()


@run
async def test_a_stale_tidier_deletes_nothing_that_is_needed(place: Place) -> None:
    awake, sleeper = await place.party(), await place.party(quick=False)
    await awake.enqueue("kept", body=b"kept")
    await sleeper.log.refresh()
    parts = list(sleeper.log.machine.save())
    await move_on(awake)
    await sleeper.tidying.write(sleeper.log.number, parts)
    await sleeper.tidying.trim()
    newcomer = await place.party()
    assert newcomer.state() == awake.state()
    task = newcomer.log.machine.tasks["kept"]
    places = [(task.body_in, task.body_at, task.body_bytes)]
    assert await newcomer.log.bodies.fetch(places, newcomer.log.machine.size_of) == [b"kept"]
    assert await awake.enqueue("after") == [Outcome.OK]


# --- tidying ---------------------------------------------------------------------------------------------------------


@run
async def test_tidying_keeps_the_number_of_files_small_and_loses_nothing(place: Place) -> None:
    party = await place.party()
    await party.enqueue("kept", body=b"kept")
    for turn in range(20):
        for number in range(10):
            await party.enqueue(f"m{turn}-{number}")
            await party.cancel(f"m{turn}-{number}")
        await party.tidy()
    assert len(await party.files("log")) <= 2 * 20 + 1 + POLICY[1]
    assert len(await party.files("checkpoint")) == 2
    assert len(await party.files("horizon")) <= tidying.HORIZONS_KEPT
    parts = {name.split("/")[2].partition("-")[0] for name in await party.files("part")}
    assert parts == {name.rpartition("/")[2] for name in await party.files("checkpoint")}
    newcomer = await place.party()
    assert newcomer.state() == party.state()


@run
async def test_tidying_may_stop_after_each_of_its_steps(place: Place) -> None:
    party = await place.party()
    await party.enqueue("kept")
    steps = 0
    while True:
        for number in range(3):
            await party.enqueue(f"m{steps}-{number}")
            await party.cancel(f"m{steps}-{number}")
        left = steps

        async def die(_name: str, left: int = left) -> None:
            raise Lost

        party.shelf.before_create.extend([lambda _name: asyncio.sleep(0)] * left)
        party.shelf.before_create.append(die)
        try:
            await party.tidy()
        except Lost:
            steps += 1
        else:
            break
        finally:
            party.shelf.before_create.clear()
        newcomer = await place.party()
        assert newcomer.state() == party.state()
        assert await newcomer.enqueue(f"after-{steps}") == [Outcome.OK]
        await party.log.refresh()
    assert steps >= 5  # parts, checkpoint, horizon
    assert (await place.party()).state() == party.state()


@run
async def test_a_checkpoint_that_was_damaged_is_passed_over_for_the_one_before(place: Place) -> None:
    party = await place.party()
    await party.enqueue("t1")
    await party.tidy()
    await party.enqueue("t2")
    await party.tidy()
    newest = (await party.files("checkpoint"))[-1]
    await damage(party, newest)
    newcomer = await place.party()
    assert newcomer.state() == party.state()
    for name in await party.files("part"):
        await damage(party, name)
    with pytest.raises(BackendError) as caught:
        await place.party()
    assert caught.value.error_code is ErrorCode.CORRUPT


@run
async def test_what_still_lives_in_mostly_dead_files_is_moved_and_the_files_go(place: Place) -> None:
    party, other = await place.party(), await place.party()
    for number in range(300):
        await party.enqueue(f"t{number}", body=f"body {number}".encode())
    await party.tidy()
    await party.tidying.repack()
    await party.enqueue("later")
    await party.tidy()
    await party.tidying.repack()
    await party.tidy()
    await party.tidy()
    assert len(await party.files("log")) < 20
    for reader in (party, other, await place.party()):
        await reader.log.refresh()
        tasks = reader.log.machine.tasks
        places = [
            (t.body_in, t.body_at, t.body_bytes) for t in (tasks[f"t{number}"] for number in range(300))
        ]
        bodies = await reader.log.bodies.fetch(places, reader.log.machine.size_of)
        assert bodies == [f"body {number}".encode() for number in range(300)]


# --- damage ----------------------------------------------------------------------------------------------------------


async def damage(party: Party, name: str, change: Callable[[bytes], bytes] | None = None) -> None:
    data = await party.shelf.read(name)
    assert data is not None
    await party.shelf.inner.delete([name])
    new = change(data) if change else data[:-1] + bytes([data[-1] ^ 1])
    await party.shelf.inner.create(name, new)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[: HEADER_BYTES + 3] + bytes([data[HEADER_BYTES + 3] ^ 1]) + data[HEADER_BYTES + 4 :],
        lambda data: b"something else entirely, and long enough",
        lambda data: pack(COMMIT, (b"t", 7, 0.0, POLICY, []))[0],
    ],
)  # fmt: skip
def test_a_commit_that_was_damaged_is_refused_by_name(place: Place, change: Callable[[bytes], bytes]) -> None:
    async def test(place: Place) -> None:
        party = await place.party()
        await party.enqueue("t1")
        await damage(party, commit_name("tasks", 1), change)
        with pytest.raises(BackendError, match=commit_name("tasks", 1)) as caught:
            await place.party()
        assert caught.value.error_code is ErrorCode.CORRUPT

    run(test)(place)


@run
async def test_a_file_of_a_newer_format_is_refused_with_advice(place: Place) -> None:
    party = await place.party()
    await party.enqueue("t1")
    await damage(party, commit_name("tasks", 1), lambda data: data[:6] + b"\x09" + data[7:])
    with pytest.raises(SchemaOutOfDate, match="install a newer omniq-file"):
        await place.party()


@run
async def test_a_body_that_was_damaged_is_noticed_when_it_is_read_alone(place: Place) -> None:
    party = await place.party()
    await party.enqueue("t1", body=b"a" * 1_200_000)
    await party.enqueue("t2", "t3", body=b"b" * 1_200_000)
    await damage(party, commit_name("tasks", 2))
    newcomer_bodies = Bodies(party.shelf, lambda number: commit_name("tasks", number), 1 << 20)
    tasks = party.log.machine.tasks
    places = [(tasks[i].body_in, tasks[i].body_at, tasks[i].body_bytes) for i in ("t1", "t2", "t3")]
    sizes = party.log.machine.size_of
    assert await newcomer_bodies.fetch(places[:1], sizes) == [b"a" * 1_200_000]
    assert await newcomer_bodies.fetch(places[2:], sizes) == [None]
    assert await newcomer_bodies.fetch(places[1:2], sizes) == [b"b" * 1_200_000]


@run
async def test_a_log_whose_checkpoints_were_deleted_by_hand_is_refused(place: Place) -> None:
    party = await place.party()
    await move_on(party)
    await party.shelf.inner.delete(await party.files("checkpoint"))
    with pytest.raises(BackendError) as caught:
        await place.party()
    assert caught.value.error_code is ErrorCode.CORRUPT


@run
async def test_stray_files_do_not_disturb(place: Place) -> None:
    party = await place.party()
    await party.enqueue("t1")
    for name in (
        "tasks/log/readme",
        "tasks/checkpoint/readme",
        "tasks/horizon/zzz",
        horizon_name("tasks", 0),
    ):
        await party.shelf.inner.create(name, b"stray")
    newcomer = await place.party()
    assert newcomer.state() == party.state()
    await move_on(newcomer)
    assert await newcomer.enqueue("t2") == [Outcome.OK]
