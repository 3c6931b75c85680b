"""Every gate and flag: which environment runs, and what the old names do."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from environments import ECHO, Environments, sim_task
from rich.text import Text

from modelops import cli
from modelops.adapters.bundle import LocalBundleRepository
from modelops.adapters.exec_env.cold import ColdExecEnv
from modelops.adapters.exec_env.cold_debug import ColdDebugExecEnv
from modelops.adapters.exec_env.runner_settings import find_runner
from modelops.adapters.exec_env.select import choose, make_exec_env
from modelops.adapters.exec_env.warm import IsolatedWarmExecEnv
from modelops.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("environ", "cold"),
    [
        ({}, False),
        ({"MODELOPS_COLD_DEBUG": ""}, False),
        ({"MODELOPS_COLD_DEBUG": "0"}, False),
        ({"MODELOPS_COLD_DEBUG": "True"}, False),
        ({"MODELOPS_COLD_DEBUG": "yes"}, False),
        ({"MODELOPS_COLD_DEBUG": "1"}, True),
        ({"MODELOPS_COLD_DEBUG": "true"}, True),
        ({"MODELOPS_COLD_DEBUG": "TRUE"}, True),
    ],
)
def test_which_one_runs_and_why(
    environ: Mapping[str, str], cold: bool, repository: LocalBundleRepository, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose(environ).cold is cold
    with caplog.at_level(logging.INFO), make_exec_env(repository, environ=environ) as exec_env:
        assert type(exec_env) is (ColdDebugExecEnv if cold else IsolatedWarmExecEnv)
    assert f"in the {'cold' if cold else 'warm'} environment" in caplog.text
    value = environ.get("MODELOPS_COLD_DEBUG")
    assert "MODELOPS_COLD_DEBUG" in exec_env.chosen_because
    assert not value or value in exec_env.chosen_because


def test_the_process_environment_decides_by_default(
    repository: LocalBundleRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELOPS_COLD_DEBUG", "1")
    with make_exec_env(repository) as exec_env:
        assert isinstance(exec_env, ColdDebugExecEnv)


def test_a_workers_settings(tmp_path: Path) -> None:
    for name in ("asked", "own", "storage"):
        (tmp_path / name).mkdir()
    environ = {
        "MODELOPS_BUNDLE_REPOSITORY": str(tmp_path / "own"),
        "MODELOPS_STORAGE_DIR": str(tmp_path / "storage"),
        "MODELOPS_RUNNER_STORE_DIR": "/store",
        "VENVS_DIR": "/venvs",
        "MODELOPS_SANDBOX_PROFILE": "strict",
        "MODELOPS_TASK_TIMEOUT_SECONDS": "12.5",
        "MODELOPS_MAX_WARM_SERVERS": "3",
    }
    with WorkerSettings().make(1, environ) as exec_env:
        assert isinstance(exec_env, IsolatedWarmExecEnv)
        assert exec_env._bundle_repo.root == tmp_path / "own"  # type: ignore[attr-defined]
        assert exec_env.store.root == tmp_path / "storage" / "artifacts"
        assert (exec_env.timeout_seconds, exec_env.settings.profile) == (12.5, "strict")
        assert (str(exec_env.settings.store_dir), str(exec_env.settings.venvs_dir)) == ("/store", "/venvs")
        assert exec_env._pool.max_servers == 3
    asked = WorkerSettings(bundle_repository=str(tmp_path / "asked"), profile="debug", timeout_seconds=5, max_servers=2)
    with asked.make(1, {**environ, "MODELOPS_COLD_DEBUG": "1"}) as exec_env:
        assert isinstance(exec_env, ColdDebugExecEnv), "which one runs is the worker's to say"
        assert exec_env._bundle_repo.root == tmp_path / "asked"  # type: ignore[attr-defined]
        assert (exec_env.timeout_seconds, exec_env.settings.profile) == (5, "debug")
    with WorkerSettings().make(64, {"MODELOPS_STORAGE_DIR": str(tmp_path / "storage")}) as exec_env:
        assert isinstance(exec_env, IsolatedWarmExecEnv) and exec_env._pool.max_servers == 64
        assert (exec_env.timeout_seconds, exec_env.settings.profile) == (600, "default")
        assert exec_env._bundle_repo.root == tmp_path / "storage" / "bundles"  # type: ignore[attr-defined]


# --- the old names


@pytest.mark.parametrize("value", [None, "", "0", "yes", "True"])
def test_the_old_adapter_refuses(
    repository: LocalBundleRepository, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("MODELOPS_ENABLE_LEGACY_COLD", value)
    with pytest.raises(DeprecationWarning, match="ColdDebugExecEnv") as error:
        ColdExecEnv(repository, "/venvs", "/storage")
    assert "MODELOPS_ENABLE_LEGACY_COLD=1" in str(error.value)


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_the_old_adapter_with_the_flag_runs_on_the_new_runner(
    environments: Environments, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MODELOPS_ENABLE_LEGACY_COLD", value)
    with pytest.warns(DeprecationWarning, match="ColdDebugExecEnv"):
        exec_env = ColdExecEnv(
            environments.repository, tmp_path / "venvs", tmp_path / "storage", runner_store_dir=store
        )
    assert isinstance(exec_env, ColdDebugExecEnv)
    with exec_env:
        assert exec_env.run(sim_task(environments.add(ECHO))).error is None
    assert not list((tmp_path / "venvs").glob("*/venv")), "nothing is shared between tasks"


def test_importing_the_old_names_is_harmless() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = "import modelops.adapters.exec_env.cold, modelops.worker.cold_runner"
        subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment(), check=True)


def old_runner(*arguments: str, flag: str | None, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    extra = {} if flag is None else {"MODELOPS_ENABLE_LEGACY_COLD": flag}
    command = [sys.executable, "-m", "modelops.worker.cold_runner", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment(**extra), timeout=300)


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **extra}


def test_the_old_runner_refuses() -> None:
    for flag in (None, "0", "yes"):
        done = old_runner("--bundle-path", "x", flag=flag)
        assert done.returncode == 2 and done.stdout == b""
        assert b"ERROR" in done.stderr and b"tools/ultra_cold_runner.py" in done.stderr
        assert b"MODELOPS_ENABLE_LEGACY_COLD=1" in done.stderr


def test_the_old_runner_with_the_flag_is_the_new_one(environments: Environments, store: Path) -> None:
    _, bundle = environments.repository.ensure_local(environments.add(ECHO))
    task = b'{"entrypoint": "main", "params": {}, "seed": 1}'
    done = old_runner("--bundle-path", str(bundle), "--store-dir", str(store), flag="1", stdin=task)
    assert done.returncode == 0 and b'"task_id"' in done.stdout and done.stdout.count(b"\n") == 1
    assert b"WARNING" in done.stderr and b"deprecated" in done.stderr
    failed = old_runner("--bundle-path", "/absent", "--store-dir", str(store), flag="1", stdin=task)
    assert failed.returncode != 0 and b"bundle_not_found" in failed.stdout


# --- where the runner is


def test_the_runner_of_a_checkout() -> None:
    assert find_runner() == ROOT / "tools" / "ultra_cold_runner.py"


def test_the_runner_of_a_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = tmp_path / "src" / "modelops" / "_runner" / "tools" / "ultra_cold_runner.py"
    for path in (runner, tmp_path / "tools" / "ultra_cold_runner.py"):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr("modelops.__file__", str(tmp_path / "src" / "modelops" / "__init__.py"))
    assert find_runner() == runner
    runner.unlink()
    assert find_runner() == tmp_path / "tools" / "ultra_cold_runner.py"
    (tmp_path / "tools" / "ultra_cold_runner.py").unlink()
    with pytest.raises(FileNotFoundError):
        find_runner()


def test_no_word_of_a_help_is_taken_for_markup() -> None:
    """As rich took `[registry/]` for a tag, and left it out."""
    waiting: list[Any] = [typer.main.get_command(cli.app)]
    words: list[str] = []
    while waiting:
        command = waiting.pop()
        words += [part.help for part in (command, *command.params) if getattr(part, "help", None)]
        names = command.list_commands(None) if hasattr(command, "list_commands") else []
        waiting += [command.get_command(None, name) for name in names]
    assert len(words) > 60 and [text for text in words if Text.from_markup(text).plain != text] == []
