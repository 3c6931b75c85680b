"""The program that runs in a sandbox, as far as it can be asked without one."""

import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st


class Wire:
    """A result pipe that keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, str, bytes]] = []

    def send(self, kind: bytes, name: str = "", body: bytes = b"") -> None:
        self.sent.append((kind, name, body))


VALUES = [
    (b"\0raw", b"\0raw"),
    (bytearray(b"ab"), b"ab"),
    (memoryview(b"abcd")[::2], b"ac"),
    ("ü", "ü".encode()),
    ("", b""),
    ({"a": [1, 2.5, None, True]}, b'{"a": [1, 2.5, null, true]}'),
    ([], b"[]"),
    ((1, 2), b"[1, 2]"),
    (1, b"1"),
    (None, b"null"),
    (True, b"true"),
]


def label_of(value: Any) -> str:
    """Without an address: each worker must come to the same."""
    return ascii(value).partition(" at 0x")[0][:30]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=[label_of(value) for value, _ in VALUES])
def test_values_as_existing_callers_expect_them(runner_module: Any, value: Any, expected: bytes) -> None:
    assert runner_module.to_bytes("out", value) == expected


BAD_VALUES = [math.nan, [math.inf], {1, 2}, object(), {"a": b"bytes"}, {(1, 2): 3}, "\ud800"]


@pytest.mark.parametrize("value", BAD_VALUES, ids=[label_of(value) for value in BAD_VALUES])
def test_another_value_is_a_bad_result_that_names_the_output(runner_module: Any, value: Any) -> None:
    with pytest.raises(runner_module.ChildError, match="'out'") as caught:
        runner_module.to_bytes("out", value)
    assert caught.value.type == "bad_result"


def test_a_value_that_holds_itself_is_a_bad_result(runner_module: Any) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(runner_module.ChildError):
        runner_module.to_bytes("out", value)


def evaluation(**fields: Any) -> Any:
    return types.SimpleNamespace(**fields)


def test_the_loss_is_taken_as_it_is(runner_module: Any) -> None:
    assert runner_module.loss_of(evaluation(loss=3, loglik_per_rep=[1.0])) == 3.0


@pytest.mark.parametrize("values", [[-1.0], [-1.0, -3.0], [-1000.0, -1001.0, -999.5], [0.0, -math.inf]])
def test_the_loss_of_replicates_is_the_negative_log_of_their_mean_likelihood(
    runner_module: Any, values: list[float]
) -> None:
    top = max(values)
    expected = -(top + math.log(sum(math.exp(value - top) for value in values) / len(values)))
    assert runner_module.loss_of(evaluation(loss=None, loglik_per_rep=values)) == pytest.approx(expected)


def test_impossible_replicates_have_no_finite_loss(runner_module: Any) -> None:
    assert runner_module.loss_of(evaluation(loglik_per_rep=[-math.inf, -math.inf])) == math.inf


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_the_loss_lies_between_the_best_and_the_worst_replicate(runner_module: Any, values: list[float]) -> None:
    loss = runner_module.loss_of(evaluation(loglik_per_rep=values))
    assert -max(values) - 1e-6 <= loss <= -min(values) + 1e-6


class Target:
    model_output = "cases"

    def evaluate(self, outputs: list[dict[str, Any]]) -> Any:
        return evaluation(loss=float(len(outputs)), name="target name", weight=0.5)


def plain(sim_returns: list[Any]) -> dict[str, Any]:
    return {"loss": len(sim_returns)}


def with_data(sim_returns: list[Any], target_data: Any) -> dict[str, Any]:
    return {"loss": 1, "data": target_data}


def with_keyword_data(returns: list[Any], *, target_data: Any = None) -> dict[str, Any]:
    return {"loss": 1, "data": target_data}


class PlainObject:
    def __call__(self, sim_returns: list[Any]) -> dict[str, Any]:
        return {"loss": len(sim_returns)}


RETURNS = [{"task_id": "a", "outputs": {}}, {"task_id": "b", "outputs": {}}]
TARGETS: list[tuple[Any, dict[str, Any]]] = [
    (plain, {"loss": 2}),
    (PlainObject(), {"loss": 2}),
    (with_data, {"loss": 1, "data": {"x": 1}}),
    (with_keyword_data, {"loss": 1, "data": {"x": 1}}),
]


@pytest.mark.parametrize(("target", "expected"), TARGETS)
def test_a_plain_target(runner_module: Any, target: Callable[..., Any], expected: dict[str, Any]) -> None:
    assert runner_module.call_target(target, RETURNS, {"x": 1}) == expected


def no_argument() -> Target:
    return Target()


def data_paths_argument(data_paths: Any = None) -> Target:
    return Target()


def decorated() -> Any:
    """A decorator that fills `data_paths` in, and leaves the signature of what it wraps."""
    import functools

    def inner(data_paths: dict[str, str]) -> Target:
        assert data_paths == {"a": "b"}
        return Target()

    @functools.wraps(inner)
    def outer() -> Target:
        return inner({"a": "b"})

    return outer


@pytest.mark.parametrize("target", [no_argument, data_paths_argument, decorated(), Target])
def test_a_calabaria_target(runner_module: Any, target: Callable[..., Any]) -> None:
    assert runner_module.call_target(target, RETURNS, None) == {
        "loss": 2.0,
        "diagnostics": {
            "target_type": "Target",
            "model_output": "cases",
            "target_name": "target name",
            "weight": 0.5,
        },
        "outputs": {},
        "n_replicates": 2,
    }


def test_outputs_that_are_not_arrow_need_no_polars(runner_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    arrow = b"ARROW1\0\0"
    outputs = {"text": b"hello", "empty": b"", "metadata": arrow, "error": arrow}
    assert runner_module.read_tables({name: {"inline": data} for name, data in outputs.items()}) == {}
    with pytest.raises(ImportError):
        runner_module.read_tables({"table": {"inline": arrow}})


def test_arrow_outputs_are_data_frames(runner_module: Any) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    import io

    frame = polars.DataFrame({"a": [1, 2]})
    file, stream = io.BytesIO(), io.BytesIO()
    frame.write_ipc(file)
    frame.write_ipc_stream(stream)
    tables = runner_module.read_tables({"f": {"inline": file.getvalue()}, "s": {"inline": stream.getvalue()}})
    assert all(tables[name].equals(frame) for name in ("f", "s"))


ENTRIES = [
    "json:loads",
    "os.path:join",
    "main",
    "model.path/scenario",
    "a b:c",
    "",
    ":",
    "1x:y",
    "__main__:x",
]


@pytest.mark.parametrize("entrypoint", ENTRIES)
def test_an_entry_point_that_can_be_found_or_is_not_of_object_form_goes_on(runner_module: Any, entrypoint: str) -> None:
    runner_module.require_module(entrypoint)


@pytest.mark.parametrize("entrypoint", ["no_such_module_here:x", "json.nothing:x", "no_such.package.at_all:x"])
def test_an_entry_point_in_object_form_without_its_module(runner_module: Any, entrypoint: str) -> None:
    with pytest.raises(runner_module.ChildError, match=entrypoint.partition(":")[0]) as caught:
        runner_module.require_module(entrypoint)
    assert caught.value.type == "entrypoint_not_found"


def test_looking_for_a_module_does_not_import_it(
    runner_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    runner_module.require_module("bomb_module:x")


@pytest.mark.parametrize("reference", ["json:loads", "json : loads", "json:loads [extra]", "json:loads[a,b]"])
def test_references_as_pep_621_has_them(runner_module: Any, reference: str) -> None:
    assert runner_module.load_object(reference) is json.loads


def test_a_reference_may_be_dotted_or_a_module(runner_module: Any) -> None:
    assert runner_module.load_object("json:decoder.JSONDecoder") is json.decoder.JSONDecoder
    assert runner_module.load_object("json.decoder") is json.decoder


def report(module: Any, error: BaseException) -> dict[str, Any]:
    wire = Wire()
    module.report_exception(wire, error)
    ((kind, name, body),) = wire.sent
    assert (kind, name) == (module.ERROR, "")
    return dict(module.parse_child_error(body))


def test_an_exception_is_reported_with_type_message_and_traceback(runner_module: Any) -> None:
    try:
        raise ValueError("words")
    except ValueError as error:
        found = report(runner_module, error)
    assert (found["type"], found["exception"]) == (
        "task_exception",
        {"type": "ValueError", "message": "words"},
    )
    assert "in test_an_exception_is_reported" in found["traceback"] and found["traceback"].endswith(
        "ValueError: words\n"
    )


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Liar(Exception):
    type = "timeout"


ERRORS = [
    Unprintable(),
    Liar(),
    SystemExit(3),
    KeyboardInterrupt(),
    ValueError("\ud800"),
    ValueError("x" * (1 << 20)),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_any_exception_can_be_reported(runner_module: Any, error: BaseException) -> None:
    found = report(runner_module, error)
    assert found["exception"]["type"] == type(error).__name__
    assert found["type"] == ("memory_limit" if isinstance(error, MemoryError) else "task_exception")


def test_an_error_that_the_child_names_keeps_its_type(runner_module: Any) -> None:
    assert report(runner_module, runner_module.ChildError("bad_result", "x"))["type"] == "bad_result"


def simulate(module: Any, outputs: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, str, bytes]]:
    probe = types.ModuleType("probe_of_test_child")
    probe.wire = lambda *_: outputs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_of_test_child", probe)
    wire = Wire()
    module.simulate({"entrypoint": "main", "params": {}, "seed": 1}, "probe_of_test_child:wire", wire)
    return wire.sent


def test_a_simulation_sends_its_outputs_and_says_that_it_is_done(
    runner_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert simulate(runner_module, {"a": b"1", "b": "2"}, monkeypatch) == [
        (b"O", "a", b"1"),
        (b"O", "b", b"2"),
        (b"D", "", b""),
    ]


@pytest.mark.parametrize("outputs", [None, [], "text", b"bytes", 1, {1: b""}, {None: b""}, {b"name": b""}])
def test_a_wire_function_returns_a_dict_with_string_names(
    runner_module: Any, outputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(runner_module.ChildError, match="must") as caught:
        simulate(runner_module, outputs, monkeypatch)
    assert caught.value.type == "bad_result"


def test_this_interpreter_is_described_by_what_the_host_reads(runner_module: Any) -> None:
    own = runner_module.Interpreter(**runner_module.describe_interpreter())
    assert own.version.startswith(sys.version.split()[0].rstrip("+"))
    assert Path(own.executable).is_file() and Path(own.stdlib, "os.py").is_file()
    assert own.library.startswith("python3.")
