"""``omniq check``, ``omniq plugins`` and ``omniq version``: what is installed, and whether it works."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Sequence
from typing import Any

import click

from omniq.cli.application import find_application, open_url
from omniq.cli.failure import FAILED
from omniq.cli.show import as_json, fields
from omniq.guarantees import Guarantees
from omniq.plugins import hooks
from omniq_core import BACKENDS, SERIALIZERS, WORKERS, Health, PluginError, Registry, Severity, backend_class

__all__ = ["check", "plugins", "version"]


@click.command(
    epilog="Exit codes: 0 in order; 1 something is wrong; 2 wrong usage or import; 3 a backend cannot be reached."
)
@click.argument("app", required=False, envvar="OMNIQ_APP")
@click.option("--url", help="A storage instead, as a URL.")
@click.option("--json", "wants_json", is_flag=True, help="Answer in JSON.")
def check(app: str | None, url: str | None, wants_json: bool) -> int:
    """Opens the stores of APP (or of --url) and tells what they guarantee. Without either: loads every plugin."""
    if app is None and url is None:
        return _check_plugins(wants_json)
    program = find_application(app) if url is None else open_url(None, url)

    async def look() -> tuple[dict[str, Health], Guarantees]:
        async with program.client_only() as client:
            return await client.check(), await client.guarantees()

    found, promise = asyncio.run(look())
    is_wrong = any(
        finding.severity is Severity.ERROR for health in found.values() for finding in health.findings
    )
    if wants_json:
        click.echo(as_json({**found, "guarantees": promise}))
    else:
        for part, health in found.items():
            _print_health(part, health)
        _print_promise(promise)
    return FAILED if is_wrong else 0


def _print_health(part: str, health: Health) -> None:
    click.echo(part)
    lost = health.durability
    window = "" if lost.window_s is None else f" ({lost.window_s:g} s)"
    fields(
        [
            ("  server", health.server),
            ("  if killed", f"lost: {lost.server_killed.value}{window}"),
            ("  power cut", f"lost: {lost.power_cut.value}{window}"),
            ("  settings", ", ".join(f"{name}={value}" for name, value in health.settings.items())),
        ]
    )
    for finding in health.findings:
        click.echo(
            f"  {finding.severity.value}: {finding.message}"
            + (f"; {finding.advice}" if finding.advice else "")
        )


def _print_promise(promise: Guarantees) -> None:
    click.echo(f"together: {promise.delivery}")
    for accident in promise.accidents:
        window = "" if accident.window_s is None else f" (up to {accident.window_s:g} s)"
        losses = f"tasks {accident.tasks.value}, results {accident.results.value}, events {accident.events.value}{window}"
        click.echo(f"  if {accident.name}, lost: {losses}; {accident.note}")


def _check_plugins(wants_json: bool) -> int:
    rows = []
    for kind, registry in _registries():
        for name in registry.names():
            try:
                if registry is BACKENDS:
                    backend_class(name)
                else:
                    registry.load(name)
                rows.append({"kind": kind, "name": name, "ok": True, "error": None})
            except PluginError as error:
                rows.append({"kind": kind, "name": name, "ok": False, "error": str(error)})
    lines: Sequence[Sequence[str] | None] = hooks().call("omniq_doctor_lines")
    notes = [line for group in lines for line in group or ()]
    for name, reason in hooks().broken.items():
        rows.append({"kind": "plugin", "name": name, "ok": False, "error": reason})
    if wants_json:
        click.echo(as_json({"plugins": rows, "notes": notes}))
    else:
        for row in rows:
            click.echo(f"{'ok   ' if row['ok'] else 'WRONG'}  {row['kind']} {row['name']}")
            if row["error"]:
                click.echo(f"       {row['error']}")
        for note in notes:
            click.echo(note)
    return 0 if all(row["ok"] for row in rows) else FAILED


def _registries() -> list[tuple[str, Registry[Any]]]:
    hook_plugins: Registry[Any] = Registry("omniq.plugins", "plugin")
    return [
        ("backend", BACKENDS),
        ("worker type", WORKERS),
        ("serializer", SERIALIZERS),
        ("plugin", hook_plugins),
    ]


@click.command()
@click.option("--json", "wants_json", is_flag=True, help="Answer in JSON.")
def plugins(wants_json: bool) -> int:
    """Lists the plugins that are installed. Imports none of them; omniq check does."""
    rows = [
        {
            "kind": kind,
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "value": info.value,
        }
        for kind, registry in _registries()
        for info in registry
    ]
    if wants_json:
        click.echo(as_json(rows))
        return 0
    for row in rows:
        click.echo(
            f"{row['kind']:<12} {row['name']:<14} {row['distribution']} {row['version']}  ({row['value']})"
        )
    return 0


@click.command()
def version() -> int:
    """Shows the versions of OmniQ, its contract, Python, and the distributions of the installed plugins."""
    import omniq_core
    from omniq import __version__

    versions = {"omniq": __version__, "omniq-core": omniq_core.__version__}
    for _, registry in _registries():
        versions.update({info.distribution: info.version for info in registry})
    versions["python"] = platform.python_version()
    fields([(name + " ", number) for name, number in versions.items()])
    return 0
