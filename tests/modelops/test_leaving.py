"""The end of a process whose threads go on: nothing is left of what they make, up to the last moment."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

# Threads that make folders, make again what is removed, and start again what is killed.
BUSY = """
import os, subprocess, sys, threading, time
from multiprocessing import resource_tracker
from pathlib import Path
from modelops.adapters.leaving import leave_nothing
from modelops.adapters.working_dir import WorkingDir

storage = Path(sys.argv[1])

def open_more():
    for count in range(100_000):
        kept.append(WorkingDir(storage / f"{count % 3}"))

def make_again(first):
    while True:
        try:
            os.makedirs(first / "scratch", exist_ok=True)
        except OSError:
            pass

def start_again():
    while True:
        subprocess.run(["sleep", sys.argv[2]])

kept = [WorkingDir(storage / "dask"), WorkingDir(storage.parent / "elsewhere")]
actions = [open_more, *(lambda working=working: make_again(working.path) for working in kept), start_again]
for action in actions:
    threading.Thread(target=action, daemon=True).start()
resource_tracker.ensure_running()
waiting = subprocess.Popen(["sh", "-c", "read word || echo nobody talks to me >&2"], stdin=subprocess.PIPE)
time.sleep(0.1)
leave_nothing(7, storage)
"""
MODULE = "raise SystemExit('a module of the current folder ran')"


def test_nothing_is_left_that_threads_make_up_to_the_end(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    bundle = tmp_path / "bundle"
    for name in ("psutil", "modelops", "typing"):
        (bundle / name).mkdir(parents=True)
        (bundle / name / "__init__.py").write_text(MODULE)
    for number in range(4):
        storage, seconds = tmp_path / str(number), f"{600 + number}.{os.getpid()}"
        words = [sys.executable, "-P", "-c", BUSY, str(storage), seconds]
        done = subprocess.run(words, env=environment, cwd=bundle, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
        assert [*storage.rglob(".working-*"), *(tmp_path / "elsewhere").iterdir()] == []
        assert not [each for each in psutil.process_iter(["cmdline"]) if seconds in (each.info["cmdline"] or ())]
