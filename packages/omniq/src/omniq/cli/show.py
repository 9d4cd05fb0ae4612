"""Values as text for people and as JSON for programs."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import click
import msgspec

__all__ = ["as_json", "fields", "moment"]


def as_json(value: Any) -> str:
    """One JSON document, indented. What JSON cannot say becomes text."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=repr), indent=2).decode()


def moment(at: datetime.datetime | None) -> str:
    """A time in UTC to the millisecond."""
    return "-" if at is None else at.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Prints names and values in two columns; ``None`` is left out."""
    for name, value in pairs:
        if value is not None and value != "":
            click.echo(f"{name:<14}{value}")
