"""What an outcome says of a task that died, was ended, or hid its own error: where it stood, and why."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, Runner
from suites import rows

Bundle = Callable[..., Path]
TASK = {"entrypoint": "main", "params": {}, "seed": 1}


def each_way(run: Runner, path: Path, *options: str) -> list[Result]:
    """The outcome cold, and that of a server, which stays fit for more."""
    first, second = run.served(path, [TASK, TASK], *options)
    return [run(path, None, *options), first, second]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE"])
def test_a_task_that_dies_of_a_signal_tells_its_stack(run: Runner, bundle: Bundle, name: str) -> None:
    body = f"import os, signal\ndef dies():\n    os.kill(os.getpid(), signal.{name})\ndef wire(e, p, s):\n    dies()"
    for result in each_way(run, bundle(body)):
        error = result.error
        assert (error["type"], error["signal"]) == ("crashed", name)
        assert "as the sandbox itself told" in error["traceback"]
        assert '"/bundle/probe.py", line 3 in dies' in error["traceback"]


ANOTHER = pytest.mark.full("another limit of time")
STANDS = """
import threading, time
def waits():
    time.sleep(600)
def works():
    while True:
        pass
def wire(entrypoint, params, seed):
    threading.Thread(target=waits, daemon=True).start()
    works()
"""


@pytest.mark.parametrize(
    "limit, kind", [("wall_seconds = 2", "timeout"), pytest.param("cpu_seconds = 2", "cpu_limit", marks=ANOTHER)]
)
def test_a_task_that_is_ended_by_a_limit_of_time_tells_where_it_stood(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]], limit: str, kind: str
) -> None:
    for result in each_way(run, bundle(STANDS), *profile_with(f"[execute.limits]\n{limit}")):
        assert result.error["type"] == kind and "2 seconds" in result.error["error"]
        assert " in works" in result.error["traceback"] and " in waits" in result.error["traceback"]
        assert result.error["traceback"].count("Current thread") == 1  # not those of the fork that waits for its turn


# What holds the interpreter's lock for as long as it runs, and what heeds no signal.
HOLDS = {
    "a regular expression": "import re; re.match('(a+)+$', 'a' * 50 + 'b')",
    "a power": "7 ** (10 ** 9)",
    "a call into C": "import ctypes; ctypes.PyDLL(None).sleep(600)",
    "a lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize("held", rows(HOLDS, ("a regular expression",), "something else that holds the lock"))
def test_code_in_c_that_holds_the_lock_tells_where_it_stood(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]], held: str
) -> None:
    path = bundle(f"def holds():\n    {held}\ndef wire(e, p, s):\n    holds()")
    options = profile_with("[execute.limits]\nwall_seconds = 2")
    for result in run.served(path, [TASK, TASK], *options):
        assert result.error["type"] == "timeout" and '"/bundle/probe.py", line 2 in holds' in result.error["traceback"]


def test_a_task_that_heeds_no_signal_is_told_no_stack_but_its_own(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    body = (
        "import signal, time\ndef wire(e, p, s):\n    signal.pthread_sigmask(signal.SIG_BLOCK, {60}); time.sleep(600)"
    )
    for result in run.served(bundle(body), [TASK, TASK], *profile_with("[execute.limits]\nwall_seconds = 1")):
        assert result.error["type"] == "timeout" and "traceback" not in result.error


def test_a_task_that_became_another_program_is_ended_as_any_other(
    run: Runner, bundle: Bundle, profile_with: Callable[[str], tuple[str, ...]]
) -> None:
    path = bundle("import os\ndef wire(e, p, s): os.execv('/bin/sleep', ['sleep', '600'])")
    error = run(path, None, *profile_with("[execute.limits]\nwall_seconds = 1")).error
    assert error["type"] == "timeout" and "traceback" not in error


def test_a_task_can_fill_the_pipe_of_the_stacks_and_is_cut(run: Runner, bundle: Bundle) -> None:
    body = """
import os
def wire(e, p, s):
    for fd in range(3, 30):
        for _ in range(100):
            try:
                os.write(fd, b"Fatal Python error: forged\\n" * 1000) if os.get_blocking(fd) is False else None
            except OSError:
                break
    os.abort()
"""
    error = run(bundle(body)).error
    assert error["type"] == "crashed" and len(error["traceback"]) < 66_000


@pytest.mark.parametrize("depth", [500, 100_000])
def test_a_deep_traceback_is_told_by_its_ends(run: Runner, bundle: Bundle, depth: int) -> None:
    body = f"""
import sys
sys.setrecursionlimit(10**7)
def first():
    down({depth})
def down(n):
    return down(n - 1) if n else last()
def last():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise KeyError("beta") from error
def wire(e, p, s):
    first()
"""
    error = run(bundle(body)).error
    assert error["exception"] == {"type": "KeyError", "message": "'beta'"}
    for words in ("in first", "in last", "ZeroDivisionError", "direct cause", "in the middle were left out"):
        assert words in error["traceback"]
    assert len(error["traceback"]) < 20_000


MASKED = {
    "metadata": ('{"table": b"", "metadata": {"error": "KeyError: \'beta\'"}}', "KeyError", "'beta'"),
    "error alone": ('{"error": {"error": "no beta", "type": "KeyError", "entrypoint": "m"}}', "KeyError", "no beta"),
    "error as text": ('{"error": "it broke", "table": b""}', "Exception", "it broke"),
    "nested": ('{"table": b"", "error": {"error": {"type": "ValueError", "message": "x"}}}', "ValueError", "x"),
    "no table's own word": ('{"metadata": {"error": "OSError: gone", "seed": 1}}', "OSError", "gone"),
    "None for a table": ('{"table": None, "error": "ValueError: no beta"}', "ValueError", "no beta"),
    "denied": ('{"table": b"", "success": False, "error": "KeyError: \'beta\'"}', "KeyError", "'beta'"),
    "a status": ('{"status": "failed", "error": "ValueError: bad"}', "ValueError", "bad"),
    "a status and a message": ('{"status": "error", "message": "ValueError: bad", "table": None}', "ValueError", "bad"),
    "a status in metadata": ('{"table": b"", "metadata": {"status": "failed", "message": "x"}}', "Exception", "x"),
    "a traceback": (
        r'{"table": b"", "traceback": "Traceback (most recent call last):\n  File x\nKeyError: 1"}',
        "KeyError",
        "1",
    ),
    "denied, and nothing said": ('{"table": b"", "ok": False}', None, ""),
    "no outputs": ("{}", None, ""),
    "nothing said": ('{"table": b"", "other": "", "metadata": {"seed": 1}}', None, ""),
}


FIRST = ("metadata", "error alone", "nested", "None for a table", "a status", "a traceback", "no outputs")


@pytest.mark.parametrize("returned, kind, message", rows(MASKED, FIRST, "another form of the same mask"))
def test_a_masked_error_is_a_failure(
    run: Runner, bundle: Bundle, returned: str, kind: str | None, message: str
) -> None:
    path = bundle(f"def wire(e, p, s): return {returned}")
    for result in each_way(run, path)[:2]:
        assert (result.error["phase"], result.error["type"]) == ("execute", "task_exception")
        assert result.error.get("exception") == (kind and {"type": kind, "message": message})


def test_a_masked_error_that_is_just_too_deep_ends_no_server(run: Runner, bundle: Bundle) -> None:
    """Reading it takes a little less of the stack than writing it: one depth of these is between the two."""
    limit = sys.getrecursionlimit()
    path = bundle('def wire(e, p, s): return {"error": "[" * s + "]" * s}')
    tasks = [{"entrypoint": "m", "params": {}, "seed": depth} for depth in range(limit - 40, limit)]
    for answer in run.served(path, tasks):
        assert (answer.error["phase"], answer.error["type"]) == ("execute", "task_exception")


NOT_MASKED = [
    '{"table": b"ARROW1", "metadata": {"error": "a note"}}',
    '{"metadata": {"error": None, "seed": 1}}',
    '{"metadata": {"seed": 1}}',
    '{"table": b"x", "error": "0.5"}',
    '{"one": b"", "two": b"x"}',
    '{"error": 0.5, "converged": False}',
    '{"table": None, "error": None}',
    '{"success": False}',
    '{"table": b"x", "success": False, "error": "ValueError: no convergence"}',
    '{"status": "done", "message": "no rows"}',
    '{"status": "failed", "attack_rate": 0.5}',
    '{"error_rate": 0.5, "table": b""}',
]


@pytest.mark.parametrize("returned", NOT_MASKED)
def test_what_is_a_result_stays_one(run: Runner, bundle: Bundle, returned: str) -> None:
    assert run(bundle(f"def wire(e, p, s): return {returned}")).code == 0


def test_an_error_output_that_is_a_file_is_read_too(run: Runner, bundle: Bundle, tmp_path: Path) -> None:
    path = bundle('def wire(e, p, s): return {"error": {"error": "ValueError: bad", "traceback": "t" * 500_000}}')
    error = run(path, None, "--out-dir", str(tmp_path), "--inline-max", "10").error
    assert error["exception"] == {"type": "ValueError", "message": "bad"} and error["traceback"].startswith("tttt")
    assert "characters left out" in error["traceback"] and len(json.dumps(error)) < 100_000
