"""Studies of many tasks on the embedded cluster: nothing grows, is lost, is done twice, or is printed at the end.

Hundreds of tasks in the full suite, and with THOROUGH=1 the 12,000 of tests/bench/bench_service.py.
"""

import gc
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from environments import ECHO, Environments, wait_until

from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.study import Study
from modelops.services.study_folder import StudyFolder
from modelops.services.study_inputs import parameter_sets
from modelops.services.study_run import Ended, StudyRun
from modelops.worker.settings import WorkerSettings

THOROUGH = os.environ.get("THOROUGH") == "1"
MANY = 12_000 if THOROUGH else 600
KILL_SECONDS = 10.0
LEAK = 2000  # bytes a task that must be seen
BY_SIR = pytest.param("sir", marks=pytest.mark.full("hundreds of tasks, or thousands"))


@pytest.fixture
def settings(environments: Environments, store: Path) -> WorkerSettings:
    return WorkerSettings(
        bundle_repository=str(environments.repository.root),
        runner_store_dir=str(store),
        venvs_dir=str(environments.tmp_path / "venvs"),
        storage_dir=str(environments.tmp_path / "storage"),
    )


@pytest.fixture(params=["echo", BY_SIR])
def bundle(request: pytest.FixtureRequest, environments: Environments) -> tuple[str, str, int]:
    """A reference, an entry point, and how many tasks of it this suite has time for."""
    if request.param == "echo":
        return environments.add(ECHO), "probe.model/base", 300
    request.getfixturevalue("index")
    return environments.repository.add(ROOT / "tests" / "bundles" / "sir"), "sir.model/baseline", MANY


def study_of(bundle: tuple[str, str, int], count: int) -> Study:
    reference, entrypoint, _ = bundle
    sets = parameter_sets({}, {"beta": [0.2 + n / 1e6 for n in range(count)]}, None)
    return Study.product(reference, entrypoint, sets, [1])


# --- memory


class Held:
    """What studies leave in the memory of this process, which is client and scheduler, while they are still open.

    Bytes that Python allocated, so that what a machine or an allocator does is not in it; results lie on disk by then.
    """

    def __init__(self, service: DaskSimulationService, bundle: tuple[str, str, int], place: Path) -> None:
        self.service, self.bundle, self.place = service, bundle, place
        self.studies = 0

    def by(self, count: int) -> int:
        """Bytes that a study of so many tasks holds at its end, and did not before its first task."""
        self.studies += 1
        with StudyFolder(self.place / f"out{self.studies}", study_of(self.bundle, count), {}) as folder:
            run = StudyRun(self.service, folder)
            before = self.now()
            assert run.run() is Ended.DONE and all(folder.simulations.values())
            return self.now() - before

    def now(self) -> int:
        scheduler = self.service.client.cluster.scheduler
        wait_until(lambda: not scheduler.tasks, "the scheduler forgot no task")
        gc.collect()
        return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def held(settings: WorkerSettings, bundle: tuple[str, str, int], tmp_path: Path) -> Iterator[Held]:
    with DaskSimulationService(settings=settings, threads_per_worker=2) as service:
        tracemalloc.start()
        try:
            found = Held(service, bundle, tmp_path)
            found.by(20)  # what is made once
            yield found
        finally:
            tracemalloc.stop()


def bytes_a_task(held: Held, count: int) -> float:
    """The less of two studies counts: one has 3.8 MB more where the interpreter's table of interned strings doubles."""
    few = count // 3
    of_all, of_few = (min(held.by(number) for _ in range(2)) for number in (count, few))
    return (of_all - of_few) / (count - few)


@pytest.mark.full("hundreds of tasks, twice")
def test_memory_does_not_grow(held: Held, bundle: tuple[str, str, int]) -> None:
    """Beyond what is known of each task, whether it succeeded: about a hundred bytes."""
    assert bytes_a_task(held, bundle[2]) < LEAK / 2


@pytest.mark.full("the control of test_memory_does_not_grow")
def test_a_leak_would_be_seen(held: Held, bundle: tuple[str, str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    keep = StudyRun._keep

    def leaking(self: StudyRun, index: int, timed: Any) -> None:
        kept.append(bytes(LEAK))
        keep(self, index, timed)

    monkeypatch.setattr(StudyRun, "_keep", leaking)
    assert bytes_a_task(held, bundle[2]) > LEAK / 2


# --- workers that die


@pytest.mark.full("hundreds of tasks; the default suite kills one worker, of a service")
def test_workers_that_die_lose_no_task_and_repeat_none(
    settings: WorkerSettings, bundle: tuple[str, str, int], tmp_path: Path
) -> None:
    """Killed with all that runs on them, every ten seconds where there is time for it."""
    count = bundle[2]
    study = study_of(bundle, count)
    ended, kills, killed_at = 0, 0, time.monotonic()
    with (
        DaskSimulationService(settings=settings, n_workers=2, threads_per_worker=1) as service,
        StudyFolder(tmp_path / "out", study, {}) as folder,
    ):

        def progress(succeeded: bool) -> None:
            nonlocal ended, kills, killed_at
            ended += 1
            assert succeeded
            due = time.monotonic() - killed_at > KILL_SECONDS if THOROUGH else ended % (count // 3) == count // 6
            if due and ended < count:
                victims = list(service.client.run(os.getpid).values())
                os.kill(victims[kills % len(victims)], signal.SIGKILL)
                kills, killed_at = kills + 1, time.monotonic()

        assert StudyRun(service, folder, progress=progress).run() is Ended.DONE
        assert folder.simulations == dict.fromkeys(range(count), True)
        found = list(folder.outputs("name"))
    assert kills and ended == count, "a result came twice"
    assert len({*found}) == len(found)


# --- the end

CLOSING = """
import os
import signal
import sys
from pathlib import Path

from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.study import Study
from modelops.services.study_folder import StudyFolder
from modelops.services.study_inputs import parameter_sets
from modelops.services.study_run import Ended, StudyRun
from modelops.worker.settings import WorkerSettings

def main(reference, repository, store, out, rounds, *manners):
    settings = WorkerSettings(bundle_repository=repository, runner_store_dir=store)
    study = Study.product(reference, "probe.model/base", parameter_sets({}, {"n": list(range(40))}, None), [1])
    for number in range(int(rounds)):
        for manner in manners:
            with DaskSimulationService(settings=settings, n_workers=2, threads_per_worker=1) as service:
                with StudyFolder(Path(out, f"{number}-{manner}"), study, {}) as folder:
                    assert StudyRun(service, folder).run() is Ended.DONE
                if manner == "at work":
                    futures = service.simulate([study.task(index) for index in range(40)])
                if manner == "with a dead worker":
                    os.kill(next(iter(service.client.run(os.getpid).values())), signal.SIGKILL)
                print("closing", file=sys.stderr, flush=True)
            print("closed", file=sys.stderr, flush=True)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.full("closes a cluster again and again")
def test_nothing_is_printed_when_it_closes(environments: Environments, store: Path, tmp_path: Path) -> None:
    """In the middle of tasks, just after a worker was killed, and after a study, as often as there is time for."""
    script = tmp_path / "closing.py"
    script.write_text(CLOSING)
    rounds, manners = 40 if THOROUGH else 5, ["at work", "with a dead worker", "done"]
    names = [environments.add(ECHO), environments.repository.root, store, tmp_path / "out", rounds, *manners]
    temporary = tmp_path / "tmp"
    temporary.mkdir(mode=0o711)  # as root, the sandbox's uid passes through here
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}
    before = psutil.Process().children(recursive=True)  # of other tests
    done = subprocess.run(
        [sys.executable, str(script), *map(str, names)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    closings = [number for number, line in enumerate(lines) if line == "closing"]
    assert len(closings) == len(manners) * rounds
    assert all(lines[number + 1] == "closed" for number in closings) and lines[-1] == "closed", done.stderr
    assert "Traceback" not in done.stderr
    assert {*psutil.Process().children(recursive=True)} <= {*before}
    assert [*temporary.iterdir()] == []
