"""A simulation: what comes out for what goes in."""

import base64
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import GROUP, TINY_BACKEND, Result, Runner

Bundle = Callable[..., Path]


def wire(body: str) -> str:
    """A wire function of one body."""
    return "def wire(entrypoint, params, seed):\n" + "".join(f"    {line}\n" for line in body.splitlines())


def test_values_come_out_as_bytes(run: Runner, bundle: Bundle) -> None:
    values = (
        "{'bytes': b'\\0\\xff', 'str': 'ü', 'array': bytearray(b'x'), 'json': "
        "{'a': [1, None]}, 'empty': b'', 'name with ü': 1.5}"
    )
    assert run(bundle(wire(f"return {values}"))).outputs == {
        "bytes": b"\0\xff",
        "str": "ü".encode(),
        "array": b"x",
        "json": b'{"a": [1, null]}',
        "empty": b"",
        "name with ü": b"1.5",
    }


def test_each_output_has_its_size_and_checksum(run: Runner, bundle: Bundle) -> None:
    body = run(bundle(wire("return {'out': b'data'}"))).body
    assert body["outputs"]["out"] == {
        "size": 4,
        "checksum": hashlib.blake2b(b"data", digest_size=32).hexdigest(),
        "inline": base64.b64encode(b"data").decode(),
    }
    assert set(body) == {"task_id", "outputs", "metrics"}


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_the_request_reaches_the_wire_function_unchanged(run: Runner, bundle: Bundle, seed: int) -> None:
    params = {
        "f": 0.1,
        "i": 2**70,
        "b": True,
        "n": None,
        "s": "\U0001f600\n\0",
        "deep": {"l": [1, [2]]},
        "tiny": 5e-324,
    }
    task = {"entrypoint": "pkg.model/base-line", "params": params, "seed": seed}
    out = run(bundle(wire("import json\nreturn {'out': json.dumps([entrypoint, params, seed])}")), task).outputs["out"]
    assert json.loads(out) == [task["entrypoint"], params, seed]


def test_equal_tasks_give_equal_results(run: Runner, bundle: Bundle) -> None:
    code = wire(
        "import os, random\n"
        "random.seed(seed)\n"
        "return {'out': repr((random.random(), hash('x'), {'b', 'a', 'c'}, os.environ))}"
    )
    path = bundle(code)
    results = [run(path, {"entrypoint": "m", "params": {"a": 1}, "seed": 7}).body for _ in range(3)]
    for body in results:
        del body["metrics"]
    assert results[0] == results[1] == results[2]


def test_the_task_id_is_that_of_the_parameters_seed_and_names(run: Runner, bundle: Bundle, runner_module: Any) -> None:
    task = {"entrypoint": "m", "params": {"a": 1}, "seed": 7}
    body = run(bundle(wire("return {'b': 'x', 'a': ''}")), task).body
    assert body["task_id"] == runner_module.task_id(task, ["a", "b"])


BAD_RESULTS = {
    "None": ("return None", "NoneType"),
    "list": ("return [1]", "list"),
    "number as name": ("return {1: b''}", "int"),
    "NaN": ("return {'out': float('nan')}", "'out'"),
    "infinity inside": ("return {'out': [1, float('inf')]}", "'out'"),
    "set": ("return {'out': {1}}", "'out'"),
    "function": ("return {'out': wire}", "'out'"),
}


@pytest.mark.parametrize(("body", "words"), BAD_RESULTS.values(), ids=BAD_RESULTS.keys())
def test_another_result_is_a_clear_error(run: Runner, bundle: Bundle, body: str, words: str) -> None:
    error = run(bundle(wire(body))).error
    assert error["type"] == "bad_result" and words in error["error"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/etc/x", "a\\\\b", "a\\0b", "a\\nb", "x' * 256 + '"])
def test_bad_output_names_are_refused(run: Runner, bundle: Bundle, name: str) -> None:
    error = run(bundle(wire(f"return {{'{name}': b''}}"))).error
    assert (error["phase"], error["type"]) == ("result", "bad_output_name")


def test_an_exception_carries_type_message_and_traceback(run: Runner, bundle: Bundle) -> None:
    code = "import sys\nclass Odd(Exception): pass\n\ndef helper():\n    raise Odd('words ü')\n\n"
    error = run(bundle(code + wire("print('before', file=sys.stderr)\nhelper()"))).error
    assert (error["phase"], error["type"], error["code"]) == ("execute", "task_exception", 8)
    assert error["exception"] == {"type": "Odd", "message": "words ü"}
    assert "probe.py" in error["traceback"] and "in helper" in error["traceback"]
    assert "before" in error["stderr"] and not error["retryable"]


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "import sys\nsys.exit()", "raise KeyboardInterrupt"])
def test_an_exit_is_no_success(run: Runner, bundle: Bundle, body: str) -> None:
    assert run(bundle(wire(body))).error["type"] == "task_exception"


def test_an_exception_on_import_is_the_tasks(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("raise RuntimeError('on import')\n")).error
    assert error["type"] == "task_exception" and error["exception"]["message"] == "on import"


def test_a_missing_wire_function_is_told(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("other = 1\n")).error
    assert error["type"] == "entrypoint_not_found" and "has no attribute 'wire'" in error["error"]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_a_crash_is_named_by_its_signal(run: Runner, bundle: Bundle, body: str, name: str) -> None:
    error = run(bundle(wire(f"import os\n{body}"))).error
    assert (error["phase"], error["type"], error["signal"]) == ("execute", "crashed", name)


@pytest.mark.parametrize("status", [0, 1, 137])
def test_an_exit_past_the_report_is_told_as_such(run: Runner, bundle: Bundle, status: int) -> None:
    error = run(bundle(wire(f"import os\nos._exit({status})"))).error
    assert error["phase"] == "execute" and error["type"] in ("no_result", "crashed")


def test_prints_go_to_stderr(run: Runner, bundle: Bundle) -> None:
    body = (
        "import os, subprocess, sys\n"
        "print('one')\n"
        "os.write(1, b'two\\n')\n"
        "subprocess.run(['sh', '-c', 'echo three'])\n"
        "return {'out': 1}"
    )
    result = run(bundle(wire(body)))
    assert result.code == 0
    for word in ("one", "two", "three"):
        assert word in result.stderr


def test_control_characters_do_not_reach_the_log(run: Runner, bundle: Bundle) -> None:
    assert "\x1b" not in run(bundle(wire("print('\\x1b[2Jx')\nreturn {'out': 1}"))).stderr


def test_an_entry_point_in_object_form_must_have_a_module(run: Runner, bundle: Bundle) -> None:
    path = bundle("import os\nos.write(2, b'wire was imported')\n" + wire("return {'out': entrypoint}"))
    error = run(path, {"entrypoint": "absent.module:main", "params": {}, "seed": 1}).error
    assert (error["phase"], error["type"]) == ("execute", "entrypoint_not_found")
    assert "absent.module" in error["error"]


@pytest.mark.parametrize(
    "entrypoint", ["main", "probe.model/base", "probe:wire", "json.decoder:X", "a b", "probe:no_such_object"]
)
def test_other_entry_points_are_passed_on(run: Runner, bundle: Bundle, entrypoint: str) -> None:
    path = bundle(wire("return {'out': entrypoint}"))
    assert run(path, {"entrypoint": entrypoint, "params": {}, "seed": 1}).outputs == {"out": entrypoint.encode()}


def test_the_childs_surroundings(run: Runner, bundle: Bundle) -> None:
    body = (
        "import json, os, site, sys\n"
        "return {'out': json.dumps([os.getcwd(), sys.path, site.ENABLE_USER_SITE, os.environ['HOME']])}"
    )
    cwd, path, user_site, home = json.loads(run(bundle(wire(body), backend=TINY_BACKEND)).outputs["out"])
    assert cwd == "/tmp/bundle" and path[0] == "/bundle" and user_site is False and home == "/tmp/home"
    assert [entry for entry in path if entry.endswith("site-packages")] == [path[-1]]
    assert path[-1].startswith("/venv/")


def test_metrics_are_plain_numbers_of_the_contract(run: Runner, bundle: Bundle) -> None:
    metrics = run(bundle(wire("return {'out': 1}"))).body["metrics"]
    named = {
        "wall_seconds",
        "cpu_user_seconds",
        "cpu_system_seconds",
        "peak_memory_bytes",
        "peak_processes",
        "read_bytes",
        "written_bytes",
        "prepare_seconds",
        "fetch_seconds",
        "build_seconds",
        "install_seconds",
        "sandbox_start_seconds",
        "execute_seconds",
    }
    assert named <= set(metrics)
    assert {name: value for name, value in metrics.items() if type(value) is not float or value < 0} == {}


def test_metrics_are_measured(run: Runner, bundle: Bundle) -> None:
    body = (
        "import time\n"
        "blob = bytearray(b'x') * (100 << 20)\n"
        "end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "return {'out': 1}"
    )
    metrics = run(bundle(wire(body))).body["metrics"]
    assert 100 << 20 <= metrics["peak_memory_bytes"] < 1 << 30
    assert 0.3 <= metrics["cpu_user_seconds"] + metrics["cpu_system_seconds"] <= metrics["wall_seconds"] + 1
    assert metrics["execute_seconds"] >= 0.3
    assert metrics["peak_processes"] >= 1


def test_daemons_are_counted(run: Runner, bundle: Bundle) -> None:
    body = (
        "import os, time\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(60)\n"
        "time.sleep(3)\n"  # in which the runner looks, on any machine
        "return {'out': 1}"
    )
    assert run(bundle(wire(body))).body["metrics"]["peak_processes"] >= 6


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"entrypoint": "m", "params": {"a": NaN}, "seed": 1}', b"\xff"])
def test_a_request_that_is_none_is_an_input_error(run: Runner, bundle: Bundle, data: bytes) -> None:
    error = run(bundle(wire("return {'out': 1}")), stdin=data).error
    assert (error["phase"], error["type"], error["code"]) == ("input", "input_invalid", 2)


def test_large_parameters_arrive(run: Runner, bundle: Bundle) -> None:
    params = {"text": "x" * (20 << 20)}
    path = bundle(wire("return {'out': len(params['text'])}"))
    assert run(path, {"entrypoint": "m", "params": params, "seed": 1}).outputs == {"out": str(20 << 20).encode()}


def test_deep_parameters_arrive_or_are_refused(run: Runner, bundle: Bundle) -> None:
    path = bundle(wire("return {'out': b'x'}"))
    for depth in (500, 900, 5_000):
        data = b'{"entrypoint": "m", "seed": 1, "params": {"a": ' + b"[" * depth + b"]" * depth + b"}}"
        result: Result = run(path, stdin=data)
        assert result.code == 0 or result.error["type"] == "input_invalid"


def test_two_tasks_see_nothing_of_each_other(run: Runner, bundle: Bundle) -> None:
    body = (
        "import os\n"
        "found = sorted(os.listdir('/tmp')) + os.listdir('/dev/shm') + os.listdir('/tmp/home')\n"
        "open('/tmp/mark', 'w').close()\n"
        "open('/dev/shm/mark', 'w').close()\n"
        "return {'out': repr(found)}"
    )
    path = bundle(wire(body))
    assert run(path).outputs == run(path).outputs == {"out": b"['bundle', 'home']"}


def test_the_running_interpreter_is_used(run: Runner, bundle: Bundle) -> None:
    out = run(bundle(wire("import sys\nreturn {'out': sys.version}"))).outputs["out"]
    assert out.decode() == sys.version


POINTS_AT = {
    "no such module": ("absent:wire", "No module named 'absent'"),
    "no such function": ("probe:wyre", "has no attribute 'wyre'"),
    "a dot for a colon": ("probe.wire", "No module named 'probe.wire'"),
    "a module": ("probe", "that is a module, and no function; write module:function"),
    "no function": ("probe:NAME", "that is a str, and no function"),
    "what only a target may be": ("probe:TARGET", "and no function"),
}


@pytest.mark.parametrize(("point", "word"), POINTS_AT.values(), ids=POINTS_AT.keys())
def test_an_entry_point_that_leads_nowhere_is_named(run: Runner, bundle: Bundle, point: str, word: str) -> None:
    text = f'[project]\nname = "probe"\nversion = "1"\n[project.entry-points."{GROUP}"]\nexecute = "{point}"\n'
    module = "NAME = 'x'\nclass Target:\n    evaluate = print\nTARGET = Target()\ndef wire(*a):\n    return {}\n"
    error = run(bundle(module, pyproject=text)).error
    assert (error["phase"], error["type"]) == ("execute", "entrypoint_not_found")
    assert f"the entry point '{point}': " in error["error"] and word in error["error"]


def test_what_the_module_of_the_entry_point_lacks_is_its_own(run: Runner, bundle: Bundle) -> None:
    for code, kind in (("import absent", "ModuleNotFoundError"), ("import os; os.absent", "AttributeError")):
        error = run(bundle(f"{code}\n")).error
        assert error["type"] == "task_exception" and error["exception"]["type"] == kind


def test_a_wire_function_with_other_parameters_is_told_which(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("def wire(params, seed):\n    return {}\n")).error
    assert error["type"] == "task_exception" and "it is called as wire(entrypoint, params, seed)" in error["error"]
    error = run(bundle("def wire(entrypoint, params, seed):\n    len(1)\n")).error
    assert error["type"] == "task_exception" and "it is called as" not in error["error"]
