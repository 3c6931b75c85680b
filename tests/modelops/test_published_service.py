"""The service as callers of the published one use it: made from a client, targets in the old form, the kinds of their
integration tests (parallel, determinism, failure, large parameters, aggregation, cancelling)."""

from collections.abc import Iterator

import distributed
import pytest
from environments import Environments, wait_until
from modelops_contracts import AggregationReturn, ReplicateSet, SimReturn, SimTask

from modelops.services.dask_simulation import DaskSimulationService
from modelops.worker.config import RuntimeConfig

pytestmark = pytest.mark.xdist_group("a cluster of published services")
CODE = """
import json
import random
import time

SCENARIOS = ("baseline", "optimistic", "pessimistic")

def wire(entrypoint, params, seed):
    module, _, scenario = entrypoint.partition("/")
    if module != "simulations.test" or scenario not in SCENARIOS:
        raise ValueError(f"there is no {entrypoint}")
    if params["alpha"] < 0:
        raise ValueError("alpha must not be negative")
    time.sleep(params.get("pause", 0))
    table = [random.Random(seed).random() * params["alpha"] for _ in range(10)]
    return {"table": json.dumps(table), "metadata": json.dumps({"seed": seed, "scenario": scenario})}
"""
TARGETS = """
class Prevalence:
    def evaluate(self, sim_returns, target_data=None):
        return {"loss": float(len(sim_returns)), "diagnostics": {"method": "an object's evaluate"}}

def compute_loss(sim_returns, target_data=None):
    count = len(sim_returns)
    return {"loss": 1.0 / (1.0 + count), "diagnostics": {"n_replicates": count, "method": "simple_test"}}

prevalence = Prevalence()
"""
OLD = "targets.compute_loss/compute_loss"


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.Client]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as made,
        distributed.Client(made, timeout="30s") as client,
    ):
        yield client


@pytest.fixture
def ref(environments: Environments) -> str:
    files = {"targets.py": TARGETS, "package/__init__.py": "", "package/fits/targets.py": TARGETS}
    return environments.add(CODE, files=files)


@pytest.fixture
def service(cluster: distributed.Client, environments: Environments) -> Iterator[DaskSimulationService]:
    config = RuntimeConfig(bundle_source="file", bundles_dir=str(environments.repository.root), force_fresh_venv=False)
    with DaskSimulationService(cluster, config) as made:
        yield made


def task(ref: str, seed: int = 42, scenario: str = "baseline", **params: float | str) -> SimTask:
    return SimTask.from_components(
        import_path="simulations.test",
        scenario=scenario,
        bundle_ref=ref,
        params={"alpha": 1.0, "beta": 2.0, **params},
        seed=seed,
    )


def test_the_client_is_the_callers(cluster: distributed.Client, ref: str, environments: Environments) -> None:
    config = RuntimeConfig(bundle_source="file", bundles_dir=str(environments.repository.root))
    for _ in range(2):
        with DaskSimulationService(cluster, config) as service:
            assert service.client is cluster
            assert service.submit(task(ref)).result(timeout=300).error is None
        assert cluster.status == "running" and cluster.submit(abs, -1).result() == 1


def test_an_asynchronous_client(cluster: distributed.Client) -> None:
    async def make() -> None:
        async with distributed.Client(cluster.scheduler.address, asynchronous=True) as client:
            with pytest.raises(TypeError, match="synchronous"):
                DaskSimulationService(client)

    import asyncio

    asyncio.run(make())


def test_what_the_configuration_asks_for_and_can_not_have() -> None:
    for wrong in ({"force_fresh_venv": True}, {"executor_type": "direct"}, {"cas_backend": "azure"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RuntimeConfig(**wrong).worker_settings()  # type: ignore[arg-type]
    for source, place in (("file", "bundles_dir"), ("oci", "bundle_registry")):
        with pytest.raises(ValueError, match=place):
            RuntimeConfig(bundle_source=source).worker_settings()
    settings = RuntimeConfig(bundle_registry="registry.example/models").worker_settings()
    assert (settings.bundle_registry, settings.bundle_repository) == ("registry.example/models", None)


def test_parallel(service: DaskSimulationService, ref: str) -> None:
    results = service.gather([service.submit(task(ref, 42 + i, alpha=1.0 + i / 10)) for i in range(20)])
    assert [(type(result), result.error) for result in results] == [(SimReturn, None)] * 20
    assert len({result.outputs["table"].checksum for result in results}) == 20


def test_determinism(service: DaskSimulationService, ref: str) -> None:
    first, second = service.gather([service.submit(task(ref, 12345, alpha=1.5)) for _ in range(2)])
    assert first.error is None and first.outputs == second.outputs


def test_scenarios_and_failures(service: DaskSimulationService, ref: str) -> None:
    tasks = [
        task(ref),
        task(ref, scenario="pessimistic"),
        task(ref, scenario="non_existent"),
        task(ref, alpha=-999.0),
    ]
    results = service.gather(service.submit_batch(tasks))
    assert [result.error and result.error.error_type for result in results] == [None, None, *["task_exception"] * 2]
    assert "alpha must not be negative" in results[3].error.message


def test_a_bundle_that_is_not_there(service: DaskSimulationService) -> None:
    result = service.submit(task("sha256:" + "0" * 64)).result(timeout=300)
    assert result.error is not None and result.error.error_type == "bundle_not_found"
    assert "not found" in result.error.message.lower()


def test_large_parameters(service: DaskSimulationService, ref: str) -> None:
    result = service.submit(task(ref, padding="x" * 700_000)).result(timeout=300)
    assert result.error is None


@pytest.mark.parametrize("target", [OLD, "dummy.targets/compute_loss", "package.fits.targets/compute_loss"])
def test_aggregation_in_the_old_form(service: DaskSimulationService, ref: str, target: str) -> None:
    found = service.submit_replicate_set(ReplicateSet(task(ref), 3), target_entrypoint=target).result(timeout=300)
    assert isinstance(found, AggregationReturn) and (found.loss, found.n_replicates) == (0.25, 3)
    assert found.diagnostics["method"] == "simple_test"


def test_an_object_that_has_evaluate(service: DaskSimulationService, ref: str) -> None:
    future = service.submit_replicate_set(ReplicateSet(task(ref), 4), "targets.prevalence/deaths")
    found = future.result(timeout=60)
    assert isinstance(found, AggregationReturn) and found.loss == 4.0
    assert found.diagnostics["method"] == "an object's evaluate"


def test_aggregations_side_by_side(service: DaskSimulationService, ref: str) -> None:
    sets = [ReplicateSet(task(ref, alpha=alpha), 5) for alpha in (0.5, 1.0, 1.5)]
    results = [future.result() for future in service.submit_batch_with_aggregation(sets, OLD)]
    assert [result.loss for result in results] == [1 / 6] * 3  # type: ignore[attr-defined]


@pytest.mark.full("more of what test_aggregations_side_by_side has")
def test_fifty_replicates(service: DaskSimulationService, ref: str) -> None:
    found = service.submit_replicate_set(ReplicateSet(task(ref), 50), OLD).result(timeout=300)
    assert isinstance(found, AggregationReturn) and found.n_replicates == 50


def test_a_target_that_is_not_there(service: DaskSimulationService, ref: str) -> None:
    future = service.submit_replicate_set(ReplicateSet(task(ref), 2), "targets.absent/absent")
    assert "absent" in str(future.exception())


def test_cancelling(service: DaskSimulationService, ref: str) -> None:
    running = [service.submit(task(ref, seed, pause=300.0)) for seed in range(2)]
    waiting = [service.submit(task(ref, seed)) for seed in range(2, 5)]
    wait_until(lambda: all(service.client.processing().values()), "no task began")
    assert all(future.cancel() for future in running)
    errors = [future.result(timeout=300).error for future in running]
    assert [error and error.error_type for error in errors] == ["cancelled"] * 2
    assert [future.result(timeout=300).error for future in waiting] == [None] * 3
