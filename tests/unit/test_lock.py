"""The resolver's list of files: an index shapes it, so it is read as data."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

SIX = {"name": "six", "url": "https://index.example/six-1.0-py3-none-any.whl", "sha256": "a" * 64}


def read(module: Any, profile: Any, note: Any) -> Any:
    data = note if isinstance(note, bytes) else json.dumps(note).encode()
    return module.read_lock(data, profile.dependencies)


def test_what_uv_and_pip_give(runner_module: Any, default_profile: Any) -> None:
    local = {"name": "own", "url": "../links/own-1-py3-none-any.whl", "sha256": ""}
    assert read(runner_module, default_profile, [{**SIX, "version": "1.0", "size": 5}, local]) == [SIX, local]


@pytest.mark.parametrize(
    ("note", "kind"),
    [
        (b"", "fetch_failed"),
        (b"\xff", "fetch_failed"),
        (b"[" * 100_000, "fetch_failed"),
        ({}, ""),
        (["six"], "fetch_failed"),
        ([{**SIX, "url": 5}], "fetch_failed"),
        ([{**SIX, "name": None}], "fetch_failed"),
        ([{"name": "six"}], "fetch_failed"),
        ([{**SIX, "url": "https://["}], "fetch_failed"),
        ([{**SIX, "url": "http://index.example/a.whl"}], "dependency_refused"),
        ([{**SIX, "url": "file:///etc/shadow"}], "dependency_refused"),
        ([{**SIX, "sha256": "../" * 21 + "x"}], "dependency_refused"),
        ([SIX] * 100_000, "too_many_packages"),
    ],
)
def test_what_is_not_such_a_list(runner_module: Any, default_profile: Any, note: Any, kind: str) -> None:
    if not kind:
        assert read(runner_module, default_profile, note) == []
        return
    with pytest.raises(runner_module.Failure) as caught:
        read(runner_module, default_profile, note)
    assert (caught.value.phase, caught.value.type) == ("fetch", kind)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SIX, "version"]), inner),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=3))
def test_any_json_is_a_list_of_strings_or_one_error(runner_module: Any, default_profile: Any, note: Any) -> None:
    try:
        entries = read(runner_module, default_profile, note)
    except runner_module.Failure as failure:
        assert failure.phase == "fetch"
    else:
        assert all(type(value) is str for entry in entries for value in entry.values())
