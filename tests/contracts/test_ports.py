"""The ports: their methods and parameters, and that plain classes fulfil them."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from modelops_contracts import (
    AggregationReturn,
    AggregationTask,
    BundleRepository,
    EntryPointId,
    ExecutionEnvironment,
    Future,
    ReplicateSet,
    Scalar,
    SimReturn,
    SimTask,
    SimulationService,
    WireFunction,
    digest_bytes,
    parse_entrypoint,
)
from modelops_contracts.ports import CAS

from .builders import (
    BUNDLE,
    aggregation_return,
    aggregation_task,
    artifact,
    sim_return,
    sim_task,
)

T = TypeVar("T")

METHODS: dict[type, dict[str, list[str]]] = {
    Future: {"result": ["timeout"], "done": [], "cancel": [], "exception": []},
    SimulationService: {
        "submit": ["task"],
        "gather": ["futures"],
        "submit_batch": ["tasks"],
        "submit_replicate_set": ["replicate_set", "target_entrypoint"],
        "submit_batch_with_aggregation": ["replicate_sets", "target_entrypoint"],
    },
    ExecutionEnvironment: {
        "run": ["task"],
        "run_aggregation": ["task"],
        "health_check": [],
        "shutdown": [],
    },
    BundleRepository: {"ensure_local": ["bundle_ref"], "exists": ["bundle_ref"]},
    CAS: {"put": ["data", "checksum_hex"], "get": ["ref"], "exists": ["ref"]},
    WireFunction: {"__call__": ["entrypoint", "params", "seed"]},
}


@pytest.mark.parametrize("port", METHODS, ids=lambda port: port.__name__)
def test_methods_and_parameters(port: type) -> None:
    assert getattr(port, "_is_protocol", False)
    for name, expected in METHODS[port].items():
        parameters = list(inspect.signature(getattr(port, name)).parameters)
        assert parameters == ["self", *expected]


@pytest.mark.parametrize("port", METHODS, ids=lambda port: port.__name__)
def test_there_are_no_other_methods(port: type) -> None:
    own = {name for name, value in vars(port).items() if inspect.isfunction(value)}
    assert own - {"__init__", "__subclasshook__"} == set(METHODS[port]) - {"__init__"}


@pytest.mark.parametrize(
    ("method", "parameter"),
    [(Future.result, "timeout"), (SimulationService.submit_replicate_set, "target_entrypoint")],
)
def test_optional_parameters(method: Any, parameter: str) -> None:
    assert inspect.signature(method).parameters[parameter].default is None


class Done(Generic[T]):
    """A future whose work has ended."""

    def __init__(self, value: T) -> None:
        self._value = value

    def result(self, timeout: float | None = None) -> T:
        return self._value

    def done(self) -> bool:
        return True

    def cancel(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return None


def wire(entrypoint: EntryPointId, params: Mapping[str, Scalar], seed: int) -> dict[str, bytes]:
    return {"table": f"{parse_entrypoint(entrypoint)[1]} {params['beta']} {seed}".encode()}


class LocalEnvironment:
    """Calls a wire function in this process."""

    def __init__(self, function: WireFunction) -> None:
        self._function = function

    def run(self, task: SimTask) -> SimReturn:
        outputs = self._function(EntryPointId(task.entrypoint), task.params.params, task.seed)
        return sim_return(outputs={name: artifact(data) for name, data in outputs.items()})

    def run_aggregation(self, task: AggregationTask) -> AggregationReturn:
        count = len(task.sim_returns)
        return aggregation_return(aggregation_id=task.aggregation_id(), n_replicates=count)

    def health_check(self) -> dict[str, Any]:
        return {"healthy": True}

    def shutdown(self) -> None:
        pass


class LocalService:
    """Runs every task when it is submitted."""

    def __init__(self, environment: ExecutionEnvironment) -> None:
        self._environment = environment

    def submit(self, task: SimTask) -> Future[SimReturn]:
        return Done(self._environment.run(task))

    def gather(self, futures: list[Future[SimReturn]]) -> list[SimReturn]:
        return [future.result() for future in futures]

    def submit_batch(self, tasks: list[SimTask]) -> list[Future[SimReturn]]:
        return [self.submit(task) for task in tasks]

    def submit_replicate_set(
        self, replicate_set: ReplicateSet, target_entrypoint: str | None = None
    ) -> Future[AggregationReturn | Sequence[SimReturn]]:
        if target_entrypoint is None:
            return Done(self.gather(self.submit_batch(replicate_set.tasks())))
        return Done(self._aggregate(replicate_set, target_entrypoint))

    def submit_batch_with_aggregation(
        self, replicate_sets: list[ReplicateSet], target_entrypoint: str
    ) -> list[Future[AggregationReturn]]:
        return [Done(self._aggregate(each, target_entrypoint)) for each in replicate_sets]

    def _aggregate(self, replicate_set: ReplicateSet, target: str) -> AggregationReturn:
        returns = self.gather(self.submit_batch(replicate_set.tasks()))
        task = aggregation_task(sim_returns=returns, target_entrypoint=target)
        return self._environment.run_aggregation(task)


class MemoryStore:
    """Content by checksum."""

    def __init__(self) -> None:
        self._content: dict[str, bytes] = {}

    def put(self, data: bytes, checksum_hex: str) -> str:
        if digest_bytes(data) != checksum_hex:
            raise ValueError("checksum does not match")
        self._content[checksum_hex] = data
        return checksum_hex

    def get(self, ref: str) -> bytes:
        return self._content[ref]

    def exists(self, ref: str) -> bool:
        return ref in self._content


class FolderRepository:
    """A repository of one bundle."""

    def ensure_local(self, bundle_ref: str) -> tuple[str, Path]:
        return bundle_ref, Path()

    def exists(self, bundle_ref: str) -> bool:
        return bundle_ref == BUNDLE


# The annotations below are the test where a type checker reads this file.


def test_a_service_on_an_environment() -> None:
    service: SimulationService = LocalService(LocalEnvironment(wire))
    futures = service.submit_batch([sim_task(seed=seed) for seed in (3, 1, 2)])
    tables = [result.outputs["table"].inline for result in service.gather(futures)]
    assert tables == [b"baseline 0.5 3", b"baseline 0.5 1", b"baseline 0.5 2"]


def test_a_replicate_set_with_and_without_a_target() -> None:
    service: SimulationService = LocalService(LocalEnvironment(wire))
    replicates = ReplicateSet(sim_task(), 3)
    plain = service.submit_replicate_set(replicates).result()
    assert isinstance(plain, list) and len(plain) == 3
    aggregated = service.submit_replicate_set(replicates, "targets.covid:deaths").result(timeout=1)
    assert isinstance(aggregated, AggregationReturn)
    assert aggregated.n_replicates == 3
    batch = service.submit_batch_with_aggregation([replicates], "targets.covid:deaths")
    assert [future.result() for future in batch] == [aggregated]


def test_a_repository() -> None:
    repository: BundleRepository = FolderRepository()
    assert repository.exists(BUNDLE)
    assert repository.ensure_local(BUNDLE) == (BUNDLE, Path())


def test_a_content_store() -> None:
    store: CAS = MemoryStore()
    ref = store.put(b"content", digest_bytes(b"content"))
    assert store.exists(ref) and store.get(ref) == b"content"
    with pytest.raises(KeyError):
        store.get("absent")
    with pytest.raises(ValueError, match="checksum"):
        store.put(b"content", digest_bytes(b"other"))
