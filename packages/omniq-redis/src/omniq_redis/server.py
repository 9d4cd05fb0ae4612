"""What a server says about itself, and what that means for tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from omniq_core import Durability, Finding, Loss, Severity
from omniq_redis.connection import Client
from omniq_redis.errors import Refused

__all__ = ["Server", "inspect"]

OLDEST = (7, 0)
"""ZMSCORE, LPOP with a count, script flags, sharded pub/sub."""
POSTPONED_S = 2.0
"""With ``appendfsync everysec`` a write waits so long in the server's memory while an earlier fsync is under way."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server's own words, as far as we may ask."""

    name: str
    version: tuple[int, ...]
    has_msetex: bool
    now: float
    aof: bool | None
    """Whether it writes an append-only file; ``None``: unknown."""
    fsync: str | None
    """``always``, ``everysec`` or ``no``; ``None``: unknown."""
    save: str | None
    """When it writes a snapshot: ``"3600 1 300 100"``; empty: never; ``None``: unknown."""
    eviction: str | None
    replicas: int
    min_replicas: str | None
    write_error: bool

    @property
    def is_durable(self) -> bool:
        """Whether a killed server loses nothing that it acknowledged."""
        return self.aof is True and self.fsync == "always"

    @property
    def why_not_durable(self) -> str:
        if self.aof is None:
            return "the server does not tell us whether it keeps an append-only file (no right to INFO)"
        if not self.aof:
            return "appendonly is off: a server that dies loses everything since its last snapshot"
        if self.fsync is None:
            return "the server does not tell us appendfsync (no right to CONFIG GET)"
        if self.fsync == "everysec":
            return (
                "appendfsync is everysec: while a sync is under way, up to two seconds of acknowledged writes are in "
                "the server's memory only, and a power cut loses about one second; 'always' loses nothing"
            )
        return "appendfsync is no: the operating system decides when writes reach the disk"

    @property
    def durability(self) -> Durability:
        if self.aof is None:
            return Durability(server_killed=Loss.UNKNOWN, power_cut=Loss.UNKNOWN)
        if self.aof:
            if self.fsync == "always":
                return Durability(server_killed=Loss.NONE, power_cut=Loss.NONE)
            if self.fsync == "everysec":
                return Durability(server_killed=Loss.WINDOW, power_cut=Loss.WINDOW, window_s=POSTPONED_S)
            if self.fsync == "no":
                # Written before the answer, so the process may die; Linux writes back within about 30 s.
                return Durability(server_killed=Loss.NONE, power_cut=Loss.WINDOW, window_s=30.0)
            return Durability(server_killed=Loss.UNKNOWN, power_cut=Loss.UNKNOWN)
        if self.save is None:
            return Durability(server_killed=Loss.UNKNOWN, power_cut=Loss.UNKNOWN)
        periods = [int(word) for word in self.save.split()[::2]]
        if not periods:
            return Durability(server_killed=Loss.ALL, power_cut=Loss.ALL)
        window_s = float(max(periods))
        return Durability(server_killed=Loss.WINDOW, power_cut=Loss.WINDOW, window_s=window_s)

    @property
    def settings(self) -> Mapping[str, str]:
        found = {
            "appendonly": None if self.aof is None else "yes" if self.aof else "no",
            "appendfsync": self.fsync,
            "save": self.save,
            "maxmemory-policy": self.eviction,
            "min-replicas-to-write": self.min_replicas,
            "connected_slaves": str(self.replicas),
        }
        return {name: value for name, value in found.items() if value is not None}

    def findings(self) -> list[Finding]:
        found: list[Finding] = []

        def find(severity: Severity, message: str, advice: str = "") -> None:
            found.append(Finding(severity, message, advice))

        if self.eviction is None:
            find(
                Severity.WARNING,
                "whether the server may throw tasks away when its memory is full is unknown",
                "allow INFO, or see to it that maxmemory-policy is noeviction",
            )
        elif self.eviction != "noeviction":
            find(
                Severity.ERROR,
                f"maxmemory-policy is {self.eviction}: when memory is full the server throws tasks away",
                "set maxmemory-policy noeviction; a full server then refuses new tasks and says so",
            )
        if not self.is_durable:
            find(
                Severity.WARNING,
                f"acknowledged tasks can be lost: {self.why_not_durable}",
                "set appendonly yes and appendfsync always",
            )
        if self.write_error:
            find(
                Severity.ERROR,
                "the server failed to write its snapshot or its append-only file",
                "look at its disk and its log",
            )
        if self.replicas:
            find(
                Severity.WARNING,
                f"{self.replicas} replica(s) follow asynchronously: a failover loses what had not reached them",
                "set min-replicas-to-write 1 to bound it; where nothing may be lost, use the PostgreSQL backend",
            )
        return found


async def inspect(client: Client) -> Server:
    """Asks the server. What it will not tell is ``None``."""
    seconds, micros = await client.call("TIME")
    info = await _info(client)
    config = await _config(client)
    if "valkey_version" in info:
        name, version = "Valkey", info["valkey_version"]
    else:
        name, version = "Redis", info.get("redis_version", "")
    aof: bool | None = None
    if "appendonly" in config or "aof_enabled" in info:
        aof = config.get("appendonly") == "yes" or info.get("aof_enabled") == "1"
    return Server(
        name=f"{name} {version}".strip(),
        version=tuple(int(part) for part in version.split(".") if part.isdigit()),
        has_msetex=await _has_msetex(client),
        now=int(seconds) + int(micros) / 1e6,
        aof=aof,
        fsync=config.get("appendfsync"),
        save=config.get("save"),
        eviction=config.get("maxmemory-policy") or info.get("maxmemory_policy"),
        replicas=int(info.get("connected_slaves", "0")),
        min_replicas=config.get("min-replicas-to-write"),
        write_error=info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err",
    )


async def _info(client: Client) -> dict[str, str]:
    try:
        text: Any = await client.call("INFO")
    except Refused as error:
        if error.code not in ("NOPERM", "ERR"):
            raise
        return {}
    lines = bytes(text).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def _config(client: Client) -> dict[str, str]:
    wanted = ("appendonly", "appendfsync", "save", "maxmemory-policy", "min-replicas-to-write")
    try:
        found: dict[bytes, bytes] = await client.call("CONFIG", "GET", *wanted)
    except Refused as error:
        if error.code not in ("NOPERM", "ERR"):  # some hosts have renamed or removed CONFIG
            raise
        return {}
    return {key.decode(): value.decode() for key, value in found.items()}


async def _has_msetex(client: Client) -> bool:
    try:
        answer = await client.call("COMMAND", "INFO", "MSETEX")
    except Refused:
        return False
    return bool(answer and answer[0])
