"""A program of the caller's in the sandbox of a task: what it is given, and what comes out of it."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, Runner

WIRE = """
def wire(entrypoint, params, seed):
    return {"out": [entrypoint, params, seed]}
"""


@pytest.fixture
def instrument(run: Runner, bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Result]:
    """`instrument(code, request)` runs the code in place of a task."""

    def call(code: str, request: object, *arguments: str) -> Result:
        program = tmp_path / "instrument.py"
        program.write_text(code)
        return run(bundle(WIRE), request, "--instrument", str(program), *arguments)

    return call


def test_it_has_the_request_the_wire_function_and_the_pipe(instrument: Callable[..., Result]) -> None:
    code = """
def main(request, pipe, child):
    for task in request["task"]["tasks"]:
        outputs = child.load_object(request["wire"])("main", task, 1)
        pipe.send(child.OUTPUT, str(task["n"]), child.to_bytes("out", outputs["out"]))
    pipe.send(child.DONE)
"""
    result = instrument(code, {"tasks": [{"n": 1}, {"n": 2}]})
    assert [json.loads(data) for data in result.outputs.values()] == [["main", {"n": n}, 1] for n in (1, 2)]
    assert result.body["metrics"]["execute_seconds"] > 0


@pytest.mark.parametrize(
    ("end", "type"),
    [("import os; os.kill(os.getpid(), 11)", "crashed"), ("raise ValueError(7)", "task_exception"), ("", "no_result")],
)
def test_what_it_sent_before_it_failed_comes_with_the_failure(
    instrument: Callable[..., Result], end: str, type: str
) -> None:
    code = f"def main(request, pipe, child):\n    pipe.send(child.OUTPUT, 'seen', b'so far')\n    {end}\n"
    error = instrument(code, {}).error
    assert error["type"] == type
    assert base64.b64decode(error["outputs"]["seen"]["inline"]) == b"so far"


def test_it_can_not_be_written_by_what_it_runs(instrument: Callable[..., Result]) -> None:
    code = """
def main(request, pipe, child):
    open("/runner/instrument", "a")
"""
    assert instrument(code, {}).error["exception"]["type"] in ("OSError", "PermissionError")


def test_a_file_that_is_not_there(run: Runner, bundle: Callable[..., Path], tmp_path: Path) -> None:
    error = run(bundle(WIRE), {}, "--instrument", str(tmp_path / "none.py")).error
    assert (error["type"], error["phase"]) == ("usage", "input")
