"""What a worker needs to know to make its execution environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelops.adapters.bundle.sources import make_repository
from modelops.adapters.exec_env.runner_settings import RunnerSettings
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv
from modelops.adapters.exec_env.select import make_exec_env
from modelops.places import default_storage_dir

_DEFAULT_TIMEOUT = 600.0


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
        storage = self.storage(environ)
        timeout = self.timeout_seconds or environ.get("MODELOPS_TASK_TIMEOUT_SECONDS") or _DEFAULT_TIMEOUT
        servers = self.max_servers or environ.get("MODELOPS_MAX_WARM_SERVERS")
        return make_exec_env(
            make_repository(environ, storage, self.bundle_repository, self.bundle_registry),
            environ=environ,
            storage_dir=storage,
            venvs_dir=self.venvs_dir or environ.get("VENVS_DIR"),
            runner_store_dir=self.runner_store_dir or environ.get("MODELOPS_RUNNER_STORE_DIR"),
            profile=self.profile or environ.get("MODELOPS_SANDBOX_PROFILE") or "default",
            timeout_seconds=float(timeout),
            max_servers=int(servers) if servers else max(4, threads, os.cpu_count() or 1),
        )


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
