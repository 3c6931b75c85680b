"""What the warm and the cold environment share: everything but how the runner is reached."""

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

from modelops_contracts import (
    AggregationReturn,
    AggregationTask,
    BundleRepository,
    SimReturn,
    SimTask,
    canonical_task_id,
)

from modelops.adapters.artifact_store import ArtifactStore
from modelops.adapters.bundle import BundleError
from modelops.adapters.working_dir import WorkingDir
from modelops.places import default_storage_dir

from .answer import Answer, aggregation_return, error_return, sim_return
from .call import Call
from .errors import RunnerError
from .failed_task import failed_task
from .once import ask_once
from .payload import aggregation_payload, plain_simulation, simulation_payload
from .runner_settings import RunnerSettings, StrPath

logger = logging.getLogger(__name__)

DOCTOR_SECONDS = 60.0
CANCELLED_KEYS = 1000  # every worker is told every key, and most never see its call


class SandboxedExecEnv(ABC):
    """The `ExecutionEnvironment` port on the runner. Any number of threads may use one object at once.

    `run` returns a `SimReturn` for whatever happens to a task; `run_aggregation` raises a RunnerError,
    because an `AggregationReturn` can't say that there is none.
    """

    name: str
    chosen_because = "it was made by name"  # see `select`

    def __init__(
        self,
        bundle_repo: BundleRepository,
        settings: RunnerSettings,
        *,
        timeout_seconds: float,
        storage_dir: StrPath | None,
        out_dir: StrPath | None,
    ) -> None:
        if not settings.runner.is_file():
            raise FileNotFoundError(f"there is no runner at {str(settings.runner)!r}")
        storage = default_storage_dir() if storage_dir is None else Path(storage_dir).absolute()
        self.settings = settings
        self.timeout_seconds = timeout_seconds
        self.store = ArtifactStore(storage / "artifacts")
        self._bundle_repo = bundle_repo
        self._out_dir = storage / "incoming" if out_dir is None else Path(out_dir).absolute()
        self._incoming: WorkingDir | None = None
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._calls: dict[str, list[Call]] = {}
        self._cancelled: deque[str] = deque(maxlen=CANCELLED_KEYS)
        self._is_shut_down = False

    def run(self, task: SimTask, *, key: str | None = None) -> SimReturn:
        """Run one simulation. `key` names the call for `cancel`; by default it is the canonical task id."""
        with self._call(key or canonical_task_id(task)) as call:
            try:
                with self._answer(task.bundle_ref, simulation_payload(task), call) as answer:
                    return sim_return(task, answer, self.store)
            except RunnerError as error:
                logger.info("the task with seed %d failed: %s", task.seed, error)
                failed = failed_task(task.bundle_ref, plain_simulation(task), self.settings.profile)
                return error_return(task, error.about(failed))

    def run_aggregation(self, task: AggregationTask, *, key: str | None = None) -> AggregationReturn:
        """Run one aggregation. RunnerError, with the `_fatal_error` in it, where there is no result."""
        with self._call(key or task.aggregation_id()) as call:
            payload = aggregation_payload(task, self.store)
            try:
                with self._answer(task.bundle_ref, payload, call) as answer:
                    return aggregation_return(task, answer, self.store)
            except RunnerError as error:
                raise error.about(failed_task(task.bundle_ref, payload, self.settings.profile)) from None

    def cancel(self, key: str, *, also_later: bool = False) -> bool:
        """Stop the calls with this key; whether there were any. They return or raise as `cancelled`.

        With `also_later`, for keys that are used once, a call that has not come yet is stopped when it does.
        """
        with self._lock:
            calls = list(self._calls.get(key, ()))
            if also_later and not calls:
                self._cancelled.append(key)
        for call in calls:
            call.stop("cancelled")
        return bool(calls)

    def health_check(self) -> dict[str, Any]:
        """What the runner's `--doctor` found on this machine; `healthy` sums it up."""
        report: dict[str, Any] = {
            "healthy": False,
            "executor": self.name,
            "chosen_because": self.chosen_because,
            "runner": str(self.settings.runner),
        }
        try:
            found = ask_once(self.settings, ["--doctor"], b"", Call(DOCTOR_SECONDS))
        except RunnerError as error:
            return {**report, "error": error.fatal_error}
        doctor = found.get("doctor")
        if not isinstance(doctor, dict):
            return {**report, "error": found}
        return {**report, "healthy": bool(doctor.get("ok")), "doctor": doctor}

    def shutdown(self) -> None:
        """Stop all calls, wait until they have ended, and release everything. Later calls are refused."""
        with self._lock:
            self._is_shut_down = True
            calls = [call for calls in self._calls.values() for call in calls]
        for call in calls:
            call.stop("shut_down")
        with self._lock:
            while self._calls:
                self._ended.wait()
            incoming, self._incoming = self._incoming, None
        self._release()
        if incoming is not None:
            incoming.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @abstractmethod
    def _answer(self, bundle_ref: str, payload: dict[str, Any], call: Call) -> AbstractContextManager[Answer]:
        """Within the block, the runner's result; RunnerError where there is none."""

    def _release(self) -> None:  # noqa: B027  # most have nothing to release
        """Release what the environment holds between calls. No call is under way."""

    def find_bundle(self, bundle_ref: str) -> tuple[str, Path]:
        """The digest and the folder of a bundle. Whatever a repository raises concerns the task."""
        try:
            return self._bundle_repo.ensure_local(bundle_ref)
        except BundleError as error:
            raise RunnerError.of("bundle", error.type, str(error), error.retryable) from error
        except Exception as error:
            problem = f"the bundle {bundle_ref} can't be had: {type(error).__name__}: {error}"
            raise RunnerError.of("bundle", "bundle_unavailable", problem, isinstance(error, OSError)) from error

    def _incoming_dir(self) -> Path:
        """A directory of this environment below which the runner leaves large outputs."""
        with self._lock:
            if self._incoming is None:
                self._incoming = WorkingDir(self._out_dir)
            return self._incoming.path

    @contextmanager
    def _call(self, key: str) -> Iterator[Call]:
        call = Call(self.timeout_seconds)
        with self._lock:
            self._calls.setdefault(key, []).append(call)
            if self._is_shut_down:
                call.stop("shut_down")
            elif key in self._cancelled:
                call.stop("cancelled")
        try:
            yield call
        finally:
            with self._lock:
                self._calls[key].remove(call)
                if not self._calls[key]:
                    del self._calls[key]
                self._ended.notify_all()
