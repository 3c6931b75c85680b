"""How a command that runs for long ends by a signal: within a moment, and with nothing left of it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from modelops.adapters.leaving import leave_nothing
from modelops.places import default_storage_dir
from modelops.services.dask_simulation import hush


class Stop:
    """SIGINT and SIGTERM: a KeyboardInterrupt, or a request to stop. The second one is an interrupt everywhere."""

    def __init__(self) -> None:
        self.asked, self.number = threading.Event(), 0
        self._interrupts, self._left = True, 2

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._take) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def as_a_request(self) -> Iterator[None]:
        self._interrupts = False
        try:
            yield
        finally:
            self._interrupts = True

    def ignore(self) -> None:
        """The process ends now."""
        self._left = 0

    def _take(self, number: int, _: object) -> None:
        again, self.number, self._left = self.asked.is_set(), number, self._left - 1
        self.asked.set()
        hush()  # the signal may be for the workers too
        if (again or self._interrupts) and self._left >= 0:
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Where a signal stops the block, so ends the process: what Python would take apart first takes 0.2 seconds."""
    stop = Stop()
    with stop.on_signals():
        try:
            yield stop
            if not stop.number:
                return
            status = 0  # it had come to its end, in a hurry
        except KeyboardInterrupt:
            stop.ignore()
            with suppress(BrokenPipeError):
                typer.echo("stopped; the same command goes on with what is written, or begins", err=True)
            status = 128 + (stop.number or signal.SIGINT)
        except typer.Exit as end:
            if not stop.number:
                raise
            status = end.exit_code
        except BrokenPipeError:  # the signal was also for who reads: `tee`, in the same terminal
            if not stop.number:
                raise
            status = 128 + stop.number
        stop.ignore()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a process that just starts has nothing to say
        leave_nothing(status, default_storage_dir())
