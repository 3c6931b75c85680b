"""The worker's side of the Dask service: its execution environment, and the tasks that use it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from modelops_contracts import AggregationReturn, AggregationTask, SimReturn, SimTask

from modelops.adapters.exec_env.sandboxed import SandboxedExecEnv

from .settings import WorkerSettings


class ExecEnvPlugin(WorkerPlugin):
    """Makes the execution environment when it comes to a worker, and closes it with the worker."""

    def __init__(self, name: str, settings: WorkerSettings) -> None:
        self.name = name
        self.settings = settings
        self.exec_env: SandboxedExecEnv | None = None

    def setup(self, worker: Worker) -> None:
        """Called once in each worker, also in those that join later."""
        self.exec_env = self.settings.make(worker.state.nthreads)

    async def teardown(self, worker: Worker) -> None:
        """Called when the worker closes, or when the service does."""
        if self.exec_env is not None:
            # Waiting for sandboxes to end must not hold up the worker's event loop.
            await asyncio.to_thread(self.exec_env.shutdown)


def run_simulation(plugin: str, key: str, task: SimTask) -> SimReturn:
    """A Dask task: one simulation. `key` is the name by which `cancel` finds it."""
    return _exec_env(get_worker(), plugin).run(task, key=key)


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
    return _exec_env(get_worker(), plugin).run_aggregation(task, key=key)


def cancel(plugin: str, keys: Sequence[str], dask_worker: Worker) -> None:
    """Stop those of the tasks that run on this worker. Dask calls it on the worker's event loop.

    It may overtake Dask's own word that the task is not wanted any more, and so come before the task begins.
    """
    exec_env = _exec_env(dask_worker, plugin)
    for key in keys:
        exec_env.cancel(key, also_later=True)


def executor(plugin: str, dask_worker: Worker) -> tuple[str, str]:
    """Which execution environment the worker has chosen, `warm` or `cold`, and why."""
    exec_env = _exec_env(dask_worker, plugin)
    return exec_env.name, exec_env.chosen_because


async def health_check(plugin: str, dask_worker: Worker) -> dict[str, Any]:
    """What the worker's execution environment says of itself."""
    return await asyncio.to_thread(_exec_env(dask_worker, plugin).health_check)


def _exec_env(worker: Worker, plugin: str) -> SandboxedExecEnv:
    found = worker.plugins.get(plugin)
    if not isinstance(found, ExecEnvPlugin) or found.exec_env is None:
        raise RuntimeError(f"the worker {worker.address} has no execution environment {plugin!r}; see its log")
    return found.exec_env
