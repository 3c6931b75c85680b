"""How much memory and how many processors there are, as the libraries that ask find it inside a task."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner

Bundle = Callable[..., Path]
NEEDS = ("psutil", "duckdb", "joblib", "polars", "distributed")
WIRE = """
import os, resource

def wire(entrypoint, params, seed):
    import duckdb, joblib, polars, psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT
    (setting,) = duckdb.sql("select current_setting('memory_limit'), current_setting('threads')").fetchall()
    return {"out": {
        "memory": [psutil.virtual_memory().total, MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_RSS)[1]],
        "duckdb": setting[0],
        "processors": [len(os.sched_getaffinity(0)), joblib.cpu_count(), polars.thread_pool_size(), CPU_COUNT],
    }}
"""
GIB = 1 << 30


@pytest.fixture
def one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.full("installs five large packages")
@pytest.mark.xdist_group("real packages")
def test_the_limits_are_what_there_is(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]], one_processor: None
) -> None:
    options = profile_with('[execute.limits]\nmemory_bytes = "2GiB"')
    found = json.loads(run(bundle(WIRE, needs=NEEDS), None, *options).outputs["out"])
    assert found["memory"] == [2 * GIB] * 3
    assert found["duckdb"] == "1.5 GiB"  # it takes 80 % of what it is told in MB
    assert found["processors"] == [1] * 4


VARIABLES = {"OMP_NUM_THREADS": "{processors}", "PLAIN": "x", "MEMORY": "{memory_mib}"}


@pytest.mark.parametrize(
    "seen, quota, processes, told", [(8, 64, 256, None), (8, 2, 256, "2"), (64, 64, 64, "8"), (2, 64, 4, "1")]
)
def test_variables_say_what_the_kernel_does_not(
    runner_module: Any,
    default_profile: Any,
    monkeypatch: pytest.MonkeyPatch,
    seen: int,
    quota: int,
    processes: int,
    told: str | None,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(seen)))
    monkeypatch.setattr(runner_module, "processor_quota", lambda: quota)
    limits = default_profile.execute.limits._replace(processes=processes, memory_bytes=3 * GIB)
    expected = {"PLAIN": "x", "MEMORY": "3072", **({"OMP_NUM_THREADS": told} if told else {})}
    assert runner_module.told_environment(VARIABLES, limits) == expected


@pytest.mark.parametrize(
    "files, quota",
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 1 << 16),
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 1 << 16),
        ({}, 1 << 16),
    ],
)
def test_a_quota_is_read_in_either_version(
    runner_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(runner_module, "own_groups", lambda controller: [str(tmp_path)])
    assert runner_module.processor_quota() == quota


def test_what_a_task_starts_is_there(run: Runner, bundle: Bundle) -> None:
    code = """
import ctypes.util, shutil, subprocess
SCRIPT = "printf 'b\\\\na\\\\n' | sort | sed s/a/c/ | awk '{print NR $0}' | gzip | zcat | tr -d '\\\\n'"
NAMES = ["bash", "ls", "env", "uname", "tar", "which", "grep", "nproc", "hostname", "ldconfig", "date", "git", "su"]
def wire(e, p, s):
    done = subprocess.run(["bash", "-c", SCRIPT], capture_output=True, text=True, check=True)
    missing = [name for name in NAMES if shutil.which(name) is None]
    return {"out": [done.stdout, missing, ctypes.util.find_library("c"), ctypes.util.find_library("nothing")]}
"""
    assert json.loads(run(bundle(code)).outputs["out"]) == ["1c2b", ["git", "su"], "libc.so.6", None]


def test_strict_has_no_programs(run: Runner, bundle: Bundle) -> None:
    code = "import os\ndef wire(e, p, s): return {'out': [os.path.exists(p) for p in ('/usr/bin/env', '/bin/sh')]}"
    assert json.loads(run(bundle(code), None, "--profile", "strict").outputs["out"]) == [False, False]
