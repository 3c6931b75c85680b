"""The `SimulationService` port on Dask."""

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Self

import dask
import distributed
import psutil
from modelops_contracts import AggregationReturn, AggregationTask, Future, ReplicateSet, SimReturn, SimTask
from tornado.ioloop import PeriodicCallback

from modelops.adapters.working_dir import WorkingDir, clear_away
from modelops.places import default_storage_dir
from modelops.worker import plugin
from modelops.worker.config import RuntimeConfig
from modelops.worker.settings import WorkerSettings

from .futures import ReplicatesFuture, SimulationFuture, TaskFuture
from .preflight import Finding, check_there, check_workers, describe_here, one_of_each_kind

logger = logging.getLogger(__name__)

_LOGGERS = ("distributed", "distributed.client")
AGAIN_MILLISECONDS = 1000.0  # between looks at whether a worker is missing
IDLE_SECONDS = 0.2  # that a hurried close leaves a worker process whose tasks have ended

# What an embedded cluster's processes do all the time for dashboards that nobody looks at costs a tenth of a processor;
# what they keep for people who debug Dask (the last thousand messages, each with all tasks in it) grows with a study.
_QUIET = {
    "distributed.admin.low-level-log-length": 10,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


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
        self._scratch: WorkingDir | None = None
        self._cluster: distributed.LocalCluster | None = None
        self._client: distributed.Client | None = None
        self._owns_client = not isinstance(client, distributed.Client)
        wanted = settings.worker_settings() if isinstance(settings, RuntimeConfig) else settings
        self._settings = wanted or WorkerSettings()
        try:
            if isinstance(client, distributed.Client):
                self._client = _synchronous(client)
            else:
                with dask.config.set(_QUIET):
                    if client is None:
                        self._cluster = self._embed(n_workers, threads_per_worker or os.cpu_count() or 1)
                    self._client = distributed.Client(self._cluster or client, set_as_default=False)
            embedded = self._cluster is not None
            made = plugin.ExecEnvPlugin(self._name, self._settings, embedded=embedded)
            self._client.register_plugin(made)
        except BaseException:
            self.close()
            raise

    def _embed(self, n_workers: int, threads_per_worker: int) -> distributed.LocalCluster:
        self._scratch = WorkingDir(default_storage_dir() / "dask")
        _start_resource_tracker()  # to start it gives the thread the signal back
        with _held_back(signal.SIGINT):
            cluster = distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=threads_per_worker,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False, "local_directory": str(self._scratch.path)},
                local_directory=str(self._scratch.path),
            )
        _start_again(cluster, n_workers)
        return cluster

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
        keys = [self._unique("simulation") for _ in tasks]
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
        key = self._unique("aggregation")
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

    def submit_together(self, tasks: Sequence[SimTask]) -> "distributed.Future[list[plugin.Timed]]":
        """Start several tasks as one Dask task, one after the other; its result may end early where it was stopped."""
        key = self._unique("simulations")
        return self.client.submit(plugin.run_simulations, self._name, key, list(tasks), key=key, pure=False)

    def submit_aggregation(self, task: AggregationTask) -> "distributed.Future[plugin.Timed]":
        """Start the aggregation of results that are here. An error of the target is its result."""
        key = self._unique("aggregation")
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"}):
            return self.client.submit(plugin.run_late_aggregation, self._name, key, task, key=key, pure=False)

    def threads(self) -> int:
        """The number of threads of all workers now."""
        return sum(self.client.nthreads().values())

    def executors(self) -> dict[str, str]:
        """For each worker whether it runs tasks `warm` or `cold`; the log says why."""
        chosen = self.client.run(plugin.executor, self._name)
        for address, (name, reason) in chosen.items():
            logger.info("the worker %s runs tasks in the %s environment: %s", address, name, reason)
        return {address: name for address, (name, _) in chosen.items()}

    def preflight(self, reference: str, names: Mapping[str, Sequence[str]]) -> list[Finding]:
        """Where workers differ from this machine, and what `check_inside` finds on one worker of each kind."""
        kinds = self.client.run(describe_here)
        found = self.client.run(check_there, self._name, reference, dict(names), workers=one_of_each_kind(kinds))
        there = [
            replace(finding, message=f"on {address}: {finding.message}")
            for address, findings in found.items()
            for finding in findings
        ]
        return [*check_workers(kinds), *there]

    def health_check(self) -> dict[str, Any]:
        """For each worker what its execution environment says of itself."""
        return dict(self.client.run(plugin.health_check, self._name))

    def close(self, patience_seconds: float | None = None) -> None:
        """Stop what is running and release everything; a cluster that the service did not make goes on.

        Workers of the embedded cluster have `patience_seconds` to end their tasks, and are killed then.
        """
        hurried = patience_seconds is not None
        processes = self._embedded_processes() if hurried else []
        try:
            with _hushed() if self._cluster is not None else nullcontext():
                with _killing(processes, patience_seconds):
                    self._close_client()
                with _killing(processes, IDLE_SECONDS):  # whose tasks have ended, and which has nothing to lose
                    self._close_cluster()
        finally:
            if hurried:
                _kill(processes)
            if self._scratch is not None:
                self._scratch.close()
                clear_away(self._settings.storage())  # a worker that was killed left what it worked in

    def _close_cluster(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()

    def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                self._cancel_all(client)
                client.run(plugin.shut_down, self._name, on_error="ignore")  # a worker may be dead, or about to be
                if self._cluster is None:
                    client.unregister_worker_plugin(self._name)
            except Exception as error:
                logger.warning("the workers' execution environments could not be closed: %s", error)
            if self._owns_client:
                client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _embedded_processes(self) -> list[psutil.Process]:
        """The workers of the embedded cluster and all that they started."""
        if self._cluster is None:
            return []
        pids = [getattr(nanny, "pid", None) for nanny in self._cluster.workers.values()]
        workers = [psutil.Process(pid) for pid in pids if pid is not None and psutil.pid_exists(pid)]
        return [process for worker in workers for process in [worker, *worker.children(recursive=True)]]

    def _unique(self, kind: str) -> str:
        return f"{kind}-{self._name}-{uuid.uuid4().hex}"

    def _cancel_all(self, client: distributed.Client) -> None:
        """Let nothing of this service begin any more: a task that waits would begin without its environment."""
        mine = [key for key in list(client.futures) if self._name in str(key)]
        client.cancel([distributed.Future(key, client) for key in mine], force=True)

    def _stop(self, keys: Sequence[str]) -> None:
        self.client.run(plugin.cancel, self._name, list(keys), on_error="ignore")


@contextmanager
def _killing(processes: Sequence[psutil.Process], after_seconds: float | None) -> Iterator[None]:
    """Processes that are there so long after the beginning of the block are killed."""
    timer = threading.Timer(after_seconds or 0, _kill, [processes])
    timer.daemon = True
    if processes:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _start_resource_tracker() -> None:
    """Where it cleans up after processes that were killed, it need not say so."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _start_again(cluster: distributed.LocalCluster, n_workers: int) -> None:
    """Replace workers that Dask gives up, for which tasks would wait for ever: one that dies just as it starts, or
    takes longer than `distributed.deploy.lost-worker-timeout` to start again."""
    again = PeriodicCallback(partial(cluster.scale, n_workers), AGAIN_MILLISECONDS)
    cluster.periodic_callbacks["start again"] = again  # stopped as the cluster closes
    assert cluster.loop is not None  # as it runs
    cluster.loop.add_callback(again.start)


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Processes and threads that start in the block begin without the signal; here it comes after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hush() -> None:
    """From now on what Dask's parts say of one another's end is not logged."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _hushed() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [each.level for each in loggers]
    try:
        hush()
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _synchronous(client: distributed.Client) -> distributed.Client:
    if client.asynchronous:
        raise TypeError("the service needs a synchronous client; this one was made with asynchronous=True")
    return client


def _value(future: Future[Any]) -> SimReturn | AggregationReturn | Sequence[SimReturn] | Exception:
    try:
        value: SimReturn | AggregationReturn | Sequence[SimReturn] = future.result()
    except Exception as error:
        return error
    return value
