"""Processes of the runner: how they start, and how they are made to end."""

import logging
import signal
import threading
from collections.abc import Callable

from . import forks
from .errors import RunnerError
from .forks import Process
from .runner_settings import RunnerSettings

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0  # that a runner has to stop its sandbox, clean up and answer


def start(
    settings: RunnerSettings, arguments: list[str], data: bytes | None = None, stderr: int | None = None
) -> Process:
    """Start a runner, as `forks.start` does: signals of the caller's terminal are the caller's affair."""
    try:
        return forks.start(settings.runner, settings.arguments(*arguments), settings.environment(), data, stderr)
    except forks.NotStarted as error:
        problem = f"the runner {str(settings.runner)!r} can't be started: {error}"
        raise RunnerError.of("host", "runner_unavailable", problem, True) from None


class Ending:
    """Ends a runner: asks first, and kills what is still there after the grace. Harmless if it has ended."""

    def __init__(self, process: Process, grace_seconds: float = GRACE_SECONDS) -> None:
        self._process, self._grace = process, grace_seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Ask the runner to stop, and return at once."""
        with self._lock:
            if self._timer is None and self._process.poll() is None:
                self._timer = threading.Timer(self._grace, kill, [self._process])
                self._timer.daemon = True
                self._timer.start()
                self._process.send_signal(signal.SIGTERM)

    def finish(self) -> None:
        """Wait for the end of the runner, asking for it where it has not come, and close its pipes."""
        self.begin()
        self._process.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._process.close()


def kill(process: Process) -> None:
    """Kill a runner that does not stop; its sandbox dies with it."""
    if process.poll() is None:
        logger.warning("the runner %d did not stop in time and is killed", process.pid)
        process.send_signal(signal.SIGKILL)


def log_stderr(stderr: bytes, log: Callable[[str, str], None] = logger.debug) -> None:
    """Pass the runner's log on. Its lines hold text of the bundle, which the runner has made printable."""
    for line in stderr.decode("utf-8", "replace").splitlines():
        log("runner: %s", line)
