"""The worker's side of the Dask service: its execution environment, and the tasks that use it."""

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from modelops_contracts import AggregationReturn, AggregationTask, SimReturn, SimTask

from modelops.adapters.exec_env.answer import error_return
from modelops.adapters.exec_env.errors import RunnerError
from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv

from .settings import WorkerSettings

STOPPED = ("cancelled", "shut_down")  # error types of a task that somebody stopped


class ExecEnvPlugin(WorkerPlugin):
    """Makes the execution environment when it comes to a worker, and closes it with the worker."""

    def __init__(self, name: str, settings: WorkerSettings, *, embedded: bool = False) -> None:
        """`embedded`: the worker is there for the service alone, and goes with it.

        Ctrl-C in the terminal is then for the process that made the worker, and for no other.
        """
        self.name = name
        self.settings = settings
        self.embedded = embedded
        self.exec_env: SandboxedExecEnv | None = None

    def setup(self, worker: Worker) -> None:
        """Called once in each worker, also in those that join later."""
        if self.embedded:
            # A handler that does nothing is not inherited by what the worker starts, as SIG_IGN would be.
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self.exec_env = self.settings.make(worker.state.nthreads)

    async def teardown(self, worker: Worker) -> None:
        """Called when the worker closes, or when the service does."""
        if self.embedded:
            # The scheduler goes next, and a heartbeat that does not reach it any more is no news to anybody.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
        exec_env, self.exec_env = self.exec_env, None
        if exec_env is not None:
            # Waiting for sandboxes to end must not hold up the worker's event loop.
            await asyncio.to_thread(exec_env.shutdown)


def run_simulation(plugin: str, key: str, task: SimTask) -> SimReturn:
    """A Dask task: one simulation. `key` is the name by which `cancel` finds it."""
    try:
        return require_exec_env(get_worker(), plugin).run(task, key=key)
    except RunnerError as error:
        return error_return(task, error)


@dataclass(frozen=True)
class Timed:
    """What a task ended with, when its work began (seconds since the epoch), and how many seconds it took."""

    result: SimReturn | AggregationReturn | RunnerError
    started: float
    seconds: float


def run_simulations(plugin: str, key: str, tasks: Sequence[SimTask]) -> list[Timed]:
    """A Dask task: several simulations, one after the other. A call to stop ends it, and the rest has no result."""
    results: list[Timed] = []
    for task in tasks:
        started, begun = time.time(), time.perf_counter()
        result = run_simulation(plugin, key, task)
        if result.error is not None and result.error.error_type in STOPPED:
            break
        results.append(Timed(result, started, time.perf_counter() - begun))
    return results


def run_aggregation(
    plugin: str,
    key: str,
    bundle_ref: str,
    target_entrypoint: str,
    target_data: dict[str, Any] | None,
    sim_returns: Sequence[SimReturn],
) -> AggregationReturn:
    """A Dask task: one aggregation. Its simulations are dependencies, so no thread waits for them."""
    task = AggregationTask(bundle_ref, target_entrypoint, list(sim_returns), target_data)
    return require_exec_env(get_worker(), plugin).run_aggregation(task, key=key)


def run_late_aggregation(plugin: str, key: str, task: AggregationTask) -> Timed:
    """A Dask task: one aggregation of results that came earlier. Its error is a value too."""
    started, begun = time.time(), time.perf_counter()
    result: AggregationReturn | RunnerError
    try:
        result = require_exec_env(get_worker(), plugin).run_aggregation(task, key=key)
    except RunnerError as error:
        result = error
    return Timed(result, started, time.perf_counter() - begun)


def cancel(plugin: str, keys: Sequence[str], dask_worker: Worker) -> None:
    """Stop those of the tasks that run on this worker. Dask calls it on the worker's event loop.

    It may overtake Dask's own word that the task is not wanted any more, and so come before the task begins.
    """
    exec_env = require_exec_env(dask_worker, plugin)
    for key in keys:
        exec_env.cancel(key, also_later=True)


def executor(plugin: str, dask_worker: Worker) -> tuple[str, str]:
    """Which execution environment the worker has chosen, `warm` or `cold`, and why."""
    exec_env = require_exec_env(dask_worker, plugin)
    return exec_env.name, exec_env.chosen_because


async def shut_down(plugin: str, dask_worker: Worker) -> None:
    """Close the worker's execution environment, which ends what runs in it."""
    found = dask_worker.plugins.get(plugin)
    if isinstance(found, ExecEnvPlugin):
        await found.teardown(dask_worker)


async def health_check(plugin: str, dask_worker: Worker) -> dict[str, Any]:
    """What the worker's execution environment says of itself."""
    return await asyncio.to_thread(require_exec_env(dask_worker, plugin).health_check)


def require_exec_env(worker: Worker, plugin: str) -> SandboxedExecEnv:
    """The worker's execution environment; RunnerError where it has none, or none any more."""
    found = worker.plugins.get(plugin)
    if not isinstance(found, ExecEnvPlugin) or found.exec_env is None:
        problem = f"the worker {worker.address} has no execution environment {plugin!r}, or none any more; see its log"
        raise RunnerError.of("host", "shut_down", problem, True)
    return found.exec_env
