"""A few hundred real tasks on one SQLite file, run by a worker in a process of its own.

    python examples/quickstart/run.py

It surveys the modules of Python's own standard library: plain and async tasks, some that fail and are retried, some that
fail for good. It waits for all results, prints what the event log has to say, and checks that the numbers add up.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from omniq import TaskHandle, TaskResult

HERE = Path(__file__).parent
FILES, PUBLISHED, DRAFTS = 140, 30, ["def (:", "x = = 1", "while"]
T = TypeVar("T")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="omniq-quickstart-") as folder:
        os.environ["QUICKSTART_DB"] = str(Path(folder) / "quickstart.db")
        sys.path.insert(0, str(HERE))
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "omniq",
                "worker",
                "tasks:oq",
                "--concurrency",
                "16",
                "--log-level",
                "ERROR",
            ],
            cwd=HERE,
            stdin=subprocess.DEVNULL,
        )
        try:
            return run(worker)
        finally:
            worker.kill()
            worker.wait()


def run(worker: subprocess.Popen[bytes]) -> int:
    from tasks import checksum, compile_draft, oq, publish, survey

    files = [str(path) for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))][:FILES]
    started = time.perf_counter()
    with oq:  # opens the stores; the worker is elsewhere
        surveys = survey.enqueue_many([path] for path in files)
        checksums = checksum.enqueue_many([path] for path in files)
        published = publish.enqueue_many([path] for path in files[:PUBLISHED])
        drafts = [compile_draft.enqueue(text) for text in DRAFTS]
        total = len(surveys) + len(checksums) + len(published) + len(drafts)
        print(f"enqueued {total} tasks in {time.perf_counter() - started:.2f} s", file=sys.stderr)

        handles = [*surveys, *checksums, *published, *drafts]
        deadline = started + 50
        ended = [wait(handle, worker, deadline) for handle in progress(handles)]
        took = time.perf_counter() - started

        if None in ended:
            print(f"{ended.count(None)} of {total} tasks have not ended", file=sys.stderr)
            return 1
        found = [handle.result(timeout=0) for handle in surveys]
        longest = max(zip(files, found, strict=True), key=lambda pair: pair[1].longest_lines)

        # A worker writes its last events when it stops, so that the log is complete now.
        worker.terminate()
        exit_code = worker.wait(timeout=40)
        events = oq.get_events()

    counts = Counter(event.event_type for event in events)
    runs = [
        event.execution_time for event in events if event.event_type == "completed" and event.execution_time
    ]
    print(f"\n{total} tasks in {took:.1f} s, as the event log tells:")
    for kind in ("enqueued", "executing", "retry", "completed", "error"):
        print(f"  {kind:<10} {counts[kind]:>5}")
    print(
        f"  a run took {statistics.median(runs) * 1000:.1f} ms in the middle, {max(runs) * 1000:.0f} ms at most"
    )
    print(f"The {len(files)} files have {sum(one.lines for one in found):,} lines in")
    print(f"{sum(one.functions for one in found):,} functions. The longest is {longest[1].longest}()")
    print(f"in {Path(longest[0]).name}, with {longest[1].longest_lines} lines.")
    kept = sorted({result.error.partition(":")[0] for result in ended if result is not None and result.error})
    print(f"Errors that were kept: {', '.join(kept)}.")

    lines_here = sum(len(Path(path).read_text("utf-8", errors="replace").splitlines()) for path in files)
    expected = {
        "every task was enqueued once": (counts["enqueued"], total),
        "every task ended well or for good": (counts["completed"] + counts["error"], total),
        "the drafts failed, and nothing else": (counts["error"], len(drafts)),
        "every publication was retried once": (counts["retry"], len(published)),
        "every run is in the log": (counts["executing"], total + len(published)),
        "second attempts": ([handle.result(timeout=0) for handle in published], [2] * len(published)),
        "the surveys counted every line": (sum(one.lines for one in found), lines_here),
        "no two files have one checksum": (
            len({handle.result(timeout=0) for handle in checksums}),
            len(set(files)),
        ),
        "the worker stopped cleanly": (exit_code, 0),
    }
    wrong = {what: pair for what, pair in expected.items() if pair[0] != pair[1]}
    for what, (is_, should) in wrong.items():
        print(f"WRONG: {what}: {is_}, expected {should}", file=sys.stderr)
    print("The numbers do not add up." if wrong else "The numbers add up.")
    oq.close()
    return 1 if wrong else 0


def wait(handle: TaskHandle[object], worker: subprocess.Popen[bytes], deadline: float) -> TaskResult | None:
    """How a task ended; ``None`` if the time is up or the worker has died before."""
    while (left := deadline - time.perf_counter()) > 0:
        result = handle.get(timeout=min(left, 2))
        if result is not None or worker.poll() is not None:
            return result
    return None


def progress(items: Sequence[T]) -> Iterable[T]:
    """The items one by one, with a bar on stderr: by rich where it is installed, of plain text otherwise."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return plain_progress(items)
    return track(items, description="waiting", console=Console(stderr=True))


def plain_progress(items: Sequence[T]) -> Iterator[T]:
    width = 40
    for number, item in enumerate(items, start=1):
        yield item
        if sys.stderr.isatty() or number == len(items):
            filled = width * number // len(items)
            print(f"\rwaiting [{'#' * filled:<{width}}] {number}/{len(items)}", end="", file=sys.stderr)
    print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
