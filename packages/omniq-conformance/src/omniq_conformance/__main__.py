"""``python -m omniq_conformance``: run the suite against a URL, list its tests, or make a table of reports."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omniq_core import OmniQError, Url, backend_class


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m omniq_conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="hold the backend of a URL against the suite; 0 if it is conformant"
    )
    run.add_argument("--url", required=True, help="a storage that may be filled with tests' data")
    run.add_argument("--report", metavar="FILE", help="write the report as JSON")
    run.add_argument("--examples", type=int, default=30, metavar="N", help="random histories")
    run.add_argument("--lease-s", type=float, default=0.3, help="shortest lease, where real time must pass")
    run.add_argument("--timeout-s", type=float, default=10.0, help="per test")
    run.add_argument("-k", metavar="EXPRESSION", help="only some tests; the verdict is then 'incomplete'")
    run.add_argument("--allow-unavailable", action="store_true")
    table = commands.add_parser("table", help="a Markdown table of some reports")
    table.add_argument("files", nargs="+", type=Path)
    commands.add_parser("list", help="every test with its level and topic")
    chosen = parser.parse_args(arguments)
    if chosen.command == "run":
        return _run(chosen)
    if chosen.command == "table":
        from omniq_conformance.report import read_report
        from omniq_conformance.table import render_table

        sys.stdout.write(render_table(read_report(file) for file in chosen.files))
        return 0
    from omniq_conformance.catalogue import all_checks

    for check in all_checks():
        sys.stdout.write(f"{check.level} {check.topic} {check.test}\n")
    return 0


def _run(chosen: argparse.Namespace) -> int:
    from omniq_conformance.url_suite import VARIABLE, folder_of

    try:
        backend_class(Url.parse(chosen.url).scheme).from_url(chosen.url)
    except OmniQError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    environ = os.environ | {
        VARIABLE: chosen.url,
        "OMNIQ_CONFORMANCE_LEASE_S": str(chosen.lease_s),
        "OMNIQ_CONFORMANCE_TIMEOUT_S": str(chosen.timeout_s),
    }
    with tempfile.TemporaryDirectory() as folder:
        # A configuration of its own: the project that this is started in may have other ideas about pytest.
        config = Path(folder, "pytest.ini")
        config.write_text("[pytest]\n", "utf-8")
        options = ["-c", str(config), "--rootdir", folder, "-p", "no:cacheprovider", "--tb=short", "-q"]
        options += ["--omniq-examples", str(chosen.examples)]
        if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
            options += ["-p", "omniq_conformance.pytest_shim"]
        if chosen.report:
            options += ["--omniq-report", str(Path(chosen.report).absolute())]
        if chosen.k:
            options += ["-k", chosen.k]
        if chosen.allow_unavailable:
            options += ["--omniq-allow-unavailable"]
        try:
            # A process of its own: pytest rewrites assertions only of what was not imported yet.
            command = [sys.executable, "-m", "pytest", *options, "--pyargs", "omniq_conformance.url_suite"]
            environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # else it leaves a folder where it was started
            code = subprocess.run(command, env=environ, check=False).returncode
        finally:
            place = folder_of(chosen.url.partition("?")[0])
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
