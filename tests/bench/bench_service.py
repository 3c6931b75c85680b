"""Tasks per second of the execution environments and of a study, and their memory over many tasks, in one run.

    python tests/bench/bench_service.py [--tasks N] [--warm-tasks N] [--study-tasks N] [--only environments|study]

The modes take turns, so that a change of the machine's speed meets all of them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from modelops_contracts import SimTask, UniqueParameterSet

from modelops.adapters.bundle import LocalBundleRepository
from modelops.adapters.exec_env.cold_debug import ColdDebugExecEnv
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv
from modelops.adapters.exec_env.warm import IsolatedWarmExecEnv
from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.study import Study
from modelops.services.study_folder import StudyFolder
from modelops.services.study_inputs import parameter_sets
from modelops.services.study_run import Ended, StudyRun
from modelops.worker.settings import WorkerSettings

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
ENTRYPOINTS = {"sir": "sir.model/baseline", "hello": "hello.wire/main"}
ROUNDS = 3
THREADS = 2
STUDY_ROUNDS = 3  # of a mode each


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
    total = 0
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # the task before ends
            total += member.memory_full_info().pss
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20, help="tasks of each mode in a round")
    parser.add_argument("--warm-tasks", type=int, default=10_000, help="tasks of the memory run")
    parser.add_argument("--study-tasks", type=int, default=12_000, help="tasks of the study whose memory is looked at")
    parser.add_argument("--round-tasks", type=int, default=1500, help="tasks of each mode in a round before that")
    parser.add_argument("--study-bundle", choices=sorted(ENTRYPOINTS), default="sir")
    parser.add_argument("--only", choices=["environments", "study"])
    options = parser.parse_args()
    found = {}
    if options.only != "study":
        found |= measure_environments(options)
    if options.only != "environments":
        found |= measure_study(options.study_bundle, options.study_tasks, options.round_tasks)
    print(json.dumps(found))
    return 0


def measure_environments(options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        (Path(folder) / "bundles").mkdir()
        repository = LocalBundleRepository(Path(folder) / "bundles")
        reference = repository.add(BUNDLES / "hello")
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
    return {"tasks_per_second": rates, "warm_memory_bytes": memory}


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


def measure_study(bundle: str, count: int, each: int) -> dict[str, object]:
    """Tasks of a bundle per second of a study on the embedded cluster, and of as many threads on the warm environment.

    Then one study of `count` tasks: the memory of this process, which is client and scheduler, on the way.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        (folder / "bundles").mkdir()
        repository = LocalBundleRepository(folder / "bundles")
        reference = repository.add(BUNDLES / bundle)
        settings = WorkerSettings(bundle_repository=str(repository.root), storage_dir=str(folder / "storage"))
        rates: dict[str, list[float]] = {"warm environment": [], "study": []}
        with (
            IsolatedWarmExecEnv(repository, storage_dir=folder / "storage") as env,
            ThreadPoolExecutor(THREADS) as pool,
            DaskSimulationService(settings=settings, threads_per_worker=THREADS) as service,
        ):
            for number in range(-1, STUDY_ROUNDS):  # the first warms up
                study = study_of(reference, bundle, each if number >= 0 else 20, number)
                begun = time.perf_counter()
                assert all(
                    result.error is None for result in pool.map(env.run, map(study.task, range(len(study.points))))
                )
                middle = time.perf_counter()
                run_study(service, study, folder / f"study{number}", look=False)
                if number >= 0:
                    rates["warm environment"].append(each / (middle - begun))
                    rates["study"].append(each / (time.perf_counter() - middle))
            for mode, values in rates.items():
                print(f"{mode:18} {statistics.median(values):8.1f} tasks/s", flush=True)
            ratios = [study / warm for warm, study in zip(*rates.values(), strict=True)]
            print(f"study over environment: {statistics.median(ratios):.2f}", flush=True)
            memory = run_study(service, study_of(reference, bundle, count, -2), folder / "large")
        size = sum(path.stat().st_size for path in (folder / "large" / "parts").iterdir())
        print(f"results on disk: {size / 2**20:.1f} MiB")
        return {"study_over_environment": statistics.median(ratios), "study_memory_bytes": memory}


def study_of(reference: str, bundle: str, count: int, number: int) -> Study:
    name = {"sir": "beta", "hello": "name"}[bundle]
    sets = parameter_sets({}, {name: [0.2 + (n + number / 10) / 1e6 for n in range(count)]}, None)
    return Study.product(reference, ENTRYPOINTS[bundle], sets, [1])


def run_study(service: DaskSimulationService, study: Study, out: Path, *, look: bool = True) -> dict[int, int]:
    """Run a study, and return the memory of this process in bytes after some numbers of tasks."""
    memory: dict[int, int] = {}
    done = 0

    def progress(succeeded: bool) -> None:
        nonlocal done
        assert succeeded
        done += 1
        if look and done % max(1, len(study.points) // 6) == 0:
            memory[done] = psutil.Process().memory_full_info().uss
            print(f"client and scheduler after {done} tasks: {memory[done] / 2**20:.1f} MiB", flush=True)

    with StudyFolder(out, study, {}) as folder:
        assert StudyRun(service, folder, progress=progress).run() is Ended.DONE
    return memory


if __name__ == "__main__":
    sys.exit(main())
