"""The door to a storage: what a plugin's main class promises.

A plugin is one class that subclasses :class:`Backend` *explicitly* (so that it inherits the default bodies, and keeps
working when the contract grows), named by an entry point::

    [project.entry-points."omniq.backends"]
    acme = "acme_omniq:AcmeBackend"

The entry point's name is what users write: ``backend="acme"`` or ``acme://...``.

Rules for every method of every protocol here
---------------------------------------------
* **Async**, and to be called only on the event loop on which ``open`` was awaited. A second thread opens its own
  :meth:`Backend.twin`.
* **Concurrent.** Many coroutines call at once. A call may be cancelled at any await: then its effect is unknown to the
  caller, as after a lost reply, and no lock, transaction or connection may stay behind.
* **Batches.** A sequence goes in, a sequence of the same length comes out, answer *i* for item *i*. Empty in, empty
  out. No batch is longer than ``limits.max_batch``; OmniQ cuts. A bad item never stops the others.
* **Bytes are opaque.** A driver never decodes a body, result, error or event.
* **Idempotent.** A call raises only if it failed as a whole, and may then simply be repeated.
* **No policy.** Drivers do not retry, log, serialise, emit events, or decide when a task is retried or dead (but for
  ``max_crashes``, on reaping). Native exceptions are raised as they are; :meth:`Backend.classify` tells what they mean.
* **Time** is the store's, in seconds since the epoch, UTC. Callers send delays.
* A method whose capability the opened backend does not declare raises :class:`~omniq_core.errors.Unsupported`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from omniq_core.capabilities import Capability, Limits
from omniq_core.clock import SYSTEM_CLOCK, Clock
from omniq_core.errors import ErrorCode, Unsupported
from omniq_core.event_store import EventStore
from omniq_core.options import BackendOptions, Url, build_options, options_from_env, options_from_url
from omniq_core.queue import Queue
from omniq_core.records import Durability, Health, Loss
from omniq_core.result_store import ResultStore

__all__ = ["SPI_VERSION", "Backend"]

SPI_VERSION = (0, 1)
"""The version of this contract. While the first number is 0, a plugin must be built for exactly this one; later a
plugin of the same first number and of a second number up to this one is accepted."""


class Backend(Protocol):
    """One storage: its settings, its connection, and the stores in it.

    Making one does no I/O. ``capabilities`` and ``limits`` mean something only after :meth:`open`.

    Args:
        config: settings by name, see ``options_type``.
        clock: read instead of the system's clock by a backend without ``SERVER_CLOCK``.
        settings: more settings; they win over ``config``.

    Raises:
        OptionError: an unknown setting, a value of the wrong type or out of range.
    """

    name: ClassVar[str]
    """The main name that users write, as in the entry point."""
    spi_version: ClassVar[tuple[int, int]]
    """The contract that the class was written for, as a literal: ``(0, 1)``. Never ``SPI_VERSION`` itself."""
    options_type: ClassVar[type[BackendOptions]]
    """The struct of its settings."""

    options: BackendOptions
    clock: Clock
    capabilities: frozenset[Capability] = frozenset()
    """What this opened storage can do, with everything implied."""
    limits: Limits = Limits()
    absent: Mapping[Capability, str] = {}
    """Why something is not offered, for messages: capability -> reason."""

    def __init__(
        self,
        config: Mapping[str, object] | None = None,
        /,
        *,
        clock: Clock = SYSTEM_CLOCK,
        **settings: object,
    ) -> None:
        where = f"{type(self).__name__}(...)"
        self.clock = clock
        self.options = build_options(
            self.name, self.options_type, (where, config or {}, False), (where, settings, False)
        )

    # --- making one --------------------------------------------------------------------------------------------

    @classmethod
    def from_options(cls, options: BackendOptions, *, clock: Clock = SYSTEM_CLOCK) -> Self:
        """A backend with these settings. No I/O."""
        backend = cls.__new__(cls)
        Backend.__init__(backend, clock=clock)
        backend.options = options
        return backend

    @classmethod
    def from_url(cls, url: str | Url, *, clock: Clock = SYSTEM_CLOCK, **settings: object) -> Self:
        """A backend from its URL; keyword settings win over the URL. No I/O.

        Raises:
            OptionError: as for the constructor.
        """
        parsed = Url.parse(url) if isinstance(url, str) else url
        options = options_from_url(cls.name, cls.options_type, parsed)
        return cls.from_options(cls._override(options, settings), clock=clock)

    @classmethod
    def from_env(
        cls,
        prefix: str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        **settings: object,
    ) -> Self:
        """A backend from environment variables; keyword settings win. No I/O.

        Args:
            prefix: of the variables; ``OMNIQ_SQLITE_`` for a backend named ``sqlite`` by default.
            environ: read instead of ``os.environ``.
            clock: as for the constructor.
            settings: as for the constructor.
        """
        prefix = f"OMNIQ_{cls.name.upper()}_" if prefix is None else prefix
        options = options_from_env(cls.name, cls.options_type, prefix, environ)
        return cls.from_options(cls._override(options, settings), clock=clock)

    @classmethod
    def _override(cls, options: BackendOptions, settings: Mapping[str, object]) -> BackendOptions:
        if not settings:
            return options
        import msgspec

        changed = build_options(cls.name, cls.options_type, ("keyword arguments", settings, False))
        aliases = cls.options_type.aliases
        names = {aliases.get(name, name) for name in settings}
        return msgspec.structs.replace(options, **{n: getattr(changed, n) for n in names})

    def twin(self) -> Backend:
        """A new, closed backend on the *same storage*, for another thread and event loop.

        The default makes one from the same options. A backend that keeps its data in the process shares it.
        """
        return type(self).from_options(self.options, clock=self.clock)

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings by name. Secrets stay wrapped."""
        import msgspec

        return msgspec.structs.asdict(self.options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.options.describe()}>"

    # --- required ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def open(self) -> None:
        """Connects, creates or migrates what is missing (as :meth:`setup` does, unless the driver's options forbid
        it), and sets ``capabilities`` and ``limits`` from what the server really is and how it is set.

        Idempotent: opening an open backend does nothing. Two processes may do it at the same moment. Must fail within
        the driver's own connect time-out, never hang.

        Raises:
            SchemaOutOfDate: the stored layout is of a newer driver, or older and may not be changed.
            Exception: any native exception that ``classify`` can name; then nothing stays open.
        """
        ...

    @abstractmethod
    async def close(self) -> None:
        """Gives back everything that ``open`` took: connections, threads, tasks, files.

        Idempotent, and allowed on a backend that was never opened. Ends calls of ``wait`` within a second; calls that
        are under way either finish or raise. A client that was passed in by the caller is left open. After it, every
        call raises :class:`~omniq_core.errors.Closed`. The backend may be opened again.
        """
        ...

    @abstractmethod
    def queue(self) -> Queue:
        """The task queue of this storage: cheap, the same object each time."""
        ...

    @abstractmethod
    def classify(self, error: BaseException, /) -> ErrorCode:
        """What a native exception means. Pure; ``UNKNOWN`` if in doubt.

        ``UNAVAILABLE``, ``TIMEOUT`` and ``EXHAUSTED`` claim that the call did *not* take effect: answer
        ``UNKNOWN_EFFECT`` when the request may have been sent. An :class:`~omniq_core.errors.BackendError` is answered
        with its own code, ``Unsupported`` with ``UNSUPPORTED``.
        """
        ...

    # --- with a default ----------------------------------------------------------------------------------------

    def result_store(self) -> ResultStore:
        """The result store of this storage: cheap, the same object each time.

        Raises:
            Unsupported: without ``RESULTS``.
        """
        raise Unsupported(Capability.RESULTS, self.name, self.absent.get(Capability.RESULTS, ""))

    def event_store(self) -> EventStore:
        """The event store of this storage: cheap, the same object each time.

        Raises:
            Unsupported: without ``EVENTS``.
        """
        raise Unsupported(Capability.EVENTS, self.name, self.absent.get(Capability.EVENTS, ""))

    async def setup(self, *, dry_run: bool = False) -> Sequence[str]:
        """Creates or migrates the stored layout. Works on a closed backend, and leaves it closed.

        Idempotent, safe when two start at once.

        Args:
            dry_run: only tell.

        Returns:
            The steps that were done, or that would be, as statements or sentences. Empty: nothing to do.
        """
        return ()

    async def check(self) -> Health:
        """Looks at the opened server's version and settings: what do they mean for tasks?

        The default knows nothing, and says so.
        """
        return Health(
            server=self.name,
            now=self.clock.time(),
            durability=Durability(server_killed=Loss.UNKNOWN, power_cut=Loss.UNKNOWN),
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
