"""`modelops debug`: the same task in the same sandbox, the engineer where it raises, crashes, hangs, or at a line."""

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import Result
from conftest import write_bundle
from environments import Environments, sim_task
from leaky import NATIVE_PROJECT
from modelops_contracts import AggregationTask
from typer.testing import CliRunner

from modelops.adapters.exec_env.errors import RunnerError
from modelops.cli import app
from modelops.debugging.debugger import parse_breaks, read_failure
from modelops.debugging.terminal import Filter

WIRE = """
import time
def wire(entrypoint, params, seed):
    kind = params.get("kind")
    if kind == "hang":
        print("hanging", flush=True)
        while True:
            time.sleep(0.01)
    return {"out": simulate(seed, kind)}

def simulate(seed, kind):
    doubled = seed * 2
    if kind == "raise":
        raise ValueError("too many")
    return str(doubled)

def target(sim_returns):
    raise KeyError("no data")
"""
CRASH = """
#include <Python.h>
static int read_null(int *place) { return *place; }
static PyObject *crash(PyObject *self, PyObject *args) { return PyLong_FromLong(read_null(NULL)); }
static PyMethodDef methods[] = {{"crash", crash, METH_NOARGS, ""}, {NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native", "", -1, methods};
PyMODINIT_FUNC PyInit_native(void) { return PyModule_Create(&module); }
"""
SETUP = """
from setuptools import Extension, setup
setup(ext_modules=[Extension("native", ["native.c"], extra_compile_args=["-O0", "-g"])])
"""


@pytest.fixture
def debug(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`debug(script, subject, *options)` runs the command with those lines for the debugger."""
    monkeypatch.setenv("MODELOPS_RUNNER_STORE_DIR", str(store))

    def call(script: str | None, subject: Path | str, *options: str) -> Result:
        lines = tmp_path / "script.pdb"
        lines.write_text(script or "")
        scripted = () if script is None else ("--script", str(lines))
        return CliRunner().invoke(app, ["debug", str(subject), *scripted, *options], catch_exceptions=False)

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", WIRE)


def test_it_stands_where_the_task_raised(debug: Callable[..., Result], bundle: Path) -> None:
    done = debug("p doubled\nup\np kind\n", bundle, "--entrypoint", "m", "--param", "kind=raise", "--seed", "21")
    assert done.exit_code == 0, done.output
    assert "ValueError: too many" in done.stdout and "/bundle/probe.py(14)simulate()" in done.stdout
    assert "\n42\n" in done.stdout and "'raise'" in done.stdout


def test_it_stops_at_a_line(debug: Callable[..., Result], bundle: Path) -> None:
    for place in ("probe:13", "probe.py:13"):
        done = debug("p doubled\nc\n", bundle, "--entrypoint", "m", "--seed", "4", "--break", place)
        assert f"breakpoint at {place}" in done.stdout and "\n8\n" in done.stdout, done.stdout
        assert "the task ended without an error" in done.stdout and "'out' has 1 bytes" in done.stdout


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("absent:3", "no breakpoint at absent:3: there is no module 'absent'"),
        ("probe:999", "probe.py:999 does not exist"),
    ],
)
def test_a_breakpoint_that_can_not_be(debug: Callable[..., Result], bundle: Path, place: str, words: str) -> None:
    done = debug("p 1\n", bundle, "--entrypoint", "m", "--seed", "4", "--break", place)
    assert done.exit_code == 8 and words in done.stdout.replace("\n", " "), done.output
    assert "-> " not in done.stdout  # nobody stands in the debugger itself


def test_a_task_that_hangs_is_stopped_where_it_stands(debug: Callable[..., Result], bundle: Path) -> None:
    done = debug("p kind\n", bundle, "--entrypoint", "m", "--param", "kind=hang", "--stop-after", "0.5")
    assert done.exit_code == 0, done.output
    assert "stopped after 0.5 seconds" in done.stdout and "probe.py(8)wire()" in done.stdout and "'hang'" in done.stdout


def test_code_that_heeds_no_signal_ends_with_its_stack(debug: Callable[..., Result], tmp_path: Path) -> None:
    code = """
def wire(entrypoint, params, seed):
    return {"out": spin()}
def spin():
    return sum(range(10**12))  # one call into C, which looks at no signal
"""
    done = debug("", write_bundle(tmp_path / "spins", code), "--entrypoint", "m", "--stop-after", "0.5")
    assert done.exit_code == 8 and "probe.py" in done.stdout and "in spin" in done.stdout, done.output


def test_what_the_task_can_not_do_it_can_not_do_here(debug: Callable[..., Result], bundle: Path) -> None:
    script = (
        "import os, socket\n"
        "print('write', os.access('/bundle', os.W_OK), os.access('/venv', os.W_OK))\n"
        "print('routes', open('/proc/net/route').read().count(chr(10)))\n"
        "print('uid', os.getuid(), os.path.exists('/home'))\n"
    )
    done = debug(script, bundle, "--entrypoint", "m", "--param", "kind=raise")
    assert "write False False" in done.stdout and "routes 1" in done.stdout and "uid 1000 False" in done.stdout


@pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler")
def test_a_crash_in_native_code(debug: Callable[..., Result], tmp_path: Path) -> None:
    wire = "import native\ndef wire(entrypoint, params, seed):\n    return {'out': native.crash()}\n"
    project = NATIVE_PROJECT.format(requires=["setuptools>=61"])
    crashing = write_bundle(
        tmp_path / "crashing", wire, pyproject=project, files={"native.c": CRASH, "setup.py": SETUP}
    )
    done = debug("", crashing, "--entrypoint", "m")
    assert done.exit_code == 8 and "SIGSEGV" in done.stdout
    assert "Segmentation fault" in done.stdout and "in wire" in done.stdout, done.stdout
    if shutil.which("gdb"):
        under_gdb = debug(None, crashing, "--entrypoint", "m", "--native")
        assert under_gdb.exit_code == 0, under_gdb.output
        assert "read_null" in under_gdb.stdout and "in wire" in under_gdb.stdout, under_gdb.stdout


def test_a_failure_of_run_is_taken_home(debug: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    arguments = ["run", str(bundle), "--entrypoint", "m", "--param", "kind=raise", "--seed", "5", "--json"]
    failure = tmp_path / "failure.json"
    failure.write_text(CliRunner().invoke(app, arguments).stdout)
    done = debug("p doubled\n", failure)
    assert "ValueError: too many" in done.stdout and "\n10\n" in done.stdout, done.output
    assert "profile default" in done.stderr and "modelops 0" in done.stderr


@pytest.mark.parametrize("kind", ["cold", "warm"])
def test_every_error_of_an_environment_says_what_runs_the_task_again(
    kind: str, environments: Environments, tmp_path: Path
) -> None:
    ref = environments.add(WIRE)
    exec_env = environments(kind, env={"SECRET_OF_THE_CALLER": "f00d"})
    result = exec_env.run(sim_task(ref, {"kind": "raise"}, 5))
    assert result.error_details is not None and result.error_details.inline is not None
    file = tmp_path / "details.json"
    file.write_bytes(result.error_details.inline)
    failed = read_failure(file)
    assert failed.bundle == ref and failed.profile == "default"
    assert failed.task == {"entrypoint": "probe.model/baseline", "params": {"kind": "raise"}, "seed": 5}
    assert b"f00d" not in result.error_details.inline and str(tmp_path).encode() not in result.error_details.inline
    refused = exec_env.run(sim_task(ref, env={"A": "1"}))
    assert refused.error_details is not None and b'"debug"' in (refused.error_details.inline or b"")
    sim = exec_env.run(sim_task(ref))
    with pytest.raises(RunnerError) as error:
        exec_env.run_aggregation(AggregationTask(ref, "probe.targets:absent", [sim]))
    assert error.value.fatal_error["debug"]["task"]["target_entrypoint"] == "probe.targets:absent"


def test_a_task_that_is_too_large_to_go_along_is_left_out(environments: Environments, tmp_path: Path) -> None:
    ref = environments.add(WIRE)
    result = environments("cold").run(sim_task(ref, {"kind": "raise", "x": "y" * 300_000}))
    assert result.error_details is not None and result.error_details.inline is not None
    debug = json.loads(result.error_details.inline)["debug"]
    assert debug["task"] is None and debug["bundle"] == ref


class Person:
    """Someone at a terminal, before a command: types when it says what they wait for."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.execve(sys.executable, [sys.executable, "-m", "modelops", *arguments], environment)
        self.resize(33, 101)
        self.said = self.unread = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def answer(self, awaited: bytes, keys: bytes) -> bytes:
        """Wait until it says that, and type; what it said meanwhile. What it says after that is for the next call."""
        heard, self.unread = self.unread, b""
        while awaited not in heard:
            ready, _, _ = select.select([self.terminal], [], [], 300)
            try:
                data = os.read(self.terminal, 4096) if ready else b""
            except OSError:
                data = b""
            heard += data
            assert data, self.said + heard
        os.write(self.terminal, keys)
        before, _, self.unread = heard.partition(awaited)
        self.said += before + awaited
        return before + awaited

    def leave(self, how: int = 0) -> int:
        """The exit status, or that of a signal; what is said until the end is in `said`."""
        if self.terminal < 0:
            return 0
        os.kill(self.pid, how)
        self.said += self.unread
        with suppress(OSError):
            while data := os.read(self.terminal, 4096):
                self.said += data
        os.close(self.terminal)
        self.terminal = -1
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def person(bundle: Path, store: Path, tmp_path: Path) -> Iterator[Callable[..., Person]]:
    environment = {**os.environ, "MODELOPS_RUNNER_STORE_DIR": str(store), "MODELOPS_STORAGE_DIR": str(tmp_path / "s")}
    people: list[Person] = []

    def call(*options: str) -> Person:
        people.append(Person(["debug", str(bundle), "--entrypoint", "m", *options], environment))
        return people[-1]

    yield call
    for someone in people:
        someone.leave(signal.SIGKILL)


def test_a_person_stands_where_the_task_raised(person: Callable[..., Person]) -> None:
    """On a terminal of its own size; Ctrl-C ends what they typed, and not the session."""
    someone = person("--param", "kind=raise", "--seed", "21")
    assert b"ValueError: too many" in someone.answer(b"(Pdb) ", b"p doubled\n")
    assert b"\n42\r\n" in someone.answer(b"(Pdb) ", b"import os; os.get_terminal_size()\n")
    assert b"columns=101, lines=33" in someone.answer(b"(Pdb) ", b"print('be' 'gun', flush=1); exec('while 1: 1')\n")
    someone.answer(b"begun", b"\x03")
    assert b"KeyboardInterrupt" in someone.answer(b"(Pdb) ", b"p kind\n")
    assert b"'raise'" in someone.answer(b"(Pdb) ", b"q\n")
    assert someone.leave() == 0


@pytest.mark.parametrize("breaks", [(), ("--break", "probe:4")], ids=["free", "from a breakpoint on"])
def test_ctrl_c_stands_where_the_task_hangs(breaks: tuple[str, ...], person: Callable[..., Person]) -> None:
    someone = person("--param", "kind=hang", *breaks)
    if breaks:
        someone.answer(b"(Pdb) ", b"c\n")
    someone.answer(b"hanging", b"\x03")
    heard = someone.answer(b"(Pdb) ", b"p kind\n")
    assert b"KeyboardInterrupt" in heard and b"/bundle/probe.py" in heard
    assert b"'hang'" in someone.answer(b"(Pdb) ", b"q\n")
    assert someone.leave() == 0


def test_who_quits_at_a_breakpoint_has_not_seen_the_end(person: Callable[..., Person]) -> None:
    someone = person("--break", "probe:4")
    someone.answer(b"(Pdb) ", b"q\n")
    assert someone.leave() == 0 and b"left before the task had ended" in someone.said, someone.said


def test_a_shell_has_the_task_and_runs_it(person: Callable[..., Person]) -> None:
    """With job control, in a terminal that takes the size of the caller's."""
    someone = person("--seed", "4", "--shell")
    assert b"job control" not in someone.answer(b"sandbox$ ", b"cat $TASK | tr -d '\\n '; run-task\n")
    heard = someone.answer(b"bytes, b'8'", b"")
    assert b'"seed":4' in heard and b"output 'out': 1 bytes" in heard
    someone.resize(40, 90)
    someone.answer(b"sandbox$ ", b"sh -c 'stty size; exec sleep 1000'\n")
    someone.answer(b"40 90", b"\x03")
    someone.answer(b"sandbox$ ", b"exit 3\n")
    assert someone.leave() == 0


def test_ctrl_c_before_the_task_runs_stops_it(person: Callable[..., Person], bundle: Path) -> None:
    write_bundle(bundle, backend="import time; time.sleep(1000)")
    someone = person()
    someone.answer(b"phase: build", b"\x03")
    assert someone.leave() == 128 + 15 and b"killed" in someone.said, someone.said


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_no_control_string_of_a_sandbox_reaches_the_terminal(size: int) -> None:
    """Titles, the clipboard, questions and their like, however they arrive; colours and text stay."""
    text = (
        b"a\x1b]0;title\x07b\x1b]52;c;Zg==\x1b\\c\x1bPq\x1b\\d\x1b_x\x18e\xc2\x9d0;t\xc2\x9cf\x1b[31mg\xc3\x9ch\x1b]0;"
    )
    shown = Filter()
    parts = [shown.take(text[at : at + size]) for at in range(0, len(text), size)]
    assert b"".join(parts) == b"abcdef\x1b[31mg\xc3\x9ch"


def test_without_a_terminal_it_says_what_to_do(bundle: Path) -> None:
    command = [sys.executable, "-m", "modelops", "debug", str(bundle), "--entrypoint", "m"]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True)
    assert done.returncode == 2 and "--script FILE" in done.stderr, done.stderr


def test_a_failed_task_of_a_study(debug: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = ("--params", json.dumps({"kind": "raise"}), "--seeds", "3,4", "--no-check")
    done = CliRunner().invoke(
        app, ["study", "--bundle", str(bundle), "--entrypoint", "m.model/base", "--out", str(out), *grid]
    )
    assert done.exit_code == 1, done.output
    stood = debug("p doubled\n", out / "summary.json", "--number", "2")
    assert "ValueError: too many" in stood.stdout and "\n8\n" in stood.stdout, stood.output


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ('{"_fatal_error": {"type": "x"}}', "0 failed tasks"), ("[]", "0 failed tasks")],
)
def test_a_file_that_is_no_failure(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_failure(tmp_path / "f.json")


def test_breakpoints() -> None:
    assert parse_breaks(["sir.model:12", "src/a.py:3"]) == [("sir.model", 12), ("src/a.py", 3)]
    for wrong in ("sir.model", ":3", "a:b"):
        with pytest.raises(ValueError, match="module:line"):
            parse_breaks([wrong])


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_calls_that_failed_are_told_last(debug: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    """The kernel's answers, not the code's: what the task swallowed is told all the same."""
    code = """
import os
def wire(entrypoint, params, seed):
    for path in ("/no/such\\x1b[2Jfile", "/no/such\\x1b[2Jfile"):
        try: open(path)
        except OSError: pass
    try: os.mkdir("/usr/here")
    except OSError: pass
    raise ValueError("it is somewhere else")
"""
    (bundle / "probe.py").write_text(code)
    done = debug("p path\n", bundle, "--entrypoint", "m", "--trace", str(tmp_path / "traces"))
    assert done.exit_code == 0 and "it is somewhere else" in done.stdout, done.output
    told = done.stdout[done.stdout.index("calls that failed") :].replace("\n", "")
    assert told.index("/no/such") < told.index("mkdir") and "ENOENT (2 times)" in told and "\x1b" not in told
    assert "= EROFS" in told[told.index("mkdir") :]
    assert "strace" in done.output and list((tmp_path / "traces").glob("*-execute.strace"))
    again = debug("", bundle, "--entrypoint", "m", "--trace", str(tmp_path / "traces"))
    assert again.exit_code == 2 and "needs a new directory" in again.output.replace("\n", " ")


def test_a_process_has_one_tracer(debug: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    done = debug("", bundle, "--entrypoint", "m", "--native", "--trace", str(tmp_path / "traces"))
    assert done.exit_code == 2 and "--trace" in done.output and not (tmp_path / "traces").exists()
