"""How a process ends whose threads nobody can stop: a program without them takes its place, and cleans up.

While they live that is in vain: Dask starts a worker again that is killed, and makes again the folder that it works in.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NoReturn

import psutil

from .working_dir import clear_away, open_here, remove_tree

LEAVING_SECONDS = 3.0  # in which a busy machine has ended what was killed
LOOK_SECONDS = 0.02
_PROGRAM = f"import sys; sys.path[:] = {{}}; from {__name__} import clean_up; clean_up(*sys.argv[1:])"


def leave_nothing(status: int, storage: Path) -> NoReturn:
    """End this process, whose exit status this is: nothing is left that it started or worked in, nor what dead ones
    left in `storage`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # by the program too
    tracker = getattr(getattr(resource_tracker, "_resource_tracker", None), "_pid", None) or 0
    _kill(_family(tracker))  # whose pipes end with this program: they would say so, on a standard error of their own
    words = [str(status), str(tracker), str(storage), *map(str, open_here())]
    try:
        # -P, as the current folder may be a bundle's, whose modules nobody trusts.
        program = _PROGRAM.format([*filter(None, sys.path)])
        os.execv(sys.executable, [sys.executable, "-P", "-c", program, *words])
    finally:  # the machine has no room for it: whoever comes next clears away
        os._exit(status)


def clean_up(status: str, tracker: str, storage: str, *folders: str) -> NoReturn:
    """What the program does: the exit status, the process that removes semaphores once all others are gone, and where
    folders are left."""
    try:
        _kill_family(int(tracker))
        for folder in folders:
            with suppress(OSError):
                remove_tree(Path(folder))
        clear_away(Path(storage))  # a worker's too, and what was begun as the list was made
    finally:
        os._exit(int(status))


def _kill_family(spared: int) -> None:
    deadline = time.monotonic() + LEAVING_SECONDS
    while (family := _family(spared)) and time.monotonic() < deadline:
        _kill(family)
        psutil.wait_procs(family, LOOK_SECONDS)


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.Error):
            process.kill()


def _family(spared: int) -> list[psutil.Process]:
    family = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in family if process.pid != spared and _lives(process)]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        # The first of its threads may have ended before others, which hold its locks.
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    return False
