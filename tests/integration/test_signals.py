"""A signal to the runner ends the sandbox, cleans up and is one line; SIGKILL leaves nobody alive."""

import contextlib
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Runner, new_store, parse_line
from servers import LocalServer, hang

Bundle = Callable[..., Path]
TASK = b'{"entrypoint": "main", "params": {}, "seed": 1}'
PATIENCE = 300  # seconds: no claim, only an end


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"still not so: {what}"
        time.sleep(0.02)


def tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def runs(store: Path) -> list[str]:
    return [name for name in os.listdir(store / "run") if name.startswith(".run-")] if (store / "run").is_dir() else []


def groups(name: str) -> list[str]:
    # By os.walk, which bears that other runs' groups go meanwhile.
    walk = os.walk("/sys/fs/cgroup")
    return [os.path.join(top, folder) for top, folders, _ in walk for folder in folders if folder.startswith(name)]


class Started:
    """A run that is under way, in a store of its own, so that what it leaves is its own."""

    def __init__(self, runner: Runner, path: Path, env: dict[str, str]) -> None:
        self.runner = runner
        self.process = runner.start(path, env=env)
        assert self.process.stdin
        self.process.stdin.write(TASK)
        self.process.stdin.close()
        self.process.stdin = None

    def reach(self, condition: Callable[[], object], what: str) -> list[psutil.Process]:
        """Wait until the run has got somewhere; give every process of it."""

        def there() -> object:
            assert self.process.poll() is None, self.process.communicate()
            return condition()

        wait_for(there, what)
        return tree(self.process.pid)

    def name(self) -> str:
        (lock,) = [name for name in runs(self.runner.store) if name.endswith(".lock")]
        return lock[: -len(".lock")]


@pytest.fixture
def own(run: Runner) -> Iterator[Runner]:
    """A runner with a store of this test alone."""
    runner = Runner(new_store(run.store.parent / f"signals-{uuid.uuid4().hex}", run))
    yield runner
    runner(None, None, "--cache", "show")  # sweeps what a killed run left, its cgroups too
    assert runs(runner.store) == []
    shutil.rmtree(runner.store)


@pytest.fixture
def start(own: Runner) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def go(path: Path, **env: str) -> Started:
        started.append(Started(own, path, env))
        return started[-1]

    yield go
    for one in started:
        one.process.kill()
        one.process.communicate()


def named(pid: int, word: str) -> bool:
    found = False
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            found = found or word in " ".join(process.cmdline())
    return found


def sleeping_task(bundle: Bundle) -> Path:
    return bundle(
        "import os, subprocess, time\n"
        "def wire(*a):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.execv('/bin/sh', ['sh', '-c', 'while :; do sleep 1; done; : task-is-here'])\n"
        "    time.sleep(600)\n"
    )


def sleeping_build(bundle: Bundle) -> Path:
    backend = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.execv('/bin/sh', ['sh', '-c', 'while :; do :; done; : task-is-here'])\n"
        "time.sleep(600)\n"
    )
    return bundle("def wire(*a): pass\n", backend=backend)


def check_killed(run: Started, processes: list[psutil.Process], number: int) -> None:
    name = run.name()
    run.process.send_signal(number)
    stdout, _ = run.process.communicate(timeout=PATIENCE)
    error = parse_line(stdout)["_fatal_error"]
    assert (error["type"], error["phase"], error["retryable"]) == ("killed", "host", True)
    assert error["signal"] == signal.Signals(number).name
    assert run.process.returncode == error["code"] == 128 + number
    assert len(processes) > 2 and alive(processes) == []
    assert runs(run.runner.store) == [] and groups(name) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_while_a_task_runs(bundle: Bundle, start: Callable[..., Started], number: signal.Signals) -> None:
    run = start(sleeping_task(bundle))
    processes = run.reach(lambda: named(run.process.pid, "task-is-here"), "the task runs")
    check_killed(run, processes, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_while_a_bundle_is_built(
    bundle: Bundle, start: Callable[..., Started], number: signal.Signals
) -> None:
    run = start(sleeping_build(bundle))
    processes = run.reach(lambda: named(run.process.pid, "task-is-here"), "the build runs")
    check_killed(run, processes, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_while_packages_are_fetched(
    tmp_path: Path, start: Callable[..., Started], number: signal.Signals
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "requirements.txt").write_text("slow-package\n")
    with LocalServer() as server:
        server.behave("/simple/slow-package", hang)
        run = start(tmp_path / "bundle", **server.environment())
        processes = run.reach(lambda: server.saw("slow-package"), "the index is asked")
        check_killed(run, processes, number)


def test_a_signal_while_the_request_is_awaited(bundle: Bundle, own: Runner) -> None:
    process = own.start(bundle("x = 1"))
    wait_for(lambda: runs(own.store), "the run has begun")
    process.terminate()
    stdout, _ = process.communicate(timeout=PATIENCE)
    assert parse_line(stdout)["_fatal_error"]["type"] == "killed"
    assert process.returncode == 128 + signal.SIGTERM and runs(own.store) == []


def test_many_signals_are_one_line(bundle: Bundle, start: Callable[..., Started]) -> None:
    run = start(sleeping_task(bundle))
    processes = run.reach(lambda: named(run.process.pid, "task-is-here"), "the task runs")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        run.process.send_signal(number)
    stdout, _ = run.process.communicate(timeout=PATIENCE)
    assert parse_line(stdout)["_fatal_error"]["type"] == "killed"
    assert alive(processes) == [] and runs(run.runner.store) == []


def test_a_signal_at_any_moment_is_one_line_and_leaves_nothing(bundle: Bundle, start: Callable[..., Started]) -> None:
    path = bundle("def wire(*a):\n    return {'out': 'x'}\n")
    for delay in (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25):
        run = start(path)
        time.sleep(delay)
        processes = tree(run.process.pid)
        run.process.terminate()
        stdout, stderr = run.process.communicate(timeout=PATIENCE)
        if stdout or run.process.returncode != -signal.SIGTERM:  # else: before the runner's first line
            body = parse_line(stdout)
            assert "outputs" in body or body["_fatal_error"]["type"] == "killed", (body, stderr)
        assert alive(processes) == [] and runs(run.runner.store) == []


@pytest.mark.parametrize("sleeping", [sleeping_task, sleeping_build])
def test_nobody_outlives_a_runner_that_is_killed(
    bundle: Bundle, start: Callable[..., Started], sleeping: Callable[[Bundle], Path]
) -> None:
    run = start(sleeping(bundle))
    processes = run.reach(lambda: named(run.process.pid, "task-is-here"), "the sandbox runs")
    assert len(processes) > 3
    run.process.kill()
    run.process.communicate(timeout=PATIENCE)
    wait_for(lambda: not alive(processes), "every process of the sandbox is gone")


def test_what_a_killed_runner_left_is_swept_by_the_next(bundle: Bundle, start: Callable[..., Started]) -> None:
    run = start(sleeping_task(bundle))
    processes = run.reach(lambda: named(run.process.pid, "task-is-here"), "the task runs")
    name = run.name()
    run.process.kill()
    run.process.communicate(timeout=PATIENCE)
    wait_for(lambda: not alive(processes), "every process of the sandbox is gone")
    assert run.runner(bundle("def wire(*a):\n    return {'out': 'x'}\n")).outputs == {"out": b"x"}
    assert runs(run.runner.store) == [] and groups(name) == []


def test_a_sandbox_that_is_killed_from_outside_is_an_error(bundle: Bundle, start: Callable[..., Started]) -> None:
    run = start(sleeping_task(bundle))
    processes = run.reach(lambda: named(run.process.pid, "task-is-here"), "the task runs")
    next(process for process in processes if "bwrap" in process.name()).kill()
    stdout, _ = run.process.communicate(timeout=PATIENCE)
    assert parse_line(stdout)["_fatal_error"]["type"] in ("crashed", "no_result", "bwrap_failed")
    assert alive(processes) == [] and runs(run.runner.store) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_script_answers_from_its_first_instruction(own: Runner, bundle: Bundle, number: signal.Signals) -> None:
    """Until Python has compiled the file, Python itself would answer; from then on the runner does."""
    process = own.start(bundle("def wire(*a): return {}\n"))

    def has(mask: str, number: signal.Signals) -> bool:
        words = Path(f"/proc/{process.pid}/status").read_text().split()
        return bool(int(words[words.index(mask) + 1], 16) >> (number - 1) & 1)

    # Held back at first, and soon caught: on a busy machine that may be all that is seen.
    while not (has("SigBlk:", number) or has("SigCgt:", signal.SIGTERM)):
        assert process.poll() is None
    process.send_signal(number)
    out, _ = process.communicate(TASK)
    error = parse_line(out)["_fatal_error"]
    assert (error["type"], error["signal"], process.returncode) == ("killed", number.name, 128 + number)


def test_a_task_can_end_its_own_processes(run: Runner, bundle: Bundle) -> None:
    """The signals that the runner holds back for itself are not held back in the sandbox."""
    code = """
import signal, subprocess

def wire(*a):
    child = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    child.terminate()
    return {"out": f"{child.wait()} {sorted(signal.pthread_sigmask(0, ()))}"}
"""
    assert run(bundle(code)).outputs["out"] == b"-15 []"
