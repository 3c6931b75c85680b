"""What somebody else needs to run a failed task again: it goes with the error, under `debug`."""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("modelops", "modelops-contracts")
MAX_TASK = 128 * 1024  # bytes of JSON; a larger task, most often an aggregation's inputs, is left out


def failed_task(bundle_ref: str, task: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """The bundle, the task as the runner takes it, the profile by its name, and versions: nothing of this machine.

    The task is None where it is too large to go along.
    """
    fits = len(json.dumps(task, default=str)) <= MAX_TASK
    return {
        "bundle": bundle_ref,
        "task": dict(task) if fits else None,
        "profile": Path(profile).stem if "/" in profile else profile,
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"
