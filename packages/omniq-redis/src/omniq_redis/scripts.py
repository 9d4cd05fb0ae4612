"""The Lua scripts in ``lua/``, with what stands before each, and the hashes by which the server knows them."""

from __future__ import annotations

import hashlib
from importlib import resources

import msgspec

__all__ = ["SCRIPTS", "Script"]

PARTS = {
    "append": (), "cancel": ("tasks",), "claim": ("tasks",), "enqueue": (), "enqueue_each": (), "expire": ("tasks",),
    "extend": ("tasks",), "get": (), "peek": (), "prune": (), "purge": ("tasks",), "put": ("news",), "reap": ("tasks",),
    "requeue": ("tasks",), "resume": (), "scan": ("tasks",), "settle": ("tasks", "news"), "stats": ("tasks",),
    "truncate": (), "watch": (),
}  # fmt: skip
"""Every script, and what else stands before it. Only what it uses: Lua makes each function anew at every run."""


class Script(msgspec.Struct, frozen=True):
    """One script: its whole text and its hash."""

    text: bytes
    sha: bytes


def _load() -> dict[str, Script]:
    folder = resources.files("omniq_redis").joinpath("lua")

    def read(name: str) -> str:
        return folder.joinpath(f"{name}.lua").read_text("utf-8")

    found = {}
    for name, parts in PARTS.items():
        body = read(name)
        first = ""
        if body.startswith("#!"):  # the server reads flags only from the first line of all
            first, _, body = body.partition("\n")
            first += "\n"
        text = "".join((first, read("prelude"), *map(read, parts), body)).encode()
        found[name] = Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
    return found


SCRIPTS = _load()
