"""How a command ends that a signal stops: with its status, and with nothing left, whoever may still read its words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import os, signal, sys
from pathlib import Path
import typer
from modelops.adapters.working_dir import WorkingDir
from modelops.commands.stopping import stoppable

def main():
    with stoppable() as stop:
        kept.append(WorkingDir(Path(os.environ["MODELOPS_STORAGE_DIR"]) / "dask"))  # as a hurried close leaves it
        if sys.argv[1] == "an interrupt":
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.as_a_request():
            os.kill(os.getpid(), signal.SIGTERM)
        if sys.argv[1] == "its end":
            print("the summary")
        else:
            typer.echo("stopped", err=True)
            raise typer.Exit(128 + stop.number)

kept = []
main()
"""


@pytest.mark.parametrize(("moment", "status"), [("an interrupt", 143), ("a request", 143), ("its end", 0)])
def test_it_ends_as_it_should_where_nobody_reads_what_it_says(moment: str, status: int, tmp_path: Path) -> None:
    """Ctrl-C reaches `tee` as well, which is gone then."""
    reading, nobody_reads = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MODELOPS_STORAGE_DIR": str(tmp_path)}
    words = [sys.executable, "-P", "-c", COMMAND, moment]
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=nobody_reads, text=True, timeout=60, check=False
    )
    os.close(nobody_reads)
    assert (done.returncode, done.stdout) == (status, "the summary\n" if moment == "its end" else "")
    assert not [*tmp_path.rglob(".working-*")]


# The main thread waits when the signal comes to another one, as the kernel may have it.
WAITING = """
import signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from modelops.debugging.workbench import result_of

def signalled():
    waiting.wait()
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    return over.wait(30)

waiting, over = threading.Event(), threading.Event()
with ThreadPoolExecutor(1) as pool:
    run = pool.submit(signalled)
    try:
        waiting.set()
        result_of(run)
    except KeyboardInterrupt:
        print("interrupted", "too late" if run.done() else "in time")
    finally:
        over.set()
"""


def test_a_signal_is_answered_while_runs_are_waited_for(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-P", "-c", WAITING], env=environment, capture_output=True, text=True)
    assert done.stdout == "interrupted in time\n", done.stderr
