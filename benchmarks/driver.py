"""The process that measures one subject: ``python -m benchmarks.driver MODULE``.

One JSON object per line. In: ``{"do": SCENARIO, "with": {...}}`` on an empty storage. Out: ``{"figures": {...}}``,
``{"skip": WHY}`` or ``{"error": TEXT}``. Whatever the subject prints goes to the error stream. Every subject's process runs
on uvloop where that is installed: those with an asynchronous face gain by it, whoever made them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.scenarios import SCENARIOS, Skip
from benchmarks.subjects.subject import Subject


def describe(subject: Subject) -> dict[str, Any]:
    versions = {}
    for name in subject.distributions:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "?"
    return {
        "versions": versions,
        "pace": subject.pace,
        "bulk": subject.has_bulk,
        "async": subject.is_async,
        "keeps_results": subject.keeps_results,
        "imports": {"ms": subject.imports, "bare_ms": subject.bare_import},
    }


async def serve(subject: Subject, extra: dict[str, Any], out: Any) -> None:
    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    say({"ready": describe(subject)})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            scenario = extra.get(request["do"]) or SCENARIOS[request["do"]]
            await subject.open()
            try:
                figures = await scenario(subject, **request["with"])
            finally:
                await subject.close()
            say({"figures": figures})
        except Skip as reason:
            say({"skip": str(reason)})
        except Exception:
            say({"error": traceback.format_exc()[-4000:]})


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        module = importlib.import_module(f"benchmarks.subjects.{sys.argv[1]}")
    except ImportError as error:
        out.write(json.dumps({"absent": f"{type(error).__name__}: {error}"}) + "\n")
        return
    subject: Subject = module.SUBJECT()
    serving = serve(subject, getattr(module, "SCENARIOS", {}), out)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
