"""The project's streams on the server, and what the server's settings mean for tasks."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from omniq_core import BackendError, Durability, ErrorCode, Finding, Health, Loss, SchemaOutOfDate, Severity
from omniq_nats.errors import Refused, classify
from omniq_nats.events import WINDOW_S
from omniq_nats.jetstream import JetStream
from omniq_nats.options import NatsOptions
from omniq_nats.subjects import Subjects

__all__ = ["OLDEST", "Streams", "examine"]

LAYOUT = "1"
OLDEST = (2, 12)
"""Atomic batches; per-message times to live (2.11); reading the last messages of many subjects (2.11)."""
NO_STREAM = 10059
NAME_IN_USE = 10058
AGAIN_S = 0.25
"""How long to wait before a cluster is asked once more for a stream that it could not place."""


class Streams(msgspec.Struct, frozen=True):
    """The four streams, as the server has them: name -> configuration."""

    configs: Mapping[str, Mapping[str, Any]]
    torn: Sequence[str] = ()
    """The streams that had to be made anew though the tasks were there."""


def _wanted(subjects: Subjects, options: NatsOptions) -> dict[str, dict[str, Any]]:
    root = subjects.root
    # Microseconds since the epoch: should the streams be deleted and made anew, no sequence comes again, and so no fence,
    # and nobody's old compare-and-set fits a new task by chance.
    first = {"first_seq": int(time.time() * 1_000_000)}
    common: dict[str, Any] = {
        "storage": "file",
        "num_replicas": options.replicas,
        "discard": "old",
        "allow_direct": True,
        "metadata": {"omniq-layout": LAYOUT},
    }
    one = {**first, "retention": "limits", "max_msgs_per_subject": 1}
    return {
        subjects.tasks: {
            **common, **one, "name": subjects.tasks, "allow_atomic": True, "allow_msg_ttl": True,
            "subjects": [root + kind for kind in ("t.*", "u.*", "r.*", "n.*")],
        },
        subjects.lines: {
            **common, **first, "retention": "workqueue", "allow_atomic": True, "max_consumers": 100_000,
            "name": subjects.lines, "subjects": [root + "l.>", root + "x.>"],
        },
        subjects.claims: {**common, **one, "name": subjects.claims, "subjects": [root + "c.*", root + "k.*.*"]},
        subjects.events: {
            **common, "retention": "limits", "name": subjects.events, "max_msgs": options.max_events,
            "duplicate_window": WINDOW_S * 10**9, "subjects": [root + "e"],
        },
    }  # fmt: skip


async def find_or_make(
    streams: JetStream, subjects: Subjects, options: NatsOptions, *, make: bool
) -> tuple[Streams, list[str]]:
    """The project's streams, and what was done (or would be done) to have them.

    Raises:
        SchemaOutOfDate: they are of another layout.
        Refused: they cannot be made; for want of servers in the cluster only after ``timeout_s`` of trying.
    """
    check_version(streams.client.info)
    wanted = _wanted(subjects, options)
    found = await asyncio.gather(*(_look(streams, name) for name in wanted))
    steps: list[str] = []
    configs: dict[str, Mapping[str, Any]] = {}
    made: set[str] = set()
    for (name, config), told in zip(wanted.items(), found, strict=True):
        if told is None:
            steps.append(f"create stream {name} for {', '.join(config['subjects'])}")
            if not make:
                continue
            told = await _make(streams, name, config, options.timeout_s)
            made.add(name)
        layout = (told["config"].get("metadata") or {}).get("omniq-layout")
        if layout != LAYOUT:
            raise SchemaOutOfDate(
                f"the stream {name} has layout {layout}, and this driver knows {LAYOUT}: upgrade omniq-nats, or use "
                "another project_name",
                "nats",
            )
        configs[name] = told["config"]
    torn = () if subjects.tasks in made else tuple(made & {subjects.lines, subjects.claims})
    return Streams(configs, torn), steps


async def _look(streams: JetStream, name: str) -> dict[str, Any] | None:
    try:
        return await streams.api(f"STREAM.INFO.{name}")
    except Refused as error:
        if error.number == NO_STREAM:
            return None
        raise


async def _make(streams: JetStream, name: str, config: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    ends = time.monotonic() + timeout_s
    while True:
        try:
            return await streams.api(f"STREAM.CREATE.{name}", config)
        except Refused as error:
            # Somebody with other settings was quicker.
            if error.number == NAME_IN_USE:
                return await streams.api(f"STREAM.INFO.{name}")
            # A cluster that has just started, or lost or regained a node, takes its servers for offline until it hears them.
            if classify(error) is not ErrorCode.UNAVAILABLE or time.monotonic() + AGAIN_S > ends:
                raise
        await asyncio.sleep(AGAIN_S)


def check_version(info: Mapping[str, Any]) -> None:
    """Refuses servers that lack what this driver needs.

    Raises:
        BackendError: that.
    """
    if not info.get("jetstream"):
        raise BackendError(
            "this NATS server has no JetStream: start it with --jetstream, or name another",
            ErrorCode.UNSUPPORTED,
            "nats",
        )
    words = str(info.get("version", "")).split(".")[:2]
    version = tuple(int(word) for word in words if word.isdigit())
    if version and version < OLDEST:
        raise BackendError(
            f"NATS {info.get('version')} is too old: the NATS backend needs {OLDEST[0]}.{OLDEST[1]} or later",
            ErrorCode.UNSUPPORTED,
            "nats",
        )


# --- what the settings mean ------------------------------------------------------------------------------------------


async def examine(streams: JetStream, made: Streams, options: NatsOptions, now: float) -> Health:
    """See :meth:`omniq_core.Backend.check`."""
    info = streams.client.info
    findings: list[Finding] = []
    settings: dict[str, str] = {}

    def find(severity: Severity, message: str, advice: str = "") -> None:
        findings.append(Finding(severity, message, advice))

    replicas = {name: int(config.get("num_replicas", 1)) for name, config in made.configs.items()}
    settings["replicas"] = str(min(replicas.values()))
    settings["storage"] = ", ".join(sorted({str(config.get("storage")) for config in made.configs.values()}))
    for name, count in replicas.items():
        if count != options.replicas:
            find(
                Severity.WARNING,
                f"the stream {name} has {count} replica(s), and the settings ask for {options.replicas}",
                f"nats stream edit {name} --replicas {options.replicas}, or change the settings",
            )
    if info.get("cluster") and min(replicas.values()) == 1:
        find(
            Severity.WARNING,
            "the server is one of a cluster, and the tasks are on one node only: while it is down nothing goes on",
            "set replicas=3 before the streams are made, or edit them",
        )
    sync_s = await _sync(options, settings, find)
    power = Durability(server_killed=_killed(made), power_cut=Loss.UNKNOWN)
    if sync_s == 0:
        power = Durability(server_killed=_killed(made), power_cut=Loss.NONE)
    elif sync_s is not None:
        power = Durability(server_killed=_killed(made), power_cut=Loss.WINDOW, window_s=sync_s)
        find(
            Severity.WARNING,
            f"sync_interval is {sync_s:g} s: what was acknowledged within it is lost when the power fails"
            + (" on all replicas at once" if min(replicas.values()) > 1 else ""),
            "set sync_interval: always in the jetstream block of the server's configuration",
        )
    return Health(
        server=f"NATS {info.get('version', '')}".strip(),
        now=now,
        durability=power,
        findings=findings,
        settings=settings,
    )


def _killed(made: Streams) -> Loss:
    return Loss.NONE if not why_not_durable(made) else Loss.ALL


def why_not_durable(made: Streams) -> str:
    """Why what was acknowledged would not survive the server's death; empty if it does."""
    for name, config in made.configs.items():
        if config.get("storage") != "file":
            return f"the stream {name} is kept in memory"
        if config.get("persist_mode") == "async":
            return f"the stream {name} has persist_mode async: it answers before it writes"
    return ""


async def _sync(options: NatsOptions, settings: dict[str, str], find: Callable[..., None]) -> float | None:
    """How often the server syncs its files, in seconds; 0: always; ``None``: unknown."""
    if not options.monitoring_url:
        find(
            Severity.WARNING,
            "whether acknowledged tasks survive a power cut is unknown: NATS tells its sync_interval only to monitors, and "
            "by default syncs its files every two minutes",
            "set sync_interval: always on the server, and give monitoring_url so that this can be checked",
        )
        return None
    url = options.monitoring_url.rstrip("/") + "/varz"
    try:
        told = await asyncio.to_thread(_fetch, url, options.connect_timeout_s)
        config = told["jetstream"]["config"]
    except (OSError, ValueError, KeyError) as error:
        find(Severity.WARNING, f"the monitoring_url tells nothing: {error}", "it should be http://HOST:8222")
        return None
    settings["sync_interval"] = (
        "always" if config.get("sync_always") else f"{config.get('sync_interval', 0) / 1e9:g}s"
    )
    return 0.0 if config.get("sync_always") else config.get("sync_interval", 0) / 1e9


def _fetch(url: str, timeout_s: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ValueError("monitoring_url must be http:// or https://")
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        told: dict[str, Any] = json.loads(answer.read())
    return told
