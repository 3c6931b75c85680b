"""What a wire function may return beside bytes, with the libraries that people have; and what it is told to write."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Runner

Bundle = Callable[..., Path]
FRAMES = """
import pandas, polars, pyarrow, numpy
def wire(entrypoint, params, seed):
    frame = pandas.DataFrame({"day": [1, 2], "cases": [3.5, 4.5], "place": ["a", None]})
    return {
        "categories": pandas.DataFrame({"place": pandas.Categorical(["a", None, "b"])}),
        "structured": numpy.array([(1, 2.5)], dtype=[("day", "i4"), ("cases", "f8")]),
        "groups": frame.groupby("place")[["cases"]].mean(),
        "pandas": frame, "indexed": frame.set_index("day"), "series": frame["cases"],
        "pyarrow": pyarrow.table({"day": [1, 2]}), "batch": pyarrow.record_batch({"day": [1, 2]}),
        "polars": polars.DataFrame({"day": [1, 2]}), "lazy": polars.LazyFrame({"day": [1, 2]}),
        "empty": polars.DataFrame(schema={"day": polars.Int64}), "column": polars.Series("day", [1, 2]),
        "scalar": numpy.float64(0.5), "array": numpy.arange(6).reshape(2, 3),
        "mixed": {"n": numpy.int64(3), "list": [numpy.float32(0.5), numpy.bool_(True)], "a": numpy.arange(2),
                  "t": pandas.Timestamp("2020-01-02"), "d": numpy.datetime64("2020-01-02")},
    }
"""


LARGE = pytest.mark.full("installs pandas; the default suite has what stands in for it, and polars itself")


@LARGE
@pytest.mark.xdist_group("real packages")
def test_frames_and_arrays(run: Runner, bundle: Bundle) -> None:
    pytest.importorskip("polars")
    import polars

    path = bundle(FRAMES, needs=["pandas", "polars", "pyarrow", "numpy"])
    outputs = run(path).outputs
    assert run(path).outputs == outputs
    tables = {name: polars.read_ipc(io.BytesIO(data)) for name, data in outputs.items() if data[:6] == b"ARROW1"}
    assert tables["pandas"].to_dict(as_series=False) == {"day": [1, 2], "cases": [3.5, 4.5], "place": ["a", None]}
    assert tables["categories"].to_dict(as_series=False) == {"place": ["a", None, "b"]}
    assert tables["groups"].to_dict(as_series=False) == {"place": ["a"], "cases": [3.5]}
    assert b"('day', '<i4')" in outputs["structured"]
    assert sorted(tables["indexed"].columns) == ["cases", "day", "place"]
    assert tables["series"].to_dict(as_series=False) == {"cases": [3.5, 4.5]}
    for name in ("pyarrow", "batch", "polars", "lazy", "column"):
        assert tables[name].to_dict(as_series=False) == {"day": [1, 2]}
    assert tables["empty"].shape == (0, 1)
    assert outputs["scalar"] == b"0.5"
    array = outputs["array"]
    assert array.startswith(b"\x93NUMPY") and struct.unpack("<6q", array[-48:]) == (0, 1, 2, 3, 4, 5)
    dates = {"t": "2020-01-02T00:00:00", "d": "2020-01-02"}
    assert json.loads(outputs["mixed"]) == {"n": 3, "list": [0.5, True], "a": [0, 1], **dates}


STANDS_IN = """
class RangeIndex:
    start, step, name = 0, 1, None

class DataFrame(dict):
    index = RangeIndex()
"""


@pytest.mark.parametrize(
    "own", [{"pandas.py": STANDS_IN}, pytest.param({}, marks=[LARGE, pytest.mark.xdist_group("real packages")])]
)
def test_pandas_alone_says_what_to_write(run: Runner, bundle: Bundle, own: dict[str, str]) -> None:
    code = "import pandas\ndef wire(e, p, s): return {'df': pandas.DataFrame({'a': [1]})}"
    error = run(bundle(code, needs=[] if own else ["pandas"], files=own)).error
    assert error["type"] == "bad_result" and "'df' is DataFrame" in error["error"]
    assert "frame.to_csv()" in error["error"] and "pyarrow or polars" in error["error"]


@LARGE
@pytest.mark.xdist_group("real packages")
def test_pandas_by_polars(run: Runner, bundle: Bundle) -> None:
    polars = pytest.importorskip("polars")
    code = "import pandas\ndef wire(e, p, s): return {'df': pandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']})}"
    outputs = run(bundle(code, needs=["pandas", "polars"])).outputs
    assert polars.read_ipc(io.BytesIO(outputs["df"])).to_dict(as_series=False) == {"a": [1, 2], "b": ["x", "y"]}


SAYS = {
    "path": ("__import__('pathlib').Path('x')", "path.read_bytes()"),
    "buffer": ("__import__('io').BytesIO(b'x')", "buffer.getvalue()"),
    "NaN": ("{'a': float('nan')}", "write None for NaN"),
    "Decimal": ("__import__('decimal').Decimal('1.5')", "float(..)"),
    "range": ("range(3)", "list(..)"),
    "keys": ("{'a': 1}.keys()", "list(..)"),
    "timedelta": ("{'a': __import__('datetime').timedelta(1)}", "value.total_seconds()"),
    "bytes inside": ("{'a': b'x'}", "it as an output of its own"),
    "keys of another kind": ("{(1, 2): 3}", "{str(key): value"),
    "generator": ("(i for i in range(3))", "list(..)"),
    "member of an Enum": ("__import__('enum').Enum('E', 'A').A", "member.value"),
    "complex": ("[1j]", "value.real"),
    "dataclass": ("__import__('dataclasses').make_dataclass('R', ['a'])(1)", "dataclasses.asdict(..)"),
    "attrs": ("type('R', (), {'__attrs_attrs__': ()})()", "attrs.asdict(..)"),
    "pydantic": ("type('R', (), {'model_dump_json': print})()", ".model_dump_json()"),
    "set": ("{1, 2}", "sorted(..)"),
    "set inside": ("{'a': {1, 2}}", "sorted(..)"),
    "object": ("object()", "an object of type object"),
    "nan": ("float('nan')", "not JSON compliant"),
}


def test_what_has_no_form_is_told_what_to_write(run: Runner, bundle: Bundle) -> None:
    code = "def wire(entrypoint, params, seed): return {'out': eval(params['value'])}"
    tasks = [{"entrypoint": "main", "params": {"value": value}, "seed": 1} for value, _ in SAYS.values()]
    for (name, (_, words)), result in zip(SAYS.items(), run.served(bundle(code), tasks), strict=True):
        error = result.error
        assert error["type"] == "bad_result" and "'out'" in error["error"] and words in error["error"], (name, error)


def test_dates_and_paths_inside_json(run: Runner, bundle: Bundle) -> None:
    code = """
import datetime, pathlib
def wire(e, p, s):
    return {"out": {"day": datetime.date(2020, 1, 2), "path": pathlib.Path("a/b"), "none": None}}
"""
    assert json.loads(run(bundle(code)).outputs["out"]) == {"day": "2020-01-02", "path": "a/b", "none": None}


def test_a_frame_alone_is_no_result(run: Runner, bundle: Bundle) -> None:
    """It has items, and is no dict of outputs."""
    code = "class Frame:\n    def items(self): return [('a', b'1')]\ndef wire(e, p, s): return Frame()\n"
    error = run(bundle(code)).error
    assert error["type"] == "bad_result" and "must return a dict" in error["error"] and "Frame" in error["error"]


def test_who_parses_a_command_line_finds_an_empty_one(run: Runner, bundle: Bundle) -> None:
    code = "import argparse\nARGS = argparse.ArgumentParser().parse_args()\ndef wire(e, p, s): return {'out': b'ok'}\n"
    assert run(bundle(code)).outputs == {"out": b"ok"}
