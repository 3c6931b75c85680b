"""Identifiers of tasks, bundles and aggregations."""

import hashlib
import re
from collections.abc import Iterable

from ._fields import require
from .simulation import SimTask

__all__ = ["aggregation_id", "bundle12", "canonical_task_id"]

_HEX12 = re.compile(r"[0-9a-fA-F]{12}")


def canonical_task_id(task: SimTask) -> str:
    """32 hex characters that depend on bundle, entry point, parameters and seed alone."""
    return _digest16(
        f"sim:v1|{task.bundle_ref}|{task.entrypoint}|{task.params.param_id}|{task.seed}"
    )


def bundle12(bundle_ref: str) -> str:
    """The first 12 hex characters of the digest in a bundle reference."""
    digest = bundle_ref.rpartition("@")[2].rpartition(":")[2]
    # Callers make file names of it: nothing but hex may come out.
    require(_HEX12.match(digest) is not None, "bundle_ref", f"has no digest: {bundle_ref!r}")
    return digest[:12]


def aggregation_id(target_entrypoint: str, task_ids: Iterable[str]) -> str:
    """16 hex characters, the same whatever the order of `task_ids`."""
    return _digest16(f"{target_entrypoint}:{','.join(sorted(task_ids))}")[:16]


def _digest16(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
