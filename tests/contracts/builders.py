"""Valid records with chosen fields changed. The digests are computed without the package."""

import hashlib
from typing import Any

from modelops_contracts import (
    AggregationReturn,
    AggregationTask,
    SimReturn,
    SimTask,
    TableArtifact,
    UniqueParameterSet,
)

BUNDLE = "sha256:" + "0123456789abcdef" * 4


def checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def artifact(content: bytes = b"table", **changes: Any) -> TableArtifact:
    fields = {"size": len(content), "inline": content, "checksum": checksum(content)}
    return TableArtifact(**{**fields, **changes})


def stored_artifact(**changes: Any) -> TableArtifact:
    fields = {"size": 10**9, "ref": "cas://key", "checksum": checksum(b"stored")}
    return TableArtifact(**{**fields, **changes})


def sim_task(**changes: Any) -> SimTask:
    fields: dict[str, Any] = {
        "bundle_ref": BUNDLE,
        "entrypoint": "models.sir.SIR/baseline",
        "params": UniqueParameterSet.from_dict({"beta": 0.5, "n": 10}),
        "seed": 7,
    }
    return SimTask(**{**fields, **changes})


def sim_return(**changes: Any) -> SimReturn:
    fields: dict[str, Any] = {"task_id": "task", "outputs": {"table": artifact()}}
    return SimReturn(**{**fields, **changes})


def aggregation_task(**changes: Any) -> AggregationTask:
    fields: dict[str, Any] = {
        "bundle_ref": BUNDLE,
        "target_entrypoint": "targets.covid:deaths",
        "sim_returns": [sim_return()],
    }
    return AggregationTask(**{**fields, **changes})


def aggregation_return(**changes: Any) -> AggregationReturn:
    fields: dict[str, Any] = {
        "aggregation_id": "aggregation",
        "loss": 1.5,
        "diagnostics": {"weight": 1.0},
        "outputs": {"table": artifact()},
        "n_replicates": 2,
    }
    return AggregationReturn(**{**fields, **changes})
