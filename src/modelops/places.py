"""Where ModelOps keeps things on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path


def default_storage_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$MODELOPS_STORAGE_DIR`, else a folder among the user's data: artifacts and copies of bundles."""
    chosen = environ.get("MODELOPS_STORAGE_DIR")
    if chosen:
        return Path(chosen).absolute()
    data = environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data).absolute() / "modelops"
