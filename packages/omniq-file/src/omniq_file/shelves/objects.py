"""What the three object stores have in common: a shelf whose files are objects in a bucket.

Everything rests on one promise of the store: **of several requests to create one object, if it is not there, exactly one
succeeds.** S3 calls it ``If-None-Match: *``, GCS ``ifGenerationMatch=0``, Azure ``If-None-Match: *``. Some servers that speak
their language take the header and overwrite all the same, and some versions of client libraries drop it unsaid. So opening
*proves* it: one object is created twice, and the second must be refused. The same probe proves that a listing begins where
it was told to begin.

What a client library does by itself is switched off: repeating requests (a repeated creation that had succeeded looks like
somebody else's), caching of listings, sharing of instances between event loops. A request is made once, and its time is
limited as a whole.

A store that does not hold the promise can still be used by one process that says so (``single_process=True``): then the
promise is kept here, by looking first, one creation of a name at a time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import secrets
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, TypeVar

from omniq_core import (
    BackendError,
    Closed,
    Durability,
    ErrorCode,
    Finding,
    Loss,
    MissingLibrary,
    Severity,
    Unreachable,
)
from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.shelf import Shelf, ShelfFacts
from omniq_file.shelves.store_errors import NoAnswer, StoreError, classify
from omniq_file.shelves.store_options import StoreOptions

__all__ = ["ObjectShelf"]

T = TypeVar("T")

PROBES = "probe"
"""The folder of the objects that opening creates and deletes. One that is left over by a killed process does no harm."""

_proven: set[tuple[str, str]] = set()
"""(where, bucket) that this process has proven: a worker opens several shelves in one bucket."""

_creating: dict[tuple[str, str, str], concurrent.futures.Future[None]] = {}
_creating_lock = threading.Lock()
"""For stores without exclusive creation: the names that are being created in this process, on any event loop."""


class ObjectShelf(Shelf):
    """A shelf in a bucket. The subclasses know one client library each, and load it when they are opened."""

    product: ClassVar[str]
    """``S3``, for messages."""
    extra: ClassVar[str]
    """The extra of ``omniq`` that brings the client library."""
    modules: ClassVar[Sequence[str]]
    """What has to be imported; the first one is the client library."""
    clouds: ClassVar[Sequence[str]]
    """How the names of the cloud's own hosts end."""
    delete_batch: ClassVar[int] = 100

    def __init__(self, bucket: Bucket, options: StoreOptions) -> None:
        self._bucket = bucket
        self._options = options
        self._prefix = bucket.prefix
        self._open = False
        self._exclusive = True
        self._date = ""
        self.facts = self._facts()

    def _facts(self) -> ShelfFacts:
        return ShelfFacts(
            product=self.product,
            multi_process=self._exclusive,
            multi_host=self._exclusive,
            durable=self._is_durable,
            wake_up=False,
            poll_interval_s=self._options.poll_interval_s,
            delete_batch=self.delete_batch,
            parallel_reads=min(16, self._options.connections),
            timeout_s=self._options.timeout_s,
            quick=False,
        )

    # --- what each store knows ---------------------------------------------------------------------------------

    @abstractmethod
    def _where(self) -> str:
        """The server, for people. No secrets."""
        ...

    def _prepare(self) -> None:
        """What takes long and asks nobody; in a thread, once the modules are loaded."""
        return

    @abstractmethod
    async def _connect(self) -> None:
        """Makes the client; the modules are loaded. Sends nothing to the store, or as good as nothing."""
        ...

    @abstractmethod
    async def _disconnect(self) -> None:
        """Gives back what :meth:`_connect` took, however far it came."""
        ...

    @abstractmethod
    async def _make_bucket(self) -> None:
        """Makes the bucket; it being there already is no error."""
        ...

    @abstractmethod
    async def _create(self, key: str, data: bytes) -> bool: ...

    @abstractmethod
    async def _overwrite(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    async def _read(self, key: str, start: int, length: int | None) -> bytes | None: ...

    @abstractmethod
    async def _list(self, prefix: str, after: str, limit: int) -> list[str]:
        """The keys that begin with ``prefix`` and come after the key ``after`` (if any); at most, or fewer only if there
        are no more, ``limit``."""
        ...

    @abstractmethod
    async def _delete_one(self, key: str) -> None:
        """Deletes one object; a missing one is no error."""
        ...

    async def _delete(self, keys: Sequence[str]) -> None:
        """Deletes at most :attr:`delete_batch` objects; this one for stores that take one at a time."""
        room = asyncio.Semaphore(16)

        async def one(key: str) -> None:
            async with room:
                await self._delete_one(key)

        for failed in await asyncio.gather(*map(one, keys), return_exceptions=True):
            if isinstance(failed, BaseException):
                raise failed

    @abstractmethod
    def _translate(self, error: Exception, what: str) -> StoreError | None:
        """The client library's exception as one of ours; None if it is none of its own."""
        ...

    @abstractmethod
    def _is_missing_bucket(self, error: StoreError) -> bool: ...

    # --- opening and closing -----------------------------------------------------------------------------------

    async def open(self, *, create: bool) -> None:
        await self._load()
        # A name that leads nowhere, a silent server: whatever it is, it ends in time.
        limit = asyncio.timeout(self._options.timeout_s)
        try:
            async with limit:
                await self._ask("connecting", self._connect())
                self._open = True
                if create and self._options.create_bucket:
                    await self._ask("making the bucket", self._make_bucket())
                await self._prove()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError) and limit.expired():
                raise Unreachable(
                    f"{self.product} at {self._where()} did not answer within timeout_s={self._options.timeout_s:g} seconds",
                    ErrorCode.UNAVAILABLE,
                    "file",
                ) from error
            if isinstance(error, StoreError) and self._is_missing_bucket(error):
                raise BackendError(
                    f"there is no bucket {self._bucket.name!r} at {self.product} ({self._where()}): make it, correct the "
                    "name, or open it with create_bucket=True",
                    # With it, opening would succeed: what it lacks is only to be told so.
                    ErrorCode.UNAVAILABLE if self._options.create_bucket else ErrorCode.INVALID,
                    "file",
                ) from error
            raise
        self.facts = self._facts()

    async def _load(self) -> None:
        def load() -> None:
            for module in self.modules:
                importlib.import_module(module)
            self._prepare()

        try:
            await asyncio.to_thread(load)  # they are large: a second or two the first time
        except ModuleNotFoundError as error:
            raise MissingLibrary(
                f"{self.product} needs the module {error.name!r}, which is not installed. "
                f'Install it with: pip install "omniq[{self.extra}]"'
            ) from error

    async def _prove(self) -> None:
        place = self._where(), self._bucket.name
        if place in _proven:
            return
        probe = f"{self._prefix}{PROBES}/{secrets.token_hex(16)}"
        await self._ask("proving", self._create(probe, b"1"))
        second = await self._ask("proving", self._create(probe, b"2"))
        found = await self._ask("proving", self._list(self._prefix, probe[:-1], 1))
        after = await self._ask("proving", self._list(self._prefix, probe, 1))
        await self._ask("proving", self._delete([probe]))
        if found[:1] != [probe] or any(key <= probe for key in after):
            raise BackendError(
                f"{self.product} at {self._where()} does not list the objects of bucket {self._bucket.name!r} in the order "
                "of their names, or not from where it was told to begin: it cannot hold a queue",
                ErrorCode.UNSUPPORTED,
                "file",
            )
        if not second:
            _proven.add(place)
        elif self._options.single_process:
            self._exclusive = False
        else:
            raise BackendError(
                f"{self.product} at {self._where()} let an object in bucket {self._bucket.name!r} be created twice: it "
                "does not enforce conditional writes, and two workers on it would run the same tasks. Use a store that does; "
                "or, if one single process will ever use it, say single_process=True",
                ErrorCode.UNSUPPORTED,
                "file",
            )

    async def close(self) -> None:
        self._open = False
        await self._disconnect()

    # --- the shelf ---------------------------------------------------------------------------------------------

    async def create(self, name: str, data: bytes, /) -> bool:
        key = self._prefix + name
        if self._exclusive:
            return await self._ask("creating an object", self._create(key, data))
        return await self._create_alone(key, data)

    async def _create_alone(self, key: str, data: bytes) -> bool:
        """Exclusive in this process alone: nobody else is there."""
        place = self._where(), self._bucket.name, key
        mine: concurrent.futures.Future[None] = concurrent.futures.Future()
        while True:
            with _creating_lock:
                other = _creating.setdefault(place, mine)
            if other is mine:
                break
            await asyncio.shield(asyncio.wrap_future(other))
        try:
            if await self._ask("looking for an object", self._read(key, 0, 1)) is not None:
                return False
            await self._ask("creating an object", self._overwrite(key, data))
            return True
        finally:
            with _creating_lock:
                del _creating[place]
            mine.set_result(None)

    async def read(self, name: str, /, *, start: int = 0, length: int | None = None) -> bytes | None:
        # No store has a range of no bytes; one byte tells whether it is there.
        wanted = None if length is None else max(1, length)
        found = await self._ask("reading an object", self._read(self._prefix + name, start, wanted))
        return found if found is None or length is None else found[:length]

    async def list(self, folder: str, /, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        prefix = f"{self._prefix}{folder}/" if folder else self._prefix
        start = self._prefix + after if after else ""
        if limit <= 0 or (start > prefix and not start.startswith(prefix)):
            return []
        found = await self._ask("listing objects", self._list(prefix, start if start > prefix else "", limit))
        return [key[len(self._prefix) :] for key in found]

    async def delete(self, names: Sequence[str], /) -> None:
        for first in range(0, len(names), self.delete_batch):
            keys = [self._prefix + name for name in names[first : first + self.delete_batch]]
            await self._ask("deleting objects", self._delete(keys))

    def classify(self, error: BaseException, /) -> ErrorCode:
        return classify(error)

    @property
    def _is_the_cloud(self) -> bool:
        return self._where().partition("://")[2].partition("/")[0].endswith(tuple(self.clouds))

    @property
    def _is_durable(self) -> bool:
        return self._is_the_cloud or self._options.endpoint_is_durable

    def durability(self) -> Durability:
        loss = Loss.NONE if self._is_durable else Loss.UNKNOWN
        return Durability(server_killed=loss, power_cut=loss)

    async def now(self) -> float | None:
        await self._ask("listing objects", self._list(f"{self._prefix}{PROBES}/", "", 1))
        try:
            return parsedate_to_datetime(self._date).timestamp()
        except (ValueError, TypeError):
            return None

    def findings(self) -> Sequence[Finding]:
        found: list[Finding] = []
        if not self._exclusive:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"{self.product} at {self._where()} does not enforce conditional writes",
                    "never open it in a second process",
                )
            )
        if not self._is_durable:
            found.append(
                Finding(
                    Severity.WARNING,
                    f"whether {self._where()} keeps what it has acknowledged cannot be seen from outside",
                    "look at its settings (emulators keep all in memory), and if it does, say endpoint_is_durable=True",
                )
            )
        return found

    # --- asking ------------------------------------------------------------------------------------------------

    async def _ask(self, what: str, request: Awaitable[T]) -> T:
        """Waits for a request, and not too long."""
        limit = asyncio.timeout(self._options.timeout_s)
        try:
            async with limit:
                return await request
        except Exception as error:
            if not self._open and what != "connecting":
                raise Closed("file") from error
            if isinstance(error, TimeoutError) and limit.expired():
                raise NoAnswer(
                    f"{what}: {self.product} at {self._where()} did not answer within {self._options.timeout_s:g} seconds"
                ) from error
            translated = self._translate(error, f"{what}: {self.product} at {self._where()}")
            if translated is None:
                raise
            raise translated from error
        finally:
            close: Any = getattr(request, "close", None)  # a coroutine that was never begun
            if close is not None:
                close()
