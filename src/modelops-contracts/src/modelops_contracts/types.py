"""Parameters, seeds and trial results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from ._fields import (
    as_tuple,
    copied_mapping,
    frozen_mapping,
    replace_field,
    require,
    require_finite,
    require_seed,
    require_text,
    require_type,
    shown,
)
from .errors import ContractViolationError
from .param_hashing import make_param_id

__all__ = [
    "MAX_DIAG_BYTES",
    "Scalar",
    "SeedInfo",
    "TrialResult",
    "TrialStatus",
    "UniqueParameterSet",
]

Scalar = bool | int | float | str

MAX_DIAG_BYTES = 65536


@dataclass(frozen=True)
class UniqueParameterSet:
    """Read-only parameters and their identifier.

    `params` maps names to bool, int, finite float or str; it is copied. `param_id` is non-empty.
    """

    params: Mapping[str, Scalar]
    param_id: str

    def __post_init__(self) -> None:
        require_text("param_id", self.param_id)
        replace_field(self, "params", frozen_mapping("params", self.params))
        for name, value in self.params.items():
            require_type(f"params: name {shown(name)}", name, str)
            _require_scalar(f"params[{name!r}]", value)

    @classmethod
    def from_dict(cls, params: Mapping[str, Scalar]) -> Self:
        """Parameters identified by `make_param_id`."""
        return cls(params=params, param_id=make_param_id(params))

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType cannot be pickled, and the constructor freezes again.
        return type(self), (dict(self.params), self.param_id)


@dataclass(frozen=True)
class SeedInfo:
    """The seeds of a trial and its replicates, each an int in [0, 2**64-1]."""

    base_seed: int
    trial_seed: int
    replicate_seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        require_seed("base_seed", self.base_seed)
        require_seed("trial_seed", self.trial_seed)
        replace_field(self, "replicate_seeds", as_tuple("replicate_seeds", self.replicate_seeds))
        for index, seed in enumerate(self.replicate_seeds):
            require_seed(f"replicate_seeds[{index}]", seed)


class TrialStatus(StrEnum):
    """How a trial ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class TrialResult:
    """The outcome of one parameter set.

    `param_id` is non-empty, `loss` finite when the trial completed, and `diagnostics` at most
    MAX_DIAG_BYTES of JSON; it is copied.
    """

    param_id: str
    loss: float
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    status: TrialStatus = TrialStatus.COMPLETED

    def __post_init__(self) -> None:
        require_text("param_id", self.param_id)
        require_type("status", self.status, TrialStatus)
        if self.status is TrialStatus.COMPLETED:
            require_finite("loss", self.loss)
        replace_field(self, "diagnostics", copied_mapping("diagnostics", self.diagnostics))
        size = _json_size("diagnostics", self.diagnostics)
        limit = f"must be at most {MAX_DIAG_BYTES} bytes of JSON, got {size}"
        require(size <= MAX_DIAG_BYTES, "diagnostics", limit)


def _require_scalar(name: str, value: object) -> None:
    scalar = isinstance(value, bool | int | float | str)
    require(scalar, name, f"must be bool, int, float or str, got {type(value).__name__}")
    if isinstance(value, float):
        require_finite(name, value)


def _json_size(name: str, value: object) -> int:
    try:
        return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
    except (TypeError, ValueError) as error:
        raise ContractViolationError(f"{name} must be JSON-serialisable: {error}") from error
