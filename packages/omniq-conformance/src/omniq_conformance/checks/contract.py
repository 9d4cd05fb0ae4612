"""What a backend is before it does anything: its identity, its life from open to close, and its twins."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_conformance.env import Env
from omniq_conformance.hand import Hand
from omniq_core import (
    IMPLIED,
    SPI_VERSION,
    Backend,
    BackendOptions,
    Capability,
    Closed,
    Event,
    EventFilter,
    EventStore,
    Lease,
    Loss,
    OptionError,
    Outcome,
    Queue,
    ResultRecord,
    ResultStore,
    Secret,
    Settlement,
    TaskFilter,
    TaskState,
    Unsupported,
    Verb,
)

Calls = list[tuple[str, Callable[[], Awaitable[object]]]]


def _calls(hand: Hand) -> Calls:
    """Every method of an opened backend's stores, each ready to be called with something harmless."""
    queue, lease = hand.queue, Lease("no such task", 1)
    calls: Calls = [
        ("enqueue", lambda: queue.enqueue([hand.record()])),
        (
            "claim",
            lambda: queue.claim(["q"], max_tasks=1, lease_s=60.0, worker_id="w", claim_id=hand.new_id()),
        ),
        ("settle", lambda: queue.settle([Settlement(lease, Verb.SUCCEED)])),
        ("extend", lambda: queue.extend([lease], lease_s=60.0)),
        ("get", lambda: queue.get(["no such task"])),
        ("wait", lambda: queue.wait(["q"], timeout_s=5.0)),
        ("maintain", lambda: queue.maintain()),
        ("cancel", lambda: queue.cancel(["no such task"])),
        ("requeue", lambda: queue.requeue(["no such task"])),
        ("query", lambda: queue.query(TaskFilter())),
        ("stats", lambda: queue.stats(["q"])),
        ("queue_names", lambda: queue.queue_names()),
        ("pause", lambda: queue.pause(["no such queue"])),
        ("resume", lambda: queue.resume(["no such queue"])),
        ("purge", lambda: queue.purge(TaskFilter(queues=["no such queue"]))),
    ]
    if not hand.reaps_in_maintain:
        calls = [call for call in calls if call[0] != "maintain"]
    if type(queue).wait is Queue.wait:
        calls = [call for call in calls if call[0] != "wait"]  # the default body only sleeps
    if hand.has(Capability.RESULTS):
        results = hand.results
        calls += [
            ("put", lambda: results.put([ResultRecord("no such task", 1, TaskState.DEAD)])),
            ("get of a result", lambda: results.get(["no such task"])),
            ("delete", lambda: results.delete(["no such task"])),
            ("wait for a result", lambda: results.wait(["no such task"], timeout_s=5.0)),
        ]
    if hand.has(Capability.EVENTS):
        events = hand.events
        calls += [
            ("append", lambda: events.append([Event(hand.new_id("e"), "t", "x", 0.0)])),
            ("read", lambda: events.read(EventFilter())),
            ("tail", lambda: _first(events.tail(EventFilter()))),
            ("truncate", lambda: events.truncate(before=0.0)),
        ]
    return calls


async def _first(events: AsyncIterator[Event]) -> Event:
    return await anext(aiter(events))


async def _must_be_closed(calls: Calls) -> None:
    for name, call in calls:
        try:
            async with asyncio.timeout(2.0):
                await call()
        except (Closed, Unsupported):
            continue
        except TimeoutError:
            raise AssertionError(f"{name} hangs on a closed backend instead of raising Closed") from None
        except Exception as error:
            raise AssertionError(
                f"{name} on a closed backend must raise Closed, not {type(error).__name__}: {error}"
            ) from error
        raise AssertionError(f"{name} works on a closed backend; it must raise Closed")


# --- identity ----------------------------------------------------------------------------------------------------


@check()
async def the_class_says_what_it_is(b: Bench) -> None:
    cls = type(b.backend)
    assert Backend in cls.__mro__, f"{cls.__name__} must subclass omniq_core.Backend explicitly"
    assert cls.name, f"{cls.__name__}.name must be the name that users write"
    assert cls.spi_version == SPI_VERSION, (
        f"{cls.__name__}.spi_version is {cls.spi_version}; this suite checks {SPI_VERSION}"
    )
    assert issubclass(cls.options_type, BackendOptions), f"{cls.__name__}.options_type is no BackendOptions"
    assert isinstance(b.backend.options, cls.options_type), (
        "the options are of another struct than options_type"
    )


@check()
async def the_stores_subclass_their_protocols(b: Bench) -> None:
    stores: list[tuple[object, type]] = [(b.queue, Queue)]
    if b.has(Capability.RESULTS):
        stores.append((b.results, ResultStore))
    if b.has(Capability.EVENTS):
        stores.append((b.events, EventStore))
    for store, protocol in stores:
        assert protocol in type(store).__mro__, (
            f"{type(store).__name__} must subclass omniq_core.{protocol.__name__} explicitly, for its default bodies"
        )


@check()
async def the_signatures_are_those_of_the_contract(b: Bench) -> None:
    pairs: list[tuple[type, type]] = [(Backend, type(b.backend)), (Queue, type(b.queue))]
    if b.has(Capability.RESULTS):
        pairs.append((ResultStore, type(b.results)))
    if b.has(Capability.EVENTS):
        pairs.append((EventStore, type(b.events)))
    for protocol, cls in pairs:
        for name, method in vars(protocol).items():
            if name.startswith("_") or not inspect.isfunction(method):
                continue
            wanted = list(inspect.signature(method).parameters.values())
            found = inspect.signature(getattr(cls, name)).parameters
            places = [p for p in found.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            open_ended = {p.kind for p in found.values()}
            by_place = [p for p in wanted if p.kind is not p.KEYWORD_ONLY]
            assert len(places) >= len(by_place) or inspect.Parameter.VAR_POSITIONAL in open_ended, (
                f"{cls.__name__}.{name} takes {len(places) - 1} arguments by place; the contract passes "
                f"{len(by_place) - 1}"
            )
            for p in wanted:
                assert p.kind is not p.KEYWORD_ONLY or p.name in found or p.VAR_KEYWORD in open_ended, (
                    f"{cls.__name__}.{name} lacks the keyword {p.name}"
                )
            known = {p.name for p in wanted} | {p.name for p in places[: len(by_place)]}
            for p in found.values():
                optional = p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
                assert p.name in known or optional, (
                    f"{cls.__name__}.{name} needs {p.name}, which nobody passes"
                )


@check()
async def the_stores_are_the_same_objects_each_time(b: Bench) -> None:
    assert b.backend.queue() is b.backend.queue(), "queue() made a new object"
    if b.has(Capability.RESULTS):
        assert b.backend.result_store() is b.backend.result_store(), "result_store() made a new object"
    if b.has(Capability.EVENTS):
        assert b.backend.event_store() is b.backend.event_store(), "event_store() made a new object"


@check()
async def declared_capabilities_contain_what_they_imply(b: Bench) -> None:
    assert isinstance(b.capabilities, frozenset), "capabilities must be a frozenset"
    for capability in b.capabilities:
        lacking = IMPLIED.get(capability, frozenset()) - b.capabilities
        assert not lacking, f"{capability.name} is declared without {sorted(c.name for c in lacking)}"


@check()
async def reasons_are_given_only_for_what_is_absent(b: Bench) -> None:
    for capability, reason in b.backend.absent.items():
        assert capability not in b.capabilities, f"{capability.name} is declared, and absent says: {reason}"
        assert reason.strip(), f"absent[{capability.name}] is empty"


@check()
async def the_limits_are_usable(b: Bench) -> None:
    limits = b.limits
    assert limits.max_batch >= 1, f"max_batch = {limits.max_batch}: nothing could be enqueued"
    assert limits.max_body_bytes >= 1024, f"max_body_bytes = {limits.max_body_bytes}: no call fits in"
    assert limits.max_result_bytes >= 1024, f"max_result_bytes = {limits.max_result_bytes}: no result fits in"
    assert 0 < limits.min_lease_s <= 30, f"min_lease_s = {limits.min_lease_s}: workers lease for 30 s"
    assert 0 <= limits.reclaim_delay_s <= 60, f"reclaim_delay_s = {limits.reclaim_delay_s}"
    assert 0 <= limits.time_resolution_s <= 1, f"time_resolution_s = {limits.time_resolution_s}"
    assert 0 < limits.poll_interval_s <= 10, f"poll_interval_s = {limits.poll_interval_s}"
    assert b.queue.limits == limits, "queue().limits differ from the backend's"


@check()
async def empty_batches_get_empty_answers(b: Bench) -> None:
    async def must_be_empty(name: str, call: Awaitable[Sequence[object]]) -> None:
        answer = await call
        assert list(answer) == [], f"{name} of nothing answered {answer!r}"

    await must_be_empty("enqueue", b.queue.enqueue([]))
    await must_be_empty("settle", b.queue.settle([]))
    await must_be_empty("extend", b.queue.extend([], lease_s=60.0))
    await must_be_empty("get", b.queue.get([]))
    if b.has(Capability.CANCEL):
        await must_be_empty("cancel", b.queue.cancel([]))
    if b.has(Capability.REQUEUE):
        await must_be_empty("requeue", b.queue.requeue([]))
    if b.has(Capability.STATS):
        await must_be_empty("stats", b.queue.stats([]))
    if b.has(Capability.PAUSE):
        await b.queue.pause([])
        await b.queue.resume([])
    if b.has(Capability.RESULTS):
        await must_be_empty("put", b.results.put([]))
        await must_be_empty("get of results", b.results.get([]))
        await must_be_empty("wait for results", b.results.wait([], timeout_s=0.0))
        assert await b.results.delete([]) == 0, "delete of nothing deleted something"
    if b.has(Capability.EVENTS):
        await must_be_empty("append", b.events.append([]))


# --- settings ----------------------------------------------------------------------------------------------------


@check()
async def an_unknown_option_is_refused_by_name(b: Bench) -> None:
    makers: list[Callable[[], Backend]] = [
        lambda: type(b.backend)({"no_such_option": 1}),
        lambda: type(b.backend)(no_such_option=1),
        lambda: type(b.backend).from_url(f"{b.backend.name}://somewhere?no_such_option=1"),
    ]
    for make in makers:
        try:
            make()
        except OptionError as error:
            assert "no_such_option" in str(error), f"the error does not name the option: {error}"
            continue
        raise AssertionError("an unknown option was accepted; it must raise OptionError")


@check()
async def an_option_of_the_wrong_type_is_refused(b: Bench) -> None:
    try:
        type(b.backend)(project_name=object())
    except OptionError as error:
        assert "project_name" in str(error), f"the error does not name the option: {error}"
        return
    raise AssertionError("project_name=object() was accepted; it must raise OptionError")


@check()
async def the_settings_can_be_read_and_hide_their_secrets(b: Bench) -> None:
    config = b.backend.config
    assert config["project_name"] == b.backend.options.project_name, "config lacks project_name"
    shown = f"{b.backend!r} {config!r} {b.backend.options.describe()}"
    for name, value in config.items():
        if isinstance(value, Secret) and value.reveal():
            assert value.reveal() not in shown, f"the secret {name} is shown by repr, config or describe()"


@check()
async def a_backend_made_from_its_options_has_the_same_settings(b: Bench) -> None:
    other = type(b.backend).from_options(b.backend.options, clock=b.env.clock)
    assert other.config == b.backend.config, "from_options changed the settings"
    assert other.clock is b.env.clock, "from_options lost the clock"


@check()
async def making_a_backend_starts_nothing(b: Bench) -> None:
    env = Env(b.env.tmp_path / "unopened", manual=b.env.manual is not None)
    env.tmp_path.mkdir()
    async with b.unopened_in(env) as backend:
        files, threads = sorted(env.tmp_path.rglob("*")), threading.active_count()
        type(backend).from_options(backend.options, clock=env.clock)
        assert sorted(env.tmp_path.rglob("*")) == files, "making a backend wrote files; open() should"
        assert threading.active_count() == threads, "making a backend started a thread; open() should"


# --- open and close ----------------------------------------------------------------------------------------------


@check()
async def opening_an_open_backend_does_nothing(b: Bench) -> None:
    record = await b.put_one()
    await b.backend.open()
    assert await b.state(record.id) is TaskState.PENDING, "opening again lost a task"


@check()
async def closing_twice_or_before_opening_does_nothing(b: Bench) -> None:
    async with b.unopened() as backend:
        await backend.close()
        await backend.open()
        await backend.close()
        await backend.close()
    await b.put()


@check()
async def a_closed_backend_can_be_opened_again(b: Bench) -> None:
    record = await b.put_one()
    other = await b.another()
    await other.backend.close()
    await other.backend.open()
    assert await other.state(record.id) is TaskState.PENDING, "a task is gone after close() and open()"
    claim = await other.claim_one()
    await other.finish(claim)


@check()
async def entering_opens_and_leaving_closes(b: Bench) -> None:
    async with b.unopened() as backend:
        async with backend as entered:
            assert entered is backend, "'async with' must give the backend itself"
            hand = Hand(backend)
            queue = hand.queue
            await hand.put()
        await _must_be_closed([("get", lambda: queue.get(["no such task"]))])


@check()
async def every_call_after_close_raises_closed(b: Bench) -> None:
    other = await b.another()
    calls = _calls(other)
    await other.backend.close()
    await _must_be_closed(calls)


@check()
async def a_backend_that_was_never_opened_raises_closed(b: Bench) -> None:
    async with b.unopened() as backend:
        await _must_be_closed([("queue().get", lambda: backend.queue().get(["no such task"]))])


@check()
async def closing_leaves_no_thread_task_or_file(b: Bench) -> None:
    async def one_life() -> None:
        async with b.unopened() as backend, backend:
            hand = Hand(backend)
            queue = hand.new_id("leak")
            await hand.finish(await hand.running(queue=queue))
            await hand.queue.wait([queue], timeout_s=0.01)

    def held() -> tuple[int, int, int]:
        gc.collect()
        files = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
        return threading.active_count(), len(asyncio.all_tasks()), files

    await one_life()  # what is made once and kept for ever (a thread pool, a module's file) is no leak
    before = after = held()
    for _ in range(4):
        await one_life()
    for _ in range(50):
        after = held()
        if all(now <= then for now, then in zip(after, before, strict=True)):
            return
        await asyncio.sleep(0.02)
    names = ("threads", "tasks", "open files")
    grown = [f"{n}: {t} -> {a}" for n, t, a in zip(names, before, after, strict=True) if a > t]
    raise AssertionError(f"four times open and close left something behind: {'; '.join(grown)}")


@check()
async def many_backends_may_open_one_new_storage_at_once(b: Bench) -> None:
    env = Env(b.env.tmp_path / "new", manual=b.env.manual is not None)
    env.tmp_path.mkdir()
    async with b.unopened_in(env) as first, b.unopened_in(env) as second, b.unopened_in(env) as third:
        backends = [first, second, third, first.twin(), second.twin()]
        try:
            await asyncio.gather(*(backend.open() for backend in backends))
            record = await Hand(first).put_one()
            for backend in backends:
                state = await Hand(backend).state(record.id)
                assert state is TaskState.PENDING, "a backend that opened at the same moment misses a task"
        finally:
            for backend in backends:
                await backend.close()


@check()
async def setup_is_repeatable_and_leaves_the_backend_closed(b: Bench) -> None:
    env = Env(b.env.tmp_path / "setup", manual=b.env.manual is not None)
    env.tmp_path.mkdir()
    async with b.unopened_in(env) as backend:
        told = list(await backend.setup(dry_run=True))
        assert list(await backend.setup(dry_run=True)) == told, "setup(dry_run=True) changed the storage"
        await asyncio.gather(backend.setup(), backend.twin().setup())
        assert list(await backend.setup(dry_run=True)) == [], "after setup() there is still something to do"
        assert list(await backend.setup()) == [], "setup() did the same steps twice"
        await _must_be_closed([("queue().get", lambda: backend.queue().get(["no such task"]))])
        async with backend:
            await Hand(backend).put()


# --- one storage, several backends -------------------------------------------------------------------------------


@check()
async def two_backends_on_one_storage_see_the_same_tasks(b: Bench) -> None:
    record = await b.put_one()
    other = await b.another()
    assert await other.state(record.id) is TaskState.PENDING, (
        "backend(env), called twice with one env, gave two storages: both must use env.namespace or env.tmp_path"
    )
    claim = await other.claim_one()
    assert await b.claim() == [], "one backend handed out what another had claimed"
    assert await b.settle(claim, Verb.SUCCEED) is Outcome.OK, (
        "a lease is good only on the backend that claimed it"
    )


@check()
async def another_namespace_is_another_storage(b: Bench) -> None:
    record = await b.put_one()
    env = Env(b.env.tmp_path / "other", manual=b.env.manual is not None)
    env.tmp_path.mkdir()
    async with b.unopened_in(env) as backend, backend:
        found = await backend.queue().get([record.id])
        assert list(found) == [None], "backend(env) with another env sees this test's tasks: tests would meet"


@check()
async def a_twin_is_a_closed_backend_on_the_same_storage(b: Bench) -> None:
    record = await b.put_one()
    twin = b.backend.twin()
    assert twin is not b.backend, "twin() must make a new backend"
    assert type(twin) is type(b.backend) and twin.config == b.backend.config, "a twin has the same settings"
    await _must_be_closed([("queue().get on a new twin", lambda: twin.queue().get(["no such task"]))])
    hand = await b.opened(twin)
    assert await hand.state(record.id) is TaskState.PENDING, "the twin does not see this storage's task"
    await twin.close()
    assert await b.state(record.id) is TaskState.PENDING, "closing the twin disturbed the first backend"


@check()
async def a_twin_works_on_another_threads_loop(b: Bench) -> None:
    record = await b.put_one()

    async def work(hand: Hand) -> None:
        await hand.finish(await hand.claim_one())

    async with b.on_another_thread() as elsewhere:
        await elsewhere.do(work)
    assert await b.state(record.id) is TaskState.SUCCEEDED, "what a twin did on another thread was not seen"


@check()
async def the_same_options_lead_to_the_same_storage_unless_it_is_private(b: Bench) -> None:
    record = await b.put_one()
    hand = await b.opened(type(b.backend).from_options(b.backend.options, clock=b.env.clock))
    [found] = await hand.queue.get([record.id])
    private = b.backend.options.is_private
    assert (found is None) is private, (
        f"options.is_private is {private}, and a second backend of the same options "
        f"{'does not see' if found is None else 'sees'} the first one's tasks"
    )


@check()
async def the_url_leads_to_the_same_storage(b: Bench) -> None:
    try:
        url = b.suite.url_for(b.env)
    except NotImplementedError:
        assert not b.has(Capability.MULTI_PROCESS), (
            "MULTI_PROCESS is declared, and url_for(env) is not written"
        )
        return
    if b.backend.options.is_private:
        assert not b.has(Capability.MULTI_PROCESS), (
            "MULTI_PROCESS is declared for a storage that nobody else can open"
        )
        return
    record = await b.put_one()
    hand = await b.opened(type(b.backend).from_url(url, clock=b.env.clock))
    assert await hand.state(record.id) is TaskState.PENDING, f"a backend made from {url} sees another storage"


# --- what it says about its server -------------------------------------------------------------------------------


@check()
async def check_tells_the_server_the_time_and_the_durability(b: Bench) -> None:
    health = await b.backend.check()
    assert health.server.strip(), "check().server must name the product and its version"
    off = abs(health.now - b.now())
    if b.moves_time:
        assert off <= 0.001 + b.limits.time_resolution_s, (
            f"check().now is {off:g} s away from env.clock: pass on clock=env.clock, or set controllable_clock = False"
        )
    durability = health.durability
    assert not b.has(Capability.DURABLE) or durability.server_killed is Loss.NONE, (
        f"DURABLE is declared, and check() says that a killed server loses {durability.server_killed}"
    )
    for loss in (durability.server_killed, durability.power_cut):
        assert loss is not Loss.WINDOW or durability.window_s is not None, "a WINDOW of loss has no window_s"


@check()
async def the_backend_keeps_to_the_clock_that_it_is_given(b: Bench) -> None:
    if not b.moves_time:
        return
    record = await b.put_one()
    task = await b.look(record.id)
    off = abs(task.enqueued_at - b.now())
    assert off <= 0.001 + b.limits.time_resolution_s, (
        f"enqueued_at is {off:g} s away from env.clock: without SERVER_CLOCK the injected clock decides. Pass on "
        "clock=env.clock, or set controllable_clock = False"
    )


@check(Capability.SERVER_CLOCK)
async def the_servers_clock_decides_whatever_the_client_believes(b: Bench) -> None:
    # env.clock stands still in the past for such a backend unless the author said otherwise: it must not matter.
    task = await b.look((await b.put_one()).id)
    now = (await b.backend.check()).now
    assert 0 <= now - task.enqueued_at < 60, "enqueued_at and check().now are not of one clock"
    claim = await b.claim_one(lease_s=60.0)
    assert 0 < claim.lease.expires_at - now < 120, "a lease does not end by the server's clock"
