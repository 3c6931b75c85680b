"""The ports: what one side calls and the other implements."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .artifacts import SimReturn
from .entrypoint import EntryPointId
from .simulation import AggregationReturn, AggregationTask, ReplicateSet, SimTask
from .types import Scalar

__all__ = [
    "CAS",
    "BundleRepository",
    "ExecutionEnvironment",
    "Future",
    "SimulationService",
    "WireFunction",
]

T_co = TypeVar("T_co", covariant=True)


class Future(Protocol[T_co]):
    """A result that may still be on its way."""

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the result, or raise the error of the work."""
        ...

    def done(self) -> bool:
        """Whether the work has ended."""
        ...

    def cancel(self) -> bool:
        """Ask for the work to stop; whether it will."""
        ...

    def exception(self) -> Exception | None:
        """The error of the work, if it failed."""
        ...


class SimulationService(Protocol):
    """Runs tasks for a client."""

    def submit(self, task: SimTask) -> Future[SimReturn]:
        """Start one task."""
        ...

    def gather(self, futures: list[Future[SimReturn]]) -> list[SimReturn]:
        """Wait for all results and return them in the order of `futures`."""
        ...

    def submit_batch(self, tasks: list[SimTask]) -> list[Future[SimReturn]]:
        """Start several tasks; one future for each, in order."""
        ...

    def submit_replicate_set(
        self, replicate_set: ReplicateSet, target_entrypoint: str | None = None
    ) -> Future[AggregationReturn | Sequence[SimReturn]]:
        """Start all replicates; with a target, the result is their aggregation."""
        ...

    def submit_batch_with_aggregation(
        self, replicate_sets: list[ReplicateSet], target_entrypoint: str
    ) -> list[Future[AggregationReturn]]:
        """Start several replicate sets, each with its aggregation; one future for each."""
        ...


class ExecutionEnvironment(Protocol):
    """Executes the code of a bundle."""

    def run(self, task: SimTask) -> SimReturn:
        """Execute one simulation."""
        ...

    def run_aggregation(self, task: AggregationTask) -> AggregationReturn:
        """Evaluate simulation results."""
        ...

    def health_check(self) -> dict[str, Any]:
        """The state of the environment."""
        ...

    def shutdown(self) -> None:
        """Release every resource."""
        ...


class BundleRepository(Protocol):
    """Makes bundles available on this machine."""

    def ensure_local(self, bundle_ref: str) -> tuple[str, Path]:
        """Fetch the bundle where needed; its canonical digest and its folder."""
        ...

    def exists(self, bundle_ref: str) -> bool:
        """Whether the repository has the bundle."""
        ...


class CAS(Protocol):
    """Stores content by its checksum. Not in every version of this interface."""

    def put(self, data: bytes, checksum_hex: str) -> str:
        """Store `data` and return its reference; raise where the checksum does not match."""
        ...

    def get(self, ref: str) -> bytes:
        """The content of `ref`; KeyError where there is none."""
        ...

    def exists(self, ref: str) -> bool:
        """Whether `ref` has content."""
        ...


class WireFunction(Protocol):
    """What the entry point of a bundle in the group `modelops.wire` must be."""

    def __call__(
        self, entrypoint: EntryPointId, params: Mapping[str, Scalar], seed: int
    ) -> dict[str, bytes]:
        """Simulate, and return the bytes of each output by name."""
        ...
