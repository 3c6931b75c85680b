"""Types and ports that ModelOps and the science code of a bundle agree on."""

from .artifacts import INLINE_CAP, ErrorInfo, SimReturn, TableArtifact
from .entrypoint import (
    ENTRYPOINT_GRAMMAR_VERSION,
    EntrypointFormatError,
    EntryPointId,
    format_entrypoint,
    parse_entrypoint,
)
from .errors import ContractViolationError
from .param_hashing import digest_bytes, make_param_id
from .ports import (
    BundleRepository,
    ExecutionEnvironment,
    Future,
    SimulationService,
    WireFunction,
)
from .simulation import AggregationReturn, AggregationTask, ReplicateSet, SimTask, TableIPC
from .types import (
    MAX_DIAG_BYTES,
    Scalar,
    SeedInfo,
    TrialResult,
    TrialStatus,
    UniqueParameterSet,
)
from .utils import aggregation_id, bundle12, canonical_task_id

CONTRACTS_VERSION = "0.3.0"

__all__ = [
    "CONTRACTS_VERSION",
    "ENTRYPOINT_GRAMMAR_VERSION",
    "INLINE_CAP",
    "MAX_DIAG_BYTES",
    "AggregationReturn",
    "AggregationTask",
    "BundleRepository",
    "ContractViolationError",
    "EntryPointId",
    "EntrypointFormatError",
    "ErrorInfo",
    "ExecutionEnvironment",
    "Future",
    "ReplicateSet",
    "Scalar",
    "SeedInfo",
    "SimReturn",
    "SimTask",
    "SimulationService",
    "TableArtifact",
    "TableIPC",
    "TrialResult",
    "TrialStatus",
    "UniqueParameterSet",
    "WireFunction",
    "aggregation_id",
    "bundle12",
    "canonical_task_id",
    "digest_bytes",
    "format_entrypoint",
    "make_param_id",
    "parse_entrypoint",
]
