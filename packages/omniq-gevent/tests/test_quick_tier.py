"""The quick tests of the library, of the contract and of the backends that come with it, once more in a process that gevent
has patched before anything was imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2]
TIER = ["omniq", "omniq-core", "omniq-memory", "omniq-sqlite"]
RUN = "from omniq_gevent.cli import patch; patch(); import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"

LEFT_OUT: Mapping[str, str] = {
    "omniq/tests/rules/test_lifecycle.py": "pure functions: nothing waits, and how things wait is what patching changes",
    "omniq/tests/typing": "runs type checkers, which import nothing of ours",
    "omniq/tests/cli/test_guarantees.py": "looks at processes of its own alone, which nobody has patched",
    "omniq/tests/cli/test_worker.py": "the same; patched ones are test_command.py's and test_worker_checks.py's",
    "omniq/tests/test_import.py::test_importing_omniq_loads_no_backend_no_client_library_and_little_of_omniq": "the same",
    "omniq/tests/test_import.py::test_making_a_program_loads_only_the_backend_that_it_names": "the same",
    "omniq/tests/test_import.py::test_importing_omniq_takes_less_than_150_ms_more_than_an_empty_interpreter": "the same",
    "omniq/tests/engine/test_processes.py": "the process pool refuses a patched process, as test_sync_face.py shows",
    "omniq/tests/engine/test_runs.py::test_a_thousand_tasks_run_exactly_once[sync-process_pool]": "the same",
    "omniq/tests/engine/test_runs.py::test_a_thousand_tasks_run_exactly_once[async-process_pool]": "the same",
    "omniq/tests/engine/test_leases.py::"
    "test_a_task_that_blocks_the_event_loop_for_three_leases_keeps_its_own_and_runs_once": (
        "its rival runs an event loop in a threading.Thread beside the test's own: two in one thread of the system"
    ),
    "omniq/tests/facade/test_portal.py::test_ctrl_c_ends_a_waiting_call_and_its_coroutine": (
        "it sends a signal to threading.get_ident(), which is no thread's number there; test_sync_face.py has its own"
    ),
    "omniq/tests/facade/test_portal.py::test_interrupts_at_any_moment_leave_the_portal_in_order": "the same",
}
"""Tests that ask what patching takes away, or nothing of the patched process, and why."""


@pytest.mark.slow
@pytest.mark.timeout(660)  # a minute where nobody else works
def test_the_quick_tests_pass_in_a_process_that_gevent_has_patched(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    with report.open("w") as output:
        try:
            code = subprocess.run(
                [
                    sys.executable, "-c", RUN, "-p", "no:cacheprovider", "-v", "-m", "not slow",
                    "-o", "faulthandler_timeout=100",  # where a test that hangs stands
                    # Of how threads and loops meet under patching a few histories tell as much; the unpatched tier searches.
                    "--omniq-examples=6",
                    *(str(PACKAGES / name / "tests") for name in TIER),
                    *(f"--deselect=packages/{test}" for test in LEFT_OUT),
                ],
                cwd=PACKAGES.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=600,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
    assert code == 0, report.read_text("utf-8")[-20_000:]
