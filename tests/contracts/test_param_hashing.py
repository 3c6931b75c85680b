"""`make_param_id` and `digest_bytes`, against digests made with hashlib and json alone."""

import hashlib
import json
import math
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import ContractViolationError, digest_bytes, make_param_id

UTF8_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)) | UTF8_TEXT
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(UTF8_TEXT, inner, max_size=4),
    max_leaves=12,
)
PARAMS = st.dictionaries(UTF8_TEXT, VALUES, max_size=6)


def expected_id(params: dict[str, Any]) -> str:
    text = json.dumps(params, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data = b"contracts:param:v1|" + text.encode("utf-8")
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reversed_keys(item) for item in value]
    return value


@given(PARAMS)
def test_id_is_the_namespaced_digest_of_sorted_json(params: dict[str, Any]) -> None:
    assert make_param_id(params) == expected_id(params)


@given(PARAMS)
def test_key_order_does_not_matter_at_any_level(params: dict[str, Any]) -> None:
    assert make_param_id(reversed_keys(params)) == make_param_id(params)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "{}"),
        ({"b": 1, "a": 0.5}, '{"a":0.5,"b":1}'),
        ({"a": True, "b": None, "c": "é"}, '{"a":true,"b":null,"c":"é"}'),
        ({"z": {"y": [1, (2, 3)], "x": {}}}, '{"z":{"x":{},"y":[1,[2,3]]}}'),
        ({"a": -0.0, "b": 1e300, "c": 2**64}, '{"a":-0.0,"b":1e+300,"c":18446744073709551616}'),
    ],
)
def test_canonical_text(params: dict[str, Any], text: str) -> None:
    data = f"contracts:param:v1|{text}".encode()
    assert make_param_id(params) == hashlib.blake2b(data, digest_size=32).hexdigest()


def test_known_digest() -> None:
    expected = "a54f6b32c15c96c4f26f2d15942eefe238ac672d7d36f5a6e507dc291aa5260e"
    assert make_param_id({"beta": 0.5, "n": 10}) == expected


def test_any_mapping_and_tuples_count_as_dicts_and_lists() -> None:
    proxied = MappingProxyType({"a": MappingProxyType({"b": (1, 2)})})
    assert make_param_id(proxied) == make_param_id({"a": {"b": [1, 2]}})


def test_equal_values_of_different_types_differ() -> None:
    ids = {make_param_id({"a": value}) for value in (1, 1.0, True, "1", None, 0.0, -0.0)}
    assert len(ids) == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"inner": v}])
def test_non_finite_floats_are_refused_at_any_level(value: float, wrap: Any) -> None:
    with pytest.raises(ContractViolationError, match=r"params.*must be a finite number"):
        make_param_id({"rate": wrap(value)})


@pytest.mark.parametrize("value", [b"x", {1}, object(), 1j, range(3)])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(ContractViolationError, match=r"params\['rate'\].*unsupported type"):
        make_param_id({"rate": value})


def test_the_message_names_the_nested_place() -> None:
    with pytest.raises(ContractViolationError, match=r"params\['a'\]\[1\]\['b'\]"):
        make_param_id({"a": [0, {"b": b""}]})


@pytest.mark.parametrize("key", [1, None, True, (1,)])
def test_keys_other_than_str_are_refused(key: Any) -> None:
    with pytest.raises(ContractViolationError, match=r"key .* of params must be str"):
        make_param_id({key: 1, "a": 2})


@pytest.mark.parametrize("value", ["\ud800", pytest.param(10**5000, id="huge")])
def test_values_without_json_text_are_refused(value: object) -> None:
    with pytest.raises(ContractViolationError, match="params"):
        make_param_id({"a": value})


@given(st.binary())
def test_digest_bytes_is_blake2b_256(data: bytes) -> None:
    assert digest_bytes(data) == hashlib.blake2b(data, digest_size=32).hexdigest()
    assert len(digest_bytes(data)) == 64
