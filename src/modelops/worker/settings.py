"""What a worker needs to know to make its execution environment."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from modelops.adapters.bundle.sources import make_repository
from modelops.adapters.exec_env.runner_settings import RunnerSettings
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv
from modelops.adapters.exec_env.select import make_exec_env
from modelops.places import default_storage_dir

_DEFAULT_TIMEOUT = 600.0
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class WorkerSettings:
    """What the client of a service asks for. What is None is the worker's to say, by its own environment.

    field                variable of the worker           otherwise
    bundle_repository    see `adapters.bundle.sources`    `bundles` in the storage directory
    bundle_registry      MODELOPS_BUNDLE_REGISTRY         none
    storage_dir          MODELOPS_STORAGE_DIR             see `modelops.places`
    runner_store_dir     MODELOPS_RUNNER_STORE_DIR        the runner's default
    venvs_dir            VENVS_DIR                        the runner's default
    profile              MODELOPS_SANDBOX_PROFILE         default
    timeout_seconds      MODELOPS_TASK_TIMEOUT_SECONDS    600
    max_servers          MODELOPS_MAX_WARM_SERVERS        the number of processors or threads, at least 4

    Whether tasks run warm or cold is always the worker's to say: MODELOPS_COLD_DEBUG.
    """

    bundle_repository: str | None = None
    bundle_registry: str | None = None
    storage_dir: str | None = None
    runner_store_dir: str | None = None
    venvs_dir: str | None = None
    profile: str | None = None
    timeout_seconds: float | None = None
    max_servers: int | None = None

    def storage(self, environ: Mapping[str, str] = os.environ) -> Path:
        """The storage directory of a worker."""
        return Path(self.storage_dir) if self.storage_dir else default_storage_dir(environ)

    def make(self, threads: int, environ: Mapping[str, str] = os.environ) -> SandboxedExecEnv:
        """The execution environment of a worker with that many threads."""
        return make_exec_env(**self.check(threads, environ))

    def check(self, threads: int, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """What the execution environment is made of; BundleError, ValueError or OSError where a setting is wrong."""
        storage = self.storage(environ)
        timeout = self.timeout_seconds or _number(environ, "MODELOPS_TASK_TIMEOUT_SECONDS", float)
        servers = self.max_servers or _number(environ, "MODELOPS_MAX_WARM_SERVERS", int)
        return {
            "bundle_repo": make_repository(environ, storage, self.bundle_repository, self.bundle_registry),
            "environ": environ,
            "storage_dir": storage,
            "venvs_dir": self.venvs_dir or environ.get("VENVS_DIR"),
            "runner_store_dir": self.runner_store_dir or environ.get("MODELOPS_RUNNER_STORE_DIR"),
            "profile": self.profile or environ.get("MODELOPS_SANDBOX_PROFILE") or "default",
            "timeout_seconds": float(timeout or _DEFAULT_TIMEOUT),
            "max_servers": servers or max(4, threads, os.cpu_count() or 1),
        }


def _number(environ: Mapping[str, str], name: str, kind: Callable[[str], T]) -> T | None:
    text = environ.get(name)
    try:
        return kind(text) if text else None
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None


def runner_settings(profile: str | None = None, environ: Mapping[str, str] = os.environ) -> RunnerSettings:
    """How the runner is called outside of a worker: as one with these variables would call it."""
    return RunnerSettings.of(
        None,
        profile=profile or environ.get("MODELOPS_SANDBOX_PROFILE") or "default",
        profiles_dir=None,
        runner_store_dir=environ.get("MODELOPS_RUNNER_STORE_DIR"),
        venvs_dir=environ.get("VENVS_DIR"),
        reuse=None,
        env=None,
    )
