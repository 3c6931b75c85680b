"""A signal stops the runner, even one whose exception Python drops."""

import signal
import subprocess
import sys

import pytest
from conftest import RUNNER

LOST = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("runner", sys.argv[1])
runner = sys.modules["runner"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
runner.Killed.arm()
runner.Killed.check()

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[2]))
        for _ in range(1000):
            pass

finalized = Finalized()
del finalized
print("lost")
try:
    runner.Killed.check()
except runner.Killed as killed:
    print(killed.number)
"""


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_signal_in_a_finalizer_is_not_lost(number: int) -> None:
    command = [sys.executable, "-I", "-c", LOST, str(RUNNER), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["lost", str(number)], done.stderr
    assert "Exception ignored" in done.stderr


AS_ANOTHER = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("runner", sys.argv[1])
runner = sys.modules["runner"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
ids = [0]
os.setegid = ids.append

def seteuid(uid):
    ids.append(uid)
    os.kill(os.getpid(), int(sys.argv[2]))
    for _ in range(1000):
        pass

os.seteuid = seteuid
runner.Killed.arm()
try:
    with runner.looking_as(65534):
        pass
except runner.Killed:
    print(ids[-2:] == [0, os.getegid()])
"""


def test_who_is_stopped_takes_down_with_its_own_rights() -> None:
    command = [sys.executable, "-I", "-c", AS_ANOTHER, str(RUNNER), "15"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"], done.stderr


AT_A_LINE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runner", sys.argv[1])
runner = sys.modules["runner"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
runner.dispatch = lambda options, times, emit: emit({"text": "x" * (1 << 20)})
sys.exit(runner.main(["--doctor"]))
"""


def test_who_is_stopped_in_a_line_begins_no_other_and_waits_for_no_reader() -> None:
    """The line is more than a pipe holds, and nobody reads it."""
    with subprocess.Popen([sys.executable, "-I", "-c", AT_A_LINE, str(RUNNER)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        begun = process.stdout.read(1)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
        written = begun + process.stdout.read()
    assert written.startswith(b'{"text": "xxx') and b"\n" not in written
