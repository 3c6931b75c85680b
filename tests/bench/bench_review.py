"""What a trace of a task with many system calls takes, on disk and in memory to read, and a review against cold runs.

    python tests/bench/bench_review.py [--calls N]

The calls are opens of one file by its path: of a kind that is traced, each a line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SIR = HERE.parent / "bundles" / "sir"
TASK = '{"entrypoint": "sir.model/baseline", "params": {}, "seed": 1}'
READ = """
import resource, sys
from pathlib import Path
from modelops.review.facts import Facts
from modelops.review.traces import read_traces
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
phases = list(read_traces(Facts(), Path(sys.argv[1]), "task", True))
print(sum(p.lines for p in phases), sum(p.unread for p in phases), sum(p.cut_bytes for p in phases), before,
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def trace_of(calls: int, folder: Path) -> None:
    """Run a task that makes so many calls under --trace, and read it in a process of its own."""
    sys.path.insert(0, str(HERE.parent))
    from conftest import write_bundle

    code = "import os\ndef wire(entrypoint, params, seed):\n"
    code += f"    for number in range({calls} // 2):\n        os.access('/bundle/probe.py', os.R_OK)\n"
    code += "        os.access('/tmp/' + str(number), os.R_OK)\n    return {'out': b'done'}\n"
    bundle = write_bundle(folder / "bundle", code)
    runner = [sys.executable, str(HERE.parents[1] / "tools" / "ultra_cold_runner.py"), "--bundle-path", str(bundle)]
    runner += ["--profile", "debug", "--trace", str(folder / "traces")]
    began = time.monotonic()
    subprocess.run(runner, input=TASK.encode(), capture_output=True, check=True)
    ran = time.monotonic() - began
    size = sum(path.stat().st_size for path in (folder / "traces").iterdir())
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", READ, str(folder / "traces")], capture_output=True, text=True)
    lines, unread, cut, before, most = map(int, done.stdout.split())
    print(f"{calls} calls: run {ran:.0f} s, {lines} lines ({unread} unread, {cut} bytes cut), {size / 2**20:.0f} MiB,")
    print(
        f"read in {time.monotonic() - began:.0f} s with at most {most >> 10} MiB ({before >> 10} MiB of them modules)"
    )


def review_of_sir(folder: Path) -> None:
    """A review with a task against a cold run of it, in turns; both with what they need in the cache."""
    task = folder / "task.json"
    task.write_text(TASK)
    program = [sys.executable, "-m", "modelops"]
    times: dict[str, list[float]] = {"run": [], "review": []}
    for _ in range(4):
        for name, spent in times.items():
            began = time.monotonic()
            subprocess.run([*program, name, str(SIR), "--task", str(task)], capture_output=True, check=True)
            spent.append(time.monotonic() - began)
    run, review = (min(spent[1:]) for spent in times.values())
    print(
        json.dumps({"run_seconds": round(run, 3), "review_seconds": round(review, 3), "ratio": round(review / run, 2)})
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        review_of_sir(Path(name))
        trace_of(given.calls, Path(name))
