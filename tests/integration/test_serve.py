"""--serve: many tasks of one bundle, one line each, and nothing of a task that the next one could notice."""

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY_BACKEND, Runner, parse_line, sleeper
from suites import rows

WIRE = """
import fcntl, json, os, signal, socket, subprocess, sys, threading, time
STATE = []
OWN = open(__file__)

def wire(entrypoint, params, seed):
    return {"out": json.dumps(globals()[params["do"]](params, seed))}

def count(params, seed):
    STATE.append(seed)
    return len(STATE)

def pid(params, seed):
    return os.getpid()

def crash(params, seed):
    os.kill(os.getpid(), signal.SIGSEGV)

def leave(params, seed):
    os._exit(0)

def sleep(params, seed):
    time.sleep(params.get("seconds", 60))

def program(params, seed):
    subprocess.run(["sleep", "67"])

def kill_parent(params, seed):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

def stop_parent(params, seed):
    os.kill(os.getppid(), signal.SIGSTOP)

def freeze(params, seed):
    stop_parent(params, seed)
    time.sleep(60)

def limit_parent(params, seed):
    import resource
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (4, 4))

def kill_all(params, seed):
    os.kill(-1, signal.SIGKILL)

def grow(params, seed):
    return len(bytearray(b"x") * (200 << 20))

def bomb(params, seed):
    data = []
    while True:
        data.append(bytearray(1 << 24))

def litter(params, seed):
    for folder in ("/tmp", "/dev/shm", "/tmp/home"):
        open(folder + "/left", "w").write("x")
    os.mkdir("/tmp/deep")
    os.chdir("/tmp/deep")
    for _ in range(3000):  # more than Python recurses, and more than a path may be long
        os.mkdir("d")
        os.chdir("d")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    socket.socket(socket.AF_UNIX).bind("/tmp/socket")

def look(params, seed):
    processes = sorted(int(n) for n in os.listdir("/proc") if n.isdigit())
    with open(f"/proc/{os.getppid()}/stat") as file:
        started = file.read().rpartition(")")[2].split()[19]  # it is another sandbox where this changes
    return [sorted(os.listdir("/tmp")), os.listdir("/dev/shm"), os.listdir("/tmp/home"), len(processes), started]

def descriptors(params, seed):
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))

def disturb(params, seed):
    for fd in descriptors(params, seed):
        for change in (
            lambda: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT),
            lambda: fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096),
            lambda: fcntl.flock(fd, fcntl.LOCK_EX),
        ):
            try:
                change()
            except OSError:
                pass

def undisturbed(params, seed):
    with open(__file__) as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    sys.stderr.write("x" * 1_000_000)  # more than a pipe holds
    fds = [fd for fd in descriptors(params, seed) if os.path.exists(f"/proc/self/fd/{fd}")]
    return len(OWN.read()), [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in fds], fcntl.fcntl(2, fcntl.F_GETPIPE_SZ)

def parent_memory(params, seed):
    try:
        open(f"/proc/{os.getppid()}/mem", "r+b")
        return "open"
    except OSError as error:
        return error.strerror

def fail(params, seed):
    raise ValueError("this one")

def forge(params, seed):
    for fd in range(3, 64):
        try:
            os.write(fd, b"E" + (0).to_bytes(4, "big"))
        except OSError:
            pass
    return "wrote"
"""


class Served:
    """A running `--serve`, spoken to line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        return parse_line(self.lines.get(timeout=300))

    def ask(self, do: str, **params: Any) -> dict[str, Any]:
        self.send({"entrypoint": "main", "params": {"do": do, **params}, "seed": 7})
        return self.receive()

    def value(self, do: str, **params: Any) -> Any:
        answer = self.ask(do, **params)
        assert "outputs" in answer, answer
        return json.loads(base64.b64decode(answer["outputs"]["out"]["inline"]))


Serve = Callable[..., Any]


@pytest.fixture
def serve(run: Runner, bundle: Callable[..., Path]) -> Serve:
    @contextmanager
    def start(
        *arguments: str, wire: str = WIRE, env: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None
    ) -> Iterator[Served]:
        command = run.command("--bundle-path", str(bundle(wire, files=files)), "--serve", *arguments)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=run.environment(env)
        )
        served = Served(process)
        try:
            assert "serving" in served.receive()
            yield served
            assert process.stdin is not None
            if not process.stdin.closed:
                process.stdin.close()
            process.wait(timeout=300)
        finally:
            process.kill()
            process.wait()

    return start


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Options for a profile with small limits."""
    path = tmp_path / "small.toml"
    path.write_text(
        'description = "small"\nextends = "default"\n'
        '[execute.limits]\nwall_seconds = 2\nmemory_bytes = "256MiB"\nprocesses = 32\n'
    )
    return ["--profile", str(path), "--profiles-dir", str(ROOT / "sandbox-profiles")]


def test_tasks_are_answered_in_order_and_start_from_the_same_state(serve: Serve) -> None:
    with serve() as served:
        assert [served.value("count") for _ in range(20)] == [1] * 20
        assert len({served.value("pid") for _ in range(5)}) == 5
    assert served.process.returncode == 0


def test_a_served_task_gives_the_bytes_of_a_cold_one(run: Runner, serve: Serve, bundle: Callable[..., Path]) -> None:
    task = {"entrypoint": "main", "params": {"do": "count"}, "seed": 3}
    cold = run(bundle(WIRE), task).body
    with serve() as served:
        served.send(task)
        warm = served.receive()
    assert {key: cold[key] for key in ("task_id", "outputs")} == {key: warm[key] for key in ("task_id", "outputs")}
    assert cold["metrics"].keys() == warm["metrics"].keys()


@pytest.mark.parametrize(
    ("do", "kind"),
    [
        ("crash", "crashed"),
        ("leave", "no_result"),
        ("fail", "task_exception"),
        ("kill_parent", "crashed"),
        ("sleep", "timeout"),
        ("bomb", "memory_limit"),
    ],
)
def test_a_task_that_fails_costs_itself_alone(serve: Serve, small: list[str], do: str, kind: str) -> None:
    with serve(*small) as served:
        assert served.value("count") == 1
        assert served.ask(do)["_fatal_error"]["type"] == kind
        assert served.value("count") == 1


@pytest.mark.parametrize("do", ["stop_parent", "limit_parent", "kill_all", "forge"])
def test_a_task_that_reaches_for_its_parent_is_not_felt_by_the_next(serve: Serve, small: list[str], do: str) -> None:
    with serve(*small) as served:
        served.ask(do)
        assert served.value("count") == 1
        assert served.value("descriptors") == served.value("descriptors")


# Starts a program with more descriptors than select(2) can number.
CROWDED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
for _ in range(1100):
    os.dup(2)
for fd in range(3, 1100):
    os.set_inheritable(fd, True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_caller_may_leave_a_thousand_files_open(run: Runner, bundle: Callable[..., Path], small: list[str]) -> None:
    server = run.command("--bundle-path", str(bundle(WIRE)), "--serve", *small)
    asked = [{"do": "count", "large": "x" * 4_000_000}, {"do": "sleep"}, {"do": "count"}]
    lines = [json.dumps({"entrypoint": "main", "params": params, "seed": 7}) for params in asked]
    done = subprocess.run(
        [sys.executable, "-c", CROWDED, *server], input="\n".join(lines).encode(), stdout=-1, env=run.environment()
    )
    _, first, second, third = map(json.loads, done.stdout.splitlines())
    assert "outputs" in first and "outputs" in third
    assert second["_fatal_error"]["type"] == "timeout" and "in sleep" in second["_fatal_error"]["traceback"]


def test_lines_that_come_while_a_task_is_ended_are_answered(serve: Serve, small: list[str]) -> None:
    with serve(*small) as served:
        sent = ["freeze"]  # what has to end it stands still, and is waited for
        while served.lines.empty():
            served.send({"entrypoint": "main", "params": {"do": sent[-1]}, "seed": 7})
            sent.append("count")
            time.sleep(0.1)
        served.process.stdin.close()
        answers = [parse_line(line) for line in iter(served.lines.get, b"")]
        assert len(answers) == len(sent) - 1
        assert answers[0]["_fatal_error"]["type"] == "timeout" and all("outputs" in answer for answer in answers[1:])


def test_what_a_task_leaves_is_gone_before_the_next(serve: Serve) -> None:
    with serve() as served:
        for _ in range(3):  # where the machine is busy, cleaning may take so long that the sandbox is made anew
            *clean, before = served.value("look")
            served.value("litter")
            *after, started = served.value("look")
            assert after == clean
            if started == before:
                return
        raise AssertionError("each time in another sandbox: nothing is cleaned")


def test_what_forks_have_open_in_common_is_put_back(serve: Serve) -> None:
    with serve() as served:
        clean = served.value("undisturbed")
        assert clean[0] == len(WIRE) and served.value("undisturbed") == clean
        served.ask("disturb")  # its own answer may be lost
        assert served.value("undisturbed") == clean


def test_a_task_can_not_open_its_parent(serve: Serve) -> None:
    with serve() as served:
        assert [served.value("parent_memory") for _ in range(3)] == ["Permission denied"] * 3


CAN_START_A_PEAK_AGAIN = not Path("/sys/fs/cgroup/cgroup.controllers").exists() or tuple(
    int(part) for part in os.uname().release.split("-")[0].split(".")[:2]
) >= (6, 12)


@pytest.mark.skipif(not CAN_START_A_PEAK_AGAIN, reason="control groups of version 2 keep a peak before Linux 6.12")
def test_the_peak_of_a_task_is_its_own(serve: Serve) -> None:
    with serve() as served:
        peaks = [served.ask(do)["metrics"]["peak_memory_bytes"] for do in ("count", "grow", "count", "grow", "count")]
        assert all(peak >= 200 << 20 for peak in peaks[1::2]) and all(peak < 100 << 20 for peak in peaks[::2]), peaks


def test_an_id_comes_back_with_its_answer(serve: Serve) -> None:
    with serve() as served:
        for name in ("a", "b"):
            served.send({"entrypoint": "main", "params": {"do": "count"}, "seed": 1, "id": name})
        assert [served.receive()["id"], served.receive()["id"]] == ["a", "b"]


def test_a_running_and_a_waiting_task_can_be_cancelled(serve: Serve) -> None:
    with serve() as served:
        for name in ("running", "waiting"):
            served.send({"entrypoint": "main", "params": {"do": "sleep"}, "seed": 1, "id": name})
        for name in ("waiting", "running", "unknown"):
            served.send({"cancel": name})
        answers = [served.receive(), served.receive()]
        assert [(a["id"], a["_fatal_error"]["type"]) for a in answers] == [
            ("running", "cancelled"),
            ("waiting", "cancelled"),
        ]
        assert served.value("count") == 1


NO_TASKS = [b"nonsense", b"[]", b'{"entrypoint": 1}', b'{"params": NaN}', b"\xff\xfe", b'"x"', b"3"]


@pytest.mark.parametrize("line", NO_TASKS)
def test_a_line_that_is_no_task_is_answered_and_the_next_is_served(serve: Serve, line: bytes) -> None:
    with serve() as served:
        served.process.stdin.write(line + b"\n")
        served.process.stdin.flush()
        assert served.receive()["_fatal_error"]["phase"] == "input"
        assert served.value("count") == 1


def test_end_of_input_lets_the_running_task_finish(serve: Serve) -> None:
    with serve() as served:
        served.send({"entrypoint": "main", "params": {"do": "sleep", "seconds": 1}, "seed": 1})
        served.process.stdin.close()
        assert "outputs" in served.receive()
        assert served.process.wait(timeout=300) == 0


def test_sigterm_answers_the_running_task_and_leaves_nothing(serve: Serve, store: Path) -> None:
    with serve() as served:
        served.send({"entrypoint": "main", "params": {"do": "program"}, "seed": 1})
        sleeper(served.process, "67")
        served.process.send_signal(signal.SIGTERM)
        assert served.receive()["_fatal_error"]["type"] == "killed"
        assert served.process.wait(timeout=300) == 128 + signal.SIGTERM
    assert not [name for name in os.listdir(store / "run") if str(served.process.pid) in name]


def test_aggregations_are_served_too(serve: Serve) -> None:
    wire = WIRE + "\ndef target(sim_returns):\n    return {'loss': float(len(sim_returns))}\n"
    with serve(wire=wire) as served:
        served.send({"target_entrypoint": "probe:target", "sim_returns": []})
        assert served.receive()["loss"] == 0.0


def test_without_preload_an_import_that_starts_a_thread_is_safe(serve: Serve) -> None:
    thread = "\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    check = "\ndef threads(params, seed):\n    return threading.active_count()\n"
    with serve(wire=WIRE + thread + check) as served:
        assert served.value("threads") == 2  # the import happened in the task, its thread is alive
        assert served.value("count") == 1


def test_an_import_may_replace_the_main_module(serve: Serve) -> None:
    """In which the child's own functions are; what it does before a task comes is no fault of the task."""
    with serve(wire=WIRE + "\nsys.modules['__main__'] = type(sys)('__main__')\n") as served:
        assert [served.value("count") for _ in range(2)] == [1, 1]


def test_a_wire_module_that_can_not_be_imported_fails_each_task(serve: Serve) -> None:
    with serve(wire="raise ImportError('not today')") as served:
        for _ in range(2):
            served.send({"entrypoint": "main", "params": {}, "seed": 1})
            assert served.receive()["_fatal_error"]["exception"] == {"type": "ImportError", "message": "not today"}


# --- the template: what tasks were seen to import and to cache

LAZY = """
import json, os, random, sys, threading, time
CACHE = os.path.expanduser("~/.cache/tool/made")

def wire(entrypoint, params, seed):
    return {"out": json.dumps(globals()[params["do"]](params))}

def lazily(params):
    there = {"module": "lazy" in sys.modules, "cache": os.path.exists(CACHE), "used": getattr(lazy(), "used", 0)}
    lazy().used = 1
    os.environ["LEFT"] = "x"
    os.chdir("/tmp")
    os.makedirs(os.path.dirname(CACHE), exist_ok=True)
    with open(CACHE, "w") as file:
        file.write("content")
    return there

def lazy():
    import lazy
    return lazy

def look(params):
    made = open(CACHE).read() if os.path.exists(CACHE) else None
    return [made, os.environ.get("LEFT"), os.getcwd(), getattr(lazy(), "used", 0), random.random()]

def poison(params):
    with open(CACHE, "w") as file:
        file.write("poison")
    os.symlink("/etc/passwd", CACHE + ".link")
    os.mkfifo(CACHE + ".fifo")
    with open(CACHE + ".huge", "w") as file:
        os.truncate(file.fileno(), 1 << 30)
    for number in range(3000):
        open(CACHE + str(number), "w").close()
    for name in ("no.such.module", "x" * 5000, "os.path.nothing", *map(str, range(30_000))):
        sys.modules[name] = type(sys)(name)
        sys.modules[name].__spec__ = type("Spec", (), {"name": name, "origin": "x" * 100, "cached": None})
    return "done"
"""


def warmed(served: Served, do: str = "lazily") -> dict[str, Any]:
    """Ask until the answer comes from a template that learned of the tasks before."""
    for _ in range(200):
        answer = served.ask(do)
        assert "outputs" in answer, answer
        if answer["metrics"]["preloaded_modules"]:
            return answer
        time.sleep(0.1)
    raise AssertionError("nothing was preloaded")


@pytest.fixture
def lazy_serve(run: Runner, bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """A server of LAZY, whose task imports `lazy`; and what it logged."""

    @contextmanager
    def start(*arguments: str, lazy: str = "") -> Iterator[tuple[Served, Path]]:
        source, log = bundle(LAZY, files={"lazy.py": lazy, "own": str(tmp_path)}), tmp_path / "log"
        command = run.command("--bundle-path", str(source), "--serve", *arguments)
        with log.open("wb") as stderr:
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
            process = subprocess.Popen(command, env=run.environment(), **streams)  # type: ignore[call-overload]
        served = Served(process)
        try:
            assert "serving" in served.receive()
            yield served, log
        finally:
            process.stdin.close()
            assert process.wait(timeout=60) == 0

    return start


def test_what_a_task_imported_is_there_before_the_next_and_nothing_else_of_it(lazy_serve: Any) -> None:
    with lazy_serve() as (served, _):
        assert served.value("lazily") == {"module": False, "cache": False, "used": 0}
        warmed(served)
        for _ in range(3):
            assert served.value("lazily") == {"module": True, "cache": True, "used": 0}
            made, left, where, used, _ = served.value("look")
            assert (made, left, used) == ("content", None, 0) and where != "/tmp"


def test_another_server_of_the_bundle_starts_with_what_the_first_learned(lazy_serve: Any, tmp_path: Path) -> None:
    shared = str(tmp_path / "learned")
    with lazy_serve("--learned", shared) as (served, _):
        warmed(served)
    with lazy_serve("--learned", shared) as (served, _):
        assert served.value("lazily") == {"module": True, "cache": True, "used": 0}


def test_a_later_server_begins_with_the_names_that_were_learned_and_with_no_file(lazy_serve: Any) -> None:
    with lazy_serve() as (served, _):
        warmed(served)
    with lazy_serve() as (served, _):
        assert served.value("lazily") == {"module": True, "cache": False, "used": 0}


def test_a_server_begins_with_what_a_cold_run_imported(
    lazy_serve: Any, run: Runner, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    source = bundle(LAZY, files={"lazy.py": "", "own": str(tmp_path)})
    assert run(source, {"entrypoint": "main", "params": {"do": "lazily"}, "seed": 1}).code == 0
    with lazy_serve() as (served, _):
        answer = served.ask("lazily")
        assert answer["metrics"]["preloaded_modules"] >= 1
        assert served.value("lazily") == {"module": True, "cache": False, "used": 0}


def test_names_that_a_template_can_not_have_are_tried_once(
    lazy_serve: Any, run: Runner, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    lazy = "import random\nrandom.seed(1)"
    source = bundle(LAZY, files={"lazy.py": lazy, "own": str(tmp_path)})
    task = {"entrypoint": "main", "params": {"do": "lazily"}, "seed": 1}
    assert run(source, task).code == 0
    for told in (1, 0):
        with lazy_serve(lazy=lazy) as (_, log):  # no task: what the log says is of the first template
            assert log.read_text().count("imported in each task") == told
        assert run(source, task).code == 0


def test_a_cold_run_never_sees_what_a_server_learned(
    lazy_serve: Any, run: Runner, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with lazy_serve("--learned", str(tmp_path / "learned")) as (served, _):
        warmed(served)
    source = bundle(LAZY, files={"lazy.py": "", "own": str(tmp_path)})
    task = {"entrypoint": "main", "params": {"do": "lazily"}, "seed": 1}
    for env in ({}, {"REUSE": "1"}):
        there = json.loads(run(source, task, env=env).outputs["out"])
        assert there == {"module": False, "cache": False, "used": 0}


UNFIT = {
    "a thread": ("import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "thr"),
    "an import that fails there": ("import os\nif os.getppid() == 1: raise ValueError('not here')", "not here"),
    "a seed": ("import random\nrandom.seed(1)", "state of random"),
    "a working directory": ("import os\nos.chdir('/')", "working directory"),
    "a file": ("open('/tmp/left', 'w').close()", "/tmp/left"),
    "a process": ("import os, time\nif os.fork() == 0: time.sleep(9); os._exit(0)", "process"),
    "an open pipe": ("import os\nPIPE = os.pipe()", "leaves open pipe:"),
    "a file that is open to be written": ("import tempfile\nFILE = tempfile.TemporaryFile()", "leaves open /"),
    "memory that is shared": ("import mmap\nPLACE = mmap.mmap(-1, 4096)", "memory that forks share"),
    "a lock of multiprocessing": ("import multiprocessing\nLOCK = multiprocessing.Lock()", "memory that forks share"),
    "a handler": ("import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)", "handlers of signals"),
}  # fmt: skip


ONCE = UNFIT.keys() - {"a file that is open to be written", "a lock of multiprocessing"}


@pytest.mark.parametrize("lazy, word", rows(UNFIT, ONCE, "seen where another row is: what is open, what is mapped"))
def test_what_can_not_be_preloaded_is_imported_in_each_task_and_the_log_says_why(
    lazy_serve: Any, lazy: str, word: str
) -> None:
    with lazy_serve(lazy=lazy) as (served, log):
        for _ in range(100):
            there = served.value("lazily")
            if b"imported in each task" in log.read_bytes():
                break
            time.sleep(0.1)
        assert not there["module"] and there["used"] == 0
        answer = served.ask("lazily")
        assert "outputs" in answer and answer["metrics"]["preloaded_modules"] == 0
        (line,) = [line for line in log.read_text().splitlines() if "imported in each task" in line]
        assert word in line


# An import that draws from a generator: a task that has seeded it by then draws other numbers, if it imports it anew.
DRAWING = """
import json, random, time

def wire(entrypoint, params, seed):
    before(seed)
    import lazy
    after(seed)
    return {"out": json.dumps([random.random(), lazy.X]), "log": str(time.time())}
"""
SEEDS = {
    "none before": ("before = int\nafter = random.seed", True),
    "one before": ("before = random.seed\nafter = int", False),
    "none at all": ("before = after = int", False),  # nothing it gives is the same twice
}


@pytest.mark.parametrize(
    "seeding, preloaded", rows(SEEDS, ("none before", "one before"), "told by the same comparison")
)
def test_an_import_that_draws_is_preloaded_if_a_task_gives_the_same_after_it(
    run: Runner, serve: Serve, bundle: Callable[..., Path], seeding: str, preloaded: bool
) -> None:
    wire, files = DRAWING + seeding, {"lazy.py": f"import random\nX = bool(random.random())\n# {seeding!r}"}
    task = {"entrypoint": "main", "params": {}, "seed": 3}
    cold = run(bundle(wire, files=files), task).outputs["out"]
    for known in (False, True):
        with serve(wire=wire, files=files) as served:
            answers = []
            for _ in range(20):
                served.send(task)
                answers.append(served.receive())
                time.sleep(0.1)
        had = [bool(answer["metrics"]["preloaded_modules"]) for answer in answers]
        assert had[-1] == preloaded and had[0] == (known and preloaded)
        given = {answer["outputs"]["out"]["inline"] for answer in answers}
        assert given == {base64.b64encode(cold).decode()} or seeding == SEEDS["none at all"][0]


def test_a_task_that_harms_the_sandbox_in_which_it_is_tried_is_not_felt_by_the_next(
    serve: Serve, small: list[str]
) -> None:
    wire = DRAWING.replace("    import lazy\n", "    import lazy, os\n    os.kill(os.getppid(), params['signal'])\n")
    files = {"lazy.py": "import random\nX = bool(random.random())\n# tried"}
    with serve(*small, wire=wire + SEEDS["none before"][0], files=files) as served:
        for number in [signal.SIGSTOP, 0, 0] * 3:
            served.send({"entrypoint": "main", "params": {"signal": int(number)}, "seed": 3})
            assert "outputs" in served.receive() or number


def test_without_proc_inside_the_host_sees_threads_and_shared_memory(lazy_serve: Any) -> None:
    with lazy_serve("--profile", "container", lazy="x = 1") as (served, _):
        assert warmed(served)["metrics"]["preloaded_modules"]
    for lazy, word in (UNFIT["a thread"], UNFIT["memory that is shared"]):
        with lazy_serve("--profile", "container", lazy=lazy) as (served, log):
            while b"imported in each task" not in log.read_bytes():
                assert not served.value("lazily")["module"]
            assert word in log.read_text()


def test_modules_over_the_profile_s_memory_are_not_preloaded(lazy_serve: Any, profile_with: Any) -> None:
    profile = profile_with('[serve]\npreload_bytes = "64MiB"\n')
    with lazy_serve(*profile, lazy="data = b'x' * (200 << 20)") as (served, log):
        while b"imported in each task" not in log.read_bytes():
            assert not served.value("lazily")["module"]
        assert b"serve.preload_bytes" in log.read_bytes()


def test_a_task_that_lies_about_what_it_imported_and_cached_harms_nobody_else(lazy_serve: Any) -> None:
    with lazy_serve() as (served, _):
        served.value("lazily")
        answer = served.ask("poison")
        assert "outputs" in answer or answer["_fatal_error"]["phase"] in ("result", "execute")
        for _ in range(5):
            assert "outputs" in served.ask("lazily")
            time.sleep(0.2)


def test_with_reuse_cold_tasks_find_the_caches_of_a_priming_task_alone(
    run: Runner, bundle: Callable[..., Path], profile_with: Any
) -> None:
    source, reuse = bundle(LAZY, files={"lazy.py": "primed = True"}), {"REUSE": "1"}
    task = {"entrypoint": "main", "params": {"do": "lazily"}, "seed": 1}

    def cache_is_there(*flags: str, env: Mapping[str, str] = reuse) -> bool:
        return bool(json.loads(run(source, task, *flags, env=env).outputs["out"])["cache"])

    assert [cache_is_there(), cache_is_there(), cache_is_there("--prime"), cache_is_there()] == [
        False,
        False,
        False,
        True,
    ]
    assert not cache_is_there(env={})
    without = profile_with("[cold]\nkeep_caches = false\n")
    assert not cache_is_there(*without)
    for flags, env, word in ((["--prime", *without], reuse, "cold.keep_caches"), (["--prime"], {}, "REUSE=1")):
        error = run(source, task, *flags, env=env).error
        assert error["type"] == "usage" and word in error["error"]
    other = bundle(LAZY, files={"lazy.py": "primed = False"})
    assert not json.loads(run(other, task, env=reuse).outputs["out"])["cache"]


@pytest.mark.parametrize("env", [{}, {"REUSE": "1"}], ids=["fresh", "REUSE=1"])
def test_bytecode_is_there_for_what_an_earlier_run_imported(
    run: Runner, bundle: Callable[..., Path], env: Mapping[str, str]
) -> None:
    """The first run compiles nothing, the next what that imported, and not its neighbour."""
    wire = f"# {env}\nimport json, os, used\ndef wire(*task):\n    return {{'out': json.dumps(seen())}}\n"
    wire += "def seen():\n    place = os.path.dirname(used.__cached__).replace('/bundle', '/venv/lib')\n"
    wire += "    folder = [top for top, _, names in os.walk('/venv/lib') if top.endswith('/__pycache__')]\n"
    wire += (
        "    return sorted({name.split('.')[0] for top in folder for name in os.listdir(top)} & {'used', 'unused'})\n"
    )
    first = "import sys\nsys.path.remove('/bundle')\n"  # the bundle's own folder, which has no bytecode, comes first
    source = bundle(first + wire, backend=TINY_BACKEND, files={"used.py": "x = 1", "unused.py": "x = 1"})
    found = [json.loads(run(source, env=env).outputs["out"]) for _ in range(3)]
    assert found == [[], ["used"], ["used"]]
