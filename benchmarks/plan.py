"""Who is measured on which storage, with what, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["LAYERS", "PLAN", "Variant", "parameters"]

EVERYTHING = ("enqueue one", "enqueue 64", "enqueue batch", "drain", "drain 1 ms", "idle")


@dataclass(frozen=True)
class Variant:
    """A subject with certain settings."""

    label: str
    module: str
    kind: str
    """ours, peer or raw"""
    results: bool = True
    options: str = ""
    scenarios: tuple[str, ...] = EVERYTHING
    keeps_results: bool = True
    """Whether results are stored and can be read. Decides which peers we are held against in which line."""

    @property
    def stores_results(self) -> bool:
        return self.results and self.keeps_results


def ours(*more: str) -> list[Variant]:
    return [
        Variant("omniq", "omniq", "ours", scenarios=(*EVERYTHING, *more)),
        Variant("omniq, no results", "omniq", "ours", results=False, scenarios=("drain",)),
        Variant("omniq, events on", "omniq", "ours", options="events", scenarios=("drain",)),
    ]


def peer(module: str, *, bare: bool = True) -> list[Variant]:
    """A peer that stores results, and without them."""
    both = [Variant(module, module, "peer")]
    if bare:
        both.append(Variant(f"{module}, no results", module, "peer", results=False, scenarios=("drain",)))
    return both


RAW = ("enqueue one", "enqueue batch", "cycle one", "cycle batch")

PLAN: dict[str, list[Variant]] = {
    "memory": ours("claim cost", "loop"),
    "sqlite": [
        Variant("raw sqlite3", "raw_sqlite", "raw", scenarios=RAW),
        *ours("claim cost", "backlog"),
        *peer("huey"),
    ],
    "file": [*ours("claim cost", "backlog"), *peer("huey")],
    "redis": [
        Variant("raw redis", "raw_redis", "raw", scenarios=(*RAW, "enqueue 64")),
        *ours("claim cost", "backlog"),
        *peer("dramatiq"),
        *peer("celery"),
        *peer("taskiq"),
        *peer("huey"),
        *peer("saq", bare=False),
        *peer("arq", bare=False),
        *peer("rq", bare=False),
    ],
    "nats": [
        Variant("raw nats", "raw_nats", "raw", scenarios=(*RAW, "enqueue 64")),
        *ours("claim cost", "backlog"),
        *peer("taskiq_nats"),
        Variant("taskiq_nats, batch 1", "taskiq_nats", "peer", options="batch1", scenarios=("drain",)),
    ],
    "postgres": [
        Variant("raw postgres", "raw_postgres", "raw", scenarios=(*RAW, "enqueue 64")),
        *ours("claim cost", "backlog"),
        Variant("pgqueuer", "pgqueuer", "peer", keeps_results=False),
        Variant(
            "pgqueuer, batch 10",
            "pgqueuer",
            "peer",
            options="batch10",
            scenarios=("drain",),
            keeps_results=False,
        ),
        Variant("procrastinate", "procrastinate", "peer", keeps_results=False),
    ],
}

LAYERS = {"arq": "redis5", "saq": "redis5"}
"""Peers that need an older redis-py than the others; see README.md."""


def parameters(scenario: str, *, quick: bool, pace: dict[str, float]) -> dict[str, Any]:
    """How much of it. A drain takes some seconds of everybody, so its number of tasks goes by the subject's pace."""
    seconds = 0.5 if quick else 2.0

    def tasks(kind: str) -> int:
        span = 1.0 if quick else 4.0
        return int(min(max(pace[kind] * span, 100 if quick else 300), 20_000 if quick else 200_000))

    sizes: dict[str, dict[str, Any]] = {
        "enqueue one": {"seconds": seconds, "most": 200_000},
        "enqueue 64": {"seconds": seconds, "most": 200_000},
        "enqueue batch": {"seconds": seconds, "most": 300_000, "size": 1000},
        "drain": {"task": "noop", "tasks": tasks("noop"), "sample": 300},
        "drain 1 ms": {"task": "sleep1", "tasks": tasks("sleep1"), "sample": 300},
        "idle": {"rounds": 30 if quick else 200},
        "cycle one": {"seconds": seconds},
        "cycle batch": {"seconds": seconds, "size": 500},
        "claim cost": {"few": 1_000, "many": 100_000 if quick else 1_000_000, "rounds": 40 if quick else 150},
        "backlog": {"few": 1_000, "many": 100_000 if quick else 1_000_000, "seconds": 1.0 if quick else 3.0},
        "loop": {"tasks": 50_000 if quick else 300_000},
    }
    return sizes[scenario]
