"""The service on a real Dask cluster: results in order, failures as values, workers that die, no deadlock."""

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dask
import psutil
import pytest
from distributed import LocalCluster
from environments import ECHO, Environments, runners, sim_task, wait_until
from modelops_contracts import (
    AggregationReturn,
    ReplicateSet,
    SimReturn,
    SimTask,
    SimulationService,
)

from modelops.adapters.exec_env.errors import RunnerError
from modelops.services.dask_simulation import DaskSimulationService
from modelops.services.futures import TaskFuture
from modelops.worker.settings import WorkerSettings

pytestmark = pytest.mark.xdist_group("a cluster of Dask")
CODE = """
import time

def wire(entrypoint, params, seed):
    if params.get("fail") == seed:
        raise ValueError("as asked")
    if "pause" in params:
        time.sleep(params["pause"])
    return {"seed": str(seed)}
"""
TARGETS = """
def total(sim_returns, target_data=None):
    seeds = [int(sim["outputs"]["seed"]["inline"]) for sim in sim_returns]
    return {"loss": float(sum(seeds)) * (target_data or {}).get("scale", 1), "diagnostics": {"seeds": seeds}}

def broken(sim_returns):
    raise RuntimeError("no target today")
"""
TOTAL = "fit.targets:total"


@pytest.fixture
def ref(environments: Environments) -> str:
    return environments.add(CODE, files={"fit/targets.py": TARGETS})


@pytest.fixture
def settings(environments: Environments, store: Path) -> WorkerSettings:
    return WorkerSettings(
        bundle_repository=str(environments.repository.root),
        runner_store_dir=str(store),
        venvs_dir=str(environments.tmp_path / "venvs"),
        storage_dir=str(environments.tmp_path / "storage"),
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """For tests that want nothing else of it: one takes as long to start as they do."""
    with LocalCluster(n_workers=1, threads_per_worker=4, dashboard_address="127.0.0.1:0") as made:
        yield made


@pytest.fixture
def service(cluster: LocalCluster, settings: WorkerSettings) -> Iterator[DaskSimulationService]:
    with DaskSimulationService(cluster.scheduler_address, settings=settings) as made:
        yield made


def seeds(results: list[SimReturn]) -> list[int]:
    found = []
    for result in results:
        assert result.error is None, result.error
        found.append(int(result.outputs["seed"].inline or b"-1"))
    return found


def test_the_port(service: DaskSimulationService, ref: str) -> None:
    port: SimulationService = service
    future = port.submit(sim_task(ref, seed=7))
    assert seeds([future.result(timeout=300)]) == [7]
    assert future.done() and future.exception() is None and not future.cancel()
    assert list(service.executors().values()) == ["warm"]
    assert all(report["healthy"] for report in service.health_check().values())


def test_order_is_kept_and_failures_are_values(service: DaskSimulationService, ref: str) -> None:
    tasks = [sim_task(ref, {"fail": 5}, seed) for seed in (9, 5, 1, 7, 3)]
    results = service.gather(service.submit_batch(tasks))
    assert [result.error and result.error.error_type for result in results] == [
        None,
        "task_exception",
        None,
        None,
        None,
    ]
    assert seeds([result for result in results if result.error is None]) == [9, 1, 7, 3]
    assert service.submit_batch([]) == [] and service.gather([]) == []


def test_an_error_in_place_of_a_result_is_a_failure(service: DaskSimulationService, environments: Environments) -> None:
    ref = environments.add("def wire(e, p, s): return {'table': b'', 'metadata': {'error': 'KeyError: beta'}}")
    result = service.submit(sim_task(ref)).result(timeout=300)
    assert result.error is not None and result.error.error_type == "task_exception" and not result.outputs
    assert "KeyError: beta" in result.error.message


def test_equal_tasks_are_submissions_of_their_own(service: DaskSimulationService, ref: str) -> None:
    futures = [*service.simulate([sim_task(ref)] * 5), service.submit(sim_task(ref))]
    assert len({future.key for future in futures}) == 6
    assert seeds(service.gather(futures)) == [1] * 6


def test_replicates(service: DaskSimulationService, ref: str) -> None:
    replicates = ReplicateSet(sim_task(ref, seed=10), 4)
    plain = service.submit_replicate_set(replicates)
    assert seeds(list(plain.result(timeout=300))) == [10, 11, 12, 13]  # type: ignore[arg-type]
    assert plain.done() and plain.exception() is None and not plain.cancel()
    total = service.submit_replicate_set(replicates, TOTAL, target_data={"scale": 2})
    found = total.result(timeout=300)
    assert isinstance(found, AggregationReturn) and found.loss == 92.0 and found.n_replicates == 4
    assert service.gather([plain, total]) == [plain.result(), found]


def test_a_batch_with_aggregation(service: DaskSimulationService, ref: str) -> None:
    sets = [ReplicateSet(sim_task(ref, {"n": n}, seed=n), 3) for n in range(4)]
    results = service.gather(service.submit_batch_with_aggregation(sets, TOTAL))
    assert [result.loss for result in results] == [3.0, 6.0, 9.0, 12.0]
    assert [result.diagnostics["seeds"] for result in results] == [[n, n + 1, n + 2] for n in range(4)]


def test_failed_aggregations_are_values(service: DaskSimulationService, ref: str) -> None:
    good = ReplicateSet(sim_task(ref, seed=1), 2)
    bad = ReplicateSet(sim_task(ref, {"fail": 2}, seed=1), 2)
    first = service.submit_replicate_set(good, "fit.targets:broken")
    with pytest.raises(RunnerError, match="no target today"):
        first.result(timeout=300)
    error = first.exception()
    assert isinstance(error, RunnerError) and error.fatal_error["type"] == "task_exception"
    second, third = service.gather(service.submit_batch_with_aggregation([bad, good], TOTAL))
    assert isinstance(second, RunnerError) and second.type == "failed_inputs" and "as asked" in second.message
    assert third.loss == 3.0


def test_one_thread_and_many_replicates(settings: WorkerSettings, ref: str, full: bool) -> None:
    """An aggregation that waited in the only thread for its simulations would wait for ever."""
    count = 200 if full else 20
    with DaskSimulationService(settings=settings, n_workers=1, threads_per_worker=1) as service:
        futures = service.submit_batch_with_aggregation(
            [ReplicateSet(sim_task(ref, seed=1), count), ReplicateSet(sim_task(ref, seed=2), 3)], TOTAL
        )
        first, second = service.gather(futures)
    assert (first.n_replicates, first.loss) == (count, count * (count + 1) / 2)
    assert second.loss == 9.0
    service.close()  # once more, of a cluster that was its own


@pytest.mark.parametrize("cold", ["0", pytest.param("1", marks=pytest.mark.full("the other environment"))])
def test_a_killed_worker_loses_no_task(
    settings: WorkerSettings, ref: str, cold: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELOPS_COLD_DEBUG", cold)
    with DaskSimulationService(settings=settings, n_workers=2, threads_per_worker=2) as service:
        assert set(service.executors().values()) == {"cold" if cold == "1" else "warm"}
        tasks = [sim_task(ref, {"pause": 1.0}, seed) for seed in range(8)]
        futures = service.simulate(tasks)
        total = service.aggregate(futures, TOTAL)
        wait_until(lambda: len(runners(tmp_path)) >= 4, "no task began")
        victim = next(iter(service.client.run(os.getpid).values()))
        orphans = psutil.Process(victim).children(recursive=True)
        os.kill(victim, signal.SIGKILL)
        assert seeds(service.gather(futures)) == list(range(8))
        assert total.result(timeout=300).loss == 28.0
        wait_until(lambda: not any(alive(child) for child in orphans), "a runner outlived its worker")


def test_a_worker_that_dask_gives_up_is_replaced(settings: WorkerSettings, ref: str) -> None:
    """As it does with one that dies just as it starts: without another, tasks would wait for ever."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}),
        DaskSimulationService(settings=settings, n_workers=1, threads_per_worker=1) as service,
    ):
        assert seeds(service.gather(service.simulate([sim_task(ref, seed=1)]))) == [1]
        cluster = service.client.cluster
        cluster.sync(cluster.workers[0].close)
        (future,) = service.simulate([sim_task(ref, seed=2)])
        assert seeds([future.result(timeout=120)]) == [2]


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_task_that_kills_every_worker_is_a_value(
    service: DaskSimulationService, ref: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Dask gives up on is an error return, from `result` and from `gather`."""
    import distributed

    future = service.submit(sim_task(ref))
    future.result()
    lost = distributed.KilledWorker("key", SimpleNamespace(address="tcp://worker"), 3)

    def fail(*_: object) -> None:
        raise lost

    monkeypatch.setattr(future.dask, "result", fail)
    monkeypatch.setattr(service.client, "gather", fail)
    for result in (future.result(), service.gather([future])[0]):
        assert result.error is not None and (result.error.error_type, result.error.retryable) == ("worker_lost", True)


@pytest.mark.parametrize("cold", ["0", pytest.param("1", marks=pytest.mark.full("the other environment"))])
def test_cancelling(
    settings: WorkerSettings, ref: str, cold: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A running task is stopped where it runs, a waiting one never begins, and the next ones run."""
    monkeypatch.setenv("MODELOPS_COLD_DEBUG", cold)
    with DaskSimulationService(settings=settings, n_workers=1, threads_per_worker=1) as service:
        running, waiting = service.submit_batch([sim_task(ref, {"pause": 500.0}, seed) for seed in (1, 2)])
        wait_until(lambda: bool(service.client.processing() and runners(tmp_path)), "the task did not begin")
        time.sleep(1)  # into the sandbox; any moment is right
        assert running.cancel() and waiting.cancel()
        for future in (running, waiting):
            result = future.result()
            assert result.error is not None and result.error.error_type == "cancelled"
        assert seeds([service.submit(sim_task(ref, seed=3)).result(timeout=300)]) == [3]


def test_a_result_that_is_not_there_in_time(service: DaskSimulationService, ref: str) -> None:
    future = service.submit(sim_task(ref, {"pause": 2.0}))
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    replicates = service.submit_replicate_set(ReplicateSet(sim_task(ref, {"pause": 500.0}), 2))
    with pytest.raises(TimeoutError):
        replicates.result(timeout=0.01)
    assert seeds([future.result()]) == [1]
    assert replicates.cancel()


def test_wrong_arguments(service: DaskSimulationService, ref: str) -> None:
    with pytest.raises(TypeError, match="SimTask"):
        service.submit("task")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one bundle"):
        service.aggregate([], TOTAL)


def test_many_threads_submit(service: DaskSimulationService, ref: str) -> None:
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        tasks = [sim_task(ref, seed=100 * number + n) for n in range(5)]
        found[number] = seeds(service.gather(service.submit_batch(tasks)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {number: [100 * number + n for n in range(5)] for number in range(5)}


def test_a_cluster_of_the_user(settings: WorkerSettings, ref: str, tmp_path: Path) -> None:
    """Two services share it, each with environments of its own; late workers have them; closing leaves it."""
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        with (
            DaskSimulationService(cluster.scheduler_address, settings=settings) as first,
            DaskSimulationService(cluster.scheduler_address, settings=settings) as second,
        ):
            assert seeds([service.submit(sim_task(ref, seed=4)).result() for service in (first, second)]) == [4, 4]
            cluster.scale(2)
            wait_until(lambda: len(first.executors()) == 2, "no second worker")
            assert seeds(first.gather(first.submit_batch([sim_task(ref, seed=n) for n in range(10)]))) == list(
                range(10)
            )
            second.close()
            assert seeds([first.submit(sim_task(ref, seed=5)).result()]) == [5]
        wait_until(lambda: not runners(tmp_path), "a server outlived its service")
        with DaskSimulationService(cluster.scheduler_address, settings=settings) as third:
            assert seeds([third.submit(sim_task(ref, seed=6)).result()]) == [6]


def test_a_worker_that_cannot_make_its_environment(environments: Environments, tmp_path: Path) -> None:
    settings = WorkerSettings(bundle_repository=str(tmp_path / "absent"))
    with pytest.raises(Exception, match="absent"):
        DaskSimulationService(settings=settings, threads_per_worker=1)


def test_workers_that_share_a_process(settings: WorkerSettings, ref: str) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        DaskSimulationService(cluster.scheduler_address, settings=settings) as service,
    ):
        tasks = [sim_task(ref, seed=n) for n in range(6)]
        assert seeds(service.gather(service.submit_batch(tasks))) == list(range(6))


def test_a_closed_service(service: DaskSimulationService) -> None:
    service.close()
    service.close()
    with pytest.raises(RuntimeError, match="closed"):
        service.submit(sim_task("sha256:" + "0" * 64))


def test_errors_travel() -> None:
    error = pickle.loads(pickle.dumps(RunnerError({"type": "timeout", "error": "too long", "metrics": {"a": 1}})))
    assert (error.type, error.message, error.metrics) == ("timeout", "too long", {"a": 1.0})


def test_tasks_travel(service: DaskSimulationService, environments: Environments) -> None:
    """Frozen mappings of the contract and odd parameters arrive as they were sent."""
    ref = environments.add(ECHO)
    task = SimTask.from_components(
        import_path="probe.model",
        scenario="base",
        bundle_ref=ref,
        params={"é": "\u2028", "b": True, "n": 2**60},
        seed=1,
    )
    result = service.submit(task).result()
    assert json.loads(result.outputs["out"].inline or b"") == [
        "probe.model/base",
        {"é": "\u2028", "b": True, "n": 2**60},
        1,
    ]
    assert isinstance(service.submit(task), TaskFuture)
