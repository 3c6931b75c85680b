"""The one place that decides which environment runs: warm, unless MODELOPS_COLD_DEBUG asks for cold."""

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from modelops_contracts import BundleRepository

from .cold_debug import ColdDebugExecEnv
from .runner_settings import StrPath
from .sandboxed import SandboxedExecEnv
from .warm import IsolatedWarmExecEnv

logger = logging.getLogger(__name__)

COLD_DEBUG = "MODELOPS_COLD_DEBUG"
TRUTHY = ("1", "true", "TRUE")


class Choice(NamedTuple):
    """Whether the cold environment runs, and why."""

    cold: bool
    reason: str


def choose(environ: Mapping[str, str] = os.environ) -> Choice:
    """Decide by the environment's variables."""
    value = environ.get(COLD_DEBUG)
    if value in TRUTHY:
        return Choice(True, f"{COLD_DEBUG}={value}")
    if value:
        return Choice(False, f"it is the default, and {COLD_DEBUG}={value} is none of {', '.join(TRUTHY)}")
    return Choice(False, f"it is the default; {COLD_DEBUG}=1 chooses the cold one")


def make_exec_env(
    bundle_repo: BundleRepository,
    *,
    environ: Mapping[str, str] = os.environ,
    storage_dir: StrPath | None = None,
    venvs_dir: StrPath | None = None,
    runner_store_dir: StrPath | None = None,
    profile: str = "default",
    timeout_seconds: float = 600,
    max_servers: int | None = None,
) -> SandboxedExecEnv:
    """The execution environment of this process, as `choose` decides; the log says which and why."""
    cold, reason = choose(environ)
    exec_env: SandboxedExecEnv
    if cold:
        exec_env = ColdDebugExecEnv(
            bundle_repo,
            timeout_seconds=timeout_seconds,
            profile=profile,
            storage_dir=storage_dir,
            runner_store_dir=runner_store_dir,
            venvs_dir=venvs_dir,
        )
    else:
        exec_env = IsolatedWarmExecEnv(
            bundle_repo,
            venvs_dir,
            storage_dir,
            timeout_seconds=timeout_seconds,
            profile=profile,
            runner_store_dir=runner_store_dir,
            max_servers=max_servers,
        )
    exec_env.chosen_because = reason
    logger.info("tasks run in the %s environment: %s", exec_env.name, reason)
    return exec_env
