"""The `Future` port on Dask's futures. What a future yields is a value, also where the work failed."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

import distributed
from modelops_contracts import SimReturn, SimTask

from modelops.adapters.exec_env.answer import error_return
from modelops.adapters.exec_env.errors import RunnerError

T = TypeVar("T")


class TaskFuture(Generic[T]):
    """One task on the cluster. `stop` asks the workers to stop it where it runs."""

    def __init__(self, future: "distributed.Future[Any]", stop: Callable[[Sequence[str]], None]) -> None:
        self.dask = future
        self._stop = stop

    @property
    def key(self) -> str:
        """The key of the task, unique to this submission."""
        return str(self.dask.key)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result, or raise the error of the work. TimeoutError leaves the work going on."""
        value: T = self.dask.result(timeout)
        return value

    def done(self) -> bool:
        """Whether the work has ended."""
        return bool(self.dask.done())

    def cancel(self) -> bool:
        """Stop the work, waiting or running; false where it has ended."""
        if self.done():
            return False
        self.dask.cancel()
        self._stop([self.key])
        return True

    def exception(self) -> Exception | None:
        """Wait for the end of the work, and the error of it, if it failed."""
        try:
            self.result()
        except Exception as error:
            return error
        return None


class SimulationFuture(TaskFuture[SimReturn]):
    """A simulation. Its result is a `SimReturn` whatever happens, also to the worker."""

    def __init__(self, task: SimTask, future: "distributed.Future[Any]", stop: Callable[[Sequence[str]], None]) -> None:
        super().__init__(future, stop)
        self.task = task

    def result(self, timeout: float | None = None) -> SimReturn:
        """Wait for the result. Only TimeoutError is raised, and leaves the work going on."""
        try:
            return super().result(timeout)
        except TimeoutError:
            if not self.done():
                raise
            return error_return(self.task, lost(TimeoutError("the task itself raised it")))
        except Exception as error:
            return error_return(self.task, lost(error))


class ReplicatesFuture:
    """The simulations of a replicate set, as one future of their results in order."""

    def __init__(self, futures: Sequence[SimulationFuture]) -> None:
        self.futures = list(futures)

    def result(self, timeout: float | None = None) -> Sequence[SimReturn]:
        """Wait for all results. `timeout` is for the whole."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return [future.result(_remaining(deadline)) for future in self.futures]

    def done(self) -> bool:
        """Whether all have ended."""
        return all(future.done() for future in self.futures)

    def cancel(self) -> bool:
        """Stop those that have not ended; whether there were any."""
        stopped = [future.cancel() for future in self.futures]  # each of them, not only the first
        return any(stopped)

    def exception(self) -> Exception | None:
        """None: failures are among the results."""
        return None


def lost(error: Exception) -> RunnerError:
    """Why the cluster has no result of a task, in the form of the runner's errors."""
    if isinstance(error, RunnerError):
        return error
    if isinstance(error, distributed.KilledWorker):
        problem = f"the task's workers died, one after the other, and Dask gave it up: {error}"
        return RunnerError.of("host", "worker_lost", problem, True)
    if isinstance(error, CancelledError):
        return RunnerError.of("host", "cancelled", "the task was cancelled")
    return RunnerError.of("host", "worker_failed", f"the worker failed: {type(error).__name__}: {error}", True)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
