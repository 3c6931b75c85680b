"""A wheel of the project, installed in an empty venv away from the checkout, runs a task and the gates."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from accounts import real_uv
from conftest import write_bundle
from environments import ECHO

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.xdist_group("real packages")  # one environment, from the package index, for all

PROGRAM = """
import json, sys
import modelops, modelops_contracts
from modelops.adapters.bundle import LocalBundleRepository
from modelops.adapters.exec_env.runner_settings import find_runner
from modelops.adapters.exec_env.select import make_exec_env
from modelops_contracts import SimTask, UniqueParameterSet

assert sys.prefix in modelops.__file__ and sys.prefix in str(find_runner()), (modelops.__file__, find_runner())
repository = LocalBundleRepository(sys.argv[1])
ref = repository.add(sys.argv[2])
task = SimTask(ref, "probe.model/base", UniqueParameterSet.from_dict({"a": 1}), 3)
found = []
for environ in ({}, {"MODELOPS_COLD_DEBUG": "1"}):
    with make_exec_env(repository, environ=environ, runner_store_dir=sys.argv[3]) as exec_env:
        result = exec_env.run(task)
        assert result.error is None, result
        found.append((exec_env.name, result.task_id, {n: a.checksum for n, a in result.outputs.items()}))
assert found[0][0] == "warm" and found[1][0] == "cold" and found[0][1:] == found[1][1:], found
print("ok")
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT / "src" / "modelops-contracts", ROOT):
        build(project, folder)
    return sorted(folder.iterdir())


def build(project: Path, folder: Path) -> None:
    """Make the wheel, with the backend that set-up installed."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([sys.executable, "-I", "-m", "pip", "wheel", *options, str(project)], check=True)


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty venv with the wheels and what they depend on, from the package index."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    uv = [real_uv() or "uv", "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    subprocess.run([*uv, *map(str, wheels)], check=True)  # pip, which is below, takes ten times as long for all this
    return folder


def pip_install(folder: Path, *arguments: str) -> None:
    subprocess.run([*pip_of(folder), "install", "--quiet", "--no-compile", *arguments], check=True)


def pip_of(folder: Path) -> list[str]:
    return [sys.executable, "-I", "-m", "pip", "--python", str(folder / "bin" / "python")]


def test_the_wheel_has_the_runner_and_the_profiles(wheels: list[Path]) -> None:
    names = {name for path in wheels for name in zipfile.ZipFile(path).namelist()}
    assert "modelops/_runner/tools/ultra_cold_runner.py" in names and "modelops/py.typed" in names
    for profile in (ROOT / "sandbox-profiles").glob("*.toml"):
        assert f"modelops/_runner/sandbox-profiles/{profile.name}" in names
    assert "modelops/_runner/tests/bundles/sir/task.json" in names


def test_the_wheel_has_nothing_else(wheels: list[Path]) -> None:
    for path in wheels:
        for name in zipfile.ZipFile(path).namelist():
            top = name.partition("/")[0]
            assert top in ("modelops", "modelops_contracts") or top.endswith(".dist-info"), name
            assert "__pycache__" not in name


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_it_runs_tasks_warm_and_cold(installed: Path, tmp_path: Path, store: Path) -> None:
    (tmp_path / "repository").mkdir()
    bundle = write_bundle(tmp_path / "source", ECHO)
    command = [str(installed / "bin" / "python"), "-c", PROGRAM, str(tmp_path / "repository"), str(bundle), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.full("the same wheel, in the reach of another distribution of the contracts")
def test_it_installs_and_runs_beside_the_published_contracts(
    wheels: list[Path], installed: Path, tmp_path: Path, store: Path
) -> None:
    """They call themselves 0.1.0, with CONTRACTS_VERSION 0.3.1, and have more names than ours."""
    published = tmp_path / "modelops-contracts"
    shutil.copytree(ROOT / "src" / "modelops-contracts", published)
    module = published / "src" / "modelops_contracts" / "__init__.py"
    module.write_text(module.read_text().replace('CONTRACTS_VERSION = "0.3.0"', 'CONTRACTS_VERSION = "0.3.1"'))
    with module.open("a") as file:
        file.write("\n\nclass SimulationStudy: ...\n\n\nclass SimJob: ...\n\n\nclass BundleRegistry: ...\n")
    project = published / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.3.0"', 'version = "0.1.0"'))
    build(published, tmp_path / "wheels")
    pip_install(installed, "--no-deps", *map(str, (tmp_path / "wheels").iterdir()))
    ours = next(path for path in wheels if path.name.startswith("modelops-"))
    pip_install(installed, "--no-index", "--force-reinstall", "--no-deps", str(ours))
    pip_install(installed, "--no-index", str(ours))  # what it asks for is there
    described = (
        "import modelops_contracts as c, importlib.metadata as m; print(m.version(c.__name__), c.CONTRACTS_VERSION)"
    )
    python = str(installed / "bin" / "python")
    found = subprocess.run([python, "-c", described], capture_output=True, text=True, env=environment(), check=True)
    assert found.stdout == "0.1.0 0.3.1\n"
    check = subprocess.run([*pip_of(installed), "check"], capture_output=True, text=True, env=environment())
    assert check.returncode == 0, check.stdout
    test_it_runs_tasks_warm_and_cold(installed, tmp_path, store)


def test_the_contracts_of_this_tree_say_that_they_stand_in(wheels: list[Path]) -> None:
    ours = next(path for path in wheels if path.name.startswith("modelops_contracts-"))
    with zipfile.ZipFile(ours) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        assert "Summary: A stand-in for the published modelops-contracts" in wheel.read(name).decode()


@pytest.mark.full("another study by the script that runs the example's")
def test_the_console_script_runs_a_study(installed: Path, tmp_path: Path, store: Path) -> None:
    bundle = write_bundle(tmp_path / "source", ECHO)
    command = [str(installed / "bin" / "modelops"), "study", "--bundle", str(bundle), "--seeds", "1-3"]
    command += ["--entrypoint", "probe.model/base", "--out", str(tmp_path / "out"), "--params", '{"a": 1}']
    extra = {"MODELOPS_RUNNER_STORE_DIR": str(store)}
    done = subprocess.run(command, capture_output=True, text=True, env={**environment(), **extra}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "results.parquet").exists()


def test_the_old_name_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "bin" / "python"), "-m", "modelops.worker.cold_runner"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 2 and "ultra_cold_runner" in done.stderr


def typed(installed: Path, folder: Path, line: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    """A line as a user types it who has activated the environment and stands in an empty folder."""
    path = f"{installed / 'bin'}:{os.environ['PATH']}"
    environ = {**environment(), "PATH": path, "MODELOPS_STORAGE_DIR": str(folder / "storage"), **extra}
    return subprocess.run(shlex.split(line), capture_output=True, text=True, env=environ, cwd=folder)


@pytest.fixture
def example(installed: Path, tmp_path: Path) -> Path:
    """The example, as the wheel writes it."""
    done = typed(installed, tmp_path, "modelops example sir")
    assert done.returncode == 0, done.stderr
    return tmp_path / "sir"


def test_without_a_checkout_the_example_runs_as_it_says(installed: Path, tmp_path: Path, store: Path) -> None:
    doctor = typed(installed, tmp_path, "modelops doctor", MODELOPS_RUNNER_STORE_DIR=str(store))
    assert doctor.returncode == 0 and json.loads(doctor.stdout)["healthy"] is True, doctor
    lines = typed(installed, tmp_path, "modelops example sir").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["modelops", "run"], ["modelops", "study"]]
    run = typed(installed, tmp_path, lines[0], MODELOPS_RUNNER_STORE_DIR=str(store))
    assert run.returncode == 0 and "attack_rate" in run.stdout, run
    study = typed(installed, tmp_path, lines[1], MODELOPS_RUNNER_STORE_DIR=str(store))
    assert study.returncode == 0 and (tmp_path / "sir.results" / "results.parquet").exists(), study


def test_the_example_is_the_one_of_the_checkout(example: Path) -> None:
    ours = ROOT / "tests" / "bundles" / "sir"
    kept = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(example) for path in example.rglob("*") if path.is_file()} == kept
    assert all((example / path).read_bytes() == (ours / path).read_bytes() for path in kept)


def test_the_example_is_written_over_nothing(installed: Path, example: Path, tmp_path: Path) -> None:
    before = sorted(example.rglob("*"))
    (example / "task.json").write_text("mine")
    again = typed(installed, tmp_path, "modelops example sir")
    assert again.returncode == 2 and "not empty" in again.stderr and again.stdout == ""
    assert (example / "task.json").read_text() == "mine" and sorted(example.rglob("*")) == before


def test_without_bwrap_the_package_to_install_is_named(
    installed: Path, example: Path, tmp_path: Path, store: Path
) -> None:
    bare = {"PATH": str(installed / "bin"), "MODELOPS_RUNNER_STORE_DIR": str(store)}
    doctor = typed(installed, tmp_path, "modelops doctor", **bare)
    assert doctor.returncode == 1 and "apt-get install bubblewrap" in doctor.stdout, doctor
    run = typed(installed, tmp_path, "modelops run sir --task sir/task.json", **bare)
    assert run.returncode == 3 and "apt-get install bubblewrap" in run.stdout, run


def test_without_uv_the_package_to_install_is_named(
    installed: Path, example: Path, tmp_path: Path, store: Path
) -> None:
    uv = installed / "bin" / "uv"
    uv.rename(installed / "bin" / "uv-away")
    bare = {"PATH": f"{installed / 'bin'}:/usr/bin:/bin", "MODELOPS_RUNNER_STORE_DIR": str(store.parent / "bare")}
    try:
        doctor = typed(installed, tmp_path, "modelops doctor", **bare)
        run = typed(installed, tmp_path, "modelops run sir --task sir/task.json", **bare)
    finally:
        (installed / "bin" / "uv-away").rename(uv)
    assert "pip install uv" in doctor.stdout, doctor
    assert run.returncode == 3 and "pip install uv" in run.stdout, run
