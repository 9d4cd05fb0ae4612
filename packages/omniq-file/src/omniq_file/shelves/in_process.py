"""A shelf that only one process uses: ``memory://``, and with ``single_process=True`` whatever else fsspec can reach.

Most of fsspec's file systems have no exclusive creation: they look, and then write. Within one process a lock makes up for
it, and nothing else is promised: everybody in the process who opens the same URL sees the same files. In memory nothing
survives the process. Elsewhere a file is written under another name and then moved, which is atomic on a file system and may
be a copy on others: a process that is killed in that moment may leave a file that is torn, and a log that cannot be read.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from omniq_core import Durability, ErrorCode, Finding, Loss, OptionError, Severity
from omniq_core.native import RLock
from omniq_file.shelves.shelf import Shelf, ShelfFacts

__all__ = ["InProcessShelf"]

T = TypeVar("T")

_creating = RLock()
_open: weakref.WeakSet[InProcessShelf] = weakref.WeakSet()


class InProcessShelf(Shelf):
    """A shelf on a file system of fsspec's.

    Args:
        url: of the folder.
        storage_options: for the file system.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._url = url
        self._protocol = url.partition("://")[0].lower()
        self._is_memory = self._protocol == "memory"
        self._storage_options = storage_options
        self._files: Any = None
        self._folder = ""
        self._notice: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.facts = ShelfFacts(
            product="memory of this process" if self._is_memory else f"{self._protocol} through fsspec, for one process",
            multi_process=False, multi_host=False, durable=False, wake_up=True, quick=self._is_memory,
        )  # fmt: skip

    async def open(self, *, create: bool) -> None:
        import fsspec  # type: ignore[import-untyped]

        try:
            kind = fsspec.get_filesystem_class(self._protocol)
        except (ValueError, ImportError) as error:
            raise OptionError(f"file: fsspec cannot reach {self._protocol}:// ({error})") from error
        self._files = kind(
            **{**self._storage_options, "skip_instance_cache": True, "use_listings_cache": False}
        )
        self._folder = self._files._strip_protocol(self._url).rstrip("/")
        if create:
            await self._run(lambda: self._files.makedirs(self._folder, exist_ok=True))
        elif not await self._run(lambda: self._files.isdir(self._folder)):
            raise FileNotFoundError(f"there is no {self._url}, and create_dirs is off")
        self._loop = asyncio.get_running_loop()
        _open.add(self)

    async def _run(self, work: Callable[[], T]) -> T:
        return work() if self._is_memory else await asyncio.to_thread(work)

    async def close(self) -> None:
        _open.discard(self)
        self._notice = None

    async def create(self, name: str, data: bytes, /) -> bool:
        return await self._run(lambda: self._create(f"{self._folder}/{name}", data))

    def _create(self, path: str, data: bytes) -> bool:
        with _creating:
            if self._files.exists(path):
                return False
            if self._is_memory:
                self._files.pipe_file(path, data)
                return True
            tmp = f"{self._folder}/tmp/{secrets.token_hex(8)}"
            for needed in (tmp, path):
                self._files.makedirs(needed.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(tmp, data)
            self._files.mv(tmp, path)
        return True

    async def read(self, name: str, /, *, start: int = 0, length: int | None = None) -> bytes | None:
        end = None if length is None else start + length
        try:
            found: bytes = await self._run(
                lambda: self._files.cat_file(f"{self._folder}/{name}", start=start, end=end)
            )
        except FileNotFoundError:
            return None
        return found

    async def list(self, folder: str, /, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        names = await self._run(lambda: self._names(folder))
        first = bisect_right(names, after)
        return names[first : first + limit]

    def _names(self, folder: str) -> Sequence[str]:
        prefix, skip = f"{self._folder}/{folder}/", len(self._folder) + 1
        if self._is_memory:
            paths = list(self._files.store)
        else:
            try:
                paths = self._files.find(prefix[:-1])
            except FileNotFoundError:
                return []
        return sorted(path[skip:] for path in paths if path.startswith(prefix))

    async def delete(self, names: Sequence[str], /) -> None:
        await self._run(lambda: self._delete(names))

    def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                self._files.rm_file(f"{self._folder}/{name}")
            except FileNotFoundError:
                continue

    def watch(self, notice: Callable[[], None], /) -> None:
        self._notice = notice

    def ring(self) -> None:
        for shelf in list(_open):
            if (
                shelf is not self
                and shelf._url == self._url
                and shelf._notice is not None
                and shelf._loop is not None
            ):
                try:
                    shelf._loop.call_soon_threadsafe(shelf._notice)
                except RuntimeError:  # its loop was closed meanwhile
                    continue

    def classify(self, error: BaseException, /) -> ErrorCode:
        if isinstance(error, FileNotFoundError):
            return ErrorCode.UNAVAILABLE
        if isinstance(error, PermissionError):
            return ErrorCode.PERMISSION
        return ErrorCode.EXHAUSTED if isinstance(error, MemoryError) else ErrorCode.UNKNOWN

    def durability(self) -> Durability:
        loss = Loss.ALL if self._is_memory else Loss.UNKNOWN
        return Durability(server_killed=loss, power_cut=loss)

    def findings(self) -> Sequence[Finding]:
        if self._is_memory:
            return ()
        return [
            Finding(
                Severity.WARNING,
                f"{self._protocol} has no exclusive creation that is known of: a second process here would destroy the log",
                "use a local folder, s3://, gs:// or abfs:// if there may ever be one",
            )
        ]
