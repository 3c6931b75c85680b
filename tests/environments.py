"""Execution environments for tests: on the real runner or a fake one, and never left behind."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from conftest import write_bundle
from modelops_contracts import SimTask, UniqueParameterSet

from modelops.adapters.bundle import LocalBundleRepository
from modelops.adapters.exec_env.cold_debug import ColdDebugExecEnv
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv
from modelops.adapters.exec_env.warm import IsolatedWarmExecEnv

ECHO = """
import json

def wire(entrypoint, params, seed):
    return {"out": json.dumps([entrypoint, dict(params), seed], sort_keys=True)}
"""


class Environments:
    """Makes environments on the real runner, and shuts them down after the test."""

    def __init__(self, repository: LocalBundleRepository, tmp_path: Path, runner_store: Path) -> None:
        self.repository, self.tmp_path, self.runner_store = repository, tmp_path, runner_store
        self.made: list[SandboxedExecEnv] = []

    def __call__(self, kind: str, **options: Any) -> SandboxedExecEnv:
        given: dict[str, Any] = {
            "storage_dir": self.tmp_path / "storage",
            "runner_store_dir": self.runner_store,
            "venvs_dir": self.tmp_path / "venvs",
            **options,
        }
        make = {"cold": ColdDebugExecEnv, "warm": IsolatedWarmExecEnv}[kind]
        self.made.append(make(self.repository, **given))
        return self.made[-1]

    def add(self, wire: str = "", name: str = "probe", **options: Any) -> str:
        """The reference of a bundle whose wire function is in `wire`."""
        folder = self.tmp_path / "sources" / f"{name}{len(list(self.tmp_path.glob('sources/*')))}"
        return self.repository.add(write_bundle(folder, wire, **options), name)


def sim_task(ref: str, params: Mapping[str, Any] | None = None, seed: int = 1, **fields: Any) -> SimTask:
    entrypoint = fields.pop("entrypoint", "probe.model/baseline")
    return SimTask(ref, entrypoint, UniqueParameterSet.from_dict(params or {}), seed, **fields)


def runners(tmp_path: Path) -> list[int]:
    """The pids of a test's runs: those of this process, and of others that it started, also where these are gone."""
    mine, servers, runs = os.fsencode(f"MODELOPS_STORAGE_DIR={tmp_path / 'storage'}"), {os.getpid()}, []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):  # psutil takes ten times as long
        with suppress(OSError):
            words, place = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"), Path(f"/proc/{pid}")
            if not any(word.endswith(b"/fork_server.py") for word in words):
                continue
            name, _, after = (place / "stat").read_text().rpartition(")")
            parent = int(after.split()[1])
            if name.endswith("(runner"):
                runs.append((pid, parent, mine in (place / "environ").read_bytes().split(b"\0")))
            elif parent == os.getpid():
                servers.add(pid)
    return sorted(pid for pid, parent, is_mine in runs if is_mine or parent in servers)


def wait_until(condition: Callable[[], bool], problem: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.02)
