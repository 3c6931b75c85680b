"""What ModelOps needs of `modelops-contracts`, checked at import: its versions don't say it (see the README beside)."""

import importlib
from importlib import metadata

NEEDED = (
    "INLINE_CAP",
    "AggregationReturn",
    "AggregationTask",
    "BundleRepository",
    "ContractViolationError",
    "ErrorInfo",
    "Future",
    "ReplicateSet",
    "Scalar",
    "SimReturn",
    "SimTask",
    "TableArtifact",
    "UniqueParameterSet",
    "canonical_task_id",
    "digest_bytes",
    "parse_entrypoint",
)
_REMEDY = "install github.com/institutefordiseasemodeling/modelops-contracts, or src/modelops-contracts of this project"


def require_contracts() -> None:
    """ImportError where the contracts are not there, or lack a name that ModelOps uses."""
    try:
        module = importlib.import_module("modelops_contracts")
    except ModuleNotFoundError as error:
        if error.name != "modelops_contracts":
            raise
        raise ImportError(f"modelops needs modelops-contracts, which is not installed: {_REMEDY}") from None
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"modelops needs {', '.join(missing)} of modelops-contracts, and {_described(module.__file__)} has no such "
            f"name: {_REMEDY}"
        )


def _described(file: str | None) -> str:
    try:
        version = metadata.version("modelops-contracts")
    except metadata.PackageNotFoundError:
        return str(file)
    return f"version {version} in {file}"
