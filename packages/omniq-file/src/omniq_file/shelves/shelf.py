"""What the log needs of a storage: a shelf of write-once files.

A file is created once, whole, under a name that nobody had, and never changed; later it may be deleted. That is all.
There is no overwriting, renaming, appending or locking, because no two storages agree on those. Everything that looks
like change in a task queue is made of new files by :mod:`omniq_file.log`.

Rules for every shelf
---------------------
* **One event loop**, on which the shelf is opened, used and closed. It is the log's own, in a thread of its own, and no
  user's code runs there: a shelf may block it for as long as a local disk takes, never for as long as a network takes. Any
  number of calls may be under way at once. A call may be cancelled at any await: its effect is then unknown, and nothing
  (a lock, a connection out of step, a half-written file under a final name) may stay behind.
* **Names** are relative: words of ``a-z``, ``0-9`` and ``-`` joined by ``/``, made by this package alone, never from
  what a user wrote. A name that is a file is never a folder as well. There are no empty folders.
* **Whole or not at all.** No reader sees a part of a file, not after a power cut either where ``facts.durable``.
* **Strict.** Once ``create`` returned True, in whatever process, every later ``read`` and ``list`` anywhere sees the
  file; once ``delete`` returned, none does. Nothing is answered from a cache.
* **Native exceptions come out as they are**; :meth:`Shelf.classify` tells what they mean. No shelf repeats a ``create``
  by itself in a way that could turn its own success into False: the log must be told True, False or an error. (Should a
  client library repeat it all the same: the log reads the file that is there and knows its own by the token in it.)
* **A call ends** within the shelf's own time-out, with an answer or an exception.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from omniq_core import Durability, ErrorCode, Finding

__all__ = ["Shelf", "ShelfFacts"]


class ShelfFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an opened shelf is, as data."""

    product: str
    """For people, in ``check``: ``"local disk (ext4)"``, ``"S3 at http://127.0.0.1:5000"``. No secrets."""
    multi_process: bool
    """Several processes of one machine may use the place at once."""
    multi_host: bool
    """Several machines may."""
    durable: bool
    """A created file survives the death of every process."""
    wake_up: bool
    """:meth:`Shelf.watch` is told of files that *other processes* create, promptly and without polling."""
    poll_interval_s: float = 0.25
    """Without ``wake_up``: how often the log looks for new files while somebody waits, in seconds."""
    delete_batch: int = 1000
    """Most names that one request can delete: the log passes about so many to :meth:`Shelf.delete` at once."""
    parallel_reads: int = 1
    """How many reads under way at once are faster than one after the other (1 on a disk, more over a network)."""
    timeout_s: float | None = None
    """How long a call on the log may wait for this storage in all, in seconds: over a network it may never answer. None: as
    long as it takes, since nobody can give up a disk."""
    quick: bool = False
    """A small request takes well under a millisecond, so there is nothing to win by sparing one."""


class Shelf(Protocol):
    """One place for write-once files. Making one does no I/O; ``facts`` means something after :meth:`open`."""

    facts: ShelfFacts

    @abstractmethod
    async def open(self, *, create: bool) -> None:
        """Connects, and makes sure that the place is there and that exclusive creation really is exclusive in it.

        Called once per shelf object. Several processes may do it at the same moment.

        Args:
            create: make the place (folder, bucket) if it is missing; otherwise a missing one is an error.

        Raises:
            Exception: native; then nothing stays open.
        """
        ...

    @abstractmethod
    async def close(self) -> None:
        """Gives back threads, connections and watches. Idempotent; allowed without ``open``. Calls that are under way
        end or raise; no callback of :meth:`watch` comes after it."""
        ...

    @abstractmethod
    async def create(self, name: str, data: bytes, /) -> bool:
        """Creates a file if there is none of that name; exclusive among all processes, durable on return.

        Returns:
            True: it is there now, by this call. False: one is there already, and was left as it is.

        Raises:
            Exception: native. Whether it was created may be unknown (``classify`` then says ``UNKNOWN_EFFECT``).
        """
        ...

    @abstractmethod
    async def read(self, name: str, /, *, start: int = 0, length: int | None = None) -> bytes | None:
        """The bytes of a file, or a part of it: what there is from ``start``, at most ``length``. None: no such file."""
        ...

    @abstractmethod
    async def list(self, folder: str, /, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """The full names of the files below ``folder`` (``"log"``: everything that begins with ``"log/"``, however deep),
        sorted, strictly after the full name ``after``, at most ``limit``. Fewer than ``limit``: there are no more.

        A name that sorts before one that was there when the call began and that was created before it is never left
        out. Must not read the names up to ``after`` where the storage can start there.
        """
        ...

    @abstractmethod
    async def delete(self, names: Sequence[str], /) -> None:
        """Deletes files; a missing one is no error. Need not be durable: a file that is back after a power cut does no
        harm. Any number of names: the shelf cuts them."""
        ...

    @abstractmethod
    def classify(self, error: BaseException, /) -> ErrorCode:
        """What a native exception of this storage means, as for :meth:`omniq_core.Backend.classify`. Pure."""
        ...

    @abstractmethod
    def durability(self) -> Durability:
        """What the death of a server, or of the machine, costs of what was created."""
        ...

    # --- with a default ----------------------------------------------------------------------------------------

    def watch(self, notice: Callable[[], None], /) -> None:
        """Calls ``notice`` on the event loop, soon after another process may have created a file, until ``close``.

        False alarms are welcome, several at once may become one. Only meaningful with ``facts.wake_up``; the default
        never calls. Called once, after ``open``.
        """
        return

    async def take_turn(self) -> None:
        """Waits, for some milliseconds at most, until other processes are not just creating a file. Only manners: it spares
        lost races, nothing depends on it. Followed by :meth:`end_turn`. The default does not wait."""
        return

    def end_turn(self) -> None:
        """Lets others create files. Allowed without a turn."""
        return

    def ring(self) -> None:
        """Tells the :meth:`watch` of other processes that something was created, where the storage does not by itself."""
        return

    async def now(self) -> float | None:
        """The storage's own clock in seconds since the epoch, for ``check``; None where it has none of its own."""
        return None

    def findings(self) -> Sequence[Finding]:
        """What an operator should know of the place as it is set up, for ``check``."""
        return ()
