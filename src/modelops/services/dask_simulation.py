"""The `SimulationService` port on Dask."""

import logging
import os
import tempfile
import uuid
from collections.abc import Sequence
from typing import Any, Self

import distributed
from modelops_contracts import AggregationReturn, Future, ReplicateSet, SimReturn, SimTask

from modelops.worker import plugin
from modelops.worker.config import RuntimeConfig
from modelops.worker.settings import WorkerSettings

from .futures import ReplicatesFuture, SimulationFuture, TaskFuture

logger = logging.getLogger(__name__)


class DaskSimulationService:
    """Runs tasks on a Dask cluster: that of a client, the one at an address, or an embedded one on this machine.

    Every worker makes an execution environment by `settings` and by its own environment variables, and
    closes it with the service. A task whose worker dies is run again by Dask. Results that concern a task
    are values: simulations that fail are `SimReturn`s with an error, whatever it was that failed.

    The workers need this package and must see the same storage directory, where outputs over INLINE_CAP
    lie. The embedded cluster has one worker process with as many threads as the machine has processors:
    tasks run in processes of their own, so threads are enough. A script that makes one does so below
    `if __name__ == "__main__":`, as every script that starts processes with multiprocessing.

    A client that is given stays open; what the service put on its workers goes with `close`.
    """

    def __init__(
        self,
        client: distributed.Client | str | None = None,
        settings: WorkerSettings | RuntimeConfig | None = None,
        *,
        n_workers: int = 1,
        threads_per_worker: int | None = None,
    ) -> None:
        self._name = f"modelops-{uuid.uuid4().hex}"
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._cluster: distributed.LocalCluster | None = None
        self._client: distributed.Client | None = None
        self._owns_client = not isinstance(client, distributed.Client)
        try:
            if client is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="modelops-dask-")
                self._cluster = distributed.LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=threads_per_worker or os.cpu_count() or 1,
                    dashboard_address="127.0.0.1:0",
                    local_directory=self._scratch.name,
                )
            if isinstance(client, distributed.Client):
                self._client = _synchronous(client)
            else:
                self._client = distributed.Client(self._cluster or client, set_as_default=False)
            wanted = settings.worker_settings() if isinstance(settings, RuntimeConfig) else settings
            self._client.register_plugin(plugin.ExecEnvPlugin(self._name, wanted or WorkerSettings()))
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> distributed.Client:
        """The Dask client, for what the port has no name for."""
        if self._client is None:
            raise RuntimeError("the service is closed")
        return self._client

    def submit(self, task: SimTask) -> SimulationFuture:
        """Start one task."""
        return self.simulate([task])[0]

    def submit_batch(self, tasks: Sequence[SimTask]) -> list[Future[SimReturn]]:
        """Start several tasks; one future for each, in order."""
        return [*self.simulate(tasks)]

    def simulate(self, tasks: Sequence[SimTask]) -> list[SimulationFuture]:
        """`submit_batch`, with all that its futures can do; `aggregate` takes them."""
        for task in tasks:
            if not isinstance(task, SimTask):
                raise TypeError(f"a task must be a SimTask, not {type(task).__name__}")
        if not tasks:
            return []
        keys = [_unique("simulation") for _ in tasks]
        names = [self._name] * len(tasks)
        futures = self.client.map(plugin.run_simulation, names, keys, tasks, key=keys, pure=False)
        return [SimulationFuture(task, future, self._stop) for task, future in zip(tasks, futures, strict=True)]

    def gather(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """Wait for all results and return them in the order of `futures`.

        A future that has no result gives its error, as a value: for a simulation an error return, else
        the exception.
        """
        plain = [future.dask for future in futures if isinstance(future, TaskFuture)]
        if len(plain) == len(futures):
            try:
                return list(self.client.gather(plain))  # one transfer for all
            except Exception as error:
                logger.info("not every future has a result: %s", error)
        return [_value(future) for future in futures]

    def submit_replicate_set(
        self,
        replicate_set: ReplicateSet,
        target_entrypoint: str | None = None,
        *,
        target_data: dict[str, Any] | None = None,
    ) -> ReplicatesFuture | TaskFuture[AggregationReturn]:
        """Start all replicates; with a target, the result is their aggregation."""
        simulations = self.simulate(replicate_set.tasks())
        if target_entrypoint is None:
            return ReplicatesFuture(simulations)
        return self.aggregate(simulations, target_entrypoint, target_data=target_data)

    def submit_batch_with_aggregation(
        self,
        replicate_sets: Sequence[ReplicateSet],
        target_entrypoint: str,
        *,
        target_data: dict[str, Any] | None = None,
    ) -> list[Future[AggregationReturn]]:
        """Start several replicate sets, each with its aggregation; one future for each."""
        simulations = [self.simulate(replicate_set.tasks()) for replicate_set in replicate_sets]
        return [self.aggregate(group, target_entrypoint, target_data=target_data) for group in simulations]

    def aggregate(
        self,
        simulations: Sequence[SimulationFuture],
        target_entrypoint: str,
        *,
        target_data: dict[str, Any] | None = None,
    ) -> TaskFuture[AggregationReturn]:
        """Start the aggregation of simulations of one bundle.

        It is a task that depends on theirs: it takes up a thread only when all of them are done.
        """
        bundles = {simulation.task.bundle_ref for simulation in simulations}
        if len(bundles) != 1:
            raise ValueError(f"an aggregation needs simulations of one bundle, and these have {len(bundles)}")
        key = _unique("aggregation")
        inputs = [simulation.dask for simulation in simulations]
        future = self.client.submit(
            plugin.run_aggregation,
            self._name,
            key,
            bundles.pop(),
            target_entrypoint,
            target_data,
            inputs,
            key=key,
            pure=False,
        )
        return TaskFuture(future, self._stop)

    def executors(self) -> dict[str, str]:
        """For each worker whether it runs tasks `warm` or `cold`; the log says why."""
        chosen = self.client.run(plugin.executor, self._name)
        for address, (name, reason) in chosen.items():
            logger.info("the worker %s runs tasks in the %s environment: %s", address, name, reason)
        return {address: name for address, (name, _) in chosen.items()}

    def health_check(self) -> dict[str, Any]:
        """For each worker what its execution environment says of itself."""
        return dict(self.client.run(plugin.health_check, self._name))

    def close(self) -> None:
        """Stop what is running and release everything; a cluster that the service did not make goes on."""
        client, self._client = self._client, None
        if client is not None:
            try:
                client.unregister_worker_plugin(self._name)
            except Exception as error:
                logger.warning("the workers' execution environments could not be closed: %s", error)
            if self._owns_client:
                client.close()
        if self._cluster is not None:
            self._cluster.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, keys: Sequence[str]) -> None:
        self.client.run(plugin.cancel, self._name, list(keys), on_error="ignore")


def _synchronous(client: distributed.Client) -> distributed.Client:
    if client.asynchronous:
        raise TypeError("the service needs a synchronous client; this one was made with asynchronous=True")
    return client


def _unique(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _value(future: Future[Any]) -> SimReturn | AggregationReturn | Sequence[SimReturn] | Exception:
    try:
        value: SimReturn | AggregationReturn | Sequence[SimReturn] = future.result()
    except Exception as error:
        return error
    return value
