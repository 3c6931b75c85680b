"""The gate before the old cold runner's names: an old configuration meets a clear message."""

import os
from collections.abc import Mapping

from .select import TRUTHY

ENABLE = "MODELOPS_ENABLE_LEGACY_COLD"


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
