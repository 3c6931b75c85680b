"""A parameter study: every parameter set with every seed, and with a target the loss of each set."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import distributed
from modelops_contracts import AggregationReturn, SimReturn, SimTask, UniqueParameterSet

from modelops.adapters.exec_env.errors import RunnerError

from .dask_simulation import DaskSimulationService
from .futures import SimulationFuture, TaskFuture, lost

MAX_FAILURES = 100  # that the summary names; the tables have them all


@dataclass(frozen=True)
class Study:
    """What is to be run. The parameter sets are distinct, and so are the seeds."""

    bundle_ref: str
    entrypoint: str
    parameter_sets: Sequence[UniqueParameterSet]
    seeds: Sequence[int]
    target_entrypoint: str | None = None
    target_data: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, keys in (
            ("parameter sets", [parameters.param_id for parameters in self.parameter_sets]),
            ("seeds", self.seeds),
        ):
            if len(keys) == 0:
                raise ValueError(f"a study needs {name}")
            if len(set(keys)) != len(keys):
                raise ValueError(f"the {name} of a study must be distinct")

    def tasks(self) -> Iterator[list[SimTask]]:
        """The tasks of each parameter set, one for each seed."""
        for parameters in self.parameter_sets:
            yield [SimTask(self.bundle_ref, self.entrypoint, parameters, seed) for seed in self.seeds]

    @property
    def size(self) -> int:
        """The number of tasks, aggregations included."""
        return len(self.parameter_sets) * (len(self.seeds) + (self.target_entrypoint is not None))


@dataclass(frozen=True)
class Loss:
    """The aggregation of one parameter set: its result, or why there is none."""

    parameters: UniqueParameterSet
    result: AggregationReturn | None
    error: RunnerError | None = None


@dataclass
class StudyResults:
    """What came of a study, in its order."""

    study: Study
    executors: list[str]
    simulations: list[tuple[SimTask, SimReturn]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Every task without a result: what it was, and why."""
        found: list[dict[str, Any]] = []
        for task, result in self.simulations:
            if result.error is not None:
                what = {"task": "simulation", "seed": task.seed, **_identity(task.params)}
                found.append({**what, "error_type": result.error.error_type, "error": result.error.message})
        for loss in self.losses:
            if loss.error is not None:
                what = {"task": "aggregation", **_identity(loss.parameters)}
                found.append({**what, "error_type": loss.error.type, "error": loss.error.message})
        return found

    def digest(self) -> str:
        """A digest of all results and of no measurement: equal studies have equal digests, warm or cold."""
        digest = hashlib.blake2b(digest_size=32)
        for task, result in self.simulations:
            outcome = result.error.error_type if result.error else result.task_id
            digest.update(f"{task.params.param_id} {task.seed} {outcome}\n".encode())
            for name, artifact in sorted(result.outputs.items()):
                digest.update(f"  {name!r} {artifact.checksum}\n".encode())
        for loss in self.losses:
            value = loss.result.loss.hex() if loss.result else loss.error and loss.error.type
            digest.update(f"{loss.parameters.param_id} {value}\n".encode())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """The study in short, as JSON."""
        failures = self.failures
        study = self.study
        succeeded = sum(result.error is None for _, result in self.simulations)
        losses = [
            {**_identity(loss.parameters), "loss": loss.result.loss} for loss in self.losses if loss.result is not None
        ]
        return {
            "bundle": study.bundle_ref,
            "entrypoint": study.entrypoint,
            "target": study.target_entrypoint,
            "executors": dict(Counter(self.executors)),
            "parameter_sets": len(study.parameter_sets),
            "seeds": len(study.seeds),
            "simulations": {"succeeded": succeeded, "failed": len(self.simulations) - succeeded},
            "aggregations": {"succeeded": len(losses), "failed": len(self.losses) - len(losses)},
            "failed": len(failures),
            "failures": failures[:MAX_FAILURES],
            "losses": sorted(losses, key=lambda entry: entry["loss"]),
            "results_digest": self.digest(),
            "seconds": round(self.seconds, 3),
            "tasks_per_second": round(study.size / self.seconds, 2) if self.seconds else None,
        }


def run_study(
    service: DaskSimulationService, study: Study, progress: Callable[[bool], None] = lambda succeeded: None
) -> StudyResults:
    """Run all tasks of a study. `progress` is called as each one ends, with whether it has a result."""
    begun = time.monotonic()
    executors = list(service.executors().values())
    tasks = list(study.tasks())
    flat = service.simulate([task for group in tasks for task in group])
    groups = [flat[start : start + len(study.seeds)] for start in range(0, len(flat), len(study.seeds))]
    aggregations: list[TaskFuture[AggregationReturn]] = []
    if study.target_entrypoint is not None:
        for group in groups:
            aggregations.append(service.aggregate(group, study.target_entrypoint, target_data=study.target_data))
    _follow(service, [*flat, *aggregations], progress)
    results = StudyResults(study, executors)
    simulated = service.gather(flat)
    results.simulations = [(future.task, result) for future, result in zip(flat, simulated, strict=True)]
    for parameters, value in zip(study.parameter_sets, service.gather(aggregations), strict=bool(aggregations)):
        error = lost(value) if isinstance(value, Exception) else None
        results.losses.append(Loss(parameters, None if error else value, error))
    results.seconds = time.monotonic() - begun
    return results


def _follow(
    service: DaskSimulationService,
    futures: Sequence[SimulationFuture | TaskFuture[Any]],
    progress: Callable[[bool], None],
) -> None:
    """Call `progress` for each future as it ends; results are fetched later, all at once."""
    by_key = {future.key: future for future in futures}
    ended = distributed.as_completed([future.dask for future in futures], loop=service.client.loop, raise_errors=False)
    for done in ended:
        future = by_key.pop(done.key)
        if isinstance(future, SimulationFuture):
            progress(future.result().error is None)
        else:
            progress(done.status == "finished")


def _identity(parameters: UniqueParameterSet) -> dict[str, Any]:
    return {"param_id": parameters.param_id, "params": dict(parameters.params)}
