"""``omniq inspect``: what is known of one task."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from omniq.app import AsyncOmniQ
from omniq.cli.application import open_url
from omniq.cli.failure import FAILED, Failed
from omniq.cli.show import as_json, fields, moment
from omniq.models import TaskEvent, TaskInfo, TaskResult
from omniq_core import Unsupported

__all__ = ["inspect"]


@click.command(
    epilog="Exit codes: 0 shown; 1 unknown task; 2 wrong usage or import; 3 a backend cannot be reached."
)
@click.argument("task_id", metavar="ID")
@click.option("-A", "--app", envvar="OMNIQ_APP", show_envvar=True, help="The program, as MODULE:ATTRIBUTE.")
@click.option("--url", envvar="OMNIQ_BACKEND", show_envvar=True, help="Its storage instead, as a URL.")
@click.option("--events", is_flag=True, help="Show what was logged about it as well.")
@click.option("--json", "wants_json", is_flag=True, help="Answer in JSON.")
def inspect(task_id: str, app: str | None, url: str | None, events: bool, wants_json: bool) -> int:
    """Shows what is known of the task ID: its state, attempts, arguments, result and error."""
    program = open_url(app, None if app else url)
    task, result, log = asyncio.run(_look(program, task_id, events))
    if task is None and result is None:
        raise Failed(
            f"no task {task_id} on {program.backend!r}; it may have been pruned since it ended", FAILED
        )
    if wants_json:
        click.echo(as_json(_document(task_id, task, result, log)))
    else:
        _print(task_id, task, result, log)
    return 0


async def _look(
    program: AsyncOmniQ, task_id: str, events: bool
) -> tuple[TaskInfo | None, TaskResult | None, list[TaskEvent] | None]:
    async with program.client_only() as client:
        task = await client.get_task(task_id)
        result = await client.get_result(task_id, 0) if program.result_store is not None else None
        log: list[TaskEvent] | None = None
        if events:
            try:
                log = await client.get_events(task_id)
            except Unsupported as error:
                raise Failed(str(error), FAILED) from error
    return task, result, log


def _document(
    task_id: str, task: TaskInfo | None, result: TaskResult | None, log: list[TaskEvent] | None
) -> dict[str, Any]:
    shown: dict[str, Any] = {"task_id": task_id}
    if task is not None:
        arguments = task.arguments
        shown["task"] = {
            **{name: value for name, value in msgspec.structs.asdict(task).items() if name != "body"},
            "args": None if arguments is None else arguments[0],
            "kwargs": None if arguments is None else arguments[1],
        }
    if result is not None:
        shown["result"] = {
            name: value for name, value in msgspec.structs.asdict(result).items() if name != "failure"
        }
    if log is not None:
        shown["events"] = log
    return shown


def _print(
    task_id: str, task: TaskInfo | None, result: TaskResult | None, log: list[TaskEvent] | None
) -> None:
    click.echo(f"task {task_id}")
    if task is not None:
        arguments = task.arguments
        call = "(its arguments cannot be read here)"
        if arguments is not None:
            shown = [repr(item) for item in arguments[0]]
            shown += [f"{name}={item!r}" for name, item in arguments[1].items()]
            call = f"({', '.join(shown)})"
        fields(
            [
                ("call", f"{task.name}{call}"),
                ("status", task.status.value),
                ("queue", task.queue_name),
                (
                    "attempts",
                    f"{task.attempts} of {task.max_attempts}"
                    + (f", {task.crashes} crashed" if task.crashes else ""),
                ),
                ("priority", task.priority or None),
                ("unique key", task.unique_key),
                ("enqueued", moment(task.enqueued_at)),
                ("due", moment(task.run_at) if not task.state.is_final else None),
                ("ended", moment(task.completed_at) if task.state.is_final else None),
                ("worker", task.worker_id),
                ("cancelling", "requested" if task.cancel_requested and not task.state.is_final else None),
                ("reason", None if task.error else task.reason),
                ("error", task.error),
            ]
        )
    if result is not None:
        took = result.execution_time
        fields(
            [
                ("status", result.status.value if task is None else None),
                ("result", repr(result.result) if result.status == "success" else None),
                ("run by", result.worker_id),
                ("took", None if took is None else f"{took:.3f} s"),
                ("expires", moment(result.expires_at) if result.expires_at else None),
            ]
        )
    trace = (result.error_traceback if result else None) or (task.error_traceback if task else None)
    if trace:
        click.echo(f"\n{trace.rstrip()}")
    if log is not None:
        click.echo("\nevents")
        for event in log:
            note = event.error or event.message or ""
            who = f" by {event.worker_id}" if event.worker_id else ""
            click.echo(f"  {moment(event.timestamp)}  {event.event_type:<12}{who}  {note}".rstrip())
