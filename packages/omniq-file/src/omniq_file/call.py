"""One call of a backend's method on its way to the clerk's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from omniq_file.commit import Place

__all__ = ["Call", "Wanted", "deliver"]

_encode = msgspec.msgpack.Encoder().encode


class Wanted:
    """An answer that is complete once some bodies were read.

    Args:
        places: where they are.
        build: makes the answer of them, by position.
        may_lack: whether ``build`` may be given ``None`` for one that cannot be read.
    """

    __slots__ = ("build", "may_lack", "places")

    def __init__(
        self, places: Sequence[Place], build: Callable[[Sequence[Any]], Any], *, may_lack: bool = False
    ) -> None:
        self.places, self.build, self.may_lack = places, build, may_lack


class Call:
    """An operation to be committed, or a look at the state.

    Args:
        operation: what to commit; None for a look.
        blobs: the bodies that it mentions, in order.
        finish: makes the answer, or a :class:`Wanted`, of the state and the operation's answer: right after it was applied.
        items: how many things it is about, so that a commit is not filled without end.
    """

    __slots__ = ("blob_bytes", "blobs", "encoded", "finish", "future", "items", "loop", "operation", "tries")

    def __init__(
        self,
        operation: Sequence[Any] | None,
        finish: Callable[[Any, Any, float], Any],
        blobs: list[bytes] | None = None,
        items: int = 1,
    ) -> None:
        self.operation = operation
        # Encoded here, where the caller is: what cannot be encoded fails its own call and no other, and only once.
        self.encoded = msgspec.Raw(b"" if operation is None else _encode(operation))
        self.finish = finish
        self.blobs = blobs or []
        self.blob_bytes = sum(map(len, self.blobs))
        self.items = items
        self.tries = 0
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


def deliver(loop: asyncio.AbstractEventLoop, answers: list[tuple[Call, Any]]) -> None:
    """Hands answers, or exceptions, to the callers on their loop."""
    try:
        loop.call_soon_threadsafe(_set_all, answers)
    except RuntimeError:  # the loop was closed meanwhile: nobody waits there any more
        return


def _set_all(answers: list[tuple[Call, Any]]) -> None:
    for call, answer in answers:
        future = call.future
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
