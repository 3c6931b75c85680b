"""The cluster of a study, in a process that may have to end at any moment.

Dask can't be interrupted: what it waits for is waited for in a thread, which is left behind where the process ends.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from typing import TypeVar

import psutil

from modelops.adapters.working_dir import clear_away, close_all
from modelops.places import default_storage_dir

from .dask_simulation import DaskSimulationService

PATIENCE_SECONDS = 1.2  # that workers have to end their tasks, once the study is to stop; then they are killed
CLOSING_SECONDS = 1.5  # that all of closing may take then
LEAVING_SECONDS = 3.0  # in which a busy machine has ended what was killed
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


def leave_nothing() -> None:
    """For a process that ends now: no process that it started is left, nor a directory that it worked in.

    Dask starts a worker again that is killed, and a worker makes its directory again: both go until nobody is there.
    Whoever still lives as directories are cleared away keeps its own, so that is asked before.
    """
    deadline = time.monotonic() + LEAVING_SECONDS
    living = True
    while living and time.monotonic() < deadline:
        _kill_family()
        living = bool(_family())
        close_all()
        clear_away(default_storage_dir())


def _kill_family() -> None:
    for process in _family():
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(_family(), LOOK_SECONDS)


def _family() -> list[psutil.Process]:
    """All that this process started, and is starting, but for the one that removes its semaphores when it has ended."""
    spared = getattr(getattr(resource_tracker, "_resource_tracker", None), "_pid", None)
    family = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in family if process.pid != spared and _lives(process)]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        # The first of its threads may have ended before others, which hold its locks.
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    return False


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
