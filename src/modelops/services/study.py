"""A parameter study: which simulations it has, which targets evaluate them, and what tells it from another."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelops_contracts import ContractViolationError, SimTask, UniqueParameterSet

MAX_SIMULATIONS = 10_000_000  # of which a study knows in memory; a slip of the pen has more


class Target(NamedTuple):
    """What evaluates the simulations of a parameter set: its name in the study, and its entry point."""

    name: str
    entrypoint: str


class Point(NamedTuple):
    """One simulation: a parameter set and a seed from 0 to 2^64 - 1."""

    parameters: UniqueParameterSet
    seed: int


@dataclass(frozen=True)
class Study:
    """What is to be run. The points are distinct; those of one parameter set are replicates, and aggregated together.

    `outputs` are the names of the outputs that are wanted, and None means all.
    """

    bundle_ref: str
    entrypoint: str
    points: Sequence[Point]
    targets: Sequence[Target] = ()
    target_data: dict[str, Any] | None = None
    outputs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a study needs parameter sets and seeds")
        if len({(point.parameters.param_id, point.seed) for point in self.points}) != len(self.points):
            raise ValueError("the parameter sets and the seeds of a study must be distinct")
        if len({target.name for target in self.targets}) != len(self.targets):
            raise ValueError("the targets of a study must be distinct")
        for point in self.points:  # what the contract refuses is refused before anything runs
            self._task(point)

    @classmethod
    def product(
        cls, bundle_ref: str, entrypoint: str, sets: Iterable[UniqueParameterSet], seeds: Sequence[int], **fields: Any
    ) -> "Study":
        """Every parameter set with every seed."""
        all_sets = list(sets)
        check_size(len(all_sets), len(seeds))
        points = [Point(parameters, seed) for parameters in all_sets for seed in seeds]
        return cls(bundle_ref, entrypoint, points, **fields)

    def task(self, index: int) -> SimTask:
        """The task of a point."""
        return self._task(self.points[index])

    @property
    def size(self) -> int:
        """The number of tasks, aggregations included."""
        return len(self.points) + len(self.groups()) * len(self.targets)

    def groups(self) -> list[list[int]]:
        """The points of each parameter set, in the order of its first."""
        groups: dict[str, list[int]] = {}
        for index, point in enumerate(self.points):
            groups.setdefault(point.parameters.param_id, []).append(index)
        return list(groups.values())

    def identity(self) -> dict[str, Any]:
        """What two starts must have in common to be of one study. Equal identities give equal results."""
        digest = hashlib.blake2b(digest_size=32)
        for point in self.points:
            digest.update(f"{point.parameters.param_id} {point.seed}\n".encode())
        return {
            "bundle": self.bundle_ref,
            "entrypoint": self.entrypoint,
            "parameters": {"simulations": len(self.points), "digest": digest.hexdigest()},
            "outputs": None if self.outputs is None else list(self.outputs),
            "targets": [list(target) for target in self.targets],
            "target_data": json.loads(json.dumps(self.target_data)),
        }

    def _task(self, point: Point) -> SimTask:
        try:
            return SimTask(self.bundle_ref, self.entrypoint, point.parameters, point.seed, outputs=self.outputs)
        except ContractViolationError as error:
            raise ValueError(str(error)) from None


def check_size(sets: int, seeds: int) -> None:
    """ValueError where so many sets with so many seeds each are too many for a study."""
    if sets * seeds > MAX_SIMULATIONS:
        raise ValueError(f"{sets:,} parameter sets with {seeds:,} seeds each are over {MAX_SIMULATIONS:,} simulations")
