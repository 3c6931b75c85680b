"""One run of the runner: one question, one answer."""

import subprocess
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from .answer import parse_line, require_result
from .call import Call
from .errors import RunnerError
from .forks import Process
from .process import Ending, log_stderr, start
from .runner_settings import RunnerSettings


def ask_once(
    settings: RunnerSettings,
    arguments: list[str],
    payload: bytes,
    call: Call,
    log: Callable[[bytes], None] = log_stderr,
) -> dict[str, Any]:
    """Run the runner once and return its result. However it goes, the runner has ended when this returns.

    `log` is given each line of the runner's log as it comes, on a thread of its own.
    """
    call.require_time()
    process = start(settings, arguments, payload)
    ending = Ending(process)
    reader = _LogReader(process, log)
    try:
        with call.on_stop(ending.begin):
            try:
                stdout = process.output(call.remaining())
            except subprocess.TimeoutExpired:
                ending.begin()
                stdout = process.output()
    finally:
        ending.finish()
        tail = reader.close()
    if not stdout:
        if call.is_over():
            raise call.failure({})
        problem = f"the runner ended with status {process.returncode} and without an answer; something killed it"
        raise RunnerError.of("host", "runner_died", problem, True, stderr=tail)
    try:
        return require_result(parse_line(stdout))
    except RunnerError as error:
        if error.type == "killed" and call.is_over():
            raise call.failure(error.fatal_error) from None
        raise


class _LogReader:
    """Takes the standard error of a runner from it, and hands it on line by line."""

    def __init__(self, process: Process, log: Callable[[bytes], None]) -> None:
        assert process.stderr is not None
        self._stream, process.stderr = process.stderr, None
        self._log, self._tail = log, deque[bytes](maxlen=50)
        self._thread = threading.Thread(target=self._read, name=f"runner-{process.pid}-log", daemon=True)
        self._thread.start()

    def close(self) -> str:
        """Wait for the rest, now that the runner has ended, and return the last lines."""
        self._thread.join()
        self._stream.close()
        return b"".join(self._tail).decode("utf-8", "replace")[-4000:]

    def _read(self) -> None:
        for line in self._stream:
            self._tail.append(line)
            self._log(line)
