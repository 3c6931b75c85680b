"""How the adapter starts the runner: its bytecode is kept, and a signal at any moment of its start is answered."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import RUNNER, parse_line

from modelops.adapters.exec_env.forks import Process
from modelops.adapters.exec_env.process import start
from modelops.adapters.exec_env.runner_settings import RunnerSettings

TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
MOMENTS = [0.0, *(0.0005 * 1.35**n for n in range(24))]  # seconds: from none to most of a second


def settings(store: Path, runner: Path = RUNNER) -> RunnerSettings:
    return RunnerSettings.of(
        runner, profile="default", profiles_dir=None, runner_store_dir=store, venvs_dir=None, reuse=True, env={}
    )


def finish(process: Process) -> tuple[bytes, bytes]:
    """What it printed, on both streams; its log is short."""
    out = process.output()
    assert process.stderr is not None
    err = process.stderr.read()
    process.close()
    return out, err


ANOTHER = pytest.mark.full("another signal, at the same moments")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=ANOTHER), pytest.param(signal.SIGHUP, marks=ANOTHER)]
)
def test_a_signal_at_any_moment_of_the_start_is_answered(tmp_path: Path, number: signal.Signals) -> None:
    """With one line, and the store is as if the run had never been."""
    ends = set()
    for moment in MOMENTS:
        process = start(settings(tmp_path / "store"), ["--bundle-path", str(tmp_path / "absent")], TASK)
        time.sleep(moment)
        process.send_signal(number)
        out, err = finish(process)
        error = parse_line(out)["_fatal_error"]
        assert error["type"] in ("killed", "bundle_not_found"), (moment, error, err)
        assert error["type"] != "killed" or error["code"] == process.returncode == 128 + number
        ends.add(error["type"])
    assert "killed" in ends
    assert [name for name in os.listdir(tmp_path / "store" / "run") if name.startswith(".run-")] == []


def test_the_bytecode_is_kept_beside_the_runner(tmp_path: Path) -> None:
    """Compiled once, and used as long as the runner is the same."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / RUNNER.name).write_bytes(RUNNER.read_bytes())
    (tmp_path / "sandbox-profiles").symlink_to(RUNNER.parent.parent / "sandbox-profiles")

    def go() -> list[tuple[str, int]]:
        out, err = finish(start(settings(tmp_path / "store", tools / RUNNER.name), ["--cache", "show"], b""))
        assert "cache" in json.loads(out), err
        return [(file.name, file.stat().st_mtime_ns) for file in (tools / "__pycache__").iterdir()]

    kept = go()
    assert len(kept) == 1 and kept[0][0].startswith("ultra_cold_runner.")
    assert go() == kept
