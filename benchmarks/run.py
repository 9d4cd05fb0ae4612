"""OmniQ beside what its users would pick instead, and beside the raw clients, in one run on one machine.

Run by ``nox -s bench -- ARGUMENTS``; README.md beside this file says what is measured and how everyone is set.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import report, stores  # noqa: E402 - found through the line above
from benchmarks.plan import LAYERS, PLAN, Variant, parameters  # noqa: E402

PATIENCE_S = 600
"""The longest that one scenario may take."""


class Driver:
    """The process that measures one variant; see ``driver.py``."""

    def __init__(self, variant: Variant, store: stores.Store, folder: Path) -> None:
        environment = {
            **os.environ,
            "BENCH_STORE": store.name,
            "BENCH_URL": store.url,
            "BENCH_RESULTS": "1" if variant.results else "0",
            "BENCH_OPTIONS": variant.options,
            "BENCH_TALLY": str(folder / "tally"),
            "PYTHONPATH": os.pathsep.join(python_path(variant.module)),
            "PYTHONWARNINGS": "ignore",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.driver", variant.module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder, text=True, bufsize=1,
        )  # fmt: skip
        self.is_gone = False
        self.hello = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.is_gone = True
            what = "ended" if ready else f"said nothing for {PATIENCE_S} s"
            return {"error": f"the measuring process {what}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, scenario: str, parameters: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": scenario, "with": parameters}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def python_path(module: str) -> list[str]:
    """Ours, and before it a peer's own layer of packages (``OMNIQ_BENCH_LAYER_…`` names the folder)."""
    layer = os.environ.get(f"OMNIQ_BENCH_LAYER_{LAYERS.get(module, '').upper()}")
    inherited = os.environ.get("PYTHONPATH", "")
    return [*([layer] if layer else []), str(HERE.parent), *([inherited] if inherited else [])]


def import_ms(statement: str, module: str, rounds: int) -> float:
    """How much longer an interpreter takes that runs ``statement``, in turns with an empty one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path(module))}

    def once(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        return (time.perf_counter() - began) * 1000

    once(statement)  # writes the .pyc files
    pairs = [(once(statement), once("pass")) for _ in range(rounds)]
    return statistics.median(busy - empty for busy, empty in pairs)


def machine() -> dict[str, Any]:
    model = ""
    memory = 0.0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except OSError:  # not Linux: these two facts are missing
        pass
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def measure(store: stores.Store, variants: list[Variant], arguments: argparse.Namespace) -> report.Run:
    run = report.Run(store.name, store.settings, machine(), quick=arguments.quick, repeat=arguments.repeat)
    only = [word.strip() for word in arguments.only.split(",")] if arguments.only else []
    for turn in range(arguments.repeat):
        for variant in variants:
            wanted = [
                name
                for name in variant.scenarios
                if (not only or name in only) and not (turn and name in report.ONCE)
            ]
            groups = [[name] for name in wanted] if store.lives_in_driver else [wanted]
            for group in groups:
                if group and not measure_group(run, store, variant, group, turn, quick=arguments.quick):
                    break
            if turn == 0 and variant.results and not variant.options and (not only or "import" in only):
                for figure, statement in run.imports(variant).items():
                    took = import_ms(statement, variant.module, 5 if arguments.quick else 11)
                    run.add(variant, "import", {"figures": {figure: took}})
                    print(f"  1 {variant.label}: {statement}: {took:.0f} ms", flush=True)
    return run


def measure_group(
    run: report.Run, store: stores.Store, variant: Variant, group: list[str], turn: int, *, quick: bool
) -> bool:
    """Some scenarios in one measuring process; whether there is a point in going on with this variant."""
    with tempfile.TemporaryDirectory(prefix="omniq-bench-") as folder:
        store.wipe()
        driver = Driver(variant, store, Path(folder))
        try:
            if "ready" not in driver.hello:
                why = driver.hello.get("absent") or driver.hello.get("error", "?")
                run.miss(variant, "*", why)
                print(f"  {variant.label}: left out: {why}", flush=True)
                return False
            run.meet(variant, driver.hello["ready"])
            for scenario in group:
                store.wipe()
                sizes = parameters(scenario, quick=quick, pace=driver.hello["ready"]["pace"])
                began = time.monotonic()
                answer = driver.ask(scenario, sizes)
                run.add(variant, scenario, answer)
                took = time.monotonic() - began
                print(
                    f"  {turn + 1} {variant.label}: {scenario}: {report.short(answer)} [{took:.0f} s]",
                    flush=True,
                )
                if driver.is_gone:
                    return False
        finally:
            driver.stop()
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--store",
        default="memory,sqlite",
        help="of memory,sqlite,file,redis,postgres,nats; default: %(default)s",
    )
    parser.add_argument("--only", default="", help="scenarios, comma separated: 'drain,idle'; default: all")
    parser.add_argument(
        "--peers",
        default="",
        help="subjects, comma separated: 'omniq,huey'; 'none': only ours and the raw clients",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small numbers, once: does it work? Not for figures"
    )
    parser.add_argument(
        "--repeat", type=int, default=None, help="the median of so many is reported; default 3, quick 1"
    )
    parser.add_argument(
        "--redis", choices=("valkey", "redis"), default="valkey", help="whose server; default: %(default)s"
    )
    parser.add_argument("--aof", action="store_true", help="start it with appendonly, fsynced every second")
    parser.add_argument(
        "--json",
        type=Path,
        default=None,
        help="where the figures go; default benchmarks/results/DATE-STORE.json; with --quick nowhere",
    )
    arguments = parser.parse_args()
    arguments.repeat = arguments.repeat or (1 if arguments.quick else 3)
    return arguments


def main() -> int:
    arguments = parse()
    chosen = {word.strip() for word in arguments.peers.split(",") if word.strip()}
    failed = False
    for name in [word.strip() for word in arguments.store.split(",") if word.strip()]:
        if name not in PLAN:
            sys.exit(f"unknown store {name!r}; there are {', '.join(PLAN)}")
        variants = [
            variant
            for variant in PLAN[name]
            if not chosen or variant.module in chosen or (chosen == {"none"} and variant.kind != "peer")
        ]
        print(f"== {name}", flush=True)
        with stores.opened(name, redis=arguments.redis, aof=arguments.aof) as store:
            run = measure(store, variants, arguments)
        print(run.text())
        path = arguments.json
        if path is None and not arguments.quick:
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            kind = name if name != "redis" else arguments.redis + ("-aof" if arguments.aof else "")
            path = HERE / "results" / f"{date}-{kind}.json"
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(run.data(), indent=1) + "\n", encoding="utf-8")
        failed = failed or run.has_errors
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
