"""`modelops run`: one task for a person, its outputs as files, its failure with a way on; limits, and nothing else."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
from click.testing import Result
from conftest import write_bundle
from environments import runners, wait_until
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from modelops.adapters.exec_env.runner_settings import find_runner
from modelops.cli import app
from modelops.commands.run_report import debug_command
from modelops.debugging.kinds import kind_of
from modelops.debugging.policy import PolicyError, limits_of, with_limits
from modelops.debugging.workbench import Output

WIRE = """
import json
def wire(entrypoint, params, seed):
    if "fail" in params:
        return broken(params)
    table = bytes.fromhex(params["table"]) if "table" in params else b"\\0\\1"
    return {"table": table, "note": "two\\nlines", "facts": json.dumps([entrypoint, params.get("x"), seed])}

def broken(params):
    print("last words")
    return {}[params["fail"]]

def target(sim_returns):
    return {"loss": 2.5}
"""


@pytest.fixture
def command(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))
    bundle = write_bundle(tmp_path / "bundle", WIRE)
    return lambda *options: CliRunner().invoke(app, ["run", str(bundle), *options], catch_exceptions=False)


def test_outputs_are_shown_and_written_as_what_they_are(command: Callable[..., Result], tmp_path: Path) -> None:
    table = polars.DataFrame({"day": [1, 2], "people": [0.5, 1.5]})
    stream = io.BytesIO()
    table.write_ipc(stream)
    params = json.dumps({"table": stream.getvalue().hex()})
    done = command(
        "--entrypoint", "m/base", "--params", params, "--param", "x=[1]", "--seed", "7", "--out", str(tmp_path / "out")
    )
    assert done.exit_code == 0, done.output
    for words in ("table", "Arrow", "2 rows, 2 columns", "people", "1.5", "two", '["m/base", [1], 7]', "peak memory"):
        assert words in done.stdout, words
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.arrow", "note.txt", "facts.json"}
    assert polars.read_ipc(tmp_path / "out" / "table.arrow").equals(table)


def test_a_damaged_table_is_told_as_such(command: Callable[..., Result]) -> None:
    done = command("--entrypoint", "m", "--param", f"table={json.dumps((b'ARROW1' + bytes(100)).hex())}")
    assert done.exit_code == 0 and "can't be read" in done.stdout and "Traceback" not in done.output


def test_a_failure_shows_where_and_how_to_stand_there(command: Callable[..., Result]) -> None:
    done = command("--entrypoint", "m", "--param", "fail=why", "--seed", "3")
    assert done.exit_code == 8
    assert "task_exception" in done.stdout and "KeyError: 'why'" in done.stdout and "last words" in done.stdout
    own = [line for line in done.stdout.splitlines() if line.startswith("> ")]
    assert len(own) == 2 and all("/bundle/probe.py" in line for line in own)
    assert "modelops debug probe@sha256:" in done.stdout and "--seed 3" in done.stdout


def test_a_crash_is_debugged_under_gdb() -> None:
    task = {"entrypoint": "m", "params": {}, "seed": 3}
    commands = [shlex.split(debug_command("probe@sha256:00", task, {"type": kind})) for kind in ("crashed", "timeout")]
    assert ["--native" in words for words in commands] == [True, False]
    assert all(words[-2:] == ["--seed", "3"] for words in commands)


def test_the_line_as_it_is(command: Callable[..., Result]) -> None:
    done = command("--entrypoint", "m", "--json")
    assert set(json.loads(done.stdout)) == {"task_id", "outputs", "metrics"}
    failed = command("--entrypoint", "m", "--param", "fail=why", "--json")
    error = json.loads(failed.stdout)["_fatal_error"]
    assert (failed.exit_code, error["type"]) == (8, "task_exception")
    assert error["debug"]["task"] == {"entrypoint": "m", "params": {"fail": "why"}, "seed": 1}
    assert error["debug"]["bundle"].startswith("probe@sha256:") and error["debug"]["profile"] == "default"


def test_an_aggregation_from_a_file(command: Callable[..., Result], tmp_path: Path) -> None:
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"target_entrypoint": "probe:target", "sim_returns": []}))
    done = command("--task", str(task))
    assert done.exit_code == 0 and '"loss": 2.5' in done.stdout


def test_a_limit_is_that_of_the_run(command: Callable[..., Result]) -> None:
    done = command("--entrypoint", "m", "--param", "x=1", "--limit", "output=10B")
    assert done.exit_code == 8 and "output_limit" in done.stdout


def test_the_policy_is_printed_with_its_limits(command: Callable[..., Result]) -> None:
    done = command("--print-policy", "--profile", "strict", "--limit", "memory=123MiB", "--limit", "build.wall=77")
    policy = tomllib.loads(done.stdout)
    assert policy["execute"]["limits"]["memory_bytes"] == "123MiB" and policy["build"]["limits"]["wall_seconds"] == 77
    assert policy["dependencies"]["sdists"] is False and "extends" not in policy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--entrypoint"),
        (("--task", "t.json", "--entrypoint", "m"), "whole task"),
        (("--entrypoint", "m", "--params", "[1]"), "object"),
        (("--entrypoint", "m", "--param", "x"), "name=value"),
        (("--entrypoint", "m", "--limit", "network=true"), "no limit 'network'"),
        (("--entrypoint", "m", "--limit", "memory=lots"), "not a size"),
        (("--entrypoint", "m", "--limit", "processes=1.5"), "whole number"),
        (("--entrypoint", "m", "--limit", "wall=-1"), "over zero"),
        (("--entrypoint", "m", "--out", "/proc/absent/out"), "/proc/absent"),
        (("--task", "absent.json"), "absent.json: No such file or directory"),
    ],
)
def test_what_can_not_be_run_is_refused(command: Callable[..., Result], options: tuple[str, ...], words: str) -> None:
    done = command(*options)
    assert done.exit_code == 2 and words in done.stderr and not done.stdout


def test_a_file_that_is_no_text_is_named(command: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "task.json").write_bytes(b"\xff\xfe")
    done = command("--task", str(tmp_path / "task.json"))
    assert done.exit_code == 2 and "task.json is not text in UTF-8" in done.stderr


def default_policy() -> dict[str, object]:
    return tomllib.loads((find_runner().parent.parent / "sandbox-profiles" / "default.toml").read_text())


@given(st.sampled_from(sorted(limits_of(default_policy()))), st.integers(1, 10**9))
def test_an_override_changes_that_limit_and_nothing_else(key: str, value: int) -> None:
    changed, before = limits_of(with_limits(default_policy(), [f"{key}={value}"])), limits_of(default_policy())
    assert changed[key] == value and {**changed, key: None} == {**before, key: None}


@pytest.mark.parametrize(
    "key",
    [
        "execute.network",
        "execute.shell",
        "sandbox.uid",
        "seccomp.default",
        "host.uids",
        "execute.environment.UV_HTTP_TIMEOUT",
        "execute.read_only",
    ],
)
def test_isolation_is_no_limit(key: str) -> None:
    with pytest.raises(PolicyError, match="no limit"):
        with_limits(default_policy(), [f"{key}=1"])


KINDS = {
    b"ARROW1\0\0": ".arrow", b"\xff\xff\xff\xff1": ".arrows", b"PAR1": ".parquet", b'{"a": 1}': ".json",
    b" [1]": ".json", b"[red]hi[/]": ".txt",
    b'{"a": ' + b"1" * 100_000: ".json", b"[" * 60_000: ".txt", b"3.5": ".json",
    b"null": ".json", b"hello": ".txt", "ü".encode(): ".txt", b"": ".txt",
    b"a\0b": ".bin", b"\xfe\xfeab": ".bin",
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "suffix"), KINDS.items(), ids=[suffix + str(n) for n, suffix in enumerate(KINDS.values())]
)
def test_kinds(content: bytes, suffix: str) -> None:
    assert kind_of(Output(len(content), "", content)).suffix == suffix


STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.mark.parametrize(
    ("name", "number"),
    [("run", signal.SIGTERM), pytest.param("review", signal.SIGINT, marks=STRACE)],
)
def test_a_signal_ends_it_before_its_task(name: str, number: signal.Signals, tmp_path: Path, store: Path) -> None:
    """Nothing is left of it, see `no_residue`."""
    bundle = write_bundle(tmp_path / "bundle", "import time\ndef wire(*_):\n    time.sleep(600)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MODELOPS_RUNNER_STORE_DIR": str(store)}
    command = [sys.executable, "-m", "modelops", name, str(bundle), "--entrypoint", "m/base"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: bool(runners(tmp_path)) or process.poll() is not None, "nothing runs")
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number and "Traceback" not in stderr, stderr
