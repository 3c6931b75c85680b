"""The gate before the old cold runner's names, and the old name of the cold environment.

An old configuration meets a clear message.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from modelops_contracts import BundleRepository

from .cold_debug import ColdDebugExecEnv
from .runner_settings import StrPath
from .select import TRUTHY

ENABLE = "MODELOPS_ENABLE_LEGACY_COLD"
OLD = "modelops.adapters.exec_env.cold.ColdExecEnv"
NEW = "modelops.adapters.exec_env.cold_debug.ColdDebugExecEnv (MODELOPS_COLD_DEBUG=1)"


def is_enabled(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the old names are allowed for now."""
    return environ.get(ENABLE) in TRUTHY


def refusal(old: str, new: str) -> str:
    """What someone who still uses an old name has to know."""
    return (
        f"{old} is gone: its shared environments let one task change the next. Use {new} instead. "
        f"Until the old name is removed, {ENABLE}=1 runs the new one under it."
    )


def warning(old: str, new: str) -> str:
    """What someone who uses an old name with the flag has to know."""
    return f"{old} is a deprecated name for {new}, which runs now ({ENABLE} is set); it will be removed."


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
        if not is_enabled():
            raise DeprecationWarning(refusal(OLD, NEW))
        warnings.warn(warning(OLD, NEW), DeprecationWarning, stacklevel=2)
        super().__init__(
            bundle_repo,
            timeout_seconds=timeout_seconds,
            storage_dir=storage_dir,
            venvs_dir=venvs_dir,
            **options,
        )
