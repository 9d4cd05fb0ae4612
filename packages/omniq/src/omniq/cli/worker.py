"""``omniq worker``: takes tasks and runs them, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from omniq.cli.application import find_application
from omniq.cli.durations import DURATION
from omniq.cli.failure import USAGE, Failed
from omniq_core import MissingCapability, WorkerReport
from omniq_core.native import is_patched

if TYPE_CHECKING:
    from omniq.app import AsyncOmniQ
    from omniq.stores import OpenStores
    from omniq.workers import Worker

__all__ = ["worker"]


@click.command(
    epilog=(
        "SIGINT (Ctrl-C) or SIGTERM once: take nothing new, let running tasks end, exit 0. Twice: give running tasks back "
        "now. Three times: exit at once; what ran is taken over when its lease has ended. "
        "Exit codes: 0 stopped cleanly; 1 failed; 2 wrong usage or import; 3 a backend cannot be reached."
    )
)
@click.argument("app", envvar="OMNIQ_APP")
@click.option(
    "-q",
    "--queues",
    multiple=True,
    metavar="A,B",
    show_envvar=True,
    help="Take tasks from these queues only, in this order. By default from all, the declared ones first.",
)
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1), show_envvar=True, help="How many tasks run at once."
)
@click.option(
    "--type",
    "worker_type",
    metavar="TYPE",
    envvar="OMNIQ_WORKER_TYPE",
    show_envvar=True,
    help="async, thread_pool, process_pool, or a plugin's, as gevent (see omniq-gevent). By default as the program says, "
    "else async.",
)
@click.option("-b", "--burst", is_flag=True, help="Stop when nothing is due and nothing runs.")
@click.option("-n", "--name", show_envvar=True, help="The worker's id. It must be unique.")
@click.option(
    "--shutdown-timeout",
    type=DURATION,
    show_envvar=True,
    help="How long running tasks may go on. [default: 25s]",
)
@click.option(
    "--lease",
    type=DURATION,
    show_envvar=True,
    help="After how long others take over from a dead worker. [default: 30s]",
)
@click.option(
    "-l",
    "--log-level",
    envvar="OMNIQ_LOG_LEVEL",
    show_envvar=True,
    default="INFO",
    show_default=True,
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "DISABLED"], case_sensitive=False),
)
def worker(
    app: str,
    queues: tuple[str, ...],
    concurrency: int | None,
    worker_type: str | None,
    burst: bool,
    name: str | None,
    shutdown_timeout: float | None,
    lease: float | None,
    log_level: str,
) -> int:
    """Runs the tasks of APP (MODULE:ATTRIBUTE, or OMNIQ_APP).

    \b
    omniq worker shop.tasks:oq
    omniq worker shop.tasks:oq -q mail,reports -c 20
    omniq worker shop.tasks:oq --type process_pool --burst
    """
    # Before the program is imported: without a handler, process 1 of a container ignores SIGTERM, however long that takes.
    former = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _set_up_logging(log_level.upper())
        program = find_application(app)
        config: dict[str, Any] = {
            "name": name,
            "shutdown_timeout": shutdown_timeout,
            "lease": lease,
            "queues": [part.strip() for item in queues for part in item.split(",") if part.strip()] or None,
        }
        made = program.make_worker(
            worker_type, concurrency, {key: value for key, value in config.items() if value is not None}
        )
        _banner(app, program, made)
        report = _run(made, burst)
    except (MissingCapability, ValueError) as error:
        raise Failed(str(error), USAGE) from error
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    _farewell(report)
    return 0


def _set_up_logging(level: str) -> None:
    if level == "DISABLED":
        logging.disable(logging.CRITICAL)
        return
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr)
    # DEBUG means ours: client libraries tell more than anybody wants to read.
    logging.getLogger().setLevel("INFO" if level == "DEBUG" else level)
    logging.getLogger("omniq").setLevel(level)


def _leave(number: int, frame: object) -> None:
    # Nothing was taken yet, so this is a clean stop.
    raise SystemExit(0)


def _run(made: Worker, burst: bool) -> WorkerReport:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(made, burst))


def _loop_factory() -> Any:
    if is_patched():  # uvloop would not let the hub run
        return None
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


async def _serve(made: Worker, burst: bool) -> WorkerReport:
    from omniq.engine.signals import install

    uninstall = install(asyncio.get_running_loop(), made.engine)
    try:
        opened = await made.stores.open()
        try:
            await _warn(opened)
            return await made.run(burst=burst)
        finally:
            await opened.close()
    finally:
        uninstall()


async def _warn(opened: OpenStores) -> None:
    """Says what the storage may lose, by its settings now. Nothing that goes wrong here keeps the worker from its work."""
    from omniq.guarantees import guarantees, warnings

    log = logging.getLogger("omniq.worker")
    try:
        for line in warnings(await guarantees(opened)):
            log.warning("%s; see omniq check", line)
    except Exception as error:
        log.warning("what the storage guarantees could not be found out: %s", error)


def _banner(app: str, program: AsyncOmniQ, made: Worker) -> None:
    from omniq import __version__

    settings = made.settings
    queues = ", ".join(settings.queues)
    if settings.and_others:
        queues = f"{queues}, then all others" if queues else "all"
    tasks = sorted((definition.name, definition.source) for definition in program.registry)
    lines = [
        f"OmniQ {__version__} worker {made.engine.worker_id}",
        f"  app          {app}",
        f"  queue        {made.stores.queue!r}",
        f"  results      {made.stores.results!r}",
        f"  events       {made.stores.events!r}" if made.stores.events is not None else "  events       none",
        f"  queues       {queues}",
        f"  concurrency  {settings.max_workers}, {made.worker_type}",
        f"  tasks        {len(tasks)}",
        *(f"               {name}  ({source})" for name, source in tasks[:20]),
    ]
    if len(tasks) > 20:
        lines.append(f"               and {len(tasks) - 20} more")
    lines.append("  Ctrl-C once: finish what runs. Twice: give it back now. Three times: leave.")
    click.echo("\n".join(lines), err=True)


def _farewell(report: WorkerReport) -> None:
    click.echo(
        f"stopped after {report.stopped_at - report.started_at:.1f} s: {report.succeeded} succeeded, "
        f"{report.retried} retried, {report.dead} dead, {report.cancelled} cancelled, {report.released} given back",
        err=True,
    )
