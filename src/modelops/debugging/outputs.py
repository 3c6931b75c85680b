"""Outputs as files: each under its own name, with a fitting suffix."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from .kinds import kind_of
from .workbench import Output


def write_outputs(outputs: Mapping[str, Output], folder: Path) -> dict[str, Path]:
    """Write every output into `folder`, which is made; the file of each. The runner lets no name be a path."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for name, output in outputs.items():
        suffix = kind_of(output).suffix
        path = folder / (name if name.endswith(suffix) else name + suffix)
        if path in written.values() or path.is_symlink():
            raise ValueError(f"the output {name!r} can't be written to {str(path)!r}, which is taken")
        if isinstance(output.content, Path):
            shutil.copyfile(output.content, path)
        else:
            path.write_bytes(output.content)
        written[name] = path
    return written
