"""``omniq enqueue``: puts one call of a registered task into its queue."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import os
from typing import TYPE_CHECKING, Any, get_type_hints

import click
import msgspec

from omniq.cli.application import find_application
from omniq.cli.durations import DURATION
from omniq.cli.failure import FAILED, USAGE, Failed
from omniq.cli.show import as_json
from omniq_core.options import suggest

if TYPE_CHECKING:
    from omniq.app import AsyncOmniQ
    from omniq.models import TaskResult
    from omniq.task import TaskDefinition

__all__ = ["enqueue"]


@click.command(
    epilog=(
        "Exit codes: 0 enqueued (with --wait: and succeeded); 1 the awaited task failed or did not end in time; 2 wrong "
        "usage or import; 3 a backend cannot be reached."
    )
)
@click.argument("words", nargs=-1, required=True, metavar="[APP] TASK [NAME=VALUE | NAME:=JSON]...")
@click.option("-A", "--app", help="The program, instead of the first word. [env var: OMNIQ_APP]")
@click.option("--queue", "queue_name", help="Another queue than the task's own.")
@click.option("--in", "run_in", type=DURATION, help="Not before so long from now: 30s, 5m, 1h30m.")
@click.option("--at", "run_at", help="Not before then, in ISO form. Without an offset: UTC.")
@click.option("--priority", type=int)
@click.option("--key", "unique_key", help="At most one waiting or running task holds a key.")
@click.option("--wait", is_flag=True, help="Wait for the task's end, and show its value.")
@click.option("--timeout", type=DURATION, help="With --wait: at most so long.")
@click.option("--json", "wants_json", is_flag=True, help="Answer in JSON.")
def enqueue(
    words: tuple[str, ...],
    app: str | None,
    queue_name: str | None,
    run_in: float | None,
    run_at: str | None,
    priority: int | None,
    unique_key: str | None,
    wait: bool,
    timeout: float | None,
    wants_json: bool,
) -> int:
    """Enqueues TASK of APP and prints the new task's id.

    A value after "=" is text, and becomes a number or a date where the function's annotation says so; after ":=" it is JSON.

    \b
    omniq enqueue shop.tasks:oq send_mail to=a@example.org
    omniq enqueue shop.tasks:oq report year:=2026 parts:='["a", "b"]' --in 5m --wait
    """
    program, task, rest = _find(words, app)
    definition = _task(program, task)
    parameters: dict[str, Any] = {
        "queue_name": queue_name,
        "run_in": run_in,
        "run_at": None if run_at is None else _moment(run_at),
        "priority": priority,
        "unique_key": unique_key,
    }
    parameters = {key: value for key, value in parameters.items() if value is not None}
    try:
        parameters["func_kwargs"] = dict(_argument(definition, word) for word in rest)
        return asyncio.run(_enqueue(program, definition, parameters, wait, timeout, wants_json))
    except (TypeError, ValueError) as error:
        raise Failed(str(error), USAGE) from error


def _find(words: tuple[str, ...], app: str | None) -> tuple[AsyncOmniQ, str, tuple[str, ...]]:
    """The program, the task's name and the words that are left. With OMNIQ_APP the first word may be missing."""
    if app is not None:
        return find_application(app), words[0], words[1:]
    default = os.environ.get("OMNIQ_APP")
    if default and (len(words) == 1 or "=" in words[1]):
        return find_application(default), words[0], words[1:]
    if len(words) < 2:
        raise Failed("which task? Write: omniq enqueue MODULE:ATTRIBUTE TASK name=value ...", USAGE)
    return find_application(words[0]), words[1], words[2:]


def _task(program: AsyncOmniQ, name: str) -> TaskDefinition[..., Any]:
    """The task of that name; what follows the colon will do where only one task ends so."""
    names = [definition.name for definition in program.registry]
    if name in names:
        return program.registry[name]
    short = [full for full in names if full.rpartition(":")[2] == name]
    if len(short) == 1:
        return program.registry[short[0]]
    if short:
        raise Failed(f"{name!r} may be {' or '.join(sorted(short))}; write one of them in full", USAGE)
    hint = suggest(name, [*names, *(full.rpartition(":")[2] for full in names)])
    raise Failed(
        f"no task named {name!r}{hint or '; the program has ' + (', '.join(sorted(names)) or 'none')}", USAGE
    )


def _argument(definition: TaskDefinition[..., Any], word: str) -> tuple[str, Any]:
    name, separator, text = word.partition("=")
    if not separator or not name:
        raise Failed(f"an argument is NAME=VALUE or NAME:=JSON, got {word!r}", USAGE)
    if name.endswith(":"):
        try:
            return name[:-1], msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise Failed(f"{word!r}: what follows := must be JSON: {error}", USAGE) from error
    try:
        hint = get_type_hints(inspect.unwrap(definition.func)).get(name, str)
        converted = msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError as error:
        raise Failed(f"{word!r}: {error}", USAGE) from error
    except Exception:  # an annotation that msgspec does not know: it stays text
        return name, text
    return name, msgspec.to_builtins(converted)


def _moment(text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise Failed(f"--at: {text!r} is no moment; write 2026-12-01T09:00+01:00", USAGE) from error


async def _enqueue(
    program: AsyncOmniQ,
    definition: TaskDefinition[..., Any],
    parameters: dict[str, Any],
    wait: bool,
    timeout: float | None,
    wants_json: bool,
) -> int:
    async with program.client_only() as client:
        task_id = await client.enqueue(definition, **parameters)
        if not wait:
            click.echo(as_json({"task_id": task_id}) if wants_json else task_id)
            return 0
        click.echo(task_id, err=True)
        result = await client.get_result(task_id, timeout)
    if result is None:
        within = "" if timeout is None else f" within {timeout:g} s"
        raise Failed(f"task {task_id} has not ended{within}", FAILED)
    return _show(result, wants_json)


def _show(result: TaskResult, wants_json: bool) -> int:
    if wants_json:
        click.echo(as_json(result))
    elif result.status == "success":
        click.echo(str(result))
    else:
        if result.error_traceback:
            click.echo(result.error_traceback.rstrip(), err=True)
        raise Failed(f"task {result.task_id} ended as {result.status}: {result.error}", FAILED)
    return 0 if result.status == "success" else FAILED
