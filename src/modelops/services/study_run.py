"""Runs a study on a cluster: what is missing in its folder, a bounded window of it at a time.

Short simulations share a Dask task, so that the scheduler's work for each is small; the window holds a few such tasks
for each thread, and a result leaves the cluster's memory when it comes. What a dead worker had is sent again.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

import distributed
from modelops_contracts import AggregationTask, SimReturn

from modelops.adapters.exec_env.answer import error_return
from modelops.adapters.exec_env.errors import RunnerError
from modelops.adapters.exec_env.payload import refuse_failed
from modelops.worker.plugin import STOPPED, Timed

from .dask_simulation import DaskSimulationService
from .futures import lost
from .study_folder import StudyFolder

logger = logging.getLogger(__name__)

CHUNK_SECONDS = 0.5  # that the simulations of one Dask task should take
CHUNK_BYTES = 8 << 20  # of outputs, likewise
MAX_CHUNK = 100
CHUNKS_PER_THREAD = 3  # in the window
MAX_LOSSES_OF_A_TASK = 5  # so often its workers may die before it is to blame
POLL_SECONDS, WAIT_SECONDS = 0.005, 0.1
CLUSTER_SECONDS = 2.0  # between two looks at how many threads there are


class Ended(Enum):
    """Why a run of a study came to its end."""

    DONE = "done"
    STOPPED = "stopped"
    TOO_MANY_FAILURES = "too many failures"
    CLUSTER_LOST = "the cluster is gone"


@dataclass
class _Work:
    """What one Dask task does: some simulations, or one aggregation."""

    indices: list[int] = field(default_factory=list)
    loss: tuple[int, int] | None = None  # group and target
    started: float = field(default_factory=time.time)


class StudyRun:
    """One run of a study. `progress` is called as each task ends, with whether it has a result."""

    def __init__(
        self,
        service: DaskSimulationService,
        folder: StudyFolder,
        *,
        max_failures: int | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[bool], None] = lambda succeeded: None,
    ) -> None:
        self._service, self._folder, self._study = service, folder, folder.study
        self._stop, self._progress = stop or threading.Event(), progress
        self._max_failures = math.inf if max_failures is None else max_failures
        self._failures = sum(not succeeded for succeeded in [*folder.simulations.values(), *folder.losses.values()])
        self._groups = self._study.groups()
        self._group_of = {index: group for group, indices in enumerate(self._groups) for index in indices}
        self._missing = [index for index in range(len(self._study.points)) if index not in folder.simulations]
        self._waiting: Iterator[int] = iter(self._missing)
        self._unsent = len(self._missing)
        self._again: deque[int] = deque()  # simulations whose worker died, each in a Dask task of its own
        self._lost_before: Counter[int] = Counter()
        self._lost_aggregations: Counter[tuple[int, int]] = Counter()
        self._open = Counter(self._group_of[index] for index in self._missing)
        self._held: dict[int, dict[int, SimReturn]] = {}  # results of groups that wait for their aggregation
        self._aggregations: deque[tuple[int, int]] = deque()
        self._futures: dict[distributed.Future[Any], _Work] = {}
        self._ended = distributed.as_completed(
            loop=service.client.loop, with_results=True, raise_errors=False
        )  # it fetches them too
        self._seconds_each: float | None = None
        self._bytes_each = 0.0
        self._window, self._window_at = 0, -math.inf

    def run(self) -> Ended:
        """Run what is missing. Whatever the end is, all results that came are in the folder."""
        for group in range(len(self._groups)):
            self._aggregate_when_complete(group)
        try:
            while (ended := self._why_ended()) is None:
                self._fill_window()
                self._take_results()
                self._folder.flush_when_due()
            return ended
        finally:
            self._folder.flush()
            for future in list(self._futures):
                future.release()

    def _why_ended(self) -> Ended | None:
        if self._stop.is_set():
            return Ended.STOPPED
        if self._failures > self._max_failures:
            return Ended.TOO_MANY_FAILURES
        if self._service.client.status != "running":
            return Ended.CLUSTER_LOST
        return None if self._futures or self._aggregations or self._again or self._unsent else Ended.DONE

    def _fill_window(self) -> None:
        if time.monotonic() - self._window_at > CLUSTER_SECONDS:
            self._window = CHUNKS_PER_THREAD * max(2, self._service.threads())
            self._window_at = time.monotonic()
        while len(self._futures) < self._window and not self._stop.is_set():
            if self._aggregations:
                self._send_aggregation(*self._aggregations.popleft())
            elif self._again:
                self._send([self._again.popleft()])
            elif self._unsent:
                chunk = list(islice(self._waiting, self._chunk_size()))
                self._unsent -= len(chunk)
                self._send(chunk)
            else:
                return

    def _chunk_size(self) -> int:
        """One until it is known how long a simulation takes; few at the end, so that all threads end together."""
        if self._seconds_each is None:
            return 1
        fair = math.ceil(self._unsent / max(1, self._window))
        quick, small = CHUNK_SECONDS / max(1e-6, self._seconds_each), CHUNK_BYTES / max(1.0, self._bytes_each)
        return max(1, min(MAX_CHUNK, fair, int(quick), int(small)))

    def _send(self, indices: list[int]) -> None:
        future = self._service.submit_together([self._study.task(index) for index in indices])
        self._watch(future, _Work(indices))

    def _send_aggregation(self, group: int, target: int) -> None:
        held = self._held.setdefault(group, {})
        if before := [index for index in self._groups[group] if index not in held]:
            held.update(self._folder.results(before))  # only now: a study that goes on may have many such groups
        results = [held[index] for index in self._groups[group]]
        try:
            refuse_failed(results)
        except RunnerError as error:
            self._take_loss((group, target), Timed(error, time.time(), 0.0))
            return
        study = self._study
        task = AggregationTask(study.bundle_ref, study.targets[target].entrypoint, results, study.target_data)
        self._watch(self._service.submit_aggregation(task), _Work(loss=(group, target)))

    def _watch(self, future: "distributed.Future[Any]", work: _Work) -> None:
        self._futures[future] = work
        self._ended.add(future)

    def _take_results(self) -> None:
        """Wait a moment for a Dask task to end, and take in all that have."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._futures and not self._ended.has_ready() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)  # and not on a lock, so that a signal is seen
        for future, value in self._ended.next_batch(block=False):
            work = self._futures.pop(future)
            future.release()
            if isinstance(value, tuple):  # type, exception, traceback
                value = value[1]
            if work.loss is None:
                self._take_simulations(work, value)
            else:
                self._take_aggregation(work, value)

    def _take_simulations(self, work: _Work, value: Any) -> None:
        done = value if isinstance(value, list) else []
        for index, timed in zip(work.indices, done, strict=False):
            self._keep(index, timed)
        for index in work.indices[len(done) :]:
            error = lost(value if isinstance(value, Exception) else CancelledError())
            self._lost_before[index] += 1
            if len(work.indices) == 1 and self._lost_before[index] >= MAX_LOSSES_OF_A_TASK:
                self._keep(index, Timed(error_return(self._study.task(index), error), work.started, 0.0))
            else:
                self._again.append(index)

    def _keep(self, index: int, timed: Timed) -> None:
        assert isinstance(timed.result, SimReturn)
        self._folder.add_simulation(index, timed)
        size = sum(len(artifact.inline or b"") for artifact in timed.result.outputs.values())
        self._seconds_each = 0.9 * (self._seconds_each or timed.seconds) + 0.1 * timed.seconds
        self._bytes_each = max(0.95 * self._bytes_each, size)
        group = self._group_of[index]
        if self._study.targets:
            self._held.setdefault(group, {})[index] = timed.result
        self._open[group] -= 1
        self._count(timed.result.error is None)
        self._aggregate_when_complete(group)

    def _aggregate_when_complete(self, group: int) -> None:
        targets = [n for n in range(len(self._study.targets)) if (group, n) not in self._folder.losses]
        if not targets or self._open[group] > 0:
            return
        self._aggregations.extend((group, n) for n in targets)

    def _take_aggregation(self, work: _Work, value: Any) -> None:
        assert work.loss is not None
        timed = Timed(lost(value), work.started, 0.0) if isinstance(value, Exception) else value
        stopped = isinstance(timed.result, RunnerError) and timed.result.type in STOPPED
        if isinstance(value, Exception) or stopped:
            self._lost_aggregations[work.loss] += 1
            if self._lost_aggregations[work.loss] < MAX_LOSSES_OF_A_TASK:
                self._aggregations.append(work.loss)
                return
        self._take_loss(work.loss, timed)

    def _take_loss(self, loss: tuple[int, int], timed: Timed) -> None:
        group, target = loss
        self._folder.add_loss(group, target, timed)
        self._count(not isinstance(timed.result, RunnerError))
        if all((group, n) in self._folder.losses for n in range(len(self._study.targets))):
            self._held.pop(group, None)

    def _count(self, succeeded: bool) -> None:
        self._failures += not succeeded
        self._progress(succeeded)


def limit_of_failures(text: str, tasks: Sequence[Any]) -> int:
    """How many failures `N` or `P%` of the tasks allow. ValueError for other texts."""
    number = text.removesuffix("%")
    try:
        if number != text:
            share = float(number)
            if not 0 <= share <= 100:
                raise ValueError
            return math.floor(len(tasks) * share / 100)
        limit = int(number)
        if limit < 0:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a number of failures nor a percentage of the tasks, such as 5%"
        ) from None
    return limit
