"""Requests on standard input: what is taken, and that anything else is one clear error."""

import base64
import hashlib
import json
import os
import threading
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

SIMULATION = {"entrypoint": "main", "params": {}, "seed": 1}


def read(module: Any, data: bytes, aggregation: bool = False, limit: int = 1 << 30) -> dict[str, Any]:
    """read_request on a pipe that holds `data`."""
    reading, writing = os.pipe()

    def fill() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=fill)
    writer.start()
    try:
        return dict(module.read_request(reading, aggregation, limit))
    finally:
        while os.read(reading, 1 << 20):
            pass
        writer.join()
        os.close(reading)


def refused(module: Any, data: bytes, aggregation: bool = False) -> str:
    with pytest.raises(module.Failure) as caught:
        read(module, data, aggregation)
    assert (caught.value.phase, caught.value.type, caught.value.code) == ("input", "input_invalid", 2)
    return str(caught.value.error)


def artifact(data: bytes, **changes: Any) -> dict[str, Any]:
    checksum = hashlib.blake2b(data, digest_size=32).hexdigest()
    return {"size": len(data), "checksum": checksum, "inline": base64.b64encode(data).decode(), **changes}


def aggregation(**outputs: Any) -> dict[str, Any]:
    return {"target_entrypoint": "pkg.mod:target", "sim_returns": [{"task_id": "a", "outputs": outputs}]}


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_seeds_of_64_bits_survive(runner_module: Any, seed: int) -> None:
    assert read(runner_module, json.dumps({**SIMULATION, "seed": seed}).encode())["seed"] == seed


@pytest.mark.parametrize("seed", [-1, 2**64, True, False, 1.0, "1", None, []])
def test_other_seeds_are_refused(runner_module: Any, seed: Any) -> None:
    assert "seed" in refused(runner_module, json.dumps({**SIMULATION, "seed": seed}).encode())


def test_parameters_come_through_as_they_are(runner_module: Any) -> None:
    params = {"a": 1.5, "b": [1, {"c": None}], "ü": "\U0001f600", "big": 2**70, "tiny": 5e-324, "": True}
    task = {**SIMULATION, "params": params}
    assert read(runner_module, json.dumps(task).encode()) == task
    assert read(runner_module, json.dumps(task, ensure_ascii=False).encode()) == task


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "two values": b"{} {}",
    "not UTF-8": b'{"entrypoint": "\xff", "params": {}, "seed": 1}',
    "NaN": b'{"entrypoint": "m", "params": {"a": NaN}, "seed": 1}',
    "Infinity": b'{"entrypoint": "m", "params": {"a": -Infinity}, "seed": 1}',
    "1e999": b'{"entrypoint": "m", "params": {"a": 1e999}, "seed": 1}',
    "lone surrogate": b'{"entrypoint": "m", "params": {"a": "\\ud800"}, "seed": 1}',
    "surrogate in a key": b'{"entrypoint": "m", "params": {"\\udfff": 1}, "seed": 1}',
    "too deep": b'{"entrypoint": "m", "params": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, "seed": 1}',
    "endless number": b'{"entrypoint": "m", "params": {}, "seed": ' + b"1" * 10_000 + b"}",
    "list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("aggregated", [False, True])
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_input_is_refused(runner_module: Any, data: bytes, aggregated: bool) -> None:
    refused(runner_module, data, aggregated)


@pytest.mark.parametrize("kind", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_has_not_is_told_in_words(runner_module: Any, kind: str) -> None:
    assert "it has NaN, or a number that is out of range" in refused(runner_module, MALFORMED[kind])


@pytest.mark.parametrize("key", ["entrypoint", "params", "seed"])
def test_a_missing_key_is_named(runner_module: Any, key: str) -> None:
    task = {name: value for name, value in SIMULATION.items() if name != key}
    assert f"missing {key}" in refused(runner_module, json.dumps(task).encode())


def test_an_unknown_key_is_named(runner_module: Any) -> None:
    assert "unknown 'sed'" in refused(runner_module, json.dumps({**SIMULATION, "sed": 1}).encode())


@pytest.mark.parametrize("entrypoint", ["", "a\nb", "\x1b[0m", "x" * 1025, 1, None, ["m"]])
def test_unusable_entry_points_are_refused(runner_module: Any, entrypoint: Any) -> None:
    assert "entrypoint" in refused(runner_module, json.dumps({**SIMULATION, "entrypoint": entrypoint}).encode())


@pytest.mark.parametrize("params", [None, [], "a", 1])
def test_params_must_be_an_object(runner_module: Any, params: Any) -> None:
    assert "params" in refused(runner_module, json.dumps({**SIMULATION, "params": params}).encode())


def test_input_over_the_limit_ends_early_and_says_so(runner_module: Any) -> None:
    with pytest.raises(runner_module.Failure, match="request_bytes") as caught:
        read(runner_module, b" " * 5000, limit=4999)
    assert (caught.value.phase, caught.value.type) == ("input", "input_too_large")


def test_inputs_of_an_aggregation_are_decoded(runner_module: Any) -> None:
    task = read(runner_module, json.dumps(aggregation(out=artifact(b"\0data"))).encode(), True)
    assert task["sim_returns"][0]["outputs"]["out"]["inline"] == b"\0data"
    assert task["target_data"] is None


def test_size_and_checksum_of_an_input_may_be_absent(runner_module: Any) -> None:
    task = read(runner_module, json.dumps(aggregation(out={"inline": "AA=="})).encode(), True)
    found = task["sim_returns"][0]["outputs"]["out"]
    assert (found["size"], found["checksum"]) == (1, hashlib.blake2b(b"\0", digest_size=32).hexdigest())


def test_an_aggregation_may_have_no_inputs(runner_module: Any) -> None:
    task = read(runner_module, b'{"target_entrypoint": "m:f", "sim_returns": [], "target_data": [1]}', True)
    assert task == {"target_entrypoint": "m:f", "sim_returns": [], "target_data": [1]}


BAD_INPUTS = {
    "checksum": (artifact(b"x", checksum="0" * 64), "checksum is not that of the data"),
    "size": (artifact(b"x", size=2), "size is not that of the data"),
    "base64": (artifact(b"x", inline="?"), "not base64"),
    "letters outside base64": (artifact(b"x", inline="é==="), "not base64"),
    "no data": ({"size": 0, "checksum": ""}, "no inline data"),
    "not an object": ("x", "no inline data"),
}


@pytest.mark.parametrize(("item", "words"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_an_input_that_is_not_what_it_says_is_refused(runner_module: Any, item: Any, words: str) -> None:
    problem = refused(runner_module, json.dumps(aggregation(out=item)).encode(), True)
    assert words in problem and "sim_returns[0].outputs['out']" in problem


@pytest.mark.parametrize("target", ["f", "m:", ":f", "m:f:g", "m/f", "1m:f", "m:f()", "m .x:f", "", 1])
def test_a_target_must_be_of_object_form(runner_module: Any, target: Any) -> None:
    assert "target_entrypoint" in refused(
        runner_module, json.dumps({"target_entrypoint": target, "sim_returns": []}).encode(), True
    )


@pytest.mark.parametrize("returns", [None, {}, [1], [{}], [{"task_id": 1, "outputs": {}}], [{"task_id": "a"}]])
def test_sim_returns_must_be_records(runner_module: Any, returns: Any) -> None:
    body = json.dumps({"target_entrypoint": "m:f", "sim_returns": returns}).encode()
    assert "sim_returns" in refused(runner_module, body, True)


def only_fails_cleanly(module: Any, data: bytes, aggregated: bool) -> None:
    try:
        task = read(module, data, aggregated)
    except module.Failure as failure:
        assert failure.phase == "input"
        json.dumps(failure.as_json({}), allow_nan=False)
    else:
        assert isinstance(task, dict)


@given(st.binary(), st.booleans())
@example(b"\xef\xbb\xbf{}", False)
def test_any_bytes_give_a_task_or_an_input_error(runner_module: Any, data: bytes, aggregated: bool) -> None:
    only_fails_cleanly(runner_module, data, aggregated)


texts = st.text(st.characters(codec=None, exclude_categories=()))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)
keys = st.sampled_from(["entrypoint", "params", "seed", "target_entrypoint", "sim_returns", "target_data"]) | texts
sim_return = st.fixed_dictionaries(
    {
        "task_id": texts,
        "outputs": st.dictionaries(texts, json_values | st.fixed_dictionaries({"inline": texts})),
    }
)
near_misses = st.fixed_dictionaries(
    {"target_entrypoint": st.just("m:f"), "sim_returns": st.lists(sim_return | json_values)}
)


@given(json_values | st.dictionaries(keys, json_values) | near_misses, st.booleans())
def test_any_json_gives_a_task_or_an_input_error(runner_module: Any, value: Any, aggregated: bool) -> None:
    only_fails_cleanly(runner_module, json.dumps(value).encode(), aggregated)


def test_the_task_id_of_a_plain_task_is_known(runner_module: Any) -> None:
    known = "f04ae4e87e9e7c7b0c2e99429d4c55d3a73486de7982ec751d41af9e2fbef749"
    assert runner_module.task_id({"params": {}, "seed": 1}, ["out"]) == known


def test_the_task_id_is_that_of_existing_callers(runner_module: Any) -> None:
    task = {"params": {"b": 2, "a": 1.5, "name": "ü"}, "seed": 2**64 - 1}
    canonical = 'contracts:param:v1|{"a":1.5,"b":2,"name":"ü"}'
    param_id = hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()
    text = f"{param_id[:16]}-18446744073709551615-out,table"
    expected = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    assert runner_module.task_id(task, ["table", "out"]) == expected


def test_the_task_id_does_not_depend_on_any_order(runner_module: Any) -> None:
    one = runner_module.task_id({"params": {"a": 1, "b": {"c": 1, "d": 2}}, "seed": 1}, ["x", "y"])
    two = runner_module.task_id({"params": {"b": {"d": 2, "c": 1}, "a": 1}, "seed": 1}, ["y", "x"])
    assert one == two


CONTRACTS = ROOT / "src" / "modelops-contracts" / "src"
PARAMS = [
    {},
    {"b": 1, "a": 2.5},
    {"z": True, "text": 'é\U0001f600\n"', "big": 2**63},
    {"tiny": 5e-324, "neg": -0.0},
]


@pytest.mark.parametrize("params", PARAMS)
def test_the_task_id_uses_the_param_id_of_the_contracts(
    runner_module: Any, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CONTRACTS))
    from modelops_contracts import make_param_id

    expected = hashlib.blake2b(f"{make_param_id(params)[:16]}-3-out".encode(), digest_size=32).hexdigest()
    assert runner_module.task_id({"params": params, "seed": 3}, ["out"]) == expected
