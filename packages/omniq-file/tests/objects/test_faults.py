"""Lost replies, silent, dead, lying and full stores: nothing is done twice, nothing hangs, and errors say what they know."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from omniq_conformance.servers import GcsServer, Proxy, S3Server, fresh_bucket
from omniq_core import BackendError, ErrorCode, MissingLibrary, OmniQError, Secret
from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.objects import ObjectShelf
from omniq_file.shelves.s3 import S3Shelf
from omniq_file.shelves.store_errors import CannotConnect, ConnectionLost, NoAnswer, Refused, StoreError
from omniq_file.shelves.store_options import StoreOptions

pytestmark = pytest.mark.slow  # servers are frozen and lie

Run = Callable[[Coroutine[Any, Any, None]], None]
FROZEN_S = float(os.environ.get("OMNIQ_TEST_FROZEN_S", "1"))
"""How long a store is frozen; nightly runs say 20."""


@pytest.fixture
def through(place: Any, server_proxy: Callable[[Any], Proxy]) -> tuple[Proxy, Callable[..., ObjectShelf]]:
    """A proxy in front of the store, and shelves that go through it."""
    proxy = server_proxy(place.server)
    endpoint = proxy.url_for(place.server.endpoint)
    return proxy, lambda **settings: place.shelf(endpoint_url=endpoint, **settings)


def sends(place: Any, method: str, name: str = "") -> Callable[[bytes], bool]:
    """Whether what a client sends is a request of that method about that object."""

    def matches(data: bytes) -> bool:
        if place.kind == "gcs" and method == "POST":  # the name is in the body, which may come by itself
            return b'"name"' in data and name.encode() in data
        return data.startswith(method.encode() + b" ") and (
            name.encode() in data or name.replace("/", "%2F").encode() in data
        )

    return matches


async def answer_of(shelf: ObjectShelf, call: Awaitable[Any]) -> Any:
    """What a call answers, or what its error means."""
    try:
        return await call
    except StoreError as error:
        return shelf.classify(error)


CREATE = {"s3": "PUT", "gcs": "POST", "azure": "PUT"}


def test_a_creation_whose_reply_was_lost_is_neither_lost_nor_doubled(
    place: Any, through: Any, run: Run
) -> None:
    proxy, shelf_at = through

    async def main() -> None:
        shelf = shelf_at()
        await shelf.open(create=False)
        try:
            for n in range(5):
                name = f"log/lost{n}"
                proxy.swallow_reply(predicate=sends(place, CREATE[place.kind], name))
                # A client library may ask again by itself, on a connection that was kept; then the answer is no.
                assert await answer_of(shelf, shelf.create(name, b"mine")) in (
                    False,
                    ErrorCode.UNKNOWN_EFFECT,
                )
                proxy.wait_for(lambda counters, n=n: counters.swallowed == n + 1)
                assert await shelf.create(name, b"again") is False
                assert await shelf.read(name) == b"mine"
            assert len(await shelf.list("log")) == 5
        finally:
            await shelf.close()

    run(main())


def test_a_lost_reply_of_any_other_kind_can_be_asked_for_again(place: Any, through: Any, run: Run) -> None:
    proxy, shelf_at = through
    ways: list[tuple[str, Callable[[ObjectShelf], Awaitable[Any]], Any]] = [
        ("GET", lambda shelf: shelf.read("log/1"), b"x"),
        ("GET", lambda shelf: shelf.list("log"), ["log/1"]),
        ("POST" if place.kind == "s3" else "DELETE", lambda shelf: shelf.delete(["log/1"]), None),
    ]

    async def main() -> None:
        shelf = shelf_at()
        await shelf.open(create=False)
        try:
            assert await shelf.create("log/1", b"x")
            for n, (method, call, answer) in enumerate(ways):
                proxy.swallow_reply(predicate=sends(place, method))
                assert await answer_of(shelf, call(shelf)) in (answer, ErrorCode.UNKNOWN_EFFECT)
                proxy.wait_for(lambda counters, n=n: counters.swallowed == n + 1)
                assert await call(shelf) == answer
            assert await shelf.read("log/1") is None
        finally:
            await shelf.close()

    run(main())


def test_a_frozen_store_hangs_nobody_and_everything_goes_on_when_it_thaws(place: Any, run: Run) -> None:
    if not place.server.is_ours:
        pytest.skip("this server is not ours to freeze")

    async def main() -> None:
        async with place.opened(timeout_s=0.4) as shelf:
            assert await shelf.create("log/1", b"x")
            await asyncio.to_thread(place.server.freeze)
            end = time.monotonic() + FROZEN_S
            while time.monotonic() < end:
                for call in (
                    shelf.create("log/2", b"y"),
                    shelf.read("log/1"),
                    shelf.list("log"),
                    shelf.delete(["log/9"]),
                ):
                    started = time.monotonic()
                    with pytest.raises(NoAnswer) as silent:
                        await call
                    assert shelf.classify(silent.value) is ErrorCode.UNKNOWN_EFFECT
                    assert time.monotonic() - started < 1.5
            started = time.monotonic()
            with pytest.raises((OmniQError, StoreError)) as opening:
                await place.shelf(timeout_s=0.4, bucket="another-bucket").open(create=False)
            assert shelf.classify(opening.value) in (ErrorCode.UNAVAILABLE, ErrorCode.UNKNOWN_EFFECT)
            assert time.monotonic() - started < 3
            await asyncio.to_thread(place.server.thaw)
            assert await shelf.read("log/1") == b"x"
            # The requests that nobody waited for may or may not have been carried out, once.
            assert await shelf.create("log/2", b"z") in (True, False)
            assert await shelf.read("log/2") in (b"y", b"z")

    run(main())


def test_a_store_that_cannot_be_reached_is_said_to_be_unavailable_at_once(
    place: Any, through: Any, run: Run
) -> None:
    proxy, shelf_at = through

    async def main() -> None:
        shelf = shelf_at()
        await shelf.open(create=False)
        try:
            proxy.refuse()
            proxy.cut()
            for call in (
                lambda: shelf.create("log/1", b"x"),
                lambda: shelf.read("log/1"),
                lambda: shelf.list("log"),
            ):
                seen = []
                for _ in range(40):  # as many as there may be connections that were kept
                    with pytest.raises(StoreError) as failed:
                        await call()
                    seen.append(shelf.classify(failed.value))
                    if type(failed.value) is CannotConnect:
                        break
                assert seen[-1] is ErrorCode.UNAVAILABLE
            started = time.monotonic()
            with pytest.raises(StoreError) as failed:
                await shelf_at(bucket="another-bucket").open(create=False)
            assert shelf.classify(failed.value) is ErrorCode.UNAVAILABLE
            assert time.monotonic() - started < 3
            proxy.accept()
            assert await shelf.create("log/1", b"x")
        finally:
            await shelf.close()

    run(main())


def test_what_gcs_has_acknowledged_is_there_after_it_was_killed_under_load(
    gcs_server: GcsServer, gcs_bucket: str, run: Run
) -> None:
    if not gcs_server.is_ours:
        pytest.skip("this server is not ours to kill")
    from omniq_file.shelves.gcs import GCSShelf

    async def main() -> None:
        shelf = GCSShelf(Bucket(gcs_bucket), StoreOptions(endpoint_url=gcs_server.endpoint))
        await shelf.open(create=False)
        acknowledged: dict[str, bytes] = {}
        stored = asyncio.Semaphore(0)
        stop = False

        async def write(me: int) -> None:
            n = 0
            while not stop:
                name, data = f"log/{me}-{n}", os.urandom(20)
                try:
                    if await shelf.create(name, data):
                        acknowledged[name] = data
                        stored.release()
                    n += 1
                except StoreError as error:
                    if not shelf.classify(error).is_retryable:
                        raise
                    await asyncio.sleep(0.01)

        writers = [asyncio.ensure_future(write(me)) for me in range(8)]
        try:
            for _ in range(3):
                for _ in range(50):
                    await stored.acquire()
                await asyncio.to_thread(gcs_server.kill)
                await asyncio.to_thread(gcs_server.start)
            stop = True
            await asyncio.gather(*writers)
            for name, data in acknowledged.items():
                assert await shelf.read(name) == data
        finally:
            await shelf.close()

    run(main())


def test_a_store_that_ignores_the_condition_is_refused_unless_one_process_says_it_is_alone(run: Run) -> None:
    async def main() -> None:
        honest = StoreOptions(
            endpoint_url=liar.endpoint,
            region="us-east-1",
            key=Secret("test-key"),
            secret=Secret("test-secret"),
        )
        alone = msgspec.structs.replace(honest, single_process=True)
        for _ in range(2):  # also the second time
            shelf = S3Shelf(Bucket(bucket), honest)
            with pytest.raises(BackendError, match="single_process=True") as refused:
                await shelf.open(create=True)
            assert shelf.classify(refused.value) is ErrorCode.UNSUPPORTED
        shelves = [S3Shelf(Bucket(bucket), alone) for _ in range(2)]
        for shelf in shelves:
            await shelf.open(create=True)
        try:
            assert not shelves[0].facts.multi_process
            assert not shelves[0].facts.multi_host
            assert "does not enforce conditional writes" in shelves[0].findings()[0].message
            for n in range(5):
                calls = [shelves[i % 2].create(f"log/{n}", b"%d" % i) for i in range(20)]
                won = await asyncio.gather(*calls)
                assert won.count(True) == 1
                assert await shelves[0].read(f"log/{n}") == b"%d" % won.index(True)
        finally:
            for shelf in shelves:
                await shelf.close()

    with S3Server(settings={"if-none-match": "ignored"}) as liar, fresh_bucket(liar) as bucket:
        run(main())


def test_a_store_that_lists_from_elsewhere_is_refused(
    place: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = place.shelf()
    honest = type(shelf)._list

    async def forgetful(self: ObjectShelf, prefix: str, after: str, limit: int) -> list[str]:
        return await honest(self, prefix, "", limit)

    async def main() -> None:
        with pytest.raises(BackendError, match="in the order of their names"):
            await shelf.open(create=False)

    monkeypatch.setattr(type(shelf), "_list", forgetful)
    monkeypatch.setattr("omniq_file.shelves.objects._proven", set())
    run(main())


def test_a_bucket_that_is_not_there_is_named_and_made_only_when_told(place: Any, run: Run) -> None:
    async def main() -> None:
        name = f"{place.bucket}-more"
        shelf = place.shelf(bucket=name)
        for create in (True, False):
            with pytest.raises(BackendError, match=f"no bucket '{name}'.*create_bucket=True") as missing:
                await shelf.open(create=create)
            assert shelf.classify(missing.value) is ErrorCode.INVALID
        shelf = place.shelf(bucket=name, create_bucket=True)
        with pytest.raises(BackendError, match="no bucket"):
            await shelf.open(create=False)
        try:
            for _ in range(2):
                await shelf.open(create=True)
                await shelf.create("log/1", b"x")
                await shelf.close()
        finally:
            await asyncio.to_thread(place.server.drop_bucket, name)

    run(main())


def test_a_bucket_that_vanishes_is_an_error_and_not_an_empty_one(place: Any, run: Run) -> None:
    async def main() -> None:
        async with place.opened() as shelf:
            await asyncio.to_thread(place.server.drop_bucket, place.bucket)
            for call in (lambda: shelf.create("log/1", b"x"), lambda: shelf.list("log")):
                with pytest.raises(Refused) as gone:
                    await call()
                assert not shelf.classify(gone.value).is_retryable

    run(main())


def test_a_creation_that_meets_another_one_is_repeated_and_gives_up_in_the_end(run: Run) -> None:
    from botocore.exceptions import ClientError

    class Conflicting:
        """S3 answers so while another creation of that name is under way. moto never does."""

        def __init__(self, conflicts: int, then: int) -> None:
            self.left, self.then, self.asked = conflicts, then, 0
            self.exceptions = type("Exceptions", (), {"ClientError": ClientError})

        async def put_object(self, **_: Any) -> None:
            self.asked += 1
            self.left -= 1
            status = 409 if self.left >= 0 else self.then
            if status != 200:
                code = {409: "ConditionalRequestConflict", 412: "PreconditionFailed"}[status]
                raise ClientError(
                    {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
                    "PutObject",
                )

    async def main() -> None:
        for conflicts, then, answer in [(1, 200, True), (2, 412, False), (99, 200, None)]:
            shelf = S3Shelf(Bucket("b"), StoreOptions())
            shelf._client, shelf._open = Conflicting(conflicts, then), True
            if answer is None:
                with pytest.raises(Refused) as refused:
                    await shelf.create("log/1", b"x")
                assert shelf.classify(refused.value) is ErrorCode.UNAVAILABLE
                assert shelf._client.asked == 5
            else:
                assert await shelf.create("log/1", b"x") is answer

    run(main())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CannotConnect("x"), ErrorCode.UNAVAILABLE),
        (ConnectionLost("x"), ErrorCode.UNKNOWN_EFFECT),
        (NoAnswer("x"), ErrorCode.UNKNOWN_EFFECT),
        (Refused("x", 503, "SlowDown"), ErrorCode.UNAVAILABLE),
        (Refused("x", 429, "rateLimitExceeded"), ErrorCode.UNAVAILABLE),
        (Refused("x", 500, "InternalError"), ErrorCode.UNKNOWN_EFFECT),
        (Refused("x", 503, ""), ErrorCode.UNKNOWN_EFFECT),
        (Refused("x", 403, "AccessDenied"), ErrorCode.PERMISSION),
        (Refused("x", 400, "ExpiredToken"), ErrorCode.PERMISSION),
        (Refused("x", 401, "authError"), ErrorCode.PERMISSION),
        (Refused("x", 404, "NoSuchBucket"), ErrorCode.INVALID),
        (Refused("x", 400, "EntityTooLarge"), ErrorCode.TOO_LARGE),
        (Refused("x", 507, "XMinioStorageFull"), ErrorCode.EXHAUSTED),
        (Refused("x", 501, "NotImplemented"), ErrorCode.UNSUPPORTED),
        (Refused("x", 418, ""), ErrorCode.UNKNOWN),
        (ValueError("x"), ErrorCode.UNKNOWN),
        (BackendError("x", ErrorCode.CORRUPT), ErrorCode.CORRUPT),
    ],
)
def test_every_error_says_what_is_known_of_its_effect(error: Exception, code: ErrorCode) -> None:
    assert S3Shelf(Bucket("b"), StoreOptions()).classify(error) is code


def test_a_missing_client_library_is_an_error_with_the_command(
    place: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with pytest.raises(MissingLibrary, match=rf'pip install "omniq\[{place.kind}\]"'):
            await place.shelf().open(create=False)

    monkeypatch.setattr(type(place.shelf()), "modules", ("no_such_client.aio",))
    run(main())
