"""The fuzz targets, for a short while each; THOROUGH=1 gives each ten minutes."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fuzz.targets import TARGETS, seeds

FUZZER = Path(__file__).with_name("fuzz.py")
EFFORT = ["-max_total_time=600"] if os.environ.get("THOROUGH") else ["-runs=3000", "-seed=20261124"]
BOUNDS = ["-timeout=20", "-rss_limit_mb=1024", "-max_len=4096"]  # a hang and a flood of memory are faults too


def fuzz(target: str, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(FUZZER), target, *BOUNDS, *options, f"-artifact_prefix={folder}/"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)


needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris, the fuzzer, has no wheel for this Python or processor"
)


@pytest.mark.full("thousands of inputs for each target")
@needs_atheris
@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"planted"}))
def test_nothing_is_found(target: str, tmp_path: Path, record_property: Any) -> None:
    done = fuzz(target, tmp_path, *EFFORT)
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    assert done.returncode == 0 and not found, f"{found}\n{done.stderr[-4000:]}"
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs and int(runs[1]) >= 3000, done.stderr[-2000:]
    record_property("fault", f"fuzzing: {target.replace('_', ' ')}")
    record_property("verdict", f"{int(runs[1]):,} inputs, no fault")


@pytest.mark.full("the control of the fuzzer")
@needs_atheris
def test_a_planted_fault_is_found(tmp_path: Path) -> None:
    """The control. libFuzzer comes to it by coverage; chance alone would need 2^16 inputs or so."""
    done = fuzz("planted", tmp_path, "-runs=200000", "-seed=1")
    assert done.returncode != 0 and "planted" in done.stderr
    assert [path.read_bytes()[:2] for path in tmp_path.glob("crash-*")] == [b"E\x7f"]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_seeds_pass(target: str, tmp_path: Path, runner_module: Any) -> None:
    """Without the fuzzer too: each seed is a shape that the reader knows."""
    for number, seed in enumerate(seeds(TARGETS[target])):
        folder = tmp_path / str(number)
        folder.mkdir()
        TARGETS[target](runner_module, folder, seed)
