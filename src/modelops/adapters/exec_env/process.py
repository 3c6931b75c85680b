"""Processes of the runner: how they start, and how they are made to end."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from .errors import RunnerError
from .runner_settings import RunnerSettings

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0  # that a runner has to stop its sandbox, clean up and answer


def start(settings: RunnerSettings, arguments: list[str], stderr: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    """Start a runner in a session of its own: signals of the caller's terminal are the caller's affair.

    A signal that comes before the runner can answer waits until it can.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        return subprocess.Popen(
            settings.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=settings.environment(),
            start_new_session=True,
        )
    except OSError as error:
        problem = f"the runner {str(settings.runner)!r} can't be started: {error}"
        raise RunnerError.of("host", "runner_unavailable", problem, True) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Launcher:
    """Starts runners from a thread of its own, which stays until `close`.

    A runner is stopped when the thread that started it ends, so one that outlives a call can't start from the
    caller's thread.
    """

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runner-launcher")

    def start(self, arguments: list[str]) -> "subprocess.Popen[bytes]":
        """Start a runner, as `start` does."""
        return self._thread.submit(start, self._settings, arguments).result()

    def close(self) -> None:
        """End the thread, and with it whatever it started."""
        self._thread.shutdown()


class Ending:
    """Ends a runner: asks first, and kills what is still there after the grace. Harmless if it has ended."""

    def __init__(self, process: "subprocess.Popen[bytes]", grace_seconds: float = GRACE_SECONDS) -> None:
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
                self._process.terminate()

    def finish(self) -> None:
        """Wait for the end of the runner, asking for it where it has not come, and close its pipes."""
        self.begin()
        self._process.wait()
        if self._timer is not None:
            self._timer.cancel()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):  # what was not written yet has nowhere to go
                    pipe.close()


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a runner that does not stop; its sandbox dies with it."""
    if process.poll() is None:
        logger.warning("the runner %d did not stop in time and is killed", process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def log_stderr(stderr: bytes, log: Callable[[str, str], None] = logger.debug) -> None:
    """Pass the runner's log on. Its lines hold text of the bundle, which the runner has made printable."""
    for line in stderr.decode("utf-8", "replace").splitlines():
        log("runner: %s", line)
