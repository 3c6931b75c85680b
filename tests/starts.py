"""Runs that begin with a fork: to start Python and import the runner is half of what a short run takes.

A server of multiprocessing has imported it. Each run is a process of its own, with the arguments, environment, working
directory and pipes that it was given and no other descriptor, and ends as the runner ends. What tries the start itself,
or finds a run by its command line or by the environment that it began with, starts it by `Runner.command` instead.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from typing import Any

_forks = multiprocessing.get_context("forkserver")
_lock = threading.Lock()  # to start a process reaps those of other threads


def serve(tools: str) -> None:
    """From here on runs are forks of a process that has imported the runner in that folder."""
    places = [os.path.dirname(__file__), tools]
    sys.path += [place for place in places if place not in sys.path]  # the path of each fork
    _forks.set_forkserver_preload([__name__, "ultra_cold_runner"])
    before = dict(os.environ)
    try:  # the server's path; it heeds no other in Python 3.11
        os.environ["PYTHONPATH"] = os.pathsep.join(places)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(
    arguments: Sequence[str],
    data: bytes,
    environment: Mapping[str, str],
    timeout: float,
    watch: Callable[[int], None] | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """As `subprocess.run` of the runner would be, with this standard input and its output captured. `watch`, called
    with its pid, may look at it until it ends."""
    (its_in, our_in), (our_out, its_out), (our_err, its_err) = os.pipe(), os.pipe(), os.pipe()
    words, place = ([*arguments], {**environment}), (os.getcwd(), os.sched_getaffinity(0))
    process = _forks.Process(target=_begin, args=(_Streams(its_in, its_out, its_err), *words, *place))
    with ThreadPoolExecutor(4) as pool:
        with _lock:
            process.start()
        if watch and process.pid:
            pool.submit(watch, process.pid)
        for fd in (its_in, its_out, its_err):
            os.close(fd)
        out, err = pool.submit(_read, our_out), pool.submit(_read, our_err)
        pool.submit(_write, our_in, data)
        ended = wait([process.sentinel], timeout)
        if not ended:
            process.kill()
        with _lock:
            process.join()
    status = process.exitcode
    process.close()
    if not ended or status is None:
        raise subprocess.TimeoutExpired([*arguments], timeout, out.result(), err.result())
    return subprocess.CompletedProcess([*arguments], status, out.result(), err.result())


class _Streams:
    """Standard input, output and error of a run, which travel to it as it starts."""

    def __init__(self, *fds: int) -> None:
        self.fds = fds

    def __getstate__(self) -> list[Any]:
        return [DupFd(fd) for fd in self.fds]

    def __setstate__(self, state: list[Any]) -> None:
        self.fds = tuple(dup.detach() for dup in state)


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _write(fd: int, data: bytes) -> None:
    try:
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
    except BrokenPipeError:
        pass  # it did not want all


def _begin(
    streams: _Streams, arguments: list[str], environment: dict[str, str], folder: str, processors: set[int]
) -> None:
    """In the new process: become the run."""
    import ultra_cold_runner

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))  # as its start does
    for number, fd in enumerate(streams.fds):
        os.dup2(fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.sched_setaffinity(0, processors)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    os._exit(ultra_cold_runner.main(arguments))
