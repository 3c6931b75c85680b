"""Nothing of a sandbox outlives its run, whatever the task does and however the runner ends."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import parse_line
from evidence import CONTROLS_DONE, NO_CONTROL

from security.hostile import PATIENCE, HostileRunner, cases, leftovers, runs

FAMILY = "processes"
WIRE = "def wire(entrypoint, params, seed):\n    return {'out': 1}\n"
# A program that can be found from outside by its command line.
SLEEPER = """
import os, signal, sys, time

def sleeper(marker):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
    os.execv(sys.executable, [sys.executable, "-I", "-c", "import time; time.sleep(3600)", marker])
"""
DAEMON = (
    SLEEPER
    + """
def wire(entrypoint, params, seed):
    ready, started = os.pipe()
    os.set_inheritable(started, True)
    for n in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setpgid(0, 0)
                os.write(started, b"x")
                sleeper(params["marker"])
            os._exit(0)
    os.read(ready, 3)
    time.sleep(params["seconds"])
    return {"out": b"done"}
"""
)


def gone(marker: str, seconds: float = PATIENCE) -> bool:
    """Whether no process with the marker is left, soon."""
    end = time.monotonic() + seconds
    while leftovers(marker):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def seen(marker: str, count: int, seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while len(leftovers(marker)) < count:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def mark(request: pytest.FixtureRequest) -> str:
    return f"marker-{os.getpid()}-{abs(hash(request.node.name))}"


@cases("default", "strict", "container", "debug")
def test_daemons_end_with_the_task(hostile: HostileRunner, request: pytest.FixtureRequest) -> None:
    marker = mark(request)
    task = {"entrypoint": "main", "params": {"marker": marker, "seconds": 0}, "seed": 1}
    result = hostile(hostile.bundle(DAEMON), task, name="daemons that fork twice")
    assert result.outputs == {"out": b"done"}
    assert leftovers(marker) == []


def test_control_of_the_daemons(request: pytest.FixtureRequest) -> None:
    """Outside they live on, and are seen."""
    marker = mark(request)
    code = DAEMON + f"\nwire('', {{'marker': {marker!r}, 'seconds': 0}}, 1)"
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
    assert seen(marker, 3)
    for pid in leftovers(marker):
        os.kill(pid, signal.SIGKILL)
    assert gone(marker)
    CONTROLS_DONE.add("daemons that fork twice")


@runs(("root", "default"), ("user", "default"), ("root", "container"), ("user", "container"))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_runner_is_killed(number: signal.Signals, hostile: HostileRunner, request: pytest.FixtureRequest) -> None:
    """With all processes of the task alive; the next run sweeps what is left in the store."""
    marker = mark(request)
    bundle = hostile.bundle(DAEMON)
    process = hostile.start(bundle)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b'{"entrypoint": "m", "params": {"marker": "%s", "seconds": 999}, "seed": 1}' % marker.encode())
    process.stdin.close()
    assert seen(marker, 3), "the task did not start"
    process.send_signal(number)
    out = process.stdout.read()
    process.wait(PATIENCE)
    assert gone(marker), "processes of the task outlive the runner"
    if number == signal.SIGKILL:
        assert out == b""
    else:
        error = parse_line(out)["_fatal_error"]
        assert error["type"] == "killed" and process.returncode != 0
    process.stdout.close()
    if process.stderr:
        process.stderr.close()
    hostile(hostile.bundle(WIRE), name=f"after {number.name} of the runner")
    assert residue(hostile, process.pid) == []


# It takes its parent's death signal away (prctl 1, 0) and waits for ever (pause), in x86-64.
INIT_CODE = "b89d000000 bf01000000 31f6 0f05 b822000000 0f05 ebf7"
TAKES_INIT_OVER = (
    SLEEPER
    + f"""
def take_over():
    at = int(open("/proc/1/syscall").read().split()[-1], 16)
    os.pwrite(os.open("/proc/1/mem", os.O_RDWR), bytes.fromhex({INIT_CODE!r}), at)
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)  # the orphan's end is what init waits for
    os.wait()
    time.sleep(0.5)

def wire(entrypoint, params, seed):
    try:
        take_over()
    except OSError:
        pass
    sleeper(params["marker"])
"""
)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine code is of x86-64")
@runs(
    ("root", "default"),
    ("user", "default"),
    ("user", "container"),
    ("user", "debug"),
    ("user", "init-in-reach"),
    ("user", "init-may-stay"),
    ("user", "init-open"),
)
def test_a_task_that_takes_the_init_over(hostile: HostileRunner, request: pytest.FixtureRequest) -> None:
    """The sandbox's init dies with the runner, though the task writes its own code into it: no task reaches init, and
    the filter lets nobody change the death signal. Either is enough; without both, the task lives on."""
    marker = mark(request)
    process = hostile.start(hostile.bundle(TAKES_INIT_OVER))
    assert process.stdin is not None
    process.stdin.write(b'{"entrypoint": "m", "params": {"marker": "%s"}, "seed": 1}' % marker.encode())
    process.stdin.close()
    assert seen(marker, 1), "the task did not start"
    process.kill()
    process.wait(PATIENCE)
    if hostile.profile != "init-open":
        assert gone(marker), "the sandbox outlives the runner"
        return
    name = "takes the init of its sandbox over"
    if gone(marker, 2):
        NO_CONTROL[name] = "Yama keeps processes from it (kernel.yama.ptrace_scope)"
        return
    CONTROLS_DONE.add(name)
    (sleeper,) = (psutil.Process(pid) for pid in leftovers(marker))
    sleeper.parent().kill()
    assert gone(marker)


def residue(hostile: HostileRunner, pid: int) -> list[str]:
    """What a dead run left in its store and among the control groups."""
    left = [str(path) for path in (hostile.store / "run").iterdir() if f"-{pid}-" in path.name]
    # os.walk, as Path.rglob fails where another test's group goes meanwhile
    for top in ("memory", "pids", "cpuacct", "unified", ""):
        for folder, names, _files in os.walk(Path("/sys/fs/cgroup") / top):
            left += [f"{folder}/{name}" for name in names if f"run-{pid}-" in name]
    return left


@runs(("root", "default"), ("user", "default"))
@pytest.mark.parametrize("where", ["build", "import"])
def test_the_runner_is_killed_in_another_phase(
    where: str, hostile: HostileRunner, request: pytest.FixtureRequest
) -> None:
    marker = mark(request)
    code = SLEEPER + f"\nif os.fork() == 0: sleeper({marker!r})\ntime.sleep(60)\n"
    bundle = hostile.bundle(code) if where == "import" else hostile.bundle("def wire(*a): return {}\n", backend=code)
    process = hostile.start(bundle)
    assert process.stdin is not None
    process.stdin.write(b'{"entrypoint": "m", "params": {}, "seed": 1}')
    process.stdin.close()
    assert seen(marker, 1), "the phase did not start"
    process.kill()
    process.wait(PATIENCE)
    assert gone(marker)


@runs(("root", "brief"), ("user", "brief"), ("user", "brief-no-proc"))
def test_daemons_end_with_a_limit(hostile: HostileRunner, request: pytest.FixtureRequest) -> None:
    marker = mark(request)
    task = {"entrypoint": "main", "params": {"marker": marker, "seconds": 999}, "seed": 1}
    result = hostile(hostile.bundle(DAEMON), task, name="daemons, and a task that takes too long")
    assert result.error["type"] == "timeout"
    assert gone(marker)


@runs(("root", "default"), ("user", "default"))
def test_scratch_is_removed(hostile: HostileRunner) -> None:
    """Also after failures, and although the task filled its /tmp and /dev/shm."""
    code = "def wire(*a):\n open('/tmp/x', 'w').write('x'); open('/dev/shm/y', 'w').write('y')\n raise ValueError\n"
    hostile(hostile.bundle(WIRE), name="makes the store")
    before = set((hostile.store / "run").iterdir())
    hostile(hostile.bundle(code), name="leaves files in /tmp and /dev/shm")
    left = set((hostile.store / "run").iterdir()) - before
    assert [path.name for path in left if path.name.startswith(".run-")] == []
    assert not Path("/dev/shm/y").exists()


@runs(("root", "default"), ("user", "default"))
def test_two_tasks_share_nothing(hostile: HostileRunner) -> None:
    """What one task leaves in /tmp, /dev/shm, keyrings, IPC or its own modules the next does not find."""
    code = """
import ctypes, os
def wire(entrypoint, params, seed):
    libc = ctypes.CDLL(None)
    found = [p for p in ("/tmp/mine", "/dev/shm/mine", "/tmp/home/mine") if os.path.exists(p)]
    if libc.shmget(0x5EC2E7, 4096, 0) >= 0: found.append("shm")
    if libc.mq_open(b"/mine", 0) >= 0: found.append("queue")
    libc.shmget(0x5EC2E7, 4096, 0o1600)
    libc.mq_open(b"/mine", os.O_CREAT, 0o600, None)
    for p in ("/tmp/mine", "/dev/shm/mine", "/tmp/home/mine"): open(p, "w").close()
    return {"found": repr(found)}
"""
    bundle = hostile.bundle(code)
    for _ in range(2):
        assert hostile(bundle, name="leaves traces for the next task").outputs == {"found": b"[]"}
    NO_CONTROL["traces for the next task"] = "without a sandbox the traces would stay on this machine"


@runs(("root", "default"), ("user", "default"))
def test_the_sandbox_runs_under_another_uid(hostile: HostileRunner, request: pytest.FixtureRequest) -> None:
    """Started by root, its processes are of an unused host uid; started by a user, of that user."""
    marker = mark(request)
    process = hostile.start(hostile.bundle(DAEMON))
    assert process.stdin is not None
    process.stdin.write(b'{"entrypoint": "m", "params": {"marker": "%s", "seconds": 999}, "seed": 1}' % marker.encode())
    process.stdin.close()
    assert seen(marker, 3)
    facts = [status_of(pid) for pid in leftovers(marker)]
    process.kill()
    process.wait(PATIENCE)
    assert gone(marker)
    for fact in facts:
        if hostile.account.name == "root":
            assert 60578 <= int(fact["Uid"].split()[0]) <= 61183
            assert fact["Uid"].split() == fact["Gid"].split() and fact["Groups"].split() in (
                [],
                [fact["Gid"].split()[0]],
            )
        else:
            assert int(fact["Uid"].split()[0]) not in (0,)
        assert int(fact["CapEff"], 16) == int(fact["CapBnd"], 16) == int(fact["CapPrm"], 16) == 0
        assert fact["NoNewPrivs"] == "1" and fact["Seccomp"] == "2"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_reaping() -> None:
    """Nothing of a sandbox became a child of this process, the parent of every runner."""
    names = [child.name() for child in psutil.Process().children()]
    assert "bwrap" not in names and "ultra_cold_runner" not in " ".join(names), names
