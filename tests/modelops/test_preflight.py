"""`modelops bundle check`: what is said of a bundle before it runs."""

import json
from collections.abc import Callable
from pathlib import Path

import distributed
import pytest
from conftest import write_bundle
from environments import ECHO
from typer.testing import CliRunner

from modelops.adapters.bundle.registry import parse_registry, read_registry
from modelops.adapters.exec_env.runner_settings import RunnerSettings
from modelops.cli import app as modelops
from modelops.commands.bundle import app
from modelops.services.preflight import (
    Finding,
    check_bundle,
    check_data_files,
    check_entrypoint,
    check_parameters,
    check_reproducibility,
    check_workers,
    describe_here,
    one_of_each_kind,
)

MODEL = """
from probe import wire

class Model: ...
class Target:
    def evaluate(self, sim_outputs): ...
compute_loss = Target()
def fit(sim_returns): ...
number = 7
"""
REGISTRY = """
version: '1.0'
models:
  sir: {entrypoint: "models:Model", parameters: [beta, gamma], data: [data/a.csv]}
targets:
  plain: {entrypoint: "models:fit"}
  object: {entrypoint: "models:compute_loss"}
  old: {entrypoint: "models.compute_loss/compute_loss"}
"""


@pytest.fixture
def check(tmp_path: Path, store: Path) -> Callable[..., list[Finding]]:
    """`check(files, ..)` makes a bundle with these files besides a wire function, and checks it."""

    def run(files: dict[str, str] | None = None, *, pyproject: str | None = None, **names: list[str]) -> list[Finding]:
        bundle = write_bundle(tmp_path / "bundle", ECHO, pyproject=pyproject, files=files or {})
        settings = RunnerSettings.of(
            None, profile="default", profiles_dir=None, runner_store_dir=store, venvs_dir=None, reuse=None, env=None
        )
        return check_bundle(bundle, settings, environ={}, **names)

    return run


def told(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.check) for finding in findings]


def test_nothing_to_find(check: Callable[..., list[Finding]]) -> None:
    files = {"models.py": MODEL, "data/a.csv": "1", ".modelops-bundle/registry.yaml": REGISTRY}
    assert check(files, entrypoints=["models/baseline", "models:Model"], targets=["models:fit"]) == []


def test_all_that_is_wrong_at_once(check: Callable[..., list[Finding]]) -> None:
    registry = """
models:
  gone: {entrypoint: "absent:Model", data: [data/a.csv, ../../etc/passwd]}
  renamed: {entrypoint: "models:Old"}
  exits: {entrypoint: "leaves:Model"}
targets:
  number: {entrypoint: "models:number"}
  word: {entrypoint: "nothing"}
"""
    files = {
        "models.py": MODEL,
        "leaves.py": "import sys; print('noise'); sys.exit('bye')",
        ".modelops-bundle/registry.yaml": registry,
    }
    findings = check(files)
    assert (
        told(findings)
        == [("error", "data_file")] * 2 + [("error", "entrypoint_missing")] * 3 + [("error", "target_missing")] * 2
    )
    messages = " ".join(finding.message for finding in findings)
    for words in ("data/a.csv", "../../etc/passwd", "No module named 'absent'", "'models' has no attribute 'Old'"):
        assert words in messages
    assert (
        "SystemExit: bye" in messages and "models:number is int" in messages and "'nothing' is not of the" in messages
    )
    assert all(finding.remedy for finding in findings)


@pytest.mark.parametrize("path", ["a\\0b", "x" * 5000, "loop", "loop/deeper"])
def test_a_data_file_whose_name_can_be_none(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    registry = parse_registry(f'models: {{a: {{entrypoint: "m:A", data: ["{path}"]}}}}'.encode())
    assert told(list(check_data_files(tmp_path, registry))) == [("error", "data_file")]


WIRELESS = """
[build-system]
requires = []
build-backend = "tiny_backend"
backend-path = ["backend"]
[project]
name = "probe"
version = "1.0"
"""


@pytest.mark.parametrize(
    ("pyproject", "kind", "words"),
    [
        (WIRELESS, "wire", "wire function"),
        (WIRELESS + '[project.entry-points."modelops.wire"]\na = "probe:wire"\nb = "probe:other"\n', "wire", "2"),
        (WIRELESS + '[project.entry-points."modelops.wire"]\na = "probe:absent"\n', "wire_missing", "absent"),
        (WIRELESS.replace("version", 'requires-python = ">=3.99"\nversion'), "python", "3.99"),
        (WIRELESS.replace("version", 'dependencies = ["no-such-name-at-all-x1"]\nversion'), "environment", "no-such"),
        ("not toml [", "pyproject_invalid", "pyproject"),
    ],
)
def test_what_keeps_every_task_from_running(
    check: Callable[..., list[Finding]], pyproject: str, kind: str, words: str
) -> None:
    findings = [finding for finding in check(pyproject=pyproject) if finding.level == "error"]
    assert [finding.check for finding in findings] == [kind]
    assert words in findings[0].message and findings[0].remedy


def test_a_bundle_that_forges_the_check(check: Callable[..., list[Finding]]) -> None:
    forge = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'x' * 100)\n    except OSError: pass\n"
    assert "error" in {finding.level for finding in check({"models.py": forge}, entrypoints=["models:x"])}


def test_a_registry_that_is_none(check: Callable[..., list[Finding]]) -> None:
    assert told(check({".modelops-bundle/registry.yaml": "models: ["})) == [("error", "registry")]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pyproject.toml": '[project]\ndependencies = ["numpy"]'}, ["no_lock"]),
        ({"pyproject.toml": '[project]\ndependencies = ["numpy"]', "uv.lock": ""}, []),
        ({"pyproject.toml": "[project]\ndependencies = []"}, []),
        ({"pyproject.toml": '[project]\ndynamic = ["dependencies"]'}, ["no_lock"]),
        ({"requirements.txt": "# nothing\n"}, []),
        ({"requirements.txt": "numpy==1.0\n"}, ["no_lock"]),
        ({"requirements.txt": "numpy==1.0 --hash=sha256:00\n"}, []),
        ({"requirements.txt": "x @ git+https://h/x --hash=sha256:00"}, ["unpinned_git"]),
        ({"requirements.txt": "x @ git+https://h/x@v1.0 --hash=sha256:00"}, ["unpinned_git"]),
        ({"requirements.txt": "x @ git+ssh://git@h/x --hash=sha256:00"}, ["unpinned_git"]),
        ({"requirements.txt": f"x @ git+https://h/x@{COMMIT}#egg=x --hash=sha256:00"}, []),
        ({"pyproject.toml": '[tool.uv.sources]\nx = {git = "https://h/x", branch = "main"}'}, ["unpinned_git"]),
        ({"pyproject.toml": '[tool.uv.sources]\nx = [{git = "https://h/x", tag = "v1"}]'}, ["unpinned_git"]),
        ({"pyproject.toml": f'[tool.uv.sources]\nx = {{git = "https://h/x", rev = "{COMMIT}"}}'}, []),
        ({"pyproject.toml": "tool = 1\nproject = 2"}, []),
    ],
)
def test_what_may_be_another_environment_tomorrow(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert [finding.check for finding in check_reproducibility(tmp_path, {})] == expected


def test_an_index_of_this_machine(tmp_path: Path) -> None:
    environ = {"UV_INDEX": "https://user:secret@mirror", "PATH": "/bin"}
    (finding,) = check_reproducibility(tmp_path, environ)
    assert finding.check == "index_of_this_machine" and "UV_INDEX" in finding.message
    assert "secret" not in finding.message + finding.remedy


def test_parameters(tmp_path: Path) -> None:
    (tmp_path / ".modelops-bundle").mkdir()
    (tmp_path / ".modelops-bundle" / "registry.yaml").write_text(REGISTRY)
    registry = read_registry(tmp_path)
    for model in ("models", "models:Model", "models/baseline"):
        assert check_parameters(registry, model, [{"beta": 1}, {"gamma": 2}]) == []
        (finding,) = check_parameters(registry, model, [{"beta": 1}, {"betta": 2}])
        assert finding.level == "error" and "'betta'" in finding.message and "beta, gamma" in finding.message
    assert check_parameters(registry, "other/baseline", [{"anything": 1}]) == [], "the registry says nothing of it"


def test_entry_points_that_the_registry_does_not_have(tmp_path: Path) -> None:
    (tmp_path / ".modelops-bundle").mkdir()
    (tmp_path / ".modelops-bundle" / "registry.yaml").write_text(
        'models: {sir: {entrypoint: "models.sir:SIR", scenarios: [baseline]}, seir: {entrypoint: "models.seir:S"}}'
    )
    registry = read_registry(tmp_path)
    for known in ("models.sir/baseline", "sir/baseline", "models.seir/anything", "any:object"):
        assert list(check_entrypoint(registry, known)) == []
    (model,) = check_entrypoint(registry, "models.sri/baseline")
    (scenario,) = check_entrypoint(registry, "models.sir/basline")
    assert "'models.sri'" in model.message and "models.sir:SIR" in model.message
    assert "'basline'" in scenario.message and "has baseline" in scenario.message
    assert list(check_entrypoint(read_registry(tmp_path / "none"), "a.b/c")) == []


def test_a_study_begins_with_it(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    registry = 'models: {sir: {entrypoint: "model.sir:SIR", parameters: [beta]}}'
    files = {".modelops-bundle/registry.yaml": registry, "model/sir.py": "class SIR: ..."}
    bundle = write_bundle(tmp_path / "bundle", ECHO, files=files)
    out = tmp_path / "out"
    command = ["study", "--bundle", str(bundle), "--entrypoint", "model.sir/baseline", "--out", str(out)]
    for more, words in (
        (["--target", "model.sir:absent"], "error: target_missing: the target 'model.sir:absent'"),
        (["--params", '{"betta": 1}'], "error: parameters: the model model.sir does not take 'betta'; it takes beta"),
    ):
        refused = CliRunner().invoke(modelops, [*command, *more])
        assert refused.exit_code == 2 and not out.exists() and refused.stdout == ""
        assert words in refused.stderr and "--no-check" in refused.stderr
    ran = CliRunner().invoke(modelops, [*command, "--params", '{"beta": 1}', "--threads", "1"])
    assert ran.exit_code == 0 and json.loads(ran.stdout)["simulations"]["succeeded"] == 1, ran.stderr


def test_workers_that_differ() -> None:
    here = {"python": "3.11.7", "platform": "linux-x86_64", "libc": "glibc 2.36"}
    assert check_workers({"tcp://a": here, "tcp://b": {**here, "python": "3.11.2"}}, here) == []
    others = {
        "tcp://a": {**here, "python": "3.12.1"},
        "tcp://b": {**here, "python": "3.12.1", "platform": "linux-aarch64"},
    }
    python, machine = check_workers(others, here)
    assert "3.12.1" in python.message and "tcp://a and 1 more" in python.message and "3.11.7" in python.message
    assert "linux-aarch64" in machine.message and "tcp://b" in machine.message
    assert check_workers({"tcp://me": describe_here()}) == []


def test_on_the_workers_of_a_cluster(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine of the command line can't know is looked for on a worker: here one without an interpreter."""
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    bundle = write_bundle(tmp_path / "bundle", ECHO, files={"model/sir.py": "class SIR: ..."})
    pinned = (bundle / "pyproject.toml").read_text().replace("version", 'requires-python = ">=3.99"\nversion')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        command = ["study", "--bundle", str(bundle), "--entrypoint", "model.sir/base", "--out", str(tmp_path / "out")]
        command += ["--scheduler", cluster.scheduler_address]
        missing = CliRunner().invoke(modelops, [*command, "--target", "model.sir:absent"])
        assert missing.exit_code == 2 and "error: target_missing: on tcp://" in missing.stderr
        ran = CliRunner().invoke(modelops, command)
        assert ran.exit_code == 0 and json.loads(ran.stdout)["simulations"]["succeeded"] == 1, ran.stderr
        (bundle / "pyproject.toml").write_text(pinned)
        refused = CliRunner().invoke(modelops, [*command[:-3], str(tmp_path / "other"), *command[-2:]])
        assert refused.exit_code == 2 and "error: python: on tcp://" in refused.stderr and "3.99" in refused.stderr
        assert refused.stderr.count("error: ") == 1, "one worker of each kind is asked"


def test_one_of_each_kind() -> None:
    here, other = describe_here(), {**describe_here(), "libc": "musl"}
    assert one_of_each_kind({"a": here, "b": other, "c": here, "d": other}) == ["a", "b"]
    (libc,) = check_workers({"a": here, "b": other})
    assert libc.check == "worker_libc" and "musl" in libc.message


def test_what_does_not_resolve_is_told_before_anything_comes(
    check: Callable[..., list[Finding]], index: None, store: Path
) -> None:
    def kept() -> set[str]:
        return {path.name for path in store.glob("wheels/*/*") if not path.name.startswith("probe-")}

    before = kept()
    wanted = 'dependencies = ["polars>=1.0", "numpy>=2.0", "numpy<1.20"]\nversion'
    findings = check(pyproject=WIRELESS.replace("version", wanted))
    assert ("error", "environment") in told(findings) and "numpy" in findings[0].message and kept() == before


def test_the_command(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    bundle = write_bundle(tmp_path / "bundle", ECHO)
    good = CliRunner().invoke(app, ["check", str(bundle)])
    assert (good.exit_code, good.stdout) == (0, "nothing found: the bundle can be run\n")
    (bundle / ".modelops-bundle").mkdir()
    (bundle / ".modelops-bundle" / "registry.yaml").write_text('models: {m: {entrypoint: "absent:M"}}')
    bad = CliRunner().invoke(app, ["check", "--json", str(bundle)])
    (finding,) = json.loads(bad.stdout)
    assert bad.exit_code == 1 and finding["check"] == "entrypoint_missing" and "absent" in finding["message"]
    nowhere = CliRunner().invoke(app, ["check", "sha256:" + "0" * 64])
    assert nowhere.exit_code == 1 and "bundle_not_found" in nowhere.stderr
