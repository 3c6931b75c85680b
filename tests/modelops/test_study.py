"""The study: inputs as people write them, the command in both modes, its files and its exit status."""

import dataclasses
import errno
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import polars
import pytest
from conftest import write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from modelops_contracts import (
    AggregationReturn,
    ErrorInfo,
    SimReturn,
    TableArtifact,
    UniqueParameterSet,
    digest_bytes,
)
from typer.testing import CliRunner, Result

from modelops.adapters.exec_env.errors import RunnerError
from modelops.cli import app
from modelops.services import study_folder, study_tables
from modelops.services.study import Study, Target
from modelops.services.study_folder import StudyFolder, StudyFolderError, StudyMismatch
from modelops.services.study_inputs import parameter_sets, parse_grid, parse_params, parse_seeds, read_table
from modelops.services.study_run import limit_of_failures
from modelops.services.study_tables import read_summary, write_tables
from modelops.worker.plugin import Timed

CODE = """
def wire(entrypoint, params, seed):
    if params["x"] == params.get("bad"):
        raise ValueError("bad x")
    return {"y": str(params["x"] * seed), "large": b"z" * 600_000}
"""
TARGETS = """
def mean(sim_returns, target_data=None):
    values = [float(sim["outputs"]["y"]["inline"]) for sim in sim_returns]
    return {"loss": abs(sum(values) / len(values) - (target_data or {"observed": 0})["observed"])}
"""
REF = "sha256:" + "0" * 64


# --- inputs


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1", [1]),
        ("1-4", [1, 2, 3, 4]),
        ("3,1,2", [3, 1, 2]),
        ("1-3,2-5,9", [1, 2, 3, 4, 5, 9]),
        (f"{2**64 - 1}", [2**64 - 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "4-1", "1,,2", "1-9999999999", "1.5"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(text)


def test_a_grid() -> None:
    assert parse_grid(["a=1,2.5", "b=true,x,false", "c=-1e3"]) == {
        "a": [1, 2.5],
        "b": [True, "x", False],
        "c": [-1000.0],
    }
    assert parse_grid(["a=null,[1]"]) == {"a": ["null", "[1]"]}
    for wrong in (["a"], ["=1"], ["a="], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="name=value"):
            parse_grid(wrong)


@given(st.lists(st.integers(), min_size=1, max_size=4), st.lists(st.booleans(), min_size=1, max_size=4))
def test_a_grid_is_all_combinations_and_each_once(first: list[int], second: list[bool]) -> None:
    sets = parameter_sets({"c": 1}, {"a": first, "b": second}, None)
    found = [(found.params["a"], found.params["b"]) for found in sets]
    assert len(found) == len(set(found)) == len(set(first)) * len(set(second))
    assert all(found.params["c"] == 1 for found in sets)


def test_rows_with_a_grid_over_fixed_parameters() -> None:
    sets = parameter_sets({"a": 0, "d": 1}, {"b": [1, 2]}, [{"a": 1}, {"a": 2, "b": 9}])
    assert [dict(found.params) for found in sets] == [
        {"a": 1, "d": 1, "b": 1}, {"a": 1, "d": 1, "b": 2}, {"a": 2, "d": 1, "b": 1}, {"a": 2, "d": 1, "b": 2},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="params"):
        parameter_sets({"a": [1]}, {}, None)  # type: ignore[dict-item]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    frame = polars.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", "y"]})
    {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".json": frame.write_json}[suffix](path)
    assert read_table(path) == [{"a": 1, "b": 0.5, "c": "x"}, {"a": 2, "c": "y"}]


def test_a_column_of_a_csv_file_has_one_type(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeffn,x,flag,mixed,code,"a, b"\r\n1,2,true,1,7a,"é\n"\r\n\r\n-2,.5e1,FALSE,x,,\r\n'.encode())
    assert [[*map(repr, row.values())] for row in read_table(path)] == [
        ["1", "2.0", "True", "'1'", "'7a'", "'é\\n'"],
        ["-2", "5.0", "False", "'x'"],
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"a,b\n1,2\n1\n", "row 3 has not as many cells"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"\xff\n1\n", "can't be read: 'utf-8'"),
        ("a.csv", b'a\n"1', "unexpected end"),
        ("a.json", b'{"a": 1}', "not a list of objects"),
        ("a.json", b'[{"a": 1, "a": 2}]', "twice"),
        ("a.parquet", b"PAR1 and then something else PAR1", "it is damaged"),
    ],
)
def test_a_damaged_table(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / name)


def test_wrong_tables(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n1\n")
    (tmp_path / "a.parquet").write_text("nothing of the kind")
    (tmp_path / "a.csv").write_text("a,b\n")
    for name in ("a.txt", "a.parquet", "a.csv"):
        with pytest.raises(ValueError, match=name):
            read_table(tmp_path / name)


def test_params(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"a": 1}')
    assert parse_params('{"a": 1}') == parse_params(f"@{tmp_path / 'p.json'}") == {"a": 1}
    for wrong in ("[1]", "{", "1"):
        with pytest.raises(ValueError):
            parse_params(wrong)


def test_a_study_is_of_distinct_tasks() -> None:
    one = UniqueParameterSet.from_dict({"a": 1})
    for sets, seeds in (([], [1]), ([one], []), ([one, one], [1]), ([one], [1, 1])):
        with pytest.raises(ValueError, match="parameter sets and"):
            Study.product(REF, "a.b/c", sets, seeds)


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("7", 7), ("0%", 0), ("50%", 5), ("12.5%", 1), ("100%", 10)])
def test_a_limit_of_failures(text: str, limit: int) -> None:
    assert limit_of_failures(text, range(10)) == limit


@pytest.mark.parametrize("text", ["", "-1", "x", "%", "-1%", "101%", "1.5", "nan%"])
def test_no_limit_of_failures(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number"):
        limit_of_failures(text, range(10))


# --- the folder and its tables


def result_of(value: str) -> SimReturn:
    data = value.encode()
    artifact = TableArtifact(size=len(data), inline=data, checksum=digest_bytes(data))
    return SimReturn(digest_bytes(data), {"y": artifact}, metrics={"wall_seconds": 1.0})


def failure(kind: str = "timeout") -> SimReturn:
    details = TableArtifact(size=2, inline=b"{}", checksum=digest_bytes(b"{}"))
    return SimReturn("e" * 64, {}, ErrorInfo(kind, "too long", True), details)


def timed(result: SimReturn | AggregationReturn | RunnerError) -> Timed:
    return Timed(result, 1e9, 0.5)


def study_of_one(seeds: int = 1, **fields: Any) -> Study:
    return Study.product(REF, "a.b/c", [UniqueParameterSet.from_dict({"a": 1})], list(range(seeds)), **fields)


def test_tables_hold_every_kind_of_parameter(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"n": 1, "x": 1, "flag": True, "mixed": 1, "huge": 2**70, "name": "é"},
        {"n": -(2**63), "x": 0.5, "flag": False, "mixed": "a", "huge": 1},
    ]
    sets = [UniqueParameterSet.from_dict(row) for row in rows]
    study = Study.product(REF, "a.b/c", sets, [2**64 - 1], targets=[Target("t", "a.b:c")])
    with StudyFolder(tmp_path / "new" / "out", study, {}) as folder:
        folder.add_simulation(1, timed(failure()))
        folder.add_simulation(0, timed(result_of("1")))
        folder.add_loss(0, 0, timed(AggregationReturn("id", 0.25, {"d": 1}, {}, 1)))
        folder.add_loss(1, 0, timed(RunnerError.of("input", "failed_inputs", "none")))
        summary = write_tables(folder, {"seconds": 2.0})
    out = tmp_path / "new" / "out"
    assert summary == read_summary(out) and summary["failed"] == 2 and summary["seconds"] == 2.0
    table = polars.read_parquet(out / "results.parquet").to_dicts()
    for row, parameters in zip(table, rows, strict=True):
        for name, value in parameters.items():
            text = name == "huge" or (name == "mixed" and isinstance(value, int))
            assert row[f"param.{name}"] == (str(value) if text else value)
    assert [row["seed"] for row in table] == [2**64 - 1] * 2
    assert [row["output.y"] for row in table] == [f"outputs.parquet#{digest_bytes(b'1')}", None]
    outputs = polars.read_parquet(out / "outputs.parquet").to_dicts()
    assert [(row["name"], row["content"], row["ref"]) for row in outputs] == [("y", b"1", None)]
    tasks = polars.read_parquet(out / "tasks.parquet").to_dicts()
    assert [(row["kind"], row["status"], row["error_type"]) for row in tasks] == [
        ("simulation", "succeeded", None),
        ("simulation", "failed", "timeout"),
        ("aggregation", "succeeded", None),
        ("aggregation", "failed", "failed_inputs"),
    ]
    assert tasks[0]["metric.wall_seconds"] == 1.0 and tasks[0]["started"].timestamp() == 1e9
    losses = polars.read_parquet(out / "losses.parquet").to_dicts()
    assert [(row["loss"], row["target"], row["error_type"]) for row in losses] == [
        (0.25, "t", None),
        (None, "t", "failed_inputs"),
    ]


def test_parameters_may_have_any_name_or_none(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{}, {"": 1, "seed": 2, "param_id": "x", "task_id": True, "e\u0301": 1.5, "\u00e9": 2}]
    study = Study.product(REF, "a.b/c", [UniqueParameterSet.from_dict(row) for row in rows], [1])
    with StudyFolder(tmp_path, study, {}) as folder:
        folder.add_simulation(0, timed(result_of("1")))
        write_tables(folder, {})
    first, second = polars.read_parquet(tmp_path / "results.parquet").to_dicts()
    assert {name: second[f"param.{name}"] for name in rows[1]} == rows[1]
    assert {first[f"param.{name}"] for name in rows[1]} == {None}
    assert (second["seed"], second["param_id"]) == (1, study.points[1].parameters.param_id)


def test_a_study_without_any_result_has_tables_too(tmp_path: Path) -> None:
    with StudyFolder(tmp_path, study_of_one(), {}) as folder:
        summary = write_tables(folder, {})
        assert summary["simulations"] == {"succeeded": 0, "failed": 0, "not_run": 1}
        folder.add_simulation(0, timed(failure()))
        assert write_tables(folder, {})["simulations"] == {"succeeded": 0, "failed": 1, "not_run": 0}
    assert len(polars.read_parquet(tmp_path / "outputs.parquet")) == 0
    assert polars.read_parquet(tmp_path / "results.parquet")["param.a"].to_list() == [1]


def test_the_digest_is_of_results_and_not_of_measurements(tmp_path: Path) -> None:
    def digest(name: str, result: SimReturn, seconds: float = 1.0) -> str:
        with StudyFolder(tmp_path / name, study_of_one(), {}) as folder:
            folder.add_simulation(0, Timed(result, seconds, seconds))
            return str(write_tables(folder, {})["results_digest"])

    one = result_of("1")
    assert digest("a", one) == digest("b", dataclasses.replace(one, metrics={"wall_seconds": 9.0}), 7.0)
    assert digest("a", one) != digest("c", result_of("2"))


def test_a_table_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="column twice"):
        read_table(table)
    table.write_text("a,b,c_duplicated_0\n1,2,3\n")
    assert read_table(table) == [{"a": 1, "b": 2, "c_duplicated_0": 3}]


class InterruptAt:
    """Within the block a KeyboardInterrupt is raised at a line of the folder's module, counted from its beginning."""

    def __init__(self, line: int) -> None:
        self.left = line

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != study_folder.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace

    def __enter__(self) -> "InterruptAt":
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)


def test_a_result_is_there_as_a_whole_or_not_at_all_wherever_an_interrupt_comes(tmp_path: Path) -> None:
    study, line, seen = study_of_one(2), 0, set[int]()
    artifacts = result_of("1").outputs
    result = dataclasses.replace(result_of("1"), outputs={"y": artifacts["y"], "z": artifacts["y"]})
    while (line := line + 1) < 1000:
        out, interrupt = tmp_path / str(line), InterruptAt(line)
        with suppress(KeyboardInterrupt), StudyFolder(out, study, {}) as folder:
            folder.add_simulation(0, timed(result))
            folder.flush()
            with interrupt:
                folder.add_simulation(1, timed(result))
                folder.flush()
        with StudyFolder(out, study, {}) as folder:
            found = folder.results(sorted(folder.simulations))
            assert [*folder.outputs("name")] == [(index, name) for index in found for name in ("y", "z")], line
        seen.add(len(found))
        if interrupt.left > 0:
            break
    assert seen == {1, 2} and line < 1000


VALUES = st.sampled_from(["a", "b", "large" * 1000, None])


@given(st.lists(st.tuples(st.integers(0, 4), VALUES, st.booleans()), max_size=16))
@settings(max_examples=30, deadline=None)
def test_the_last_result_of_a_task_counts(events: list[tuple[int, str | None, bool]]) -> None:
    """Results come again and again, are written at any moment, and the folder is opened anew."""
    study = study_of_one(5)
    with tempfile.TemporaryDirectory() as name:
        folder = StudyFolder(Path(name), study, {})
        expected: dict[int, str | None] = {}
        for index, value, anew in events:
            folder.add_simulation(index, timed(failure() if value is None else result_of(value)))
            expected[index] = value
            if anew:
                folder.close()
                folder = StudyFolder(Path(name), study, {})
            assert folder.simulations == {index: value is not None for index, value in expected.items()}
        write_tables(folder, {})
        outputs = polars.read_parquet(Path(name) / "outputs.parquet")
        wanted = [(index, value.encode()) for index, value in sorted(expected.items()) if value is not None]
        assert list(outputs.select("seed", "content").iter_rows()) == wanted
        found = folder.results(sorted(expected)) if expected else {}
        assert {index: result.error is None for index, result in found.items()} == folder.simulations
        folder.close()


MEMORY = """
import resource, sys
from pathlib import Path
from modelops_contracts import SimReturn, TableArtifact, digest_bytes
from modelops.services import study_folder
from modelops.services.study import Study
from modelops.services.study_folder import StudyFolder
from modelops.services.study_inputs import parameter_sets
from modelops.services.study_tables import write_tables
from modelops.worker.plugin import Timed

study_folder.FLUSH_SECONDS, study_folder.FLUSH_BYTES = 1e9, 6 << 20
count, content = int(sys.argv[2]), bytes(300_000)
study = Study.product("sha256:" + "0" * 64, "m.m/s", parameter_sets({}, {"a": list(range(count))}, None), [1])
artifact = TableArtifact("application/x", len(content), content, None, digest_bytes(content))
with StudyFolder(Path(sys.argv[1]), study, {}) as folder:
    for index in range(count):
        folder.add_simulation(index, Timed(SimReturn(f"{index:064x}", {"y": artifact}), 1.0, 1.0))
    write_tables(folder, {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


@pytest.mark.full("six hundred megabytes of outputs, which compress to nothing")
def test_memory_is_bounded_while_results_come_and_tables_are_written(tmp_path: Path) -> None:
    def most(count: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"{count}"), str(count)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert most(2000) < most(20) + (300 << 20), "half of what the outputs have"


def test_outputs_are_written_in_ranges(tmp_path: Path) -> None:
    with StudyFolder(tmp_path, study_of_one(9), {}) as folder, patch.object(study_tables, "RANGE_BYTES", 10):
        for index in (8, 2, 5, 1, 0, 3, 7):
            folder.add_simulation(index, timed(result_of("x" * (1 + index))))
        write_tables(folder, {})
    sizes = polars.read_parquet(tmp_path / "outputs.parquet")["size"].to_list()
    assert sizes == [1, 2, 3, 4, 6, 8, 9]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def of_three(path: Path) -> Path:
    """A study of three points that was run whole; its database."""
    with StudyFolder(path, study_of_one(3), {}) as folder:
        for index in range(3):
            folder.add_simulation(index, timed(result_of(f"{index}" * 3000)))
            folder.flush()
    return path / "results.sqlite"


@pytest.mark.parametrize("when", ["journalled", "half written"])
def test_what_was_never_finished_is_not_seen(tmp_path: Path, when: str) -> None:
    """A process that is killed within a transaction, before and after pages of it reached the database."""
    database = of_three(tmp_path)
    code = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("DELETE FROM simulations WHERE point = 0")
if sys.argv[2] == "half written":
    db.execute("PRAGMA cache_size = 1")
    db.execute("UPDATE outputs SET content = zeroblob(2000000)")
os.kill(os.getpid(), 9)
"""
    before = database.read_bytes()
    subprocess.run([sys.executable, "-c", code, str(database), when])
    assert (database.read_bytes() != before) == (when == "half written")
    with StudyFolder(tmp_path, study_of_one(3), {}) as folder:
        assert folder.simulations == {0: True, 1: True, 2: True}
        write_tables(folder, {})
    assert polars.read_parquet(tmp_path / "outputs.parquet")["size"].to_list() == [3000] * 3
    assert not list(tmp_path.glob("*.damaged"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_database(path: Path) -> None:
    path.write_bytes(b"nothing of the kind" * 1000)


def another_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE simulations (point)")


def an_unreadable_page(path: Path) -> None:
    """The first of the table of losses."""
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'losses'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    whole = path.read_bytes()
    path.write_bytes(whole[: (page - 1) * size] + b"\xff" * size + whole[page * size :])


def an_altered_output(path: Path) -> None:
    """Of the point in the middle, which is looked at more closely where something else is damaged besides."""
    whole = path.read_bytes()
    assert b"1" * 3000 in whole
    path.write_bytes(whole.replace(b"1" * 3000, b"1" * 2000 + b"x" + b"1" * 999))
    an_unreadable_page(path)


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (cut, set()),
        (empty, set()),
        (no_database, set()),
        (another_database, set()),
        (an_unreadable_page, {0, 1, 2}),
        (an_altered_output, {0, 2}),
    ],
)
def test_what_was_damaged_is_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], left: set[int]
) -> None:
    database = of_three(tmp_path)
    damage(database)
    damaged = database.read_bytes()
    with StudyFolder(tmp_path, study_of_one(3), {}) as folder:
        assert {*folder.simulations} == left
        for index in {0, 1, 2} - left:
            folder.add_simulation(index, timed(result_of(f"{index}" * 3000)))
        write_tables(folder, {})
    outputs = polars.read_parquet(tmp_path / "outputs.parquet")
    assert outputs["content"].to_list() == [f"{index}".encode() * 3000 for index in range(3)]
    assert "results.sqlite is damaged" in caplog.text
    assert (tmp_path / "results.sqlite.damaged").read_bytes() == damaged
    caplog.clear()
    StudyFolder(tmp_path, study_of_one(3), {}).close()
    assert not caplog.text, "it is mended"


def test_a_database_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    of_three(tmp_path).unlink()
    with StudyFolder(tmp_path, study_of_one(3), {}) as folder:
        assert folder.simulations == {}


def test_a_file_system_without_locks(tmp_path: Path) -> None:
    with patch.object(study_folder.fcntl, "flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
        of_three(tmp_path)
        with StudyFolder(tmp_path, study_of_one(3), {}) as folder:
            assert folder.simulations == {0: True, 1: True, 2: True}


def test_results_that_nobody_knows_the_study_of(tmp_path: Path) -> None:
    with StudyFolder(tmp_path, study_of_one(), {}) as folder:
        folder.add_simulation(0, timed(result_of("1")))
    for damage in (lambda path: path.write_text("{"), lambda path: path.write_text("[]"), Path.unlink):
        damage(tmp_path / "identity.json")
        with pytest.raises(StudyMismatch, match=r"identity\.json.*choose another --out"):
            StudyFolder(tmp_path, study_of_one(), {})


def test_what_can_not_be_written_is_kept_until_it_can(tmp_path: Path) -> None:
    """A real limit of the kernel's, at which writing fails as it does on a full disk."""
    with StudyFolder(tmp_path, study_of_one(2), {}) as folder:
        folder.add_simulation(0, timed(result_of("1")))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with pytest.raises(StudyFolderError, match="can't be written"):
                folder.flush()
            with pytest.raises(StudyFolderError, match="can't be written"):
                write_tables(folder, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        folder.add_simulation(1, timed(result_of("2")))
    with StudyFolder(tmp_path, study_of_one(2), {}) as folder:
        assert folder.simulations == {0: True, 1: True}


def test_another_study_is_refused(tmp_path: Path) -> None:
    StudyFolder(tmp_path, study_of_one(5), {"name": "strict"}).close()  # nothing was run: it may still be another
    with StudyFolder(tmp_path, study_of_one(), {"name": "default"}) as folder:
        folder.add_simulation(0, timed(result_of("1")))
    others = {
        "parameters": (study_of_one(2), {"name": "default"}),
        "targets": (study_of_one(targets=[Target("t", "a.b:c")]), {"name": "default"}),
        "profile": (study_of_one(), {"name": "strict"}),
        "outputs": (study_of_one(outputs=("y",)), {"name": "default"}),
    }
    for word, (study, profile) in others.items():
        with pytest.raises(StudyMismatch, match=word):
            StudyFolder(tmp_path, study, profile)
    with (
        StudyFolder(tmp_path, study_of_one(), {"name": "default"}),
        pytest.raises(StudyMismatch, match="another process"),
    ):
        StudyFolder(tmp_path, study_of_one(), {"name": "default"})


def test_failures_can_be_forgotten_with_the_losses_that_had_them(tmp_path: Path) -> None:
    sets = [UniqueParameterSet.from_dict({"a": a}) for a in range(3)]
    study = Study.product(REF, "a.b/c", sets, [1, 2], targets=[Target("t", "a.b:c")])
    with StudyFolder(tmp_path, study, {}) as folder:
        for index in range(6):
            folder.add_simulation(index, timed(failure() if index == 3 else result_of(str(index))))
        folder.add_loss(0, 0, timed(AggregationReturn("id", 1.0, {}, {}, 2)))
        folder.add_loss(1, 0, timed(RunnerError.of("input", "failed_inputs", "none")))
        folder.add_loss(2, 0, timed(RunnerError.of("execute", "task_exception", "none")))
        folder.forget_failures()
        assert sorted(folder.simulations) == [0, 1, 2, 4, 5] and list(folder.losses) == [(0, 0)]


# --- the command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "source", CODE, files={"fit/targets.py": TARGETS})


def options_of(bundle: Path | str, out: Path) -> list[str]:
    return ["--no-check", "--bundle", str(bundle), "--entrypoint", "probe.model/baseline", "--out", str(out)]


def study(bundle: Path | str, out: Path, store: Path, *arguments: str, **env: str) -> Result:
    """The command in this process, as to start another takes longer."""
    given = {"MODELOPS_RUNNER_STORE_DIR": str(store), **env}
    return CliRunner(env=given).invoke(app, ["study", *options_of(bundle, out), *arguments], catch_exceptions=False)


def study_apart(
    bundle: Path, out: Path, store: Path, *arguments: str, **env: str
) -> "subprocess.CompletedProcess[str]":
    """The command as a process, whose log is its own."""
    command = [sys.executable, "-m", "modelops", "study", *options_of(bundle, out), *arguments]
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "MODELOPS_RUNNER_STORE_DIR": str(store), **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_the_command_in_both_modes(bundle: Path, store: Path, tmp_path: Path) -> None:
    arguments = ["--params", '{"w": "é"}', "--grid", "x=2,3", "--seeds", "1-3", "--target", "fit.targets:mean"]
    arguments += ["--target-data", '{"observed": 6}', "--threads", "1"]
    summaries, workers = {}, {"warm": 2, "cold": 1}
    for mode, flag in (("warm", "0"), ("cold", "1")):
        more = [*arguments, "--workers", str(workers[mode])]
        done = study_apart(bundle, tmp_path / mode, store, *more, MODELOPS_COLD_DEBUG=flag)
        assert done.returncode == 0, done.stderr
        summaries[mode] = json.loads(done.stdout)
        assert f"in the {mode} environment" in done.stderr and "MODELOPS_COLD_DEBUG" in done.stderr
        assert summaries[mode] == read_summary(tmp_path / mode)
        assert summaries[mode]["executors"] == {mode: workers[mode]}
    warm, cold = summaries["warm"], summaries["cold"]
    measured = ("executors", "seconds", "tasks_per_second")
    assert {k: v for k, v in warm.items() if k not in measured} == {k: v for k, v in cold.items() if k not in measured}
    assert (
        warm["simulations"] == {"succeeded": 6, "failed": 0, "not_run": 0}
        and warm["failed"] == 0
        and warm["failures"] == []
    )
    assert [entry["loss"] for entry in warm["losses"]["fit.targets:mean"]] == [0.0, 2.0]
    for mode in ("warm", "cold"):
        table = polars.read_parquet(tmp_path / mode / "outputs.parquet")
        assert table.filter(name="y")["content"].to_list() == [b"2", b"4", b"6", b"3", b"6", b"9"]
        refs = table.filter(name="large")["ref"].unique().to_list()
        assert len(refs) == 1 and refs[0].startswith("cas://")
        assert polars.read_parquet(tmp_path / mode / "losses.parquet")["loss"].to_list() == [2.0, 0.0]


def test_the_command_says_which_tasks_failed(bundle: Path, store: Path, tmp_path: Path) -> None:
    arguments = ["--params", '{"bad": 3}', "--grid", "x=2,3", "--seeds", "5,7", "--target", "fit.targets:mean"]
    done = study(bundle, tmp_path / "out", store, *arguments)
    assert done.exit_code == 1, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["simulations"], summary["failed"]) == ({"succeeded": 2, "failed": 2, "not_run": 0}, 3)
    failures = summary["failures"]
    assert [(entry["task"], entry.get("seed"), entry["params"]["x"], entry["error_type"]) for entry in failures] == [
        ("simulation", 5, 3, "task_exception"),
        ("simulation", 7, 3, "task_exception"),
        ("aggregation", None, 3, "failed_inputs"),
    ]
    assert (
        "bad x" in done.stderr
        and '"x": 3}, seed 7: task_exception: ' in done.stderr
        and "3 of 6 tasks failed" in done.stderr
    )
    rows = polars.read_parquet(tmp_path / "out" / "tasks.parquet")
    assert rows["error_type"].to_list() == [None, None, "task_exception", "task_exception", None, "failed_inputs"]


def test_a_reference_instead_of_a_directory(bundle: Path, store: Path, tmp_path: Path) -> None:
    from modelops.adapters.bundle import LocalBundleRepository

    (tmp_path / "there").mkdir()
    ref = LocalBundleRepository(tmp_path / "there").add(bundle)
    (tmp_path / "table.csv").write_text("x\n4\n")
    options = ["--repository", str(tmp_path / "there"), "--table", str(tmp_path / "table.csv")]
    done = study(ref, tmp_path / "out", store, *options)
    assert done.exit_code == 0 and json.loads(done.stdout)["bundle"] == ref


@pytest.mark.parametrize(
    ("bundle_name", "arguments", "words"),
    [
        ("absent", [], "not a bundle reference"),
        (REF, [], "bundle not found"),
        (".", [], "not a bundle"),
        ("source", ["--seeds", "x"], "seeds"),
        ("source", ["--seeds", str(2**64)], "seed"),
        ("source", ["--grid", "x"], "name=value"),
        ("source", ["--params", "[]"], "JSON object"),
        ("source", ["--params", "@/absent"], "absent"),
        ("source", ["--table", "/absent.csv"], "absent"),
        ("source", ["--target-data", "{"], "Expecting"),
        ("source", ["--entrypoint", "main"], "entrypoint"),
    ],
)
def test_a_study_that_cannot_begin(
    bundle: Path, tmp_path: Path, bundle_name: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    place = {".": tmp_path / "empty", "source": bundle}.get(bundle_name, bundle_name)
    done = CliRunner().invoke(app, ["study", *options_of(place, tmp_path / "out"), *arguments], catch_exceptions=False)
    assert done.exit_code == 2 and words in done.stderr, done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()


def test_the_other_commands(bundle: Path, store: Path) -> None:
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "MODELOPS_RUNNER_STORE_DIR": str(store)}

    def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment)

    added = command("modelops", "bundle", "add", str(bundle))
    assert added.returncode == 0 and added.stdout.startswith("probe@sha256:")
    here = CliRunner(env=environment)
    assert here.invoke(app, ["bundle", "list"]).stdout == added.stdout
    doctor = command("modelops", "doctor")
    assert doctor.returncode == 0 and json.loads(doctor.stdout)["healthy"] is True
    assert "study" in here.invoke(app, ["--help"]).stdout


@pytest.mark.parametrize(
    ("command", "variable", "value", "status"),
    [
        ("bundle add", "MODELOPS_STORAGE_DIR", "/proc/absent/storage", 1),
        ("bundle list", "MODELOPS_STORAGE_DIR", "/proc/absent/storage", 1),
        ("doctor", "MODELOPS_STORAGE_DIR", "/proc/absent/storage", 2),
        ("doctor", "MODELOPS_TASK_TIMEOUT_SECONDS", "long", 2),
        ("doctor", "MODELOPS_MAX_WARM_SERVERS", "1.5", 2),
        ("doctor", "MODELOPS_BUNDLE_SOURCE", "absent", 2),
        ("study", "MODELOPS_MAX_WARM_SERVERS", "1.5", 2),
    ],
)
def test_a_setting_that_is_wrong_is_told_in_a_sentence(
    bundle: Path,
    tmp_path: Path,
    command: str,
    variable: str,
    value: str,
    status: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = command.split() + ([str(bundle)] if command == "bundle add" else [])
    words += options_of(bundle, tmp_path / "out") if command == "study" else []
    done = CliRunner(env={variable: value}).invoke(app, words, catch_exceptions=False)
    assert done.exit_code == status and done.stdout == "", done.output
    assert capfd.readouterr().err == ""  # of another process
    assert value.removesuffix("/storage") in done.stderr and "Traceback" not in done.stderr, done.stderr
