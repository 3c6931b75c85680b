"""An aggregation: both kinds of target, and what is wrong with others."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner

Bundle = Callable[..., Path]


def artifact(data: bytes) -> dict[str, Any]:
    checksum = hashlib.blake2b(data, digest_size=32).hexdigest()
    return {"size": len(data), "checksum": checksum, "inline": base64.b64encode(data).decode()}


def request(target: str = "probe:target", *outputs: dict[str, bytes], **more: Any) -> dict[str, Any]:
    returns = [
        {"task_id": f"task{n}", "outputs": {name: artifact(data) for name, data in items.items()}}
        for n, items in enumerate(outputs)
    ]
    return {"target_entrypoint": target, "sim_returns": returns, **more}


def aggregate(run: Runner, path: Path, task: dict[str, Any]) -> dict[str, Any]:
    result = run(path, task, "--aggregation")
    assert result.code == 0, result.body
    assert set(result.body.pop("metrics")) >= {"wall_seconds", "peak_memory_bytes"}
    return result.body


def test_a_plain_target_gets_bytes(run: Runner, bundle: Bundle) -> None:
    code = """
def target(sim_returns):
    first = sim_returns[0]["outputs"]["out"]
    assert sorted(first) == ["checksum", "inline", "size"] and type(first["inline"]) is bytes
    loss = sum(len(sim["outputs"]["out"]["inline"]) for sim in sim_returns)
    return {"loss": loss, "ids": [sim["task_id"] for sim in sim_returns]}
"""
    body = aggregate(run, bundle(code), request("probe:target", {"out": b"\0ab"}, {"out": b""}))
    assert body == {"loss": 3.0, "ids": ["task0", "task1"]}


@pytest.mark.parametrize("data", [{"x": [1, None]}, None])
def test_a_plain_target_may_take_target_data(run: Runner, bundle: Bundle, data: Any) -> None:
    code = "def target(sim_returns, target_data):\n    return {'loss': 1, 'data': target_data}\n"
    assert aggregate(run, bundle(code), request(target_data=data)) == {"loss": 1.0, "data": data}


def test_target_data_goes_nowhere_without_a_parameter_for_it(run: Runner, bundle: Bundle) -> None:
    code = "def target(sim_returns):\n    return {'loss': 1}\n"
    assert aggregate(run, bundle(code), request(target_data=[1])) == {"loss": 1.0}


def test_sim_returns_may_be_empty(run: Runner, bundle: Bundle) -> None:
    code = "def target(sim_returns):\n    return {'loss': len(sim_returns)}\n"
    assert aggregate(run, bundle(code), request()) == {"loss": 0.0}


CALABARIA = """
import math, types

class Target:
    model_output = "cases"
    def evaluate(self, outputs):
        assert all(type(tables) is dict for tables in outputs)
        return types.SimpleNamespace({result}, name="fit", weight=2.0)

def target({parameters}):
    return Target()
"""
DIAGNOSTICS = {"target_type": "Target", "model_output": "cases", "target_name": "fit", "weight": 2.0}


@pytest.mark.parametrize("parameters", ["", "data_paths=None", "*args, **kwargs"])
def test_a_calabaria_target_with_a_loss(run: Runner, bundle: Bundle, parameters: str) -> None:
    code = CALABARIA.format(result="loss=len(outputs)", parameters=parameters)
    body = aggregate(
        run,
        bundle(code),
        request("probe:target", {"text": b"no arrow"}, {"text": b""}, {"metadata": b"ARROW1"}),
    )
    assert body == {"loss": 3.0, "diagnostics": DIAGNOSTICS, "outputs": {}, "n_replicates": 3}


def test_a_calabaria_target_whose_decorator_fills_data_paths(run: Runner, bundle: Bundle) -> None:
    code = CALABARIA.format(result="loss=1.5", parameters="data_paths")
    code += "\nimport functools\ninner = target\n@functools.wraps(inner)\ndef target():\n    return inner({'a': 'b'})\n"
    assert aggregate(run, bundle(code), request())["loss"] == 1.5


def test_a_calabaria_target_with_replicates(run: Runner, bundle: Bundle) -> None:
    code = CALABARIA.format(result="loglik_per_rep=[-1000.0, -1000.0 + math.log(3)]", parameters="")
    assert aggregate(run, bundle(code), request())["loss"] == pytest.approx(1000.0 - 0.6931471805599453)


BAD = {
    "NaN loss": ("return {'loss': float('nan')}", "finite"),
    "infinite loss": ("return {'loss': float('-inf')}", "finite"),
    "NaN beside": ("return {'loss': 1, 'more': [float('nan')]}", "JSON"),
    "no loss": ("return {'los': 1}", "'loss'"),
    "no dict": ("return 1.0", "'loss'"),
    "metrics": ("return {'loss': 1, 'metrics': {}}", "'metrics'"),
    "fatal error": ("return {'loss': 1, '_fatal_error': {}}", "'_fatal_error'"),
    "an object": ("return {'loss': 1, 'more': object()}", "object"),
    "bytes": ("return {'loss': 1, 'more': b''}", "bytes"),
}


@pytest.mark.parametrize(("body", "words"), BAD.values(), ids=BAD.keys())
def test_another_result_is_a_clear_error(run: Runner, bundle: Bundle, body: str, words: str) -> None:
    error = run(bundle(f"def target(sim_returns):\n    {body}\n"), request(), "--aggregation").error
    assert error["type"] == "bad_result" and words in error["error"]


def test_a_loss_that_is_no_number_is_an_error(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("def target(sim_returns):\n    return {'loss': 'small'}\n"), request(), "--aggregation").error
    assert error["phase"] in ("execute", "result") and "small" in error["error"]


def test_a_number_of_another_kind_is_a_number(run: Runner, bundle: Bundle) -> None:
    code = """
class Scalar:
    def __float__(self): return 0.25
    def tolist(self): return 0.25
def target(sim_returns):
    return {"loss": Scalar(), "more": [Scalar()]}
"""
    assert aggregate(run, bundle(code), request()) == {"loss": 0.25, "more": [0.25]}


def test_an_input_that_is_not_what_its_checksum_says_never_reaches_the_target(run: Runner, bundle: Bundle) -> None:
    task = request("probe:target", {"out": b"data"})
    task["sim_returns"][0]["outputs"]["out"]["checksum"] = "0" * 64
    error = run(bundle("def target(sim_returns):\n    return {'loss': 1}\n"), task, "--aggregation").error
    assert (error["phase"], error["type"]) == ("input", "input_invalid")
    assert "checksum" in error["error"]


@pytest.mark.parametrize("target", ["absent:target", "probe:absent", "probe.deeper:x"])
def test_a_target_that_is_not_there(run: Runner, bundle: Bundle, target: str) -> None:
    error = run(bundle("def target(sim_returns):\n    return {'loss': 1}\n"), request(target), "--aggregation").error
    assert (error["phase"], error["type"]) == ("execute", "entrypoint_not_found")


def test_an_exception_of_the_target_is_told(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("def target(sim_returns):\n    raise LookupError('words')\n"), request(), "--aggregation").error
    assert error["type"] == "task_exception" and error["exception"] == {
        "type": "LookupError",
        "message": "words",
    }
    assert "in target" in error["traceback"]


def test_an_attribute_error_of_the_targets_module_is_no_missing_target(run: Runner, bundle: Bundle) -> None:
    code = "import math\nTAU = math.tua\ndef target(sim_returns):\n    return {'loss': 1}\n"
    error = run(bundle(code), request(), "--aggregation").error
    assert (error["type"], error["exception"]["type"]) == ("task_exception", "AttributeError")


def test_a_target_that_is_no_function(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("target = 1\n"), request(), "--aggregation").error
    assert error["type"] == "entrypoint_not_found" and "the target 'probe:target': that is a int" in error["error"]


def test_an_attribute_error_in_the_target_is_no_missing_target(run: Runner, bundle: Bundle) -> None:
    error = run(bundle("def target(sim_returns):\n    return None.x\n"), request(), "--aggregation").error
    assert error["type"] == "task_exception"


def test_an_aggregation_needs_no_wire_function(run: Runner, bundle: Bundle) -> None:
    text = (
        "[build-system]\n"
        "requires = []\n"
        'build-backend = "tiny_backend"\n'
        'backend-path = ["backend"]\n'
        "[project]\n"
        'name = "probe"\n'
        'version = "1"\n'
    )
    code = "def target(sim_returns):\n    return {'loss': 1}\n"
    assert aggregate(run, bundle(code, pyproject=text), request()) == {"loss": 1.0}


def test_a_simulation_is_no_aggregation(run: Runner, bundle: Bundle) -> None:
    path = bundle("def wire(*a):\n    return {}\n")
    assert run(path, None, "--aggregation").error["type"] == "input_invalid"
    assert run(path, request()).error["type"] == "input_invalid"
