"""Every limit ends what goes over it, and is named with its value and what was seen."""

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RUNNER, Runner, parse_line, sleeper

Bundle = Callable[..., Path]
WithProfile = Callable[[str], tuple[str, ...]]


def wire(body: str) -> str:
    return (
        "import os, sys, time\ndef wire(*a):\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "    return {'out': 'done'}\n"
    )


CASES: dict[str, tuple[str, str, str, str]] = {
    "sleep": ("wall_seconds = 0.5", "time.sleep(600)", "timeout", "wall_seconds"),
    "sleep with a stopped signal": (
        "wall_seconds = 0.5",
        ("import signal\nfor n in (15, 2, 1): signal.signal(n, signal.SIG_IGN)\ntime.sleep(600)"),
        "timeout",
        "wall_seconds",
    ),
    "loop": ("cpu_seconds = 0.5", "while True: pass", "cpu_limit", "cpu_seconds"),
    "loop in a child": (
        "cpu_seconds = 0.5",
        ("if os.fork() == 0:\n    while True: pass\ntime.sleep(600)"),
        "cpu_limit",
        "cpu_seconds",
    ),
    "memory": (
        'memory_bytes = "100MiB"',
        ("blob = bytearray(b'x') * (300 << 20)\ntime.sleep(600)"),
        "memory_limit",
        "memory_bytes",
    ),
    "memory of children": (
        'memory_bytes = "200MiB"',
        (
            "for _ in range(6):\n"
            "    if os.fork() == 0:\n"
            "        blob = bytearray(b'x') * (60 << 20)\n"
            "        time.sleep(600)\n"
            "time.sleep(600)"
        ),
        "memory_limit",
        "memory_bytes",
    ),
    "processes": (
        "processes = 20",
        ("while True:\n    if os.fork() == 0: time.sleep(600)"),
        "pids_limit",
        "processes",
    ),
    "threads": (
        "processes = 20",
        ("import threading\nfor _ in range(100): threading.Thread(target=time.sleep, args=(600,)).start()"),
        "pids_limit",
        "processes",
    ),
    "output": ('output_bytes = "1MiB"', "return {'out': bytes(2 << 20)}", "output_limit", "output_bytes"),
    "outputs together": (
        'output_bytes = "1MiB"',
        "return {str(n): bytes(300 << 10) for n in range(20)}",
        "output_limit",
        "output_bytes",
    ),
    "stderr": ('stderr_bytes = "1MiB"', "while True: print('x' * 4096)", "output_limit", "stderr_bytes"),
    "stderr of a child": (
        'stderr_bytes = "1MiB"',
        "os.system('while :; do echo xxxxxxxxxxxxxxxx; done')",
        "output_limit",
        "stderr_bytes",
    ),
}


@pytest.mark.parametrize(("limits", "body", "kind", "name"), CASES.values(), ids=CASES.keys())
def test_a_limit_of_a_task(
    run: Runner, bundle: Bundle, profile_with: WithProfile, limits: str, body: str, kind: str, name: str
) -> None:
    error = run(bundle(wire(body)), None, *profile_with(f"[execute.limits]\n{limits}\n")).error
    assert (error["phase"], error["type"]) == ("execute", kind)
    assert error["limit"]["name"] == name and error["limit"]["seen"] >= error["limit"]["value"] > 0
    assert name in error["error"] and not error["retryable"]


# Root as in an ordinary container: it may not trace, and has no control group to write to.
CONTAINED = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--")
NO_GROUPS = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /sys/fs/cgroup && exec "$@"', "--")
WATCHED = {
    "a loop": ("[execute.limits]\ncpu_seconds = 0.5\n", "while True: pass", "cpu_limit"),
    "memory of children": (
        '[execute.limits]\nmemory_bytes = "200MiB"\n',
        "for _ in range(6):\n    if os.fork() == 0: x = bytearray(b'x') * (60 << 20); time.sleep(600)\ntime.sleep(600)",
        "memory_limit",
    ),
    "files in memory": (
        '[execute.limits]\nmemory_bytes = "200MiB"\n',
        "for _ in range(300): os.write(os.memfd_create('x'), bytes(1 << 20))\ntime.sleep(600)",
        "memory_limit",
    ),
    "temporary files": (
        '[sandbox]\ntmpfs_size = "polling"\n[execute]\nshm_bytes = "4MiB"\n',
        "open('/dev/shm/x', 'wb').write(bytes(9 << 20))\ntime.sleep(600)",
        "tmpfs_limit",
    ),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandboxes have that user's uid, who may look at them")
@pytest.mark.parametrize(("settings", "body", "kind"), WATCHED.values(), ids=WATCHED.keys())
def test_a_limit_that_root_without_the_right_to_trace_watches(
    run: Runner, bundle: Bundle, profile_with: WithProfile, settings: str, body: str, kind: str
) -> None:
    command = run.command("--bundle-path", str(bundle(wire(body))), *profile_with(settings))
    task = json.dumps({"entrypoint": "main", "params": {}, "seed": 1}).encode()
    done = subprocess.run(
        [*NO_GROUPS, *CONTAINED, *command], input=task, capture_output=True, env=run.environment(), timeout=120
    )
    assert parse_line(done.stdout)["_fatal_error"]["type"] == kind


# Its import waits, where the template makes it, and then takes more memory than one sandbox may have.
GREEDY = """
import os, subprocess, time
if os.getppid() == 1:
    subprocess.run(["sleep", "602"])
    for _ in range(6):
        if os.fork() == 0: x = bytearray(b"x") * (60 << 20); time.sleep(600)
    time.sleep(600)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the control groups")
def test_a_template_that_comes_while_a_task_runs_has_its_limits_too(
    run: Runner, bundle: Bundle, profile_with: WithProfile
) -> None:
    code = "import subprocess\ndef wire(entrypoint, params, seed):\n"
    code += "    if params: subprocess.run(['sleep', '61'])\n    else: import greedy\n    return {'out': 'x'}\n"
    options = profile_with('[execute.limits]\nmemory_bytes = "200MiB"\n')
    command = run.command("--bundle-path", str(bundle(code, files={"greedy.py": GREEDY})), "--serve", *options)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    server = subprocess.Popen([*NO_GROUPS, *command], env=run.environment(), **streams)  # type: ignore[call-overload]
    try:
        for params in ({}, {"hold": True}):
            server.stdout.readline()
            server.stdin.write(json.dumps({"entrypoint": "main", "params": params, "seed": 1}).encode() + b"\n")
            server.stdin.flush()
        waiting, task = sleeper(server, "602"), sleeper(server, "61")
        template = waiting.parent()
        waiting.kill()
        while template.is_running():
            assert task.is_running(), "the task was over first"
        task.kill()
        rest, log = server.communicate(timeout=300)
        assert b'"outputs"' in rest and server.returncode == 0
        assert b"imported in each task" in log and b"memory_bytes" in log
    finally:
        server.kill()
        server.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandboxes have that user's uid, who may look at them")
def test_a_sandbox_that_the_host_lets_nobody_look_into_is_ended(run: Runner, bundle: Bundle) -> None:
    """The runner stays root, without the right to trace: what a security module of the host may come to."""
    code = "import contextlib, sys, ultra_cold_runner as r; r.looking_as = contextlib.nullcontext; "
    code += "sys.exit(r.main(sys.argv[1:]))"
    options = ("--store-dir", str(run.store), "--bundle-path", str(bundle(wire("time.sleep(600)"))))
    command = [sys.executable, "-c", code, *options]
    task = json.dumps({"entrypoint": "main", "params": {}, "seed": 1}).encode()
    env = run.environment({"PYTHONPATH": str(RUNNER.parent)})
    done = subprocess.run([*CONTAINED, *command], input=task, capture_output=True, env=env, timeout=120)
    error = parse_line(done.stdout)["_fatal_error"]
    assert (error["phase"], error["type"], done.returncode) == ("host", "sandbox_unseen", 3)


def test_a_full_tmp(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    body = "with open('/tmp/x', 'wb') as file:\n    while True: file.write(bytes(1 << 20))"
    error = run(bundle(wire(body)), None, *profile_with('[execute]\ntmp_bytes = "4MiB"\n')).error
    assert error["phase"] == "execute"
    assert error["type"] == "tmpfs_limit" or error["exception"]["message"].startswith("[Errno 28]")


def test_a_full_tmp_that_the_task_waits_in(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    body = (
        "try:\n"
        "    with open('/tmp/x', 'wb') as file:\n"
        "        while True: file.write(bytes(1 << 20))\n"
        "except OSError: time.sleep(600)"
    )
    error = run(bundle(wire(body)), None, *profile_with('[execute]\ntmp_bytes = "4MiB"\n')).error
    assert (error["type"], error["limit"]["name"]) == ("tmpfs_limit", "tmp_bytes")


@pytest.mark.parametrize(("path", "name"), [("/tmp/x", "tmp_bytes"), ("/dev/shm/x", "shm_bytes")])
def test_a_full_tmpfs_whose_mount_has_no_size(
    run: Runner, bundle: Bundle, profile_with: WithProfile, path: str, name: str
) -> None:
    """An older bwrap can't give it one: the runner looks."""
    body = f"with open('{path}', 'wb') as file:\n    file.write(bytes(5 << 20))\ntime.sleep(600)"
    sizes = '[execute]\ntmp_bytes = "4MiB"\nshm_bytes = "4MiB"\n'
    error = run(bundle(wire(body)), None, *profile_with(f'[sandbox]\ntmpfs_size = "polling"\n{sizes}')).error
    assert (error["type"], error["limit"]["name"]) == ("tmpfs_limit", name)


def test_a_file_over_its_limit(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    body = (
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "with open('/tmp/x', 'wb') as file:\n"
        "    file.write(bytes(2 << 20))"
    )
    error = run(bundle(wire(body)), None, *profile_with('[execute.limits]\nfile_bytes = "1MiB"\n')).error
    assert (error["phase"], error["type"]) == ("execute", "file_size_limit")


def test_open_files_are_limited(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    body = "files = [open('/dev/null') for _ in range(100)]"
    error = run(bundle(wire(body)), None, *profile_with("[execute.limits]\nopen_files = 40\n")).error
    assert error["exception"]["type"] == "OSError" and "[Errno 24]" in error["exception"]["message"]


def test_a_task_within_every_limit(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    limits = (
        "wall_seconds = 60\n"
        "cpu_seconds = 30\n"
        'memory_bytes = "300MiB"\n'
        "processes = 10\n"
        'output_bytes = "1MiB"\n'
        'stderr_bytes = "1MiB"'
    )
    body = (
        "blob = bytearray(b'x') * (50 << 20)\n"
        "print('x' * 500_000)\n"
        "pids = [os.fork() for _ in range(2)]\n"
        "if 0 in pids: os._exit(0)"
    )
    assert run(bundle(wire(body)), None, *profile_with(f"[execute.limits]\n{limits}\n")).outputs == {"out": b"done"}


def test_a_fork_bomb_in_a_build_ends(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    bomb = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(600)\n"
    error = run(bundle(wire(""), backend=bomb), None, *profile_with("[build.limits]\nprocesses = 20\n")).error
    assert (error["phase"], error["type"]) == ("build", "pids_limit")


def test_a_build_that_sleeps_ends(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    path = bundle(wire(""), backend="import time\ntime.sleep(600)\n")
    error = run(path, None, *profile_with("[build.limits]\nwall_seconds = 0.5\n")).error
    assert (error["phase"], error["type"], error["limit"]["name"]) == ("build", "timeout", "wall_seconds")


@pytest.mark.parametrize("body", ["time.sleep(600)", "while True: pass"])
def test_a_child_that_outlives_its_report_is_ended(run: Runner, bundle: Bundle, body: str) -> None:
    code = (
        f"import atexit, os, threading, time\n"
        f"def more():\n"
        f"    {body}\n"
        f"def wire(*a):\n"
        f"    atexit.register(more)\n"
        f"    threading.Thread(target=more).start()\n"
        f"    return {{'out': 'done'}}\n"
    )
    assert run(bundle(code)).outputs == {"out": b"done"}


def test_a_daemon_does_not_hold_the_run_up(run: Runner, bundle: Bundle) -> None:
    body = "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)"
    assert run(bundle(wire(body))).outputs == {"out": b"done"}


def test_the_tail_of_stderr_comes_with_an_error(run: Runner, bundle: Bundle) -> None:
    error: dict[str, Any] = run(bundle(wire("print('x' * 200_000)\nprint('last words')\nraise ValueError"))).error
    assert error["stderr"].rstrip().endswith("last words") and len(error["stderr"]) <= 64 * 1024


def test_the_log_of_the_runner_is_bounded(run: Runner, bundle: Bundle) -> None:
    result = run(bundle(wire("for _ in range(100): print('x' * 100_000)")))
    assert result.code == 0 and len(result.stderr) <= 300 * 1024


STALL = """
import time
def wire(entrypoint, params, seed):
    held = bytearray(300 << 20)
    return {"out": "x"}
"""


@pytest.mark.parametrize("served", [False, True])
def test_a_task_that_waits_for_memory_met_the_memory_limit(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]], runner_module: Any, served: bool
) -> None:
    """The kernel may take pages back for longer than the task has; here it is told never to kill."""
    parent = runner_module.Cgroup.parents().get("memory")
    if parent is None:
        pytest.skip("only control groups of version 1 can be told not to kill, and only by root")
    for seconds in (4, 60):  # a busy machine may take longer to come to the limit
        limits = f"[execute.limits]\nmemory_bytes = '200MiB'\nwall_seconds = {seconds}\n"
        options = [*profile_with(limits), *(["--serve"] if served else [])]
        error, stalled = run_without_a_kill(run.start(bundle(STALL), *options), Path(parent))
        if stalled:
            break
    assert stalled
    assert error["type"] == "memory_limit" and error["limit"]["name"] == "memory_bytes", error


def run_without_a_kill(process: "subprocess.Popen[bytes]", parent: Path) -> tuple[dict[str, Any], bool]:
    """The error of one task, for whose sandbox the kernel kills nobody, and whether it waited for memory."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps({"entrypoint": "main", "params": {}, "seed": 1}).encode() + b"\n")
    process.stdin.close()
    told: set[Path] = set()
    stalled = False
    while process.poll() is None:
        for kind in ("execute", "serve*"):  # a server may make its sandbox anew
            for group in parent.glob(f".run-{process.pid}-*-{kind}"):
                with contextlib.suppress(OSError):
                    if group not in told:
                        (group / "memory.oom_control").write_text("1")
                        told.add(group)
                    stalled = stalled or "under_oom 1" in (group / "memory.oom_control").read_text()
        time.sleep(0.001)
    error = parse_line(process.stdout.readlines()[-1])["_fatal_error"]
    process.wait()
    return error, stalled


def test_reading_a_lock_has_the_limit_of_reading(run: Runner, bundle: Bundle, profile_with: WithProfile) -> None:
    path = bundle(wire(""))
    (path / "pylock.toml").write_text(f"x = [{'[],' * 5_000_000}]\n")  # some ten seconds
    error = run(path, None, *profile_with("[bundle]\ninspect_seconds = 1\n")).error
    assert (error["phase"], error["type"], error["limit"]["name"]) == ("bundle", "timeout", "inspect_seconds")


def test_reading_what_a_wheel_asks_for_has_the_limit_of_unpacking(
    run: Runner, bundle: Bundle, profile_with: WithProfile
) -> None:
    path = bundle(wire(""))
    lines = "Requires-Dist: x; extra == 'a'\n" * 130_000  # some ten seconds
    with zipfile.ZipFile(path / "dep-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dep-1.dist-info/METADATA", f"Name: dep\nVersion: 1\n{lines}")
    (path / "pyproject.toml").unlink()
    (path / "requirements.txt").write_text("./dep-1-py3-none-any.whl\n")
    error = run(path, None, *profile_with("[dependencies]\nunpack_seconds = 1\n")).error
    assert (error["phase"], error["type"], error["limit"]["name"]) == ("fetch", "timeout", "unpack_seconds")
