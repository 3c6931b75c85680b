"""The old name of the cold environment. See `legacy`."""

import warnings
from typing import Any

from modelops_contracts import BundleRepository

from . import legacy
from .cold_debug import ColdDebugExecEnv
from .runner_settings import StrPath

OLD = "modelops.adapters.exec_env.cold.ColdExecEnv"
NEW = "modelops.adapters.exec_env.cold_debug.ColdDebugExecEnv (MODELOPS_COLD_DEBUG=1)"


class ColdExecEnv(ColdDebugExecEnv):
    """Refuses, unless MODELOPS_ENABLE_LEGACY_COLD is set; with it, a `ColdDebugExecEnv` that warns."""

    def __init__(
        self,
        bundle_repo: BundleRepository,
        venvs_dir: StrPath | None = None,
        storage_dir: StrPath | None = None,
        timeout_seconds: float = 600,
        **options: Any,
    ) -> None:
        if not legacy.is_enabled():
            raise DeprecationWarning(legacy.refusal(OLD, NEW))
        warnings.warn(legacy.warning(OLD, NEW), DeprecationWarning, stacklevel=2)
        super().__init__(
            bundle_repo,
            timeout_seconds=timeout_seconds,
            storage_dir=storage_dir,
            venvs_dir=venvs_dir,
            **options,
        )
