"""Tasks, and the result of an aggregation."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from ._fields import (
    as_tuple,
    copied_mapping,
    frozen_mapping,
    replace_field,
    require,
    require_at_least,
    require_finite,
    require_int,
    require_seed,
    require_text,
    require_type,
)
from .artifacts import SimReturn, TableArtifact, copied_artifacts
from .entrypoint import EntrypointFormatError, EntryPointId, format_entrypoint, parse_entrypoint
from .errors import ContractViolationError
from .types import Scalar, UniqueParameterSet

__all__ = ["AggregationReturn", "AggregationTask", "ReplicateSet", "SimTask", "TableIPC"]

TableIPC = bytes

_BUNDLE_REF = re.compile(r"(?:[!-~]+@)?sha256:[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class SimTask:
    """One simulation: the same task gives the same outputs.

    `bundle_ref` is `sha256:<64 hex>`, alone or after `repository@`. `entrypoint` follows the
    entry point grammar. `seed` is an int in [0, 2**64-1]. `outputs` names the outputs to make,
    None meaning all, and is kept sorted. `config` and `env` are copied and read-only.
    """

    bundle_ref: str
    entrypoint: EntryPointId | str
    params: UniqueParameterSet
    seed: int
    outputs: Sequence[str] | None = None
    config: Mapping[str, Any] | None = None
    env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _require_bundle_digest("bundle_ref", self.bundle_ref)
        _require_entrypoint("entrypoint", self.entrypoint)
        require_type("params", self.params, UniqueParameterSet)
        require_seed("seed", self.seed)
        if self.outputs is not None:
            replace_field(self, "outputs", _sorted_names("outputs", self.outputs))
        if self.config is not None:
            replace_field(self, "config", frozen_mapping("config", self.config))
        if self.env is not None:
            replace_field(self, "env", frozen_mapping("env", self.env))

    @classmethod
    def from_components(
        cls,
        *,
        import_path: str,
        scenario: str,
        bundle_ref: str,
        params: Mapping[str, Scalar],
        seed: int,
        outputs: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, Any] | None = None,
    ) -> Self:
        """A task in the model form, its parameters identified by `make_param_id`.

        Here an empty `outputs` means all, as None does.
        """
        return cls(
            bundle_ref=bundle_ref,
            entrypoint=format_entrypoint(import_path, scenario),
            params=UniqueParameterSet.from_dict(params),
            seed=seed,
            outputs=outputs or None,
            config=config,
            env=env,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A MappingProxyType cannot be pickled, and the constructor freezes again.
        config = None if self.config is None else dict(self.config)
        env = None if self.env is None else dict(self.env)
        identity = (self.bundle_ref, self.entrypoint, self.params, self.seed)
        return type(self), (*identity, self.outputs, config, env)


@dataclass(frozen=True)
class ReplicateSet:
    """One task to be run `n_replicates` times with consecutive seeds."""

    base_task: SimTask
    n_replicates: int
    seed_offset: int = 0

    def __post_init__(self) -> None:
        require_type("base_task", self.base_task, SimTask)
        require_at_least("n_replicates", self.n_replicates, 0)
        require_int("seed_offset", self.seed_offset)

    def tasks(self) -> list[SimTask]:
        """The base task with the seeds `base_task.seed + seed_offset + i`."""
        first = self.base_task.seed + self.seed_offset
        return [replace(self.base_task, seed=first + i) for i in range(self.n_replicates)]


@dataclass(frozen=True)
class AggregationTask:
    """The evaluation of simulation results by a target of the bundle.

    `bundle_ref` and `sim_returns` are non-empty, and `target_entrypoint` follows the entry point
    grammar. `sim_returns` and `target_data` are copied.
    """

    bundle_ref: str
    target_entrypoint: EntryPointId | str
    sim_returns: list[SimReturn]
    target_data: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        require_text("bundle_ref", self.bundle_ref)
        _require_entrypoint("target_entrypoint", self.target_entrypoint)
        replace_field(self, "sim_returns", list(as_tuple("sim_returns", self.sim_returns)))
        require(len(self.sim_returns) > 0, "sim_returns", "must be non-empty")
        for index, sim_return in enumerate(self.sim_returns):
            require_type(f"sim_returns[{index}]", sim_return, SimReturn)
        if self.target_data is not None:
            replace_field(self, "target_data", copied_mapping("target_data", self.target_data))

    def aggregation_id(self) -> str:
        """16 hex characters, the same whatever the order of the results.

        `utils.aggregation_id` hashes the same text to another digest size, so the two differ.
        """
        task_ids = ",".join(sorted(sim_return.task_id for sim_return in self.sim_returns))
        text = f"{self.target_entrypoint}:{task_ids}"
        return hashlib.blake2b(text.encode("utf-8"), digest_size=32).hexdigest()[:16]


@dataclass(frozen=True)
class AggregationReturn:
    """The loss of a group of replicates.

    `loss` is finite and `n_replicates` positive. The mappings are copied.
    """

    aggregation_id: str
    loss: float
    diagnostics: dict[str, Any]
    outputs: dict[str, TableArtifact]
    n_replicates: int

    def __post_init__(self) -> None:
        require_finite("loss", self.loss)
        replace_field(self, "diagnostics", copied_mapping("diagnostics", self.diagnostics))
        replace_field(self, "outputs", copied_artifacts("outputs", self.outputs))
        require_at_least("n_replicates", self.n_replicates, 1)


def _require_bundle_digest(name: str, ref: str) -> None:
    require_text(name, ref)
    rule = f"must be [repository@]sha256:<64 hex characters>, got {ref!r}"
    require(_BUNDLE_REF.fullmatch(ref) is not None, name, rule)


def _require_entrypoint(name: str, entrypoint: str) -> None:
    require_text(name, entrypoint)
    try:
        parse_entrypoint(entrypoint)
    except EntrypointFormatError as error:
        raise ContractViolationError(f"{name} {entrypoint!r} is not valid: {error}") from error


def _sorted_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    items = as_tuple(name, names)
    for index, item in enumerate(items):
        require_type(f"{name}[{index}]", item, str)
    return tuple(sorted(items))
