"""The pure parts of a search for leaks: the smallest set by bisection, and where two outcomes differ."""

import io
import json
import math
import struct
from typing import Any

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelops_contracts import digest_bytes

from modelops.debugging.compare import differences, differing
from modelops.debugging.inside.causes import NO_RESULT, Cure, find_cures
from modelops.debugging.inside.smallest import smallest_set
from modelops.debugging.shared import parse_shared
from modelops.debugging.workbench import Outcome, Output


def outcome(**outputs: bytes) -> Outcome:
    return Outcome({name: Output(len(data), digest_bytes(data), data) for name, data in outputs.items()})


@given(st.integers(1, 200), st.data())
def test_the_smallest_set_is_found_in_few_trials(size: int, data: Any) -> None:
    items = list(range(size))
    needed = data.draw(st.sets(st.sampled_from(items), min_size=1, max_size=4))
    asked = 0

    def is_enough(part: list[int]) -> bool:
        nonlocal asked
        asked += 1
        assert part == sorted(part)
        return needed <= set(part)

    assert smallest_set(items, is_enough) == sorted(needed)
    assert asked <= len(needed) * (math.log2(size) + 4)


@given(st.integers(1, 50), st.data())
def test_of_several_that_are_enough_one_is_found(size: int, data: Any) -> None:
    enough = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    found = smallest_set(range(size), lambda part: bool(enough & set(part)))
    assert found is not None and len(found) == 1 and found[0] in enough


def test_what_does_not_hold_twice_is_none() -> None:
    assert smallest_set([1, 2, 3], lambda part: False) is None


def test_outputs_have_the_fewest_causes_each_and_what_does_harm_is_put_back_in_parts() -> None:
    """`a` needs 2 and 5 back, `b` needs 11; 7 ends the process."""

    def trial(keys: list[str]) -> set[str]:
        if "7" in keys:
            return set(NO_RESULT)
        back = {name for name, needs in (("a", {"2", "5"}), ("b", {"11"})) if needs <= set(keys)}
        return {"a", "b", "c"} - back

    portions = [[str(number) for number in range(8)], [str(number) for number in range(8, 16)]]
    assert find_cures([portions[0][:6], *portions], {"a", "b", "c"}, trial) == [
        Cure(["2", "5"], {"a"}),
        Cure(["11"], {"b"}),
    ]
    assert find_cures([["7", "11"]], {"b"}, lambda keys: trial(keys) - {"a", "c"}) == [Cure(["11"], {"b"})]


@pytest.mark.parametrize("times", range(6))
def test_what_was_not_tried_for_want_of_time_is_no_cause(times: int) -> None:
    """Of eight changes the fourth is the cause: found in as many trials as that takes, or not at all."""
    left = times

    def trial(keys: list[str]) -> set[str] | None:
        nonlocal left
        left -= 1
        return None if left < 0 else {"out"} - ({"out"} if "3" in keys else set())

    found = find_cures([[str(number) for number in range(8)]], {"out"}, trial)
    assert found == ([Cure(["3"], {"out"})] if left >= 0 else [])


def test_tables_differ_by_cell() -> None:
    def table(**columns: list[Any]) -> bytes:
        stream = io.BytesIO()
        polars.DataFrame(columns).write_ipc(stream)
        return stream.getvalue()

    one, two = table(day=[1, 2, 3], people=[1.0, None, 3.0]), table(day=[1, 2, 3], people=[1.0, 5.0, 3.5])
    (gap,) = differences(outcome(t=one), outcome(t=two))
    assert (gap["kind"], gap["column"], gap["row"], gap["values"]) == ("table", "people", 1, ["None", "5.0"])
    assert (gap["cells"], gap["largest"], gap["columns"]) == (2, 0.5, ["people"])
    (form,) = differences(outcome(t=one), outcome(t=table(day=[1])))
    assert form["form"][1] == "1 rows of day: Int64"


@pytest.mark.parametrize(
    ("one", "two", "found"),
    [
        (b'{"a": [1, 2], "b": 3}', b'{"a": [1, 4], "b": 3.5}', {"path": "$.a[1]", "count": 2, "largest": 2}),
        (b'{"a": 1}', b'{"a": 1, "b": null}', {"kind": "json", "path": "$.b", "values": ["nothing", "null"]}),
        (b"[1]", b"[1, 2]", {"kind": "json", "path": "$[1]", "count": 1, "largest": None}),
        (b"[1]", b"[1 ]", {"kind": "text", "line": 1}),
        (b"a\nb\nc", b"a\nx\nc", {"kind": "text", "line": 2, "values": ["b", "x"]}),
        (b"\0" * 70_000 + b"a", b"\0" * 70_000 + b"b", {"kind": "bytes", "byte": 70_000, "values": ["61", "62"]}),
        (b"\0a", b"\0", {"kind": "bytes", "byte": 1, "values": ["61", "the end"]}),
    ],
)  # fmt: skip
def test_outputs_differ_by_what_they_are(one: bytes, two: bytes, found: dict[str, Any]) -> None:
    (gap,) = differences(outcome(x=one, same=b"1"), outcome(x=two, same=b"1"))
    assert gap["output"] == "x" and {name: gap[name] for name in found} == found


def test_failures_and_missing_outputs() -> None:
    failed = Outcome(failure={"type": "task_exception", "exception": {"type": "KeyError", "message": "'a'"}})
    (gap,) = differences(outcome(x=b"1"), failed)
    assert gap["kind"] == "failure" and gap["values"] == ["1 outputs", "task_exception: KeyError: 'a'"]
    (gone,) = differences(outcome(x=b"1", y=b"2"), outcome(x=b"1"))
    assert (gone["output"], gone["values"]) == ("y", ["1 bytes", "no such output"])
    assert differing(outcome(x=b"1", y=b"2"), outcome(x=b"3", y=b"2"), ["x"]) == []


VALUES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_equal_json_has_no_difference(value: Any) -> None:
    data = json.dumps(value).encode()
    assert differences(outcome(x=data), outcome(x=data)) == []


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ("changes", "cures", "problem", "key", "parts", "file", "offset", "size", "line", "called_from", "complete")


def frame(head: Any, body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + body


SENT = st.binary(max_size=40) | st.dictionaries(
    st.sampled_from(FIELDS) | st.text(),
    ANY_JSON | st.lists(st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=4), max_size=3),
    max_size=4,
).map(lambda value: json.dumps(value).encode())
TASK = st.builds(
    frame,
    ANY_JSON
    | st.fixed_dictionaries({"outputs": st.just([]), "failure": st.none(), "modules": ANY_JSON})
    | st.fixed_dictionaries(
        {"outputs": ANY_JSON, "failure": st.none() | ANY_JSON | ANY_JSON.map(json.dumps)},
        optional={"modules": ANY_JSON},
    ),
    st.binary(max_size=20),
)


@given(st.dictionaries(st.sampled_from(["changes", "cures", "lines"]), SENT), TASK | SENT)
def test_whatever_a_process_sends_is_taken_or_left(told: dict[str, bytes], task: bytes) -> None:
    shared = parse_shared(outcome(**told, **{"task.0": task}), 2)
    assert len(shared.outcomes) <= 1
    assert shared.cures is None or all(isinstance(key, str) for cure in shared.cures for key in cure.keys)
