"""The cluster of a study, in a process that may have to end at any moment.

Dask can't be interrupted: what it waits for is waited for in a thread, which is left behind where the process ends.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from .dask_simulation import DaskSimulationService

PATIENCE_SECONDS = 1.2  # that workers have to end their tasks, once the study is to stop; then they are killed
CLOSING_SECONDS = 1.5  # that all of closing may take then
LOOK_SECONDS = 0.02
T = TypeVar("T")


@contextmanager
def study_cluster(
    make: Callable[[], DaskSimulationService], begin: Callable[[DaskSimulationService], T], stop: threading.Event
) -> Iterator[tuple[DaskSimulationService, T]]:
    """The service that `make` makes, and what `begin` returns of it.

    Once `stop` is set, both are given up with a KeyboardInterrupt, and the service is closed in a moment, or left to
    `leave_nothing`.
    """
    made: list[DaskSimulationService] = []

    def start() -> T:
        made.append(make())
        return begin(made[0])

    try:
        starting = _in_background(start)
        while not wait([starting], LOOK_SECONDS).done and not stop.is_set():
            pass
        if stop.is_set():  # also where it has failed: the signal may be for the workers too
            raise KeyboardInterrupt
        found = starting.result()
        yield made[0], found
    finally:
        if made and stop.is_set():
            wait([_in_background(partial(made[0].close, PATIENCE_SECONDS))], CLOSING_SECONDS)
        elif made:
            made[0].close()


def _in_background(action: Callable[[], T]) -> "Future[T]":
    """Call `action` in a thread that keeps no process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="study-cluster", daemon=True).start()
    return future
