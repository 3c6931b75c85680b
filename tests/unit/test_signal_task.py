"""The signal that asks a task where it stands reaches nobody else."""

import os
import signal
import subprocess
import sys
from typing import Any

PARENT = "import subprocess, sys; print(flush=True); subprocess.run(['sleep', '60'])"


def test_a_stranger_with_the_number_of_a_sandbox_that_ended_gets_no_signal(runner_module: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        while not runner_module.children_of(stranger.pid):
            pass
        (child,) = runner_module.children_of(stranger.pid)
        ended = subprocess.Popen(["true"])
        fds = [os.pidfd_open(ended.pid), os.pidfd_open(stranger.pid)]
        ended.wait()
        try:
            assert not runner_module.signal_task(stranger.pid, fds[0], 1, signal.SIGKILL)
            assert runner_module.children_of(stranger.pid) == [child]
            assert runner_module.signal_task(stranger.pid, fds[1], 1, signal.SIGKILL)
            stranger.wait()
        finally:
            stranger.kill()
            for fd in fds:
                os.close(fd)
