"""Tasks per second of the execution environments, and the memory of the warm one over many tasks, in one run.

    python tests/bench/bench_service.py [--tasks N] [--warm-tasks N]

The modes take turns, so that a change of the machine's speed meets all of them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from modelops_contracts import SimTask, UniqueParameterSet

from modelops.adapters.bundle import LocalBundleRepository
from modelops.adapters.exec_env.cold_debug import ColdDebugExecEnv
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv
from modelops.adapters.exec_env.warm import IsolatedWarmExecEnv

BUNDLE = Path(__file__).resolve().parent.parent / "bundles" / "hello"
ROUNDS = 3


def task(reference: str, seed: int) -> SimTask:
    return SimTask(reference, "hello.wire/main", UniqueParameterSet.from_dict({"name": "world"}), seed)


def seconds_for(env: SandboxedExecEnv, reference: str, count: int) -> float:
    begun = time.perf_counter()
    for seed in range(count):
        result = env.run(task(reference, seed))
        assert result.error is None, result
    return time.perf_counter() - begun


def memory_of(process: psutil.Process) -> int:
    """Bytes of this process and all that it started (proportional set sizes, so shared pages count once)."""
    return sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20, help="tasks of each mode in a round")
    parser.add_argument("--warm-tasks", type=int, default=10_000, help="tasks of the memory run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        (Path(folder) / "bundles").mkdir()
        repository = LocalBundleRepository(Path(folder) / "bundles")
        reference = repository.add(BUNDLE)
        storage = Path(folder) / "storage"
        modes: dict[str, SandboxedExecEnv] = {
            "warm": IsolatedWarmExecEnv(repository, storage_dir=storage),
            "cold, REUSE=1": ColdDebugExecEnv(repository, storage_dir=storage, env={"REUSE": "1"}),
            "cold, fresh": ColdDebugExecEnv(repository, storage_dir=storage, env={"REUSE": "0"}),
        }
        try:
            times: dict[str, list[float]] = {name: [] for name in modes}
            for env in modes.values():
                seconds_for(env, reference, 1)
            for _ in range(ROUNDS):
                for name, env in modes.items():
                    times[name].append(seconds_for(env, reference, options.tasks))
            rates = {name: options.tasks / statistics.median(seconds) for name, seconds in times.items()}
            for name, rate in rates.items():
                print(f"{name:14} {rate:8.1f} tasks/s, {rate / rates['cold, fresh']:6.1f} x cold fresh")
            memory = measure_memory(modes["warm"], reference, options.warm_tasks)
        finally:
            for env in modes.values():
                env.shutdown()
    print(json.dumps({"tasks_per_second": rates, "warm_memory_bytes": memory}))
    return 0


def measure_memory(env: SandboxedExecEnv, reference: str, count: int) -> dict[str, int]:
    """Memory after 100 warm tasks and after `count`, with the time of the first and the last hundred."""
    process, found = psutil.Process(), {}
    first = seconds_for(env, reference, 100)
    found["after 100"] = memory_of(process)
    seconds_for(env, reference, count - 200)
    last = seconds_for(env, reference, 100)
    found[f"after {count}"] = memory_of(process)
    for name, size in found.items():
        print(f"warm memory {name} tasks: {size / 2**20:.1f} MiB")
    print(f"time of the last hundred over the first: {last / first:.2f}")
    return found


if __name__ == "__main__":
    sys.exit(main())
