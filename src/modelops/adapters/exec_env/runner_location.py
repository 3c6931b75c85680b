"""Where the runner is.

In a checkout it is `tools/ultra_cold_runner.py`, with its profiles in `sandbox-profiles/`; a wheel has
the same two folders below `modelops/_runner/`, so that the runner finds its profiles beside itself in
both.
"""

from pathlib import Path

import modelops

RUNNER = Path("tools") / "ultra_cold_runner.py"


def find_runner() -> Path:
    """The runner that came with this package."""
    package = Path(modelops.__file__).resolve().parent
    for base in (package / "_runner", package.parent.parent):
        if (base / RUNNER).is_file():
            return base / RUNNER
    raise FileNotFoundError(f"the runner is neither in {package / '_runner'} nor in a checkout around {package}")
