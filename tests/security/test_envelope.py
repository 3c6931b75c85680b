"""What a task does to its own result: whatever it is, one true line comes out, bounded, without escapes."""

import math
from typing import Any, NamedTuple

import pytest
from evidence import CONTROLS_DONE

from security.hostile import HostileRunner, cases, runs, turns

FAMILY = "envelope"
# One bundle for all: the code comes with the task, so that nothing is built again.
WIRE = '''
import ctypes, json, os, signal, subprocess, sys, threading, time

def frame(kind, name=b"", body=b"", length=None):
    """As the child's own: kind, length of name (4), length of body (8), name, body."""
    size = len(body) if length is None else length
    return kind + len(name).to_bytes(4, "big") + size.to_bytes(8, "big") + name + body

def everywhere(data, first=1):
    """Write to every descriptor but standard input."""
    for fd in range(first, 1024):
        try:
            os.write(fd, data)
        except OSError:
            pass

def report(kind, message):
    body = {"type": kind, "exception": {"type": "x", "message": message}, "traceback": ""}
    everywhere(frame(b"E", b"", json.dumps(body).encode()), 3)

def wire(entrypoint, params, seed):
    scope = dict(globals(), result={"out": "x"})
    exec(params["code"], scope)
    return scope["result"]

def target(sim_returns, target_data):
    scope = dict(globals(), result={"loss": 1.0})
    exec(target_data["code"], scope)
    return scope["result"]
'''


class Case(NamedTuple):
    """`ends`: the allowed ends, "ran" or phase/type. `outputs`: what must come out where it ran."""

    name: str
    code: str
    ends: tuple[str, ...]


RAN = ("ran",)
BAD = ("result/bad_result", "execute/bad_result")
RAISED = ("execute/task_exception",)
GONE = ("execute/no_result",)
OVER = ("execute/output_limit",)
DEAD = (*RAN, *GONE, "execute/crashed")
ANY = (*RAN, *BAD, *RAISED, *GONE, *OVER)
CASES = [
    Case("prints", "print('{\"task_id\": 1}'); sys.stdout.flush()", RAN),
    Case("writes to descriptor 1", "os.write(1, b'{\"outputs\": {}}\\n')", RAN),
    Case("puts from C", "libc = ctypes.CDLL(None); libc.puts(b'{\"a\": 1}'); libc.fflush(None)", RAN),
    Case("prints in a child process", "subprocess.run([sys.executable, '-c', 'print(1)'])", RAN),
    Case("prints at exit", "import atexit; atexit.register(print, 'late')", RAN),
    Case("sys.stdout is another", "sys.stdout = sys.__stdout__ = open('/dev/null', 'w')", RAN),
    Case("descriptor 1 is closed", "os.close(1)", RAN),
    Case("closes all descriptors", "os.closerange(0, 4096)", (*GONE, *RAISED)),
    Case(
        "a forged output on every descriptor",
        "everywhere(frame(b'O', b'f', b'1') + frame(b'D'))",
        (*RAN, *BAD),
    ),
    Case("a forged error on every descriptor", "everywhere(frame(b'E', b'', b'{}'))", BAD),
    Case("a forged note", "everywhere(frame(b'N', b'lock', b'[]'), 3)", BAD),
    Case("a frame of unknown kind", "everywhere(frame(b'X'), 3)", BAD),
    Case("random bytes", "everywhere(os.urandom(5000), 3)", (*BAD, *OVER, *GONE)),
    Case("a frame of 2**63 bytes", "everywhere(frame(b'O', b'f', length=1 << 63), 3)", (*OVER, *BAD)),
    Case("a name of 2**31 bytes", "everywhere(b'O' + b'\\x7f' + b'\\xff' * 11, 3)", BAD),
    Case("an error of 1 GiB", "everywhere(frame(b'E', length=1 << 30), 3)", BAD),
    Case("a frame that never ends", "everywhere(frame(b'O', b'f', b'x', 100), 3); os._exit(0)", (*GONE, *BAD)),
    Case("a name that is not UTF-8", "everywhere(frame(b'O', b'\\xff\\xfe', b''), 3)", BAD),
    Case("a name that is a lone surrogate", "result = {'\\ud800': b''}", (*BAD, *RAISED)),
    Case("started again and again", "everywhere(frame(b'S') * 10000, 3)", (*RAN, *BAD)),
    Case("done before it is", "everywhere(frame(b'D'), 3); time.sleep(30)", (*RAISED, *GONE)),  # it has no outputs
    Case(
        "done and then more",
        "everywhere(frame(b'D') + frame(b'O', b'f', b'1') + b'rubbish', 3)",
        (*RAISED, *BAD),
    ),
    Case("an error that claims the host's fault", "report('userns_denied', 'y')", BAD),
    Case(
        "an error that asks for a retry",
        "report('dependency_unavailable', 'Connection timed out')",
        (*BAD, *RAISED, "execute/dependency_unavailable"),
    ),
    Case("an error report nested deep", "everywhere(frame(b'E', b'', b'[' * 100000), 3)", BAD),
    Case(
        "a message like bwrap's own",
        "os.write(2, b'bwrap: setting up uid map: Permission denied\\n'); os._exit(1)",
        GONE,
    ),
    Case("exits early with status 0", "os._exit(0)", GONE),
    Case("exits early with status 1", "os._exit(1)", GONE),
    Case("exits with the status of a signal", "os._exit(137)", (*GONE, "execute/crashed")),
    Case("sys.exit(0)", "sys.exit(0)", RAISED),
    Case(
        "exits in a thread",
        "t = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join(); time.sleep(5)",
        GONE,
    ),
    Case("kills itself", "os.kill(os.getpid(), 9)", ("execute/crashed",)),
    Case("crashes", "ctypes.string_at(0)", ("execute/crashed",)),
    Case("aborts", "os.abort()", ("execute/crashed",)),
    Case("raises KeyboardInterrupt", "raise KeyboardInterrupt", RAISED),
    Case(
        "an exception whose str raises",
        "class E(Exception):\n def __str__(self): raise ValueError('no')\nraise E",
        RAISED,
    ),
    Case(
        "an exception whose str exits",
        "class E(Exception):\n def __str__(self): os._exit(0)\nraise E",
        (*RAISED, *GONE),
    ),
    Case(
        "an exception whose str is no string",
        "class E(Exception):\n def __str__(self): return 5\nraise E",
        RAISED,
    ),
    Case("an exception of 10 MB", "raise ValueError('x' * 10_000_000)", RAISED),
    Case("an exception type of 1 MB", "raise type('E' * 1_000_000, (Exception,), {})", RAISED),
    Case(
        "an exception with escapes",
        "raise ValueError('\\x1b]0;title\\x07\\x1b[2J\\r\\n{\"a\":1}\\u202e')",
        RAISED,
    ),
    Case("an exception with surrogates", "raise ValueError('\\ud800\\udfff\\0')", RAISED),
    Case("a traceback of 10 MB", "def f(n):\n if n: f(n - 1)\n raise ValueError('x' * 20_000)\nf(500)", RAISED),
    Case("recursion without end", "def f(): f()\nf()", RAISED),
    Case(
        "a chain of 2000 exceptions",
        "e = None\nfor n in range(2000):\n  x = ValueError(n); x.__cause__ = e; e = x\nraise e",
        RAISED,
    ),
    Case(
        "exception groups nested deep",
        "e = ValueError()\nfor n in range(500): e = ExceptionGroup('g', [e])\nraise e",
        RAISED,
    ),
    Case("memory error", "raise MemoryError('x')", (*RAISED, "execute/memory_limit")),
    Case("returns nothing", "result = None", BAD),
    Case("returns a list", "result = [1]", BAD),
    Case("returns a number for a name", "result = {1: b''}", BAD),
    Case("returns an object", "result = {'a': object()}", BAD),
    Case("returns NaN", "result = {'a': float('nan')}", BAD),
    Case("returns NaN inside", "result = {'a': [1, {'b': float('inf')}]}", BAD),
    Case("returns an int of 10,000 digits", "result = {'a': 10 ** 10_000}", (*BAD, *RAISED, *RAN)),
    Case(
        "returns lists nested deep",
        "x = []\nfor n in range(100_000): x = [x]\nresult = {'a': x}",
        (*BAD, *RAISED),
    ),
    Case("returns a dict that is its own value", "x = {}; x['x'] = x; result = {'a': x}", BAD),
    Case("returns a string with surrogates", "result = {'a': '\\ud800'}", (*BAD, *RAISED)),
    Case("returns 10**5 outputs", "result = {str(n): b'' for n in range(10 ** 5)}", BAD),
    Case(
        "returns outputs without end",
        "class R:\n def items(self):\n  for n in range(10 ** 9): yield str(n), b'x' * 1000\nresult = R()",
        (*BAD, *OVER),
    ),
    Case(
        "returns a name twice",
        "class R:\n def items(self): return [('a', b'1'), ('a', b'2')]\nresult = R()",
        BAD,
    ),
    Case(
        "returns bytes that lie about their length",
        "class B(bytes):\n def __len__(self): return 10 ** 12\nresult = {'a': B(b'xy')}",
        ANY,
    ),
    Case("returns an items that exits", "class R(dict):\n def items(self): os._exit(0)\nresult = R()", GONE),
    Case(
        "a grandchild holds the pipe open",
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(60)\n os._exit(0)",
        RAN,
    ),
    Case(
        "a grandchild writes on after the end",
        "if os.fork() == 0:\n if os.fork() == 0:\n  while True: everywhere(b'x', 1)\n os._exit(0)",
        (*RAN, *BAD, *OVER),
    ),
    Case("a thread that does not end", "threading.Thread(target=time.sleep, args=(60,)).start()", RAN),
    Case(
        "a thread that writes on",
        "threading.Thread(target=lambda: [everywhere(b'x') for _ in range(10 ** 6)]).start()",
        (*RAN, *BAD, *OVER),
    ),
    Case("os.write is another", "os.write = lambda fd, data: len(data)", GONE),
    Case(
        "the child's modules are others",
        "import json; json.dumps = None; sys.modules['json'] = None; result = {'a': 1}",
        (*BAD, *RAISED, *GONE),
    ),
    Case("sets every signal aside", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))", RAN),
    Case("stops its parent", "os.kill(os.getppid(), signal.SIGSTOP)", RAN),
    Case("kills its parent", "os.kill(os.getppid(), 9)", DEAD),
    Case("kills pid 1", "os.kill(1, 9)", DEAD),
    Case("kills everything in sight", "os.kill(-1, 9)", (*DEAD, *RAISED)),
    Case("kills its process group", "os.killpg(0, 9)", DEAD),
]
NAMES = ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "a\nb", "\x1b[31m", "a\0b", "\u202e", "x" * 256, "\x7f"]
SMALL = [
    Case("prints without end", "while True: print('x' * 10_000)", OVER),
    Case("writes to stderr without end", "while True: os.write(2, b'x' * 65_536)", OVER),
    Case("stops itself", "os.kill(os.getpid(), signal.SIGSTOP)", ("execute/timeout",)),
    Case("returns 5 MB under a limit of 4", "result = {'a': b'x' * (5 << 20)}", OVER),
    Case("returns 10 * 1 MB under a limit of 4", "result = {str(n): b'x' * (1 << 20) for n in range(10)}", OVER),
    Case("prints 500,000 lines of escapes", "print('\\x1b[2J\\r\\n' * 100_000)", (*RAN, *OVER)),
]
LOSSES = {
    "NaN": "float('nan')",
    "infinity": "float('inf')",
    "minus infinity": "-float('inf')",
    "none": "None",
    "text": "'x'",
    "text NaN": "'nan'",
    "a list": "[1]",
    "10**400": "10 ** 400",
    "an object whose float exits": "type('F', (), {'__float__': lambda s: os._exit(0)})()",
}
AGGREGATIONS = {
    "no dict": "result = 5",
    "no loss": "result = {}",
    "lists nested deep": "x = []\nfor n in range(100_000): x = [x]\nresult['x'] = x",
    "NaN inside": "result['x'] = [float('nan')]",
    "an int of 10,000 digits": "result['x'] = 10 ** 10_000",
    "a key of the runner's": "result['metrics'] = {'wall_seconds': 0}",
    "the runner's error": "result['_fatal_error'] = {}",
    "surrogates": "result['x'] = '\\ud800'; result['\\udfff'] = 1",
    "forged with loss 10**400": "everywhere(frame(b'D', b'', b'{\"loss\": 1' + b'0' * 400 + b'}'), 3)",
    "forged with loss 10**5000": "everywhere(frame(b'D', b'', b'{\"loss\": 1' + b'0' * 5000 + b'}'), 3)",
    "forged with NaN": "everywhere(frame(b'D', b'', b'{\"loss\": NaN}'), 3)",
    "forged with 1e999": "everywhere(frame(b'D', b'', b'{\"loss\": 1e999}'), 3)",
    "forged with true": "everywhere(frame(b'D', b'', b'{\"loss\": true}'), 3)",
    "forged nested deep": "everywhere(frame(b'D', b'', b'{\"loss\": 1, \"x\": ' + b'[' * 100_000), 3)",
    "forged with surrogates": "everywhere(frame(b'D', b'', b'{\"loss\": 1, \"x\": \"\\\\ud800\"}'), 3)",
    "forged that is no JSON": "everywhere(frame(b'D', b'', b'{'), 3)",
    "forged that is no UTF-8": "everywhere(frame(b'D', b'', b'\\xff'), 3)",
    "forged with the error key": "everywhere(frame(b'D', b'', b'{\"loss\": 1, \"_fatal_error\": {}}'), 3)",
    "forged key twice": "everywhere(frame(b'D', b'', b'{\"loss\": 1, \"loss\": \"x\"}'), 3)",
}


ALONE = pytest.mark.full("each in a run of its own; the default suite has them in tasks of one server")


@pytest.fixture(scope="session")
def bundles() -> dict[int, Any]:
    return {}


def run_code(hostile: HostileRunner, bundles: dict[int, Any], name: str, code: str, target: bool = False) -> Any:
    """Run the code in a task, and hold the answer to what is true of every answer."""
    options = ["--aggregation"] if target else []
    return hold(hostile(bundle_of(hostile, bundles), task_of(code, target), *options, name=name))


def run_codes(hostile: HostileRunner, bundles: dict[int, Any], codes: dict[str, str], target: bool = False) -> Any:
    """The same in tasks of one server: what the host does with the answers is the same, and the start is paid once."""
    tasks = {name: task_of(code, target) for name, code in codes.items()}
    answers = hostile.answers(bundle_of(hostile, bundles), tasks)
    return {name: hold(result._replace(code=int("_fatal_error" in result.body))) for name, result in answers.items()}


def bundle_of(hostile: HostileRunner, bundles: dict[int, Any]) -> Any:
    if id(hostile) not in bundles:
        bundles[id(hostile)] = hostile.bundle(WIRE)
    return bundles[id(hostile)]


def task_of(code: str, target: bool) -> dict[str, Any]:
    if target:
        return {"target_entrypoint": "probe:target", "sim_returns": [], "target_data": {"code": code}}
    return {"entrypoint": "main", "params": {"code": code}, "seed": 1}


def hold(result: Any) -> Any:
    """What is true of every answer."""
    assert "\x1b" not in result.stderr and "\r" not in result.stderr, "an escape reached the terminal"
    assert len(result.stderr) < 600_000
    body = result.body.get("_fatal_error", result.body)
    assert all(math.isfinite(value) for value in body["metrics"].values())
    if result.code:
        assert len(str(result.body)) < 1_000_000 and not result.error["retryable"]
        assert result.error["type"] != "internal_error", result.error
    return result


def ends(result: Any) -> str:
    return "ran" if result.code == 0 else f"{result.error['phase']}/{result.error['type']}"


@pytest.mark.full("another account and profile for each case of test_task")
@turns("case", CASES, ("user", "strict"), ("user", "container"), ("root", "strict"), ("root", "container"))
def test_task_in_turns(case: Case, hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    """As below, by another account or under another profile."""
    result = run_code(hostile, bundles, case.name, case.code)
    assert ends(result) in case.ends, str(result.body)[:1000]


# The first of each set of ends has a run of its own also in the default suite.
ENDS_FIRST = {case.ends: case.name for case in reversed(CASES)}.values()


@runs(("root", "default"))
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in ENDS_FIRST else ALONE) for case in CASES],
)
def test_task(case: Case, hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    result = run_code(hostile, bundles, case.name, case.code)
    assert ends(result) in case.ends, str(result.body)[:1000]


@runs(("root", "default"))
def test_tasks_of_one_server(hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    found = run_codes(hostile, bundles, {case.name: case.code for case in CASES})
    for case in CASES:
        assert ends(found[case.name]) in case.ends, (case.name, str(found[case.name].body)[:1000])


@turns("case", SMALL, ("root", "small"), ("user", "small"), ("user", "small-no-proc"))
def test_task_under_small_limits(case: Case, hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    timed = any(end.endswith("timeout") for end in case.ends)
    result = run_code(hostile.brief() if timed else hostile, bundles, case.name, case.code)
    assert ends(result) in case.ends, str(result.body)[:1000]


@runs(("root", "default"))
def test_output_names_and_losses(hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    names = {f"an output named {name!r}": f"result = {{{name!r}: b''}}" for name in NAMES}
    for name, result in run_codes(hostile, bundles, names).items():
        assert result.error["type"] == "bad_output_name", name
    losses = {f"the loss {loss}": f"result = {{'loss': {loss}}}" for loss in LOSSES.values()}
    for name, result in run_codes(hostile, bundles, losses, target=True).items():
        assert ends(result) in (*BAD, *RAISED, *GONE), name
    codes = {f"aggregation: {name}": code for name, code in AGGREGATIONS.items()}
    for name, result in run_codes(hostile, bundles, codes, target=True).items():
        assert ends(result) in BAD, (name, str(result.body)[:1000])


@ALONE
@turns("name", NAMES, ("root", "default"), ("user", "default"))
def test_output_name(name: str, hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    result = run_code(hostile, bundles, f"an output named {name!r}", f"result = {{{name!r}: b''}}")
    assert result.error["type"] == "bad_output_name"


@ALONE
@turns("loss", LOSSES.values(), ("root", "default"), ("user", "default"))
def test_loss(loss: str, hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    result = run_code(hostile, bundles, f"the loss {loss}", f"result = {{'loss': {loss}}}", target=True)
    assert ends(result) in (*BAD, *RAISED, *GONE)


@ALONE
@turns("name", AGGREGATIONS, ("root", "default"), ("user", "strict"))
def test_aggregation(name: str, hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    result = run_code(hostile, bundles, f"aggregation: {name}", AGGREGATIONS[name], target=True)
    assert ends(result) in BAD, str(result.body)[:1000]


@cases("default")
def test_the_runner_counts_for_itself(hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    """Metrics and checksums are of what came, whatever the task says of itself."""
    import hashlib

    code = "time.time = time.monotonic = lambda: 0.0; sum(range(10 ** 6)); result = {'a': b'abc'}"
    result = run_code(hostile, bundles, "clocks that stand still", code)
    assert result.body["outputs"]["a"]["checksum"] == hashlib.blake2b(b"abc", digest_size=32).hexdigest()
    assert result.body["outputs"]["a"]["size"] == 3 and result.body["metrics"]["execute_seconds"] > 0
    assert {name for name, value in result.body["metrics"].items() if type(value) is not float} == set()


@cases("default")
def test_control(hostile: HostileRunner, bundles: dict[int, Any]) -> None:
    """The forging code does reach the pipe: a well-formed forged output is taken for the task's own."""
    result = run_code(hostile, bundles, "control", "everywhere(frame(b'O', b'forged', b'1'), 3)")
    assert "forged" in result.outputs
    CONTROLS_DONE.add("frames on the result pipe")


@cases("default")
def test_import_time(hostile: HostileRunner) -> None:
    """What happens at import is as contained as what happens in the call."""
    code = "import os, sys\nprint('{}')\nos.write(1, b'x')\nraise ValueError('\\x1b[2J')\n"
    assert ends(hostile(hostile.bundle(code), name="raises at import")) == "execute/task_exception"
    assert ends(hostile(hostile.bundle("import os\nos._exit(0)\n"), name="exits at import")) in GONE
    standard = {f"{name}.py": "raise SystemExit('x')" for name in ("json", "traceback", "site", "marshal", "io")}
    result = hostile(hostile.bundle("def wire(*a): return {'x': 1}\n", files=standard), name="shadows the library")
    assert ends(result) in ("ran", *RAISED, *GONE, "build/build_failed", "build/no_result")
