"""What the host sees of a server's template, from outside."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# A first process, whose child is the template: it does what an import did, and tells whether it can be looked into.
INIT = """
import ctypes, mmap, os, sys, time
if os.fork() == 0:
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED if sys.argv[1] == "shared" else mmap.MAP_PRIVATE)
    memory[0] = 1
    if sys.argv[2] == "closed":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


def in_another_account(ask: Callable[[], bool]) -> bool:
    """The answer of a process that has root's rights over others no longer, if it had them."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            status = int(ask())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1)
    return status == 1


@pytest.mark.parametrize("access", ["open", "closed"])
@pytest.mark.parametrize("memory", ["shared", "private"])
def test_memory_that_forks_share_is_seen_and_what_can_not_be_looked_at_counts_as_shared(
    runner_module: Any, memory: str, access: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INIT, memory, access], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as init:
        assert init.stdout and init.stdout.readline() == b"ready\n"
        (template,) = runner_module.children_of(init.pid)

        def ask() -> bool:
            assert os.access(f"/proc/{template}/maps", os.R_OK) or access == "closed"
            return bool(runner_module.shares_memory(init.pid))

        shared = ask() if access == "open" else in_another_account(ask)
        assert shared == (memory == "shared" or access == "closed")


def test_what_is_gone_is_not_trusted(runner_module: Any) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert runner_module.shares_memory(process.pid)


def test_a_thread_that_ends_while_its_name_is_read_is_passed_over(
    runner_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """proc(5): a file that is open when its thread ends is read with ESRCH, not found no more before."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()

    def late(path: str, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115 (the caller closes it)
        stop.set()
        while Path(f"/proc/self/task/{thread.native_id}").exists():
            time.sleep(0.001)
        return file

    monkeypatch.setattr(runner_module, "open", late, raising=False)
    monkeypatch.setattr(runner_module, "children_of", lambda _: [os.getpid()])
    monkeypatch.setattr(runner_module.os, "listdir", lambda _: [str(thread.native_id)])
    assert runner_module.threads_of(1) == []


def test_a_descriptor_that_is_closed_meanwhile_hides_no_memory(
    runner_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = os.memfd_create("bomb")
    try:
        os.write(memory, bytes(1 << 20))
        with os.scandir("/proc/self/fd") as entries:
            found = {entry.name: entry for entry in entries}
        gone = SimpleNamespace(path="/proc/self/fd/999999")
        monkeypatch.setattr(runner_module.os, "scandir", lambda _: [gone, found[str(memory)]])
        assert runner_module.memfd_used([SimpleNamespace(pid=os.getpid())]) == 1 << 20
    finally:
        os.close(memory)
