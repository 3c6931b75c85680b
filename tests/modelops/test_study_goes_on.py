"""A published study on a bundle with its model: stopped at any moment, it goes on, with the same tables in the end."""

import json
import os
import pty
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import dask
import polars
import psutil
import pytest
from conftest import write_bundle
from environments import Environments, runners, wait_until
from typer.testing import CliRunner, Result

from modelops.adapters.bundle.registry import REGISTRY
from modelops.cli import app
from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.study import Study
from modelops.services.study_folder import StudyFolder
from modelops.services.study_inputs import parameter_sets
from modelops.services.study_run import Ended, StudyRun
from modelops.worker.settings import WorkerSettings

SOBOL = Path(__file__).resolve().parent.parent / "studies" / "sobol.json"
WIRE = """
import json
import random
import time

def wire(entrypoint, params, seed):
    if entrypoint != "models.sir/baseline":
        raise ValueError(entrypoint)
    time.sleep(PAUSE)
    infected = [1]
    for _ in range(50):
        chance = random.Random(seed + len(infected)).random()
        infected.append(infected[-1] * (1 + params["beta"] * chance - 1 / params["dur_inf"]))
    return {"prevalence": json.dumps(infected), "large": json.dumps(infected) * 600}
"""
TARGETS = """
import json

def peak(sim_returns):
    peaks = [max(json.loads(sim["outputs"]["prevalence"]["inline"])) for sim in sim_returns]
    return {"loss": sum(peaks) / len(peaks), "diagnostics": {"peaks": peaks}}
"""
NAMES = "targets: {peak: {entrypoint: 'targets.fit:peak', path: targets/fit.py, model_output: prevalence}}"


def bundle_of(tmp_path: Path, pause: float) -> Path:
    files = {"targets/fit.py": TARGETS, str(REGISTRY): NAMES}
    return write_bundle(tmp_path / "source", WIRE.replace("PAUSE", str(pause)), files=files)


class Command:
    """`modelops study` as a process, in a process group of its own as a shell makes one."""

    def __init__(self, tmp_path: Path, store: Path, bundle: Path) -> None:
        self.tmp_path, self.bundle, self.store = tmp_path, bundle, store
        self.seconds_to_end, self.checks = 0.0, False

    def words(self, out: Path, file: Path = SOBOL) -> list[str]:
        check = [] if self.checks else ["--no-check"]
        return ["study", str(file), "--bundle", str(self.bundle), *check, "--out", str(out), "--threads", "2"]

    def start(self, out: Path, *arguments: str, file: Path = SOBOL, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "modelops", *self.words(out, file), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "200"}
        environment.setdefault("MODELOPS_RUNNER_STORE_DIR", str(self.store))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes)

    def run(self, out: Path, *arguments: str, status: int = 0, file: Path = SOBOL) -> tuple[dict[str, Any], str]:
        """The summary and standard error of a run to its end."""
        done = self.here(out, *arguments, file=file)
        assert done.exit_code == status and "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if done.stdout else {}, done.stderr

    def here(self, out: Path, *arguments: str, file: Path = SOBOL) -> Result:
        """In this process, for what no signal ends: to start another takes longer."""
        store = os.environ.get("MODELOPS_RUNNER_STORE_DIR", str(self.store))
        env = {"MODELOPS_RUNNER_STORE_DIR": store, "COLUMNS": "200"}
        return CliRunner(env=env).invoke(app, [*self.words(out, file), *arguments], catch_exceptions=False)

    def interrupt(self, process: "subprocess.Popen[str]", number: signal.Signals, again: float | None = None) -> str:
        """Signal the whole group as a terminal does, or kill the process alone; its standard error, once no process of
        it is left. With `again`, a second signal comes so many seconds later."""
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            family.append(psutil.Process(process.pid))
            family += family[0].children(recursive=True)
        begun = time.monotonic()
        with suppress(ProcessLookupError):
            (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
            if again is not None:
                time.sleep(again)
                os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=300)
        self.seconds_to_end = time.monotonic() - begun
        wait_until(lambda: not any(alive(member) for member in family), "a process outlived the study")
        wait_until(lambda: not runners(self.tmp_path), "a runner outlived the study")
        return str(stderr)


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.fixture
def command(tmp_path: Path, store: Path) -> Command:
    return Command(tmp_path, store, bundle_of(tmp_path, 0.5))


def tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What a study found, without what it measured."""
    found = {name: polars.read_parquet(out / f"{name}.parquet") for name in ("results", "outputs", "losses", "tasks")}
    measured = [name for name in found["tasks"].columns if name in ("started", "seconds") or name.startswith("metric.")]
    found["tasks"] = found["tasks"].drop(measured)
    return {name: table.to_dicts() for name, table in found.items()}


def rows_written(out: Path) -> list[int]:
    """The points of all results that were ever written, as often as they were."""
    database = out / "results.sqlite"
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as db:
        return [point for (point,) in db.execute("SELECT point FROM simulations")]


def wait_for_results(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    wait_until(
        lambda: process.poll() is not None or len(rows_written(out)) >= count,
        "no results were written",
        120,
    )


def on_a_terminal(command: Command, out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The summary of a run to its end, and what stood on its terminal."""
    terminal, slave = pty.openpty()
    process = command.start(out, *arguments, stderr=slave)
    os.close(slave)
    seen = b""
    with suppress(OSError):  # the end of a terminal
        while data := os.read(terminal, 65536):
            seen += data
    stdout, _ = process.communicate(timeout=300)
    os.close(terminal)
    assert process.returncode == 0, seen.decode()
    return json.loads(stdout), seen.decode()


def test_a_published_study(command: Command, tmp_path: Path) -> None:
    summary, seen = on_a_terminal(command, tmp_path / "out", "--target", "peak")
    assert "12/12" in seen and "/s" in seen and "0 failed" in seen
    assert summary["simulations"] == {"succeeded": 8, "failed": 0, "not_run": 0}, seen
    assert (summary["entrypoint"], summary["targets"]) == ("models.sir/baseline", {"peak": "targets.fit:peak"})
    found = tables(tmp_path / "out")
    betas = [entry["params"]["beta"] for entry in json.loads(SOBOL.read_text())["parameter_sets"]]
    assert [row["param.beta"] for row in found["results"]] == [beta for beta in betas for _ in range(2)]
    assert found["results"][0]["seed"] == 1486892828
    for row in found["losses"]:
        mine = [sim for sim in found["outputs"] if sim["param_id"] == row["param_id"] and sim["name"] == "prevalence"]
        peaks = [max(json.loads(sim["content"])) for sim in mine]
        assert row["loss"] == sum(peaks) / 2 and row["n_replicates"] == 2
    again, _ = command.run(tmp_path / "out", "--target", "peak")
    assert again["tasks"] == 0 and again["executors"] == {} and again["results_digest"] == summary["results_digest"]
    for arguments, words in ([], "another targets"), (["--target", "peak", "--profile", "strict"], "another profile"):
        refused = command.here(tmp_path / "out", *arguments)
        assert refused.exit_code == 2 and words in refused.stderr


def test_a_study_that_is_interrupted_goes_on(
    command: Command, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Ctrl-C, then a kill of the process alone, and then to the end: nothing is run twice, nothing else is printed."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command.run(whole, "--target", "peak")
    process = command.start(parts, "--target", "peak")
    wait_for_results(process, parts, 1)
    stderr = command.interrupt(process, signal.SIGINT)
    record_property("seconds from Ctrl-C to the end", command.seconds_to_end)  # 2 where the machine is not busy
    assert process.returncode == 130 and "the same command goes on" in stderr
    assert "Traceback" not in stderr and "ERROR" not in stderr, stderr
    process = command.start(parts, "--target", "peak")
    wait_for_results(process, parts, len(rows_written(parts)) + 1)
    command.interrupt(process, signal.SIGKILL)
    command.run(parts, "--target", "peak")
    assert tables(parts) == tables(whole)
    assert sorted(rows_written(parts)) == list(range(8))


def reached(moment: str, command: Command, process: "subprocess.Popen[str]") -> bool:
    if process.poll() is not None:
        return True
    if moment == "the check":
        return bool(runners(command.tmp_path))
    if moment == "its work":
        return bool(rows_written(command.tmp_path / "out"))
    begun = {"a worker": "spawn_main", "the cluster": "resource_tracker"}[moment]
    children = psutil.Process(process.pid).children()
    return any(begun in word for child in children for word in child.cmdline())


@pytest.mark.parametrize(
    ("moment", "number", "again"),
    [
        ("the check", signal.SIGINT, None),
        ("the cluster", signal.SIGINT, 0.05),
        ("a worker", signal.SIGTERM, None),
        ("its work", signal.SIGINT, 0.2),
        *(
            pytest.param(*row, marks=pytest.mark.full("the same moment with another signal, or the same signal later"))
            for row in (
                ("the check", signal.SIGTERM, None),
                ("the cluster", signal.SIGINT, None),
                ("a worker", signal.SIGINT, None),
                ("a worker", signal.SIGINT, 0.05),
                ("its work", signal.SIGINT, 0.0),
            )
        ),
    ],
)
def test_a_study_that_is_stopped(
    command: Command,
    tmp_path: Path,
    moment: str,
    number: signal.Signals,
    again: float | None,
    record_property: Callable[[str, object], None],
) -> None:
    """While a sandbox checks the bundle, while the cluster starts, while its first worker does, or twice: it says one
    thing, and nothing is left of it."""
    command.checks = moment == "the check"
    process = command.start(tmp_path / "out")
    wait_until(lambda: reached(moment, command, process), "it does not begin", 120)
    stderr = command.interrupt(process, number, again)
    record_property("seconds to the end", command.seconds_to_end)  # 2 where the machine is not busy
    assert process.returncode == 128 + number, stderr
    said = [line for line in stderr.splitlines() if " runs tasks in the warm environment" not in line]
    assert len(said) == 1 and "the same command" in said[0], stderr
    assert not [*tmp_path.rglob(".working-*")]


@pytest.mark.full("ten starts of a study, each killed")
def test_ten_random_moments(command: Command, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    begun = time.monotonic()
    command.run(whole, "--target", "peak")
    seconds = time.monotonic() - begun
    moments = random.Random(16)
    for number in range(10):
        process = command.start(parts, "--target", "peak")
        with suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, seconds))
        command.interrupt(process, signal.SIGKILL if number % 2 else signal.SIGINT)
    command.run(parts, "--target", "peak")
    assert tables(parts) == tables(whole)
    assert sorted(rows_written(parts)) == list(range(8))


def test_failures_stop_a_study_and_are_tried_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, file = tmp_path / "out", tmp_path / "forty.json"
    sets = [{"beta": n / 100, "dur_inf": 5.0} for n in range(40)]
    file.write_text(json.dumps({"model": "models.sir", "scenario": "baseline", "parameter_sets": sets}))
    command.bundle = bundle_of(tmp_path / "quick", 0)
    (tmp_path / "no store").write_text("a file")
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(tmp_path / "no store"))
    summary, stderr = command.run(out, "--max-failures", "5%", status=1, file=file)
    counts = summary["simulations"]
    assert counts["failed"] > 2 and counts["not_run"] > 0 and counts["succeeded"] == 0
    assert "stopped by --max-failures" in stderr
    monkeypatch.delenv("MODELOPS_RUNNER_STORE_DIR")
    later, _ = command.run(out, status=1, file=file)
    assert later["simulations"] == {"succeeded": counts["not_run"], "failed": counts["failed"], "not_run": 0}
    last, _ = command.run(out, "--retry-failed", file=file)
    assert last["simulations"] == {"succeeded": 40, "failed": 0, "not_run": 0}
    assert last["tasks"] == counts["failed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1-3"], "--seeds can't go with"),
        (["--target", "absent"], "no target"),
        (["--max-failures", "many"], "neither a number"),
        (["--bundle", "absent"], "not a bundle reference"),
        (["--bundle", "absent"], "no directory 'absent'"),
        (["--profile", "absent"], "no profile 'absent'"),
        (["--scheduler", "nowhere"], "no address of a Dask scheduler"),
        (["--target-data", "{"], "--target-data is not JSON"),
        (["--target-data", "@absent"], "'absent': No such file"),
    ],
)
def test_a_published_study_that_cannot_begin(
    command: Command, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = command.here(tmp_path / "out", *arguments)
    assert done.exit_code == 2 and words in done.stderr and not (tmp_path / "out").exists()


def test_a_scheduler_that_is_not_there(command: Command, tmp_path: Path) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        done = command.here(tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1")
    assert done.exit_code == 2 and "the Dask scheduler 'tcp://127.0.0.1:1' can't be reached" in done.stderr


@pytest.fixture
def service(environments: Environments, store: Path) -> Iterator[DaskSimulationService]:
    settings = WorkerSettings(
        bundle_repository=str(environments.repository.root),
        runner_store_dir=str(store),
        venvs_dir=str(environments.tmp_path / "venvs"),
    )
    with DaskSimulationService(settings=settings, n_workers=2, threads_per_worker=1) as made:
        yield made


@pytest.mark.full("workers that die again and again")
def test_workers_that_die_lose_no_task(
    service: DaskSimulationService, environments: Environments, tmp_path: Path
) -> None:
    code = "import time\n\ndef wire(entrypoint, params, seed):\n    time.sleep(0.05)\n    return {'y': str(seed)}\n"
    sets = parameter_sets({}, {"a": list(range(100))}, None)
    study = Study.product(environments.add(code), "probe.model/base", sets, [1, 2, 3])
    with StudyFolder(tmp_path / "out", study, {}) as folder:
        ended = 0

        def progress(succeeded: bool) -> None:
            nonlocal ended
            ended += 1
            if ended % 60 == 30:
                victims = list(service.client.run(os.getpid).values())
                os.kill(victims[ended // 60 % len(victims)], signal.SIGKILL)

        assert StudyRun(service, folder, progress=progress).run() is Ended.DONE
        assert folder.simulations == dict.fromkeys(range(300), True)
    assert sorted(rows_written(tmp_path / "out")) == list(range(300))
