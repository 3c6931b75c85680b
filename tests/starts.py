"""Whole runs as the adapters start them, by a fork: to start Python and import the runner is half of a short run.

What tries the start itself, or finds a run by its command line or by the environment that it began with, starts it by
`Runner.command` instead.
"""

import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelops.adapters.exec_env import forks

RUNNER = Path(__file__).resolve().parent.parent / "tools" / "ultra_cold_runner.py"


def run(
    arguments: Sequence[str],
    data: bytes,
    environment: Mapping[str, str],
    timeout: float,
    watch: Callable[[int], None] | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """As `subprocess.run` of the runner would be, with this standard input and its output captured. `watch`, called
    with its pid, may look at it until it ends."""
    with tempfile.TemporaryFile() as log, ThreadPoolExecutor(1) as pool:
        process = forks.start(RUNNER, arguments, environment, data, log.fileno())
        if watch:
            pool.submit(watch, process.pid)
        try:
            stdout = process.output(timeout)
        finally:
            process.send_signal(signal.SIGKILL)
            process.close()
        log.seek(0)
        return subprocess.CompletedProcess([*arguments], process.wait(), stdout, log.read())
