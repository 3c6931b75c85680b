"""One call of a caller: how long it may take, and whether somebody asked for its end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import RunnerError

_STOPPED = {
    "cancelled": ("the task was cancelled", False),
    "shut_down": ("the execution environment was shut down; send the task to another", True),
}


class Call:
    """A deadline, and a request to stop that any thread may make. `reason` is a key of _STOPPED."""

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self.deadline = time.monotonic() + timeout_seconds
        self.reason: str | None = None
        self._lock = threading.Lock()
        self._hooks: list[Callable[[], None]] = []

    def stop(self, reason: str) -> None:
        """Ask for the end of the call. Returns at once; only the first reason counts."""
        with self._lock:
            self.reason = self.reason or reason
            for hook in self._hooks:
                hook()

    @contextmanager
    def on_stop(self, hook: Callable[[], None]) -> Iterator[None]:
        """Within the block, `hook` is called when the call is to stop; at once if it is already.

        It is called with a lock held, by whichever thread asks, so it must be short. After the block it
        never is.
        """
        with self._lock:
            self._hooks.append(hook)
            if self.reason is not None:
                hook()
        try:
            yield
        finally:
            with self._lock:
                self._hooks.remove(hook)

    def remaining(self) -> float:
        """Seconds until the deadline, and zero after it."""
        return max(0.0, self.deadline - time.monotonic())

    def is_over(self) -> bool:
        """Whether the call is to end without waiting for more."""
        return self.reason is not None or self.remaining() == 0

    def require_time(self) -> None:
        """Raise the reason why the call is over, if it is."""
        if self.is_over():
            raise self.failure({})

    def failure(self, runner_said: dict[str, object]) -> RunnerError:
        """Why the call is over, with what the runner told of the task until then."""
        phase = str(runner_said.get("phase", "host"))
        if self.reason is None:
            kind, retryable = "timeout", False
            text = (
                f"the call took more than {self.timeout_seconds:g} seconds in all (timeout_seconds, --timeout); where "
            )
            text += "the profile's execute.wall_seconds ends a task first (--limit wall=..), it tells where it stood"
        else:
            kind = self.reason
            text, retryable = _STOPPED[self.reason]
        known = {name: value for name, value in runner_said.items() if name in ("metrics", "stderr")}
        limit = {"limit": {"name": "timeout_seconds", "value": self.timeout_seconds}} if kind == "timeout" else {}
        fatal = RunnerError.of("host", kind, text, retryable, **known, **limit).fatal_error
        return RunnerError({**fatal, "phase": phase})
