"""Runs as forks of a process that has imported the runner: each is what a script would be, and nothing of it stays."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from accounts import Account, everyone
from conftest import RUNNER, Runner, parse_line, write_bundle
from environments import wait_until

from modelops.adapters.exec_env import forks

# A runner that tells what it is; with the argument "wait" not before its standard input has ended.
PROBE = """
import json, os, random, resource, subprocess, sys

VERSION = 1

def status(*names):
    lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
    return [lines[name] for name in names]

def main(arguments):
    read = sys.stdin.read()
    print(json.dumps({
        "arguments": [arguments, sys.argv[1:]],
        "environment": sorted((name.hex(), value.hex()) for name, value in os.environb.items()),
        "C's": sorted(map(repr, subprocess.check_output(["/usr/bin/env", "-0"]).split(b"\\0"))),
        "folder": os.getcwd(), "read": read, "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1],
        "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "ignored and caught": status("SigIgn", "SigCgt", "SigPnd"), "affinity": sorted(os.sched_getaffinity(0)),
        "limits": [resource.getrlimit(n) for n in range(16)], "nice": os.nice(0), "umask": os.umask(0),
        "account": status("Uid", "Gid", "Groups"), "flags": [sys.flags.isolated, sys.flags.no_site],
    }))
    print(json.dumps({
        "blocked": status("SigBlk"), "pid": os.getpid(), "parent": os.getppid(), "random": random.random(),
        "version": VERSION,
    }), file=sys.stderr)
    sys.stdout.flush()
    return 7

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
SLEEPS = "import time\ndef wire(*task):\n    time.sleep(600)\n"


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probing" / "probe_runner.py"
    path.parent.mkdir()
    path.write_text(PROBE)
    return path


def told(process: forks.Process) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a probe says: what any start gives it, and what is its own."""
    out = process.output(60)
    assert process.stderr is not None
    err = process.stderr.read()
    process.close()
    assert process.returncode == 7, (out, err)
    return json.loads(out), json.loads(err)


def ask(probe: Path, data: bytes | None = b"", *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return told(forks.start(probe, arguments, os.environ, data))


def stat_of(pid: int) -> tuple[int, int]:
    """How many descriptors a process has open, and bytes of memory that no file backs."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return len(os.listdir(f"/proc/{pid}/fd")), int(status["RssAnon"].split()[0]) << 10


def forked_ahead(server: int) -> psutil.Process:
    """The process that waits to be the next run, once no other child of the server is left."""
    wait_until(lambda: len(psutil.Process(server).children()) == 1, "none is ahead, or one that ended is left")
    return psutil.Process(server).children()[0]


def test_a_run_is_what_a_script_would_be(
    probe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also where the caller's environment, folder, limits and processors have changed since the first."""
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # in another an interpreter sets LC_CTYPE as it starts
    _, first = ask(probe, b"", "first")
    monkeypatch.setenv("ODD_PROBE", os.fsdecode(b"a=b\n\xff\xfe"))
    monkeypatch.setenv("LATER_PROBE", "here")
    monkeypatch.delenv("HOME", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before, soft = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    request.addfinalizer(lambda: os.sched_setaffinity(0, before))
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, soft))
    os.sched_setaffinity(0, {min(before)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft[0] - 1, soft[1]))
    found, own = ask(probe, b"its input", "--word", "\udcff", "")
    command = [sys.executable, "-I", "-S", str(probe), *found["arguments"][0]]
    script = subprocess.run(command, input=b"its input", capture_output=True, env=os.environ, start_new_session=True)
    assert found == json.loads(script.stdout)
    assert found["arguments"][0] == ["--die-with-parent", str(own["parent"]), "--word", "\udcff", ""]
    assert found["C's"] and found["descriptors"] == ["0", "1", "2"] and found["read"] == "its input"
    assert own["blocked"] == [f"{sum(1 << (number - 1) for number in forks.BLOCKED):016x}"]
    assert own["pid"] != first["pid"]


def test_two_runs_draw_other_numbers(probe: Path) -> None:
    numbers = {ask(probe)[1]["random"] for _ in range(5)}
    assert len(numbers) == 5


def test_runs_share_a_server_until_the_runner_changes(probe: Path) -> None:
    """The run that is under way then goes on with what it began with."""
    under_way = forks.start(probe, [], os.environ)
    server = ask(probe)[1]["parent"]
    assert ask(probe)[1]["parent"] == server
    probe.write_text(PROBE.replace("VERSION = 1", "VERSION = 20"))
    assert ask(probe)[1]["version"] == 20
    assert under_way.poll() is None and under_way.stdin is not None
    under_way.stdin.close()
    own = told(under_way)[1]
    assert (own["version"], own["parent"]) == (1, server)
    wait_until(lambda: not psutil.pid_exists(server) or psutil.Process(server).status() == "zombie", "it stays")
    ask(probe)
    assert not psutil.pid_exists(server), "it is waited for"


@pytest.mark.parametrize(
    ("text", "words"),
    [("def main(:", "SyntaxError"), ("import absent_module", "No module named 'absent_module'"), ("1 / 0", "by zero")],
)
def test_a_runner_that_cannot_be_imported_is_told(probe: Path, text: str, words: str) -> None:
    probe.write_text(text)
    with pytest.raises(forks.NotStarted, match=words):
        ask(probe)
    probe.write_text(PROBE + "# mended")
    ask(probe)


def test_an_interpreter_that_ends_at_once_is_told(probe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(forks.NotStarted, match="no such library"):
        ask(probe)


def test_an_idle_server_that_was_killed_is_started_again(probe: Path) -> None:
    for _ in range(5):
        os.kill(ask(probe)[1]["parent"], signal.SIGKILL)
    assert ask(probe)[0]["read"] == ""


def test_the_next_run_is_forked_ahead_and_another_where_somebody_ended_it(probe: Path) -> None:
    server = ask(probe)[1]["parent"]
    ahead = forked_ahead(server)
    own_three = ["0", "1", "2"]
    wait_until(lambda: sorted(os.listdir(f"/proc/{ahead.pid}/fd")) == own_three, "it has descriptors of the server")
    assert ask(probe)[1]["pid"] == ahead.pid
    for number in (signal.SIGTERM, signal.SIGKILL):
        ahead = forked_ahead(server)
        ahead.send_signal(number)
        own = ask(probe)[1]
        assert own["parent"] == server and own["pid"] != ahead.pid


def test_signals_to_the_server_end_nothing(probe: Path) -> None:
    """Those of a terminal, and of whoever ends a service process by process: it ends with its parent."""
    server = ask(probe)[1]["parent"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(server, number)
    assert ask(probe)[1]["parent"] == server
    assert os.getsid(server) == server


def test_many_runs_from_many_threads_leave_nothing(probe: Path, full: bool) -> None:
    def once(number: int) -> None:
        assert ask(probe, str(number).encode())[0]["read"] == str(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(once, range(40)))
        server = ask(probe)[1]["parent"]
        forked_ahead(server)
        before, own = stat_of(server), len(os.listdir("/proc/self/fd"))
        list(pool.map(once, range(200 if full else 60)))
    forked_ahead(server)
    wait_until(lambda: stat_of(server)[0] <= before[0], "it leaves descriptors open")  # it tells an end, then closes
    after = stat_of(server)
    assert ask(probe)[1]["parent"] == server
    assert len(os.listdir("/proc/self/fd")) == own
    assert after[1] - before[1] < 1 << 20, (before, after)


def test_a_server_that_can_open_no_more_is_replaced(probe: Path) -> None:
    """It can't take what a run needs: those under way go on, and the next has another server."""
    waiting = forks.start(probe, [], os.environ)
    server = ask(probe)[1]["parent"]
    resource.prlimit(server, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{server}/fd")) + 2,) * 2)
    assert ask(probe)[1]["parent"] != server
    assert waiting.stdin is not None
    waiting.stdin.close()
    assert told(waiting)[1]["parent"] == server


def test_nothing_of_a_run_is_read_by_the_server(probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = os.urandom(12).hex()
    server = ask(probe)[1]["parent"]
    monkeypatch.setenv("SECRET_PROBE", f"v{secret}")
    found, own = ask(probe, f"i{secret}".encode(), f"a{secret}")
    assert own["parent"] == server and secret in found["read"] and secret in found["arguments"][0][-1]
    assert any(place_of(os.getpid(), letter + secret) for letter in "via"), "it would be found"
    assert [letter for letter in "via" if place_of(server, letter + secret)] == []


def place_of(pid: int, text: str) -> str:
    """A mapping of a process that holds a text."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if line.split()[1].startswith("rw"):
                memory.seek(start)
                if text.encode() in memory.read(end - start):
                    return line
    return ""


def in_sandbox(run: int) -> None:
    """Wait until a run has a sandbox."""
    wait_until(lambda: any(p.name() == "bwrap" for p in psutil.Process(run).children()), "no sandbox began")


def test_a_run_ends_with_a_word_where_the_server_is_killed(run: Runner, bundle: Callable[..., Path]) -> None:
    arguments = ["--store-dir", str(run.store), "--bundle-path", str(bundle(SLEEPS))]
    process = forks.start(RUNNER, arguments, run.environment(), TASK)
    in_sandbox(process.pid)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    assert parse_line(process.output(120))["_fatal_error"]["type"] == "killed"
    assert process.wait() == forks.LOST and not any(map(lives, family))
    process.close()
    assert run(bundle("def wire(*task):\n    return {'out': 'ran'}\n")).outputs["out"] == b"ran"


# A process that starts a run, and forks, as multiprocessing does: that fork has a run and a server of its own.
WORKER = """
import os, sys, time
from pathlib import Path
from exec_env import forks

runner, store, bundle, quick = map(Path, sys.argv[1:])
arguments = ["--store-dir", str(store), "--bundle-path"]
process = forks.start(runner, [*arguments, str(bundle)], os.environ, sys.stdin.buffer.read())
child = os.fork()
if child == 0:
    own = forks.start(runner, [*arguments, str(quick)], os.environ, b'{"entrypoint": "main", "params": {}, "seed": 1}')
    assert b"outputs" in own.output(), own.stderr.read()
    print(process.pid, os.getpid(), own.wait(), flush=True)
time.sleep(600)
"""


@everyone()
def test_a_killed_worker_leaves_nothing(
    who: str, base: Path, accounts: dict[str, Account], request: pytest.FixtureRequest
) -> None:
    """Also where a fork of it, which has all its descriptors, lives on."""
    account = accounts[who]
    if not (base / "package").is_dir():
        shutil.copytree(Path(forks.__file__).parent, base / "package" / "exec_env")
    quick = write_bundle(base / f"quick-{who}", "def wire(*task):\n    return {'out': 'ran'}\n")
    places = [
        base / "tools" / RUNNER.name,
        account.folder / "forks",
        write_bundle(base / f"sleeps-{who}", SLEEPS),
        quick,
    ]
    as_whom: dict[str, Any] = (
        {} if account.uid is None else {"user": account.uid, "group": account.uid, "extra_groups": []}
    )
    env = {**os.environ, "PYTHONPATH": str(base / "package"), "HOME": str(account.folder)}
    command = [account.python, "-c", WORKER, *map(str, places)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, **as_whom)
    request.addfinalizer(worker.kill)
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(TASK)
    worker.stdin.close()
    run, child, status = map(int, worker.stdout.readline().split())
    request.addfinalizer(lambda: os.kill(child, signal.SIGKILL) if psutil.pid_exists(child) else None)
    assert status == 0
    in_sandbox(run)
    family = [p for p in psutil.Process(worker.pid).children(recursive=True) if p.pid != child]
    ahead = forked_ahead(psutil.Process(child).children()[0].pid)
    others = [*psutil.Process(child).children(), ahead]
    family = [member for member in family if member not in others]
    assert len(family) > 3 and len(others) == 2, "server, run and sandbox; the fork's server, and what it forked ahead"
    worker.kill()
    worker.wait()
    wait_until(lambda: not any(map(lives, family)), "something outlived the worker")
    assert all(map(lives, others))
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not any(map(lives, others)), "the server of the fork outlived it")


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
