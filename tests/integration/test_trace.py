"""--trace: what strace saw of each sandbox, in files out of every sandbox's reach."""

import ctypes
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from conftest import PROFILES, TINY_BACKEND, Runner, parse_line
from servers import LocalServer, local_profile, sdist, wheel

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
Bundle = Callable[..., Path]
TINY = '[build-system]\nrequires = []\nbuild-backend = "tiny_backend"\nbackend-path = ["backend"]\n'
LOUD = """
import os, socket, subprocess
def wire(entrypoint, params, seed):
    subprocess.run(["/bin/sh", "-c", "exit 3"])
    try:
        socket.create_connection(("192.0.2.1", 9), 1)
    except OSError:
        pass
    for number in range(int(params.get("calls", 0))):
        os.access("/nonexistent", os.R_OK)
    return {"out": b"done", "tracer": open("/proc/self/status").read().split("TracerPid:")[1].split()[0]}
"""


def traces(folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    """By phase: the note, and the trace."""
    notes = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]
    texts = [path.read_text(errors="replace") for path in sorted(folder.glob("*.strace"))]
    return {str(note["phase"]): (note, text) for note, text in zip(notes, texts, strict=True)}


def test_what_the_task_did_is_in_the_trace_and_not_in_its_sight(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    result = run(bundle(LOUD, backend=TINY_BACKEND), None, "--profile", "debug", "--trace", str(folder), "--refresh")
    assert result.outputs == {"out": b"done", "tracer": b"0"}
    found = traces(folder)
    note, text = found["execute"]
    assert 'execve("/bin/sh", ["/bin/sh", "-c", "exit 3"]' in text
    assert 'inet_addr("192.0.2.1")' in text and "ENETUNREACH" in text
    assert note["cut_bytes"] == 0 and note["bytes"] == len(text)
    assert "build" in found and "fetch" not in found
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_sandbox_that_loses_its_tracer_as_it_is_looked_at_gives_no_sample(runner_module: ModuleType) -> None:
    trace = SimpleNamespace(samples=[])
    runner_module.Watch.sample(trace, 0.5, 1)  # nothing is above the first process of a machine
    assert trace.samples == []


def test_the_sandbox_is_found_below_its_tracer_though_another_process_just_ended(
    runner_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    gone, children = psutil.Process(ended.pid), psutil.Process.children
    ended.wait()
    monkeypatch.setattr(psutil.Process, "children", lambda of, recursive: [gone, *children(of, recursive=recursive)])
    inside = ["bwrap", "--unshare-user", "--unshare-pid", "--die-with-parent", "--ro-bind", "/", "/"]
    with subprocess.Popen([*inside, "sh", "-c", "echo; sleep 600"], stdout=subprocess.PIPE) as sandbox:
        assert sandbox.stdout is not None
        sandbox.stdout.readline()
        try:
            assert runner_module.host_pid(sandbox.pid, 1) in runner_module.children_of(sandbox.pid)
        finally:
            sandbox.kill()


def test_the_figures_are_the_tasks_and_not_the_tracers(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    """Thousands of calls take the tracer more processor time than the task; its sandbox is no process of the task's."""
    task = {"entrypoint": "main", "params": {"calls": 10_000}, "seed": 1}
    path = bundle(LOUD)
    plain = run(path, task, "--profile", "debug").body["metrics"]
    seen = run(path, task, "--profile", "debug", "--trace", str(tmp_path / "trace")).body["metrics"]
    assert seen["peak_processes"] <= plain["peak_processes"] + 1


def test_a_trace_is_cut_at_its_limit_and_says_so(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]], tmp_path: Path
) -> None:
    options = profile_with('[trace]\nallowed = true\nmax_bytes = "100KiB"\n')
    task = {"entrypoint": "main", "params": {"calls": 5_000}, "seed": 1}
    assert run(bundle(LOUD), task, *options, "--trace", str(tmp_path / "trace")).outputs["out"] == b"done"
    note, text = traces(tmp_path / "trace")["execute"]
    assert len(text) == note["bytes"] == 100 * 1024 and int(str(note["cut_bytes"])) > 100_000


def test_a_profile_has_to_allow_it(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    error = run(bundle(LOUD), None, "--trace", str(tmp_path / "trace")).error
    assert (error["phase"], error["type"]) == ("input", "usage") and "trace.allowed" in error["error"]
    assert not (tmp_path / "trace").exists()


def test_it_needs_a_new_directory(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    error = run(bundle(LOUD), None, "--profile", "debug", "--trace", str(tmp_path)).error
    assert error["type"] == "usage" and "new directory" in error["error"]


def test_without_strace_nothing_runs(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bwrap", "uv"):
        os.symlink(str(shutil.which(name)), tools / name)
    error = run(
        bundle(LOUD), None, "--profile", "debug", "--trace", str(tmp_path / "t"), env={"PATH": str(tools)}
    ).error
    assert error["type"] == "trace_unavailable" and "apt-get install strace" in error["error"]


def test_a_task_that_fails_is_watched_to_its_end(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    code = "import os\ndef wire(entrypoint, params, seed):\n    os.kill(os.getpid(), 11)\n"
    error = run(bundle(code), None, "--profile", "debug", "--trace", str(tmp_path / "trace")).error
    assert (error["type"], error["signal"]) == ("crashed", "SIGSEGV")
    assert "killed by SIGSEGV" in traces(tmp_path / "trace")["execute"][1]


def test_where_nobody_may_trace_nothing_runs(
    run: Runner, bundle: Bundle, tmp_path: Path, runner_module: ModuleType
) -> None:
    """As under kernel.yama.ptrace_scope=3, or in a container that refuses it: here by a filter on the runner itself."""
    program = runner_module.deny_program(["ptrace"])

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    def refuse() -> None:
        libc = ctypes.CDLL(None)
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0) == 0  # PR_SET_SECCOMP

    command = run.command("--bundle-path", str(bundle(LOUD)), "--profile", "debug", "--trace", str(tmp_path / "trace"))
    task = b'{"entrypoint": "main", "params": {}, "seed": 1}'
    done = subprocess.run(command, input=task, capture_output=True, env=run.environment(), preexec_fn=refuse)
    error = parse_line(done.stdout)["_fatal_error"]
    assert (error["phase"], error["type"]) == ("host", "trace_unavailable"), error
    assert "SYS_PTRACE" in error["error"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_packages_of_the_environment_and_where_they_came_from(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    project = f'{TINY}[project]\nname = "dep"\nversion = "1.0"\n'
    with LocalServer() as server:
        server.add(*wheel("other", "2.0", {"other.py": ""}))
        files = {"pyproject.toml": project.replace("dep", "raw"), "backend/tiny_backend.py": TINY_BACKEND, "raw.py": ""}
        server.add(*sdist("raw", "1.0", files))
        url = server.git("dep", {"pyproject.toml": project, "backend/tiny_backend.py": TINY_BACKEND, "dep.py": ""})
        path = bundle(LOUD)
        text = (path / "pyproject.toml").read_text()
        listed = f'version = "1.0"\ndependencies = ["dep @ git+{url}", "other", "raw"]\n'
        (path / "pyproject.toml").write_text(text.replace('version = "1.0"\n', listed))
        profile = local_profile(tmp_path, more="[trace]\nallowed = true\n")
        options = ("--profile", str(profile), "--profiles-dir", str(PROFILES), "--trace", str(tmp_path / "trace"))
        assert run(path, None, *options, env=server.environment()).outputs["out"] == b"done"
    packages = json.loads((tmp_path / "trace" / "environment.json").read_text())["packages"]
    sources = {package["name"]: package["source"] for package in packages}
    assert re.fullmatch(rf"git\+{re.escape(url)} at [0-9a-f]{{40}}", sources["dep"]), sources
    assert (sources["probe"], sources["other"]) == ("bundle: .", "index")
    assert sources["raw"] == "sdist of an index, built here"
