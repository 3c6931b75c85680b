"""The search for leaks against three cold runs of each task: python tests/bench/bench_leaks.py [--json] [CASE..]

Both by the same number of runs at once, with what they need in the cache and the environment kept (REUSE=1), each run
in a process and a sandbox of its own. Of the cold runs a sample is made, half of it before the search and half after,
and its time taken times 3 N. `hello` and `counter`, which leaks, also have an aim in seconds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from bench_models import MODELS

from modelops.commands.sandbox_options import workbench
from modelops.debugging.leaks import LeakSearch, jobs_for
from modelops.debugging.tasks import Task
from modelops.debugging.workbench import Workbench

HELLO = {"entrypoint": "main", "params": {}}
COUNTER = """
COUNT = 0
def wire(entrypoint, params, seed):
    global COUNT
    COUNT += seed
    return {"out": str(COUNT)}
"""
SECONDS = 10.0  # that 12 tasks of `hello` and of `counter` may take
SAMPLE = 4  # cold runs, before and after


def counter(folder: Path) -> Path:
    """A bundle whose tasks all change the later ones."""
    folder.mkdir()
    (folder / "probe.py").write_text(COUNTER)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "probe"\nversion = "1"\n[project.entry-points."modelops.wire"]\nexecute = "probe:wire"\n'
    )
    return folder


def cold_seconds(bench: Workbench, task: Task, jobs: int) -> float:
    """Of one cold run, as a share of a sample that runs side by side."""
    begun = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda _: bench.task(task), range(SAMPLE)))
    for outcome in outcomes:
        if outcome.failure:
            sys.exit(str(outcome.failure["error"]))
    return (time.monotonic() - begun) / SAMPLE


def measure(name: str, bundle: Path, first: Task, count: int) -> dict[str, Any]:
    """One row."""
    tasks = [{**first, "seed": seed} for seed in range(1, count + 1)]
    with workbench(str(bundle), None, "default", 600, (), reuse=True) as opened:
        bench = opened.bench
        jobs = jobs_for(bench, os.cpu_count() or 1, psutil.virtual_memory().available)
        bench.task(first)  # whatever has to be fetched and built
        before = cold_seconds(bench, first, jobs)
        begun = time.monotonic()
        found = LeakSearch(bench, tasks, 0, jobs, lambda *_: None).run()
        spent = time.monotonic() - begun
    with workbench(str(bundle), None, "default", 600, (), reuse=True) as opened:
        cold = (before + cold_seconds(opened.bench, first, jobs)) / 2
    row = {"case": name, "tasks": count, "jobs": jobs, "runs": found.runs, "leaks": len(found.leaks)}
    row |= {"seconds": spent, "cold_seconds": 3 * count * cold, "ratio": spent / (3 * count * cold)}
    quick = {"met_seconds": spent < SECONDS} if name in ("hello", "counter") else {}
    return {**row, "met": spent <= 3 * count * cold, **quick}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of counter, {', '.join(MODELS)}")
    parser.add_argument("--tasks", type=int, help="by default 12 of hello and counter, 40 of the others")
    parser.add_argument("--json", action="store_true", help="a line of JSON a case")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in given.cases or ["hello", "counter", "starsim"]:
            bundle = counter(Path(folder) / name) if name == "counter" else MODELS[name]
            file = bundle / "task.json"
            first = json.loads(file.read_text()) if file.exists() else HELLO
            small = name in ("hello", "counter")
            row = measure(name, bundle, {"seed": 1, **first}, given.tasks or (12 if small else 40))
            if given.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{name}: {row['tasks']} tasks, {row['runs']} runs, {row['leaks']} leaks in {row['seconds']:.1f} s,"
                f" {row['ratio']:.2f} of three cold runs of each, {row['jobs']} at once", flush=True
            )  # fmt: skip


if __name__ == "__main__":
    main()
