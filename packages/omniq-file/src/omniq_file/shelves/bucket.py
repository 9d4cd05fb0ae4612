"""A place in an object store: a bucket, and what the names of all our objects in it begin with."""

from __future__ import annotations

import re

import msgspec

from omniq_core import OptionError

__all__ = ["Bucket"]

_SEGMENT = re.compile(r"[^\x00-\x1f\x7f/\\?#*]+")


class Bucket(msgspec.Struct, frozen=True):
    """A bucket and a path in it.

    Raises:
        OptionError: a name or a path that could lead elsewhere.
    """

    name: str
    path: str = ""
    """Without a slash at its ends."""

    @property
    def prefix(self) -> str:
        """What the keys of our objects begin with."""
        return f"{self.path}/" if self.path else ""

    def __post_init__(self) -> None:
        if not self.name or not _SEGMENT.fullmatch(self.name) or self.name in (".", ".."):
            raise OptionError(
                f"the URL of an object store names a bucket after its scheme, got {self.name!r}"
            )
        for segment in self.path.split("/") if self.path else ():
            if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
                raise OptionError(
                    f"the path in bucket {self.name!r} must be words joined by '/', without '.', '..', "
                    f"control characters, or any of \\ ? # *; got {self.path!r}"
                )
        if len(self.path.encode()) > 512:
            raise OptionError("the path in a bucket must be at most 512 bytes long")
